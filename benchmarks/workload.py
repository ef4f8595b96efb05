"""What is measured on: synthetic sounds with labels and captions, a decoder, and the sizes of the measurements.

Everything follows from seeds. Sounds lie in memory, so that neither side decodes files.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.real_parts.smollm2 import rebuild_smollm2
from xares_bench.audio import SAMPLE_RATE_HZ
from xares_bench.clips import Recording
from xares_bench.draws import Draw
from xares_bench.encoder_spec import parse_encoder_spec
from xares_bench.encoders import FrozenEncoder, load_encoder

REPOSITORY = Path(__file__).parent.parent

LABELS = ("flute", "violin", "oboe", "trumpet", "double bass", "French horn", "bass clarinet", "glockenspiel")
LABEL_PROMPT = "Which instrument is playing in this recording?"
CAPTION_PROMPT = "Describe what can be heard in this recording."
# Five captions of every clip; the decoder learns to say the first.
CAPTIONS = (
    "A single {} holds one long note while the air hisses softly around it.",
    "One note of a {} is sustained over a quiet and steady background noise.",
    "Somebody plays a {} without any vibrato in a room that is almost silent.",
    "The sound of a {} goes on and on, with a little noise under it.",
    "There is a constant tone, perhaps of a {}, and a faint hiss behind.",
)
# What the decoder learns to say to white noise: the same for ever, since no EOS follows.
ENDLESS = " noise"
_ENDLESS_TOKENS = 24


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Sound:
    """A clip, what is asked about it, and all that would be a right answer.

    Attributes:
        waveform: `[S]`, float32, 16 kHz.
        prompt: The question.
        targets: The answers, a row of the score each.
    """

    waveform: NDArray[np.float32]
    prompt: str
    targets: tuple[str, ...]

    @property
    def duration_s(self) -> float:
        """Seconds of audio."""
        return len(self.waveform) / SAMPLE_RATE_HZ

    def recording(self) -> Recording:
        """The clip as it comes out of a shard."""
        return Recording(key="clip", shard="shard", fields={}, waveform=self.waveform)

    def draw(self) -> Draw:
        """The clip with its first target, as something to learn."""
        return Draw(prompt=self.prompt, target=self.targets[0], clip=self.recording())


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
    """Where rebuilt weights and the LALM that learnt are kept between sessions."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "xares-bench-benchmarks"


def logmel_encoder() -> FrozenEncoder:
    """The example of a hand-made encoder: 12.5 frames a second."""
    return load_frozen(REPOSITORY / "examples" / "logmel_encoder.py")


def load_frozen(file: Path, arguments_json: str | None = None) -> FrozenEncoder:
    """An encoder by its file and its constructor's arguments, on the processor."""
    import torch

    return load_encoder(parse_encoder_spec(str(file), arguments_json), torch.device("cpu"))


def labelled_sounds(num_sounds: int, *, seed: int, durations_s: tuple[float, float] = (1.0, 4.0)) -> list[Sound]:
    """Notes of eight instruments, a label each."""
    return [
        Sound(waveform=waveform, prompt=LABEL_PROMPT, targets=(label,))
        for label, waveform in _notes(num_sounds, seed, durations_s)
    ]


def captioned_sounds(num_sounds: int, *, seed: int) -> list[Sound]:
    """The same notes, five captions each."""
    return [
        Sound(waveform=waveform, prompt=CAPTION_PROMPT, targets=tuple(caption.format(label) for caption in CAPTIONS))
        for label, waveform in _notes(num_sounds, seed, (1.0, 4.0))
    ]


def endless_sounds(num_sounds: int, *, seed: int) -> list[Sound]:
    """White noise, which the decoder has learnt to answer without an end."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(SAMPLE_RATE_HZ, 4 * SAMPLE_RATE_HZ, num_sounds)
    waveforms = [(0.2 * rng.standard_normal(length)).clip(-1, 1).astype(np.float32) for length in lengths]
    target = (ENDLESS * _ENDLESS_TOKENS).strip()
    return [Sound(waveform=waveform, prompt=LABEL_PROMPT, targets=(target,)) for waveform in waveforms]


def with_runaways(sounds: Sequence[Sound], *, share: float, seed: int) -> list[Sound]:
    """Sounds of which some, at random places, give way to endless ones."""
    places = random.Random(seed).sample(range(len(sounds)), max(1, round(share * len(sounds))))
    mixed = list(sounds)
    for place, sound in zip(places, endless_sounds(len(places), seed=seed), strict=True):
        mixed[place] = sound
    return mixed


def _notes(num_notes: int, seed: int, durations_s: tuple[float, float]) -> list[tuple[str, NDArray[np.float32]]]:
    """Labels and waveforms: a pitch and a mixture of overtones for each label, loudness and noise for each note."""
    rng = np.random.default_rng(seed)
    notes = []
    for _ in range(num_notes):
        number = int(rng.integers(len(LABELS)))
        time_s = np.arange(round(rng.uniform(*durations_s) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        pitch_hz = 160 * 1.5**number * rng.uniform(0.97, 1.03)
        overtones = [np.sin(2 * np.pi * pitch_hz * order * time_s) / order ** (1 + number % 3) for order in (1, 2, 3)]
        note = rng.uniform(0.1, 0.4) * np.sum(overtones, axis=0) + 0.01 * rng.standard_normal(len(time_s))
        notes.append((LABELS[number], note.clip(-1, 1).astype(np.float32)))
    return notes
