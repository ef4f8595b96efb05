"""Audio models in the Hugging Face format: located, checked and loaded, or refused in one line.

Nothing big is downloaded before config and feature extractor have shown that the model can be fed with audio.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from logging import ERROR
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import torch
from huggingface_hub import errors as hub_errors
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig, AutoFeatureExtractor, AutoModel
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.utils import logging

from xares_bench.core.errors import EncoderError
from xares_bench.core.parsing import parse_json

_SUPPORTED = (
    "supported are the audio models that AutoFeatureExtractor and AutoModel take from audio to a last_hidden_state "
    "[B, T, D]"
)
_WHAT_TO_DO = "wrap the model in a class of your own and give its file (examples/ has some to copy from)"
_CONFIG_FILE = "config.json"
_MAX_MESSAGE_CHARACTERS = 200

# Used in training only, and missing from many fine-tuned checkpoints.
_DISPENSABLE_WEIGHTS = ("masked_spec_embed", "pooler.")


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A loaded model.

    Attributes:
        label: What messages call it.
        model_type: The type that its config names, such as `whisper`.
        model: The model, in float32.
        extractor: Its feature extractor, with a `sampling_rate`.
        commit: The commit its files are of, or None for a folder.
    """

    label: str
    model_type: str
    model: Any
    extractor: Any
    commit: str | None

    def refuse(self, problem: str) -> NoReturn:
        """Refuse the model, with its type and the reason.

        Raises:
            EncoderError: Always.
        """
        _refuse(self.label, f"is a {self.model_type} model {problem}; {_SUPPORTED}; {_WHAT_TO_DO}")


def load_hub_model(name: str, revision: str | None, *, trust_remote_code: bool) -> HubModel:
    """Load the model of a folder, or of the hub at a revision (None: its default branch).

    Raises:
        EncoderError: There is no such model or revision, it cannot be reached, it is no audio model, it needs code of
            its own that may not run, or weights are missing.
    """
    label = f"hf:{name}" if revision is None else f"hf:{name}@{revision}"
    config_file, commit = _located(name, revision, label)
    model_type = _model_type(config_file, label, trust_remote_code=trust_remote_code)
    # The commit, not the revision: a branch may move between two files.
    place: dict[str, Any] = {"revision": commit, "trust_remote_code": trust_remote_code}
    config = _loaded(label, "configuration", AutoConfig, name, **place)
    model_class = MODEL_MAPPING.get(type(config), None)
    takes = getattr(model_class, "main_input_name", None)
    if takes is not None and takes not in ("input_values", "input_features"):
        _refuse(label, f"is a {model_type} model, which takes {takes}, not audio; {_SUPPORTED}; {_WHAT_TO_DO}")
    extractor = _loaded(
        label, "feature extractor (preprocessor_config.json)", AutoFeatureExtractor, name, config=config, **place
    )
    if not isinstance(extractor, SequenceFeatureExtractor) or not isinstance(extractor.sampling_rate, int):
        _refuse(
            label,
            f"is a {model_type} model whose {type(extractor).__name__} is no feature extractor for audio; "
            f"{_SUPPORTED}; {_WHAT_TO_DO}",
        )
    with _quiet():
        model, findings = _loaded(
            label, "model", AutoModel, name, config=config, dtype=torch.float32, output_loading_info=True, **place
        )
    missing = sorted(key for key in findings["missing_keys"] if not any(part in key for part in _DISPENSABLE_WEIGHTS))
    if missing:
        _refuse(label, f"lacks {len(missing)} of its weights, such as {missing[0]}; give a complete checkpoint")
    return HubModel(label=label, model_type=model_type, model=model, extractor=extractor, commit=commit)


def _refuse(label: str, problem: str) -> NoReturn:
    raise EncoderError("loads", f"{label} {problem}") from None


def _located(name: str, revision: str | None, label: str) -> tuple[Path, str | None]:
    """Return the model's config file on disk, and its commit (None for a folder)."""
    if Path(name).is_dir():
        file = Path(name) / _CONFIG_FILE
        if not file.is_file():
            _refuse(label, f"has no {_CONFIG_FILE}; give a folder made by save_pretrained or by hf download")
        return file, None
    try:
        file = Path(huggingface_hub.hf_hub_download(name, _CONFIG_FILE, revision=revision))
    except hub_errors.GatedRepoError:
        _refuse(label, "is gated; accept its terms on its page and set HF_TOKEN")
    except hub_errors.RepositoryNotFoundError:
        _refuse(label, "is not on the hub, or is private, and is no folder here; check the spelling, or set HF_TOKEN")
    except hub_errors.RevisionNotFoundError:
        _refuse(label, f"has no revision {revision!r}; name one of its branches, tags or commits")
    except hub_errors.LocalEntryNotFoundError:
        _refuse(
            label,
            "is not in the cache, and the hub is out of reach; go online once (HF_HUB_OFFLINE unset), or give a folder",
        )
    except hub_errors.EntryNotFoundError:
        _refuse(label, f"has no {_CONFIG_FILE}, so it is no model that transformers can load; {_WHAT_TO_DO}")
    except (OSError, ValueError) as error:
        _refuse(label, f"cannot be fetched: {_one_line(error)}; try again, or give a folder")
    # In the hub's cache the folder of a file has the name of its commit.
    return file, file.parent.name


def _model_type(config_file: Path, label: str, *, trust_remote_code: bool) -> str:
    try:
        config = parse_json(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        _refuse(label, f"has a {_CONFIG_FILE} that cannot be read: {_one_line(error)}; fix it or download it again")
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(model_type, str):
        _refuse(label, f"has a {_CONFIG_FILE} without a model_type; {_SUPPORTED}; {_WHAT_TO_DO}")
    if model_type not in CONFIG_MAPPING:
        if "AutoConfig" not in config.get("auto_map", {}):
            _refuse(label, f"is a {model_type!r} model, a type that this transformers does not know; {_WHAT_TO_DO}")
        if not trust_remote_code:
            _refuse(
                label,
                f"is a {model_type!r} model that runs Python code of its own; read that code, and if you trust it, "
                """pass --encoder-args='{"trust_remote_code": true}'""",
            )
    return model_type


def _loaded(label: str, part: str, auto_class: Any, name: str, **arguments: Any) -> Any:
    """Return the result of `auto_class.from_pretrained`."""
    try:
        return auto_class.from_pretrained(name, **arguments)
    except Exception as error:
        # Whatever a library, or a model's own code, raises because of the files.
        raise EncoderError(
            "loads",
            f"{label} gives no {part} that transformers can load: {_one_line(error)}; {_SUPPORTED}; {_WHAT_TO_DO}",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the report of weights that are not needed, such as the head of a recogniser."""
    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _one_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    shown = f"{message[:_MAX_MESSAGE_CHARACTERS]}..." if len(message) > _MAX_MESSAGE_CHARACTERS else message
    return f"{type(error).__name__}: {shown}"
