"""Synthetic sounds with labels and captions. They are made from seeds, in memory: neither side reads files."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xares_bench.datasets.audio import SAMPLE_RATE_HZ
from xares_bench.features.encoding import AudioClip
from xares_bench.training.sampler import Draw

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
# What the decoder learns to generate for white noise: a word repeated without end, because no EOS follows.
ENDLESS = " noise"
_ENDLESS_TOKENS = 24


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

    def recording(self) -> AudioClip:
        """The clip as it comes out of a shard."""
        return AudioClip(key="clip", shard="shard", fields={}, waveform=self.waveform)

    def draw(self) -> Draw:
        """The clip with its first target, as something to learn."""
        return Draw(prompt=self.prompt, target=self.targets[0], clip=self.recording())


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
