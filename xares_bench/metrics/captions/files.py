"""The files of the caption judges: where they are, how missing ones are downloaded, and their hashes.

FENSE and DATE need three downloads:

- the sentence encoder `paraphrase-TinyBERT-L6-v2`, in the sentence-transformers format;
- the fluency detector `echecker_clotho_audiocaps_base.ckpt`, published with FENSE;
- config and tokeniser of the BERT that the detector is based on, `bert-base-uncased`; its weights are not needed.

If `$XARES_CAPTION_MODELS` is set, all three are read from that folder. Otherwise the sentence encoder and the BERT come
from the Hugging Face cache, and the checkpoint from `$FENSE_DATA` (default `~/.fense_data`), where the packages fense
and mecat store it too; missing files are downloaded unless `HF_HUB_OFFLINE` is set. Files that are there are used
without asking the hub.
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
from xares_bench.core.locks import acquire
from xares_bench.core.parsing import local_path, parse_json

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
    """Paths of the judges on this machine.

    Attributes:
        sentence_model: Folder of the sentence encoder, with `modules.json`.
        transformer: The folder inside it with config, weights and tokeniser.
        max_length: Tokens to truncate a sentence to; None if the folder does not specify it.
        checkpoint: File of the fluency detector.
        detector_base: Folder with config and tokeniser of the BERT that the detector is based on.
    """

    sentence_model: Path
    transformer: Path
    max_length: int | None
    checkpoint: Path
    detector_base: Path


def locate() -> JudgeFiles:
    """Locate the files; download missing ones where that is allowed.

    Raises:
        UsageError: A file is missing, damaged or not of the expected kind.
    """
    given = os.environ.get(FOLDER_VARIABLE)
    fense_data = local_path(os.environ.get("FENSE_DATA") or "~/.fense_data")
    return _locate(local_path(given) if given else None, fense_data)


def identity() -> dict[str, str]:
    """Return the SHA-256 of each file of the judges, by a name that does not depend on its folder.

    Raises:
        UsageError: As for `locate`.
    """
    return dict(_digests(locate()))


def deviations() -> tuple[str, ...]:
    """Return how the judges differ from the published ones, one sentence each; only `$XARES_CAPTION_MODELS` can differ.

    Raises:
        UsageError: As for `locate`.
    """
    digest = identity()[CHECKPOINT]
    if digest == CHECKPOINT_SHA256:
        return ()
    return (f"the fluency detector {locate().checkpoint} is not the published one: its SHA-256 is {digest}",)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the fluency detector's `model_type` (name of its BERT), `num_classes` and `state_dict`.

    Nothing in the file is executed: only tensors and plain values are read.

    Raises:
        UsageError: The file is damaged or has other content.
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
    """Turn any error that a library raises for a broken model inside the block into a UsageError of one line."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # Libraries raise errors of any type for a broken file.
        raise UsageError(f"the {what} {path} is unusable: {_one_line(error)}; expected the published model") from error


@functools.lru_cache(maxsize=1)
def _locate(given: Path | None, fense_data: Path) -> JudgeFiles:
    sentence_model = _folder(given, SENTENCE_MODEL, "sentence encoder", _missing_of_sentence_model)
    checkpoint = given / CHECKPOINT if given else fense_data / CHECKPOINT
    if given and not checkpoint.is_file():
        raise UsageError(f"FENSE and DATE need the fluency detector: {FOLDER_VARIABLE}={given} has no {CHECKPOINT}")
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
    """A model's complete folder, in the given folder or in the Hugging Face cache."""
    if given is None:
        return _hub_folder(repository, what, missing)
    folder = given / repository.rpartition("/")[2]
    absent = missing(folder)
    if absent:
        raise UsageError(f"FENSE and DATE need the {what}: {FOLDER_VARIABLE}={given} has no {folder.name}/{absent}")
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
            # Older weights only if the repository has no safetensors.
            for weights in (f"*{name}" for name in _WEIGHT_FILES):
                folder = Path(snapshot_download(repository, allow_patterns=["*.json", "*.txt", weights]))
                if not missing(folder):
                    return folder
            cause = f"the repository has no {missing(folder)}"
        except Exception as error:  # The hub's HTTP library raises errors of any type.
            raise UsageError(_absent(repository, what, HF_HUB_CACHE, _one_line(error))) from error
    raise UsageError(_absent(repository, what, HF_HUB_CACHE, cause))


def _absent(repository: str, what: str, cache: str, cause: str) -> str:
    return (
        f"FENSE and DATE need the {what}: {repository} is not in the Hugging Face cache {cache} and cannot be "
        f"downloaded ({cause}); run `hf download {repository}` on a machine with network access, or put the models "
        f"into a folder and set {FOLDER_VARIABLE} to it"
    )


def _obtain_checkpoint(path: Path) -> None:
    """Download the published checkpoint to a path unless it is there; check its SHA-256."""
    from huggingface_hub.constants import is_offline_mode

    advice = f"download {CHECKPOINT_URL} on a machine with network access and copy it there, or set {FOLDER_VARIABLE}"
    if not path.is_file():
        if is_offline_mode():
            raise UsageError(
                f"FENSE and DATE need the fluency detector: {path} is missing and HF_HUB_OFFLINE is set; {advice}"
            )
        try:
            _download(CHECKPOINT_URL, path)
        except OSError as error:
            raise UsageError(
                f"FENSE and DATE need the fluency detector: {path} is missing and cannot be downloaded "
                f"({_one_line(error)}); {advice}"
            ) from error
    digest = file_digest(path)
    if digest != CHECKPOINT_SHA256:
        raise UsageError(
            f"the fluency detector {path} is damaged or a different file: its SHA-256 is {digest}, expected "
            f"{CHECKPOINT_SHA256}; delete it to download it again"
        )


def _download(url: str, path: Path) -> None:
    """Download a file atomically, once for all processes.

    Raises:
        OSError: The download fails or is incomplete, or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with acquire(FileLock(f"{path}.lock"), f"downloads {path.name}"):
        if path.is_file():
            return
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response, part.open("wb") as file:
            num_bytes = 0
            while chunk := response.read(_CHUNK_BYTES):
                num_bytes += file.write(chunk)
        expected = response.headers["Content-Length"]
        if expected is not None and num_bytes != int(expected):
            raise OSError(f"the download of {url} ended after {num_bytes} of {expected} bytes")
        part.replace(path)


def _missing_of_sentence_model(folder: Path) -> str:
    """Name of the first file that a sentence encoder's folder lacks, "" if it is complete."""
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
    """Paths of the modules Transformer and Pooling inside a sentence encoder's folder, by kind.

    Raises:
        ValueError: It has other modules.
    """
    modules = [
        (str(module["type"]).rpartition(".")[2], str(module["path"])) for module in _read_json(folder / "modules.json")
    ]
    if [kind for kind, _ in modules if kind != "Normalize"] != ["Transformer", "Pooling"]:
        raise ValueError(f"modules.json lists {[kind for kind, _ in modules]}, expected ['Transformer', 'Pooling']")
    return dict(modules)


def _check_pooling(config: dict[str, Any]) -> None:
    """Check that sentence embeddings are means over token outputs.

    Raises:
        ValueError: The config names another pooling mode.
    """
    # Newer configs name the mode, older ones have a flag per mode.
    modes = [
        name.removeprefix("pooling_mode_") for name, on in config.items() if name.startswith("pooling_mode_") and on
    ]
    mode = config.get("pooling_mode", modes)
    if mode not in ("mean", ["mean"], ["mean_tokens"]):
        raise ValueError(f"the pooling mode is {mode}, expected the mean over tokens")


def _read_json(path: Path) -> Any:
    return parse_json(path.read_text(encoding="utf-8"))


def _one_line(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", _MAX_CAUSE_LENGTH, placeholder=" ...")
