"""How much is measured, on which decoder, with which encoders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.real_parts.smollm2 import rebuild_smollm2
from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.encoders.loading import FrozenEncoder, load_encoder

REPOSITORY = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured.

    Attributes:
        decoder: Folder of the decoder.
        is_real: Whether that is SmolLM2, whose figures count.
        rounds: Measurements of either side; the median counts.
        num_steps: Optimiser steps of a measurement.
        num_compared_steps: Steps whose losses are compared.
        num_learning_steps: Steps that the evaluated LALM has learnt for.
        num_clips: Clips of an evaluation.
        max_new_tokens: Most tokens of a text.
    """

    decoder: str
    is_real: bool
    rounds: int
    num_steps: int
    num_compared_steps: int
    num_learning_steps: int
    num_clips: int
    max_new_tokens: int


def real_size() -> Size:
    """SmolLM2-135M, from the folder `$XARES_SMOLLM2` or rebuilt into the user's cache.

    Raises:
        FileNotFoundError: The folder is not named and the package with the weights is not installed.
    """
    folder = Path(os.environ.get("XARES_SMOLLM2", user_cache() / "smollm2"))
    rebuild_smollm2(folder)
    return Size(
        decoder=str(folder),
        is_real=True,
        rounds=5,
        num_steps=32,
        num_compared_steps=50,
        num_learning_steps=200,
        num_clips=200,
        max_new_tokens=150,
    )


def small_size(folder: Path) -> Size:
    """The mini preset's decoder with random weights: enough to see that the measurements work.

    Args:
        folder: Where it is written.
    """
    source = REPOSITORY / "fixtures" / "mini-decoder"
    config = AutoConfig.from_pretrained(source)
    config.initializer_range = 0.2  # far enough from zero that different sounds give different texts
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return Size(
        decoder=str(folder),
        is_real=False,
        rounds=1,
        num_steps=3,
        num_compared_steps=3,
        num_learning_steps=3,
        num_clips=12,
        max_new_tokens=12,
    )


def user_cache() -> Path:
    """Return the folder that caches rebuilt weights and the trained LALM between sessions."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "xares-bench-benchmarks"


def logmel_encoder() -> FrozenEncoder:
    """The example of a hand-made encoder: 12.5 frames a second."""
    return load_frozen(REPOSITORY / "examples" / "logmel_encoder.py")


def load_frozen(file: Path, arguments_json: str | None = None) -> FrozenEncoder:
    """An encoder by its file and its constructor's arguments, on the processor."""
    return load_encoder(parse_encoder_spec(str(file), arguments_json), torch.device("cpu"))
