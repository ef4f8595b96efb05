"""The files of the caption judges: found, fetched where they are missing, identified.

FENSE and DATE need three things that are not part of this package:

- the sentence encoder `paraphrase-TinyBERT-L6-v2`, in the sentence-transformers format;
- the fluency detector `echecker_clotho_audiocaps_base.ckpt`, published with FENSE;
- config and tokeniser of the BERT that the detector was made from, `bert-base-uncased`; its weights are not needed.

All three are taken from the folder `$XARES_CAPTION_MODELS` where that is set. Else the two models come from the Hugging
Face cache, and the checkpoint from `$FENSE_DATA` (default `~/.fense_data`), where the packages fense and mecat keep it
too; what is missing is fetched, unless `HF_HUB_OFFLINE` is set. What is there is used as it is, without asking the hub.
"""

from __future__ import annotations

import contextlib
import functools
import os
import textwrap
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from xares_bench.core.digests import file_digest
from xares_bench.core.errors import UsageError
from xares_bench.core.parsing import parse_json

FOLDER_VARIABLE = "XARES_CAPTION_MODELS"
SENTENCE_MODEL = "sentence-transformers/paraphrase-TinyBERT-L6-v2"
CHECKPOINT = "echecker_clotho_audiocaps_base.ckpt"
CHECKPOINT_URL = f"https://github.com/blmoistawinde/fense/releases/download/V0.1/{CHECKPOINT}"
CHECKPOINT_SHA256 = "1a719f090af70614bbdb9f9437530b7e133c48cfa4a58d964de0d47fc974a2fa"

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
_SETTING_FILES = (
    "config.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    *_TOKENIZER_FILES,
)
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 60
_MAX_CAUSE_LENGTH = 300


@dataclass(frozen=True, kw_only=True)
class JudgeFiles:
    """Where the judges lie on this machine.

    Attributes:
        sentence_model: Folder of the sentence encoder, with `modules.json`.
        transformer: The folder in it that holds config, weights and tokeniser.
        max_length: Tokens that a sentence is cut to; None where the folder does not say.
        checkpoint: The fluency detector's file.
        detector_base: Folder with config and tokeniser of the BERT that the detector was made from.
    """

    sentence_model: Path
    transformer: Path
    max_length: int | None
    checkpoint: Path
    detector_base: Path


def locate() -> JudgeFiles:
    """Find the files, after fetching what is missing and may be fetched.

    Raises:
        UsageError: A file is absent, damaged, or not of the kind that is expected.
    """
    given = os.environ.get(FOLDER_VARIABLE)
    fense_data = Path(os.environ.get("FENSE_DATA") or "~/.fense_data").expanduser()
    return _locate(Path(given) if given else None, fense_data)


def identity() -> dict[str, str]:
    """SHA-256 of every file that the judges are made of, by a name that does not depend on where it lies.

    Raises:
        UsageError: As for `locate`.
    """
    return dict(_digests(locate()))


def deviations() -> tuple[str, ...]:
    """How the judges are known to differ from the published ones, a sentence each; only a folder of one's own can.

    Raises:
        UsageError: As for `locate`.
    """
    digest = identity()[CHECKPOINT]
    if digest == CHECKPOINT_SHA256:
        return ()
    return (f"the fluency detector {locate().checkpoint} is not the published one: its SHA-256 is {digest}",)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The fluency detector's file: `model_type` (a model's name), `num_classes` and `state_dict`.

    Nothing in it is executed: it is read as tensors and plain values only.

    Raises:
        UsageError: The file is damaged or holds something else.
    """
    import torch

    with readable("fluency detector", path):
        content = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"model_type", "num_classes", "state_dict"} - set(content)
        if missing:
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        return dict(content)


@contextlib.contextmanager
def readable(what: str, path: Path) -> Iterator[None]:
    """Turn whatever a library says of a broken model within the block into a UsageError of one line."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # Libraries raise all kinds for a broken file; the cause stays attached.
        raise UsageError(
            f"the {what} {path} cannot be used: {_one_line(error)}; expected the model as it was published"
        ) from error


@functools.lru_cache(maxsize=1)
def _locate(given: Path | None, fense_data: Path) -> JudgeFiles:
    sentence_model = _folder(given, SENTENCE_MODEL, "sentence encoder", _missing_of_sentence_model)
    checkpoint = given / CHECKPOINT if given else fense_data / CHECKPOINT
    if given and not checkpoint.is_file():
        raise UsageError(f"FENSE and DATE need the fluency detector: {FOLDER_VARIABLE}={given} holds no {CHECKPOINT}")
    if not given:
        _obtain_checkpoint(checkpoint)
    base = str(read_checkpoint(checkpoint)["model_type"])
    with readable("fluency detector", checkpoint):
        detector_base = _folder(given, base, "fluency detector's config and tokeniser", _missing_of_tokenizer)
    with readable("sentence encoder", sentence_model):
        modules = _module_paths(sentence_model)
        _check_pooling(_read_json(sentence_model / modules["Pooling"] / "config.json"))
        transformer = sentence_model / modules["Transformer"]
        settings = transformer / "sentence_bert_config.json"
        return JudgeFiles(
            sentence_model=sentence_model,
            transformer=transformer,
            max_length=_read_json(settings).get("max_seq_length") if settings.is_file() else None,
            checkpoint=checkpoint,
            detector_base=detector_base,
        )


@functools.lru_cache(maxsize=1)
def _digests(files: JudgeFiles) -> dict[str, str]:
    modules = _module_paths(files.sentence_model)
    weights = next(name for name in _WEIGHT_FILES if (files.transformer / name).is_file())
    sentence_files = [files.sentence_model / "modules.json", files.sentence_model / modules["Pooling"] / "config.json"]
    sentence_files += [files.transformer / name for name in (*_SETTING_FILES, weights)]
    base_files = [files.detector_base / name for name in _SETTING_FILES]
    name, base = SENTENCE_MODEL.rpartition("/")[2], "detector_base"
    return {
        **{
            f"{name}/{path.relative_to(files.sentence_model)}": file_digest(path)
            for path in sentence_files
            if path.is_file()
        },
        **{f"{base}/{path.name}": file_digest(path) for path in base_files if path.is_file()},
        CHECKPOINT: file_digest(files.checkpoint),
    }


def _folder(given: Path | None, repository: str, what: str, missing: Callable[[Path], str]) -> Path:
    """The folder of a model, in the folder given or in the Hugging Face cache, with nothing missing."""
    if given is None:
        return _hub_folder(repository, what, missing)
    folder = given / repository.rpartition("/")[2]
    absent = missing(folder)
    if absent:
        raise UsageError(f"FENSE and DATE need the {what}: {FOLDER_VARIABLE}={given} holds no {folder.name}/{absent}")
    return folder


def _hub_folder(repository: str, what: str, missing: Callable[[Path], str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE, is_offline_mode
    from huggingface_hub.errors import LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError):
        folder = Path(snapshot_download(repository, local_files_only=True, allow_patterns=["config.json"]))
        if not missing(folder):
            return folder
    cause = "HF_HUB_OFFLINE is set"
    if not is_offline_mode():
        try:
            # The second form of the weights only if the repository lacks the first.
            for weights in (f"*{name}" for name in _WEIGHT_FILES):
                folder = Path(snapshot_download(repository, allow_patterns=["*.json", "*.txt", weights]))
                if not missing(folder):
                    return folder
            cause = f"the repository has no {missing(folder)}"
        except Exception as error:  # Whatever the hub's HTTP library raises; the cause stays attached.
            raise UsageError(_absent(repository, what, HF_HUB_CACHE, _one_line(error))) from error
    raise UsageError(_absent(repository, what, HF_HUB_CACHE, cause))


def _absent(repository: str, what: str, cache: str, cause: str) -> str:
    return (
        f"FENSE and DATE need the {what}: {repository} is not in the Hugging Face cache {cache} and cannot be fetched "
        f"({cause}); run `hf download {repository}` where there is a network, or put the models into a folder and set "
        f"{FOLDER_VARIABLE} to it"
    )


def _obtain_checkpoint(path: Path) -> None:
    """Have the published checkpoint at a path, fetched if it is not there."""
    from huggingface_hub.constants import is_offline_mode

    advice = f"fetch {CHECKPOINT_URL} where there is a network and put it there, or set {FOLDER_VARIABLE}"
    if not path.is_file():
        if is_offline_mode():
            raise UsageError(
                f"FENSE and DATE need the fluency detector: there is no {path}, and HF_HUB_OFFLINE is set; {advice}"
            )
        try:
            _download(CHECKPOINT_URL, path)
        except OSError as error:
            raise UsageError(
                f"FENSE and DATE need the fluency detector: there is no {path}, and it cannot be fetched "
                f"({_one_line(error)}); {advice}"
            ) from error
    digest = file_digest(path)
    if digest != CHECKPOINT_SHA256:
        raise UsageError(
            f"the fluency detector {path} is damaged or another: its SHA-256 is {digest}, expected "
            f"{CHECKPOINT_SHA256}; remove it, and it is fetched again"
        )


def _download(url: str, path: Path) -> None:
    """Fetch a file, whole or not at all, once for all processes.

    Raises:
        OSError: It cannot be fetched, breaks off, or cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with FileLock(f"{path}.lock"):
        if path.is_file():
            return
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response, part.open("wb") as file:
            num_bytes = 0
            while chunk := response.read(_CHUNK_BYTES):
                num_bytes += file.write(chunk)
        expected = response.headers["Content-Length"]
        if expected is not None and num_bytes != int(expected):
            raise OSError(f"{url} broke off after {num_bytes} of {expected} bytes")
        part.replace(path)


def _missing_of_sentence_model(folder: Path) -> str:
    """Name of the first file that a sentence encoder lacks, "" if it is whole."""
    if not (folder / "modules.json").is_file():
        return "modules.json"
    with readable("sentence encoder", folder):
        modules = _module_paths(folder)
    transformer = folder / modules["Transformer"]
    if not (folder / modules["Pooling"] / "config.json").is_file():
        return f"{modules['Pooling']}/config.json"
    if not any((transformer / name).is_file() for name in _WEIGHT_FILES):
        return _WEIGHT_FILES[0]
    return _missing_of_tokenizer(transformer)


def _missing_of_tokenizer(folder: Path) -> str:
    if not (folder / "config.json").is_file():
        return "config.json"
    return "" if any((folder / name).is_file() for name in _TOKENIZER_FILES) else _TOKENIZER_FILES[0]


def _module_paths(folder: Path) -> dict[str, str]:
    """Paths inside a sentence encoder's folder by kind of module, of the kinds that a mean over tokens needs.

    Raises:
        ValueError: It has other parts.
    """
    modules = [
        (str(module["type"]).rpartition(".")[2], str(module["path"])) for module in _read_json(folder / "modules.json")
    ]
    if [kind for kind, _ in modules if kind != "Normalize"] != ["Transformer", "Pooling"]:
        raise ValueError(f"modules.json lists {[kind for kind, _ in modules]}, expected ['Transformer', 'Pooling']")
    return dict(modules)


def _check_pooling(config: dict[str, Any]) -> None:
    """Refuse every way from token outputs to a sentence but their mean.

    Raises:
        ValueError: It is another one.
    """
    # Newer files name the mode, older ones have a switch per mode.
    modes = [
        name.removeprefix("pooling_mode_") for name, on in config.items() if name.startswith("pooling_mode_") and on
    ]
    mode = config.get("pooling_mode", modes)
    if mode not in ("mean", ["mean"], ["mean_tokens"]):
        raise ValueError(f"1_Pooling says {mode}, expected the mean over tokens")


def _read_json(path: Path) -> Any:
    return parse_json(path.read_text(encoding="utf-8"))


def _one_line(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", _MAX_CAUSE_LENGTH, placeholder=" ...")
