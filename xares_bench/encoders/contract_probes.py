"""Probes of the contract check: clips to encode, comparisons of their features, and how much of a long clip is heard.

Shapes: B clips, S samples, N samples of one clip, T frames, D = output_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xares_bench.encoders.identity import rounding_tolerance
from xares_bench.encoders.loading import FrozenEncoder

SAMPLE_RATE_HZ = 16_000

# Longer than two windows of 30 s, and than any clip of a batch of two minutes that clips share
# (`features/encoding.py`). Like the clip of 0.7 s, a multiple of no usual hop, window or patch.
NUM_LONGEST = 61 * SAMPLE_RATE_HZ + 333

# What rounding may change in the features of a clip whose end was never looked at.
_UNHEARD = 1e-4

# Wide bounds: a log-mel spectrogram has 100 frames per second, and an RMS of about 50 dB; a layer norm gives 1.
_MIN_FRAMES_PER_SECOND, _MAX_FRAMES_PER_SECOND = 1, 200
_MIN_RMS, _MAX_RMS = 0.01, 100

Encode = Callable[[Tensor], Tensor]
"""Encodes one clip `[N]` alone; returns its frames `[T, D]`."""


def probe_clip(num_samples: int, seed: int) -> Tensor:
    """Float32 `[N]` of noise between 100 Hz and 6 kHz with three tones, a little off zero, peak 0.9.

    It is the same for the same seed.
    """
    generator = np.random.default_rng(seed)
    frequencies_hz = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ)
    spectrum = np.fft.rfft(generator.standard_normal(num_samples))
    audio = np.fft.irfft(spectrum * ((frequencies_hz > 100) & (frequencies_hz < 6000)), num_samples)
    audio /= np.abs(audio).max()
    time_s = np.arange(num_samples) / SAMPLE_RATE_HZ
    for tone_hz in generator.uniform(150, 4000, size=3):
        audio += 0.5 * np.sin(2 * np.pi * tone_hz * time_s)
    audio += 0.05
    return torch.from_numpy((0.9 * audio / np.abs(audio).max()).astype(np.float32))


def long_probe_clip(num_samples: int, seed: int) -> Tensor:
    """Float32 `[N]`: a probe clip of 3 s, repeated."""
    period_N = probe_clip(3 * SAMPLE_RATE_HZ, seed)
    return period_N.repeat(-(-num_samples // len(period_N)))[:num_samples]


def shuffled(clip_N: Tensor, start: int, end: int) -> Tensor:
    """Return the clip with the samples from `start` to `end` in another order.

    Mean, variance and peak of the clip stay, so an encoder that normalises by them notices nothing.
    """
    order = torch.randperm(end - start, generator=torch.Generator().manual_seed(0))
    return torch.cat([clip_N[:start], clip_N[start:end][order], clip_N[end:]])


def shuffled_middle(clip_N: Tensor) -> Tensor:
    """Return the clip with the samples of the second in its middle in another order."""
    start = (len(clip_N) - SAMPLE_RATE_HZ) // 2
    return shuffled(clip_N, start, start + SAMPLE_RATE_HZ)


def padded_batch(clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return clips `[N]` as audio `[B, S]`, padded with zeros, and mask `[B, S]`, 1 for audio."""
    masks = [torch.ones(len(clip_N), dtype=torch.long) for clip_N in clips]
    return pad_sequence(list(clips), batch_first=True), pad_sequence(masks, batch_first=True)


def difference(encoder: FrozenEncoder, found_TD: Tensor, expected_TD: Tensor) -> str | None:
    """How two features `[T, D]` of one clip differ beyond rounding, in words; None if they do not."""
    if found_TD.shape != expected_TD.shape:
        return f"{len(found_TD)} frames instead of {len(expected_TD)}"
    relative = _relative_difference(found_TD, expected_TD)
    if relative <= rounding_tolerance(encoder, expected_TD):
        return None
    return f"features that differ by {relative:.2g} of their RMS"


def padding_finding(
    encoder: FrozenEncoder, longest: str, frames: Sequence[Tensor], expected: Mapping[str, Tensor]
) -> str:
    """How the first clip that padding changes differs from the clip alone, or nothing.

    Args:
        encoder: The encoder.
        longest: What a message calls the longest clip of the batch.
        frames: Frames `[T, D]` of padded clips.
        expected: Frames of the same clips alone, by what a message calls them.
    """
    for found_TD, (label, expected_TD) in zip(frames, expected.items(), strict=True):
        found = difference(encoder, found_TD, expected_TD)
        if found is not None:
            return f"a {label} clip padded to {longest} has {found} compared with the clip alone"
    return ""


def unheard(encode: Encode, clip_N: Tensor, frames_TD: Tensor, middle_TD: Tensor | None) -> str:
    """What of the longest clip does not change its features, or nothing.

    Args:
        encode: Encodes one clip.
        clip_N: The longest clip.
        frames_TD: Its frames.
        middle_TD: The frames of `shuffled_middle`, if known.
    """
    if not _is_heard(encode(shuffled(clip_N, len(clip_N) - SAMPLE_RATE_HZ, len(clip_N))), frames_TD):
        seconds = _heard_s(encode, clip_N, frames_TD)
        return f"nothing after {seconds} s of a 61 s clip changes its features ({len(frames_TD)} frames)"
    if middle_TD is None:
        middle_TD = encode(shuffled_middle(clip_N))
    return "" if _is_heard(middle_TD, frames_TD) else "the middle of a 61 s clip does not change its features"


def implausible_rate(num_frames: Mapping[int, int]) -> str:
    """What is wrong with the numbers of frames of clips of so many seconds, or nothing."""
    for duration_s, num in num_frames.items():
        rate = num / duration_s
        found = f"a {duration_s} s clip has {num} frames, {rate:.3g} per second"
        if rate < _MIN_FRAMES_PER_SECOND:
            return f"{found}; they hardly tell when something happens: return a frame for every moment"
        if rate > _MAX_FRAMES_PER_SECOND:
            return f"{found}; each is a position of the decoder: drop frames after the clip's end, or join neighbours"
    return ""


def implausible_scale(frames_TD: Tensor) -> str:
    """What is wrong with the scale of features, or nothing."""
    scale = _rms(frames_TD)
    if _MIN_RMS <= scale <= _MAX_RMS:
        return ""
    return f"the features have an RMS of {scale:.3g}; the projector expects about 1: scale or normalise them"


def _is_heard(changed_TD: Tensor, frames_TD: Tensor) -> bool:
    """Whether a change of a clip, whose frames were `[T, D]` before, changed its features."""
    return changed_TD.shape != frames_TD.shape or _relative_difference(changed_TD, frames_TD) > _UNHEARD


def _heard_s(encode: Encode, clip_N: Tensor, frames_TD: Tensor) -> int:
    """After how many seconds nothing changes the features, rounded up, for a clip whose last second is not heard."""
    heard, deaf = -1, len(clip_N) // SAMPLE_RATE_HZ - 1
    while deaf - heard > 1:
        second = (heard + deaf) // 2
        changed_N = shuffled(clip_N, second * SAMPLE_RATE_HZ, len(clip_N))
        if _is_heard(encode(changed_N), frames_TD):
            heard = second
        else:
            deaf = second
    return deaf


def _rms(features_TD: Tensor) -> float:
    """Root of the mean square of all values."""
    return float(_exact(features_TD).square().mean().sqrt())


def _exact(features_TD: Tensor) -> Tensor:
    """Features in float64, on the CPU: Apple's GPUs have none."""
    return features_TD.cpu().double()


def _relative_difference(found_TD: Tensor, expected_TD: Tensor) -> float:
    """RMS of the difference over the RMS of what was expected."""
    error, scale = _rms(_exact(found_TD) - _exact(expected_TD)), _rms(expected_TD)
    if error == 0:
        return 0.0
    return error / scale if scale else float("inf")
