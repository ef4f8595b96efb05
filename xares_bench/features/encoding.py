"""Encoding: audio of clips in, features out, in batches that do not change any clip's features.

Shapes: B clips, S samples at 16 kHz, T frames, D `output_dim`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from xares_bench.core.digests import digest_of
from xares_bench.core.errors import EncoderError, UsageError
from xares_bench.datasets.audio import SAMPLE_RATE_HZ, SMALL_EXCESS_SAMPLES, crop
from xares_bench.datasets.shards import Sample, read_audio_of
from xares_bench.encoders.loading import FrozenEncoder
from xares_bench.runtime.determinism import deterministic_algorithms, seeded
from xares_bench.runtime.memory import split_on_out_of_memory
from xares_bench.scores.records import DroppedSample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from xares_bench.datasets.corruptions import Corruption

# The largest batch: samples of audio, padding included (2 minutes), and clips. Fixed, not fitted to the memory at hand:
# the batches that clips share are the same on every machine. `split_on_out_of_memory` splits those that are too large.
_BATCH_SAMPLES = 120 * SAMPLE_RATE_HZ
_BATCH_CLIPS = 32


@dataclass(frozen=True, kw_only=True)
class StoredFrames:
    """Frames on disk: `num_frames` frames, from index `start`, of the tensor `frames` in a safetensors file."""

    file: Path
    start: int
    num_frames: int

    def read(self) -> torch.Tensor:
        """The frames, `[T, D]`; the rest of the file is not read."""
        # Reopened for every clip (some 60 microseconds): an open file stays mapped, and counts as memory.
        with safe_open(self.file, framework="pt") as opened:
            frames: torch.Tensor = opened.get_slice("frames")[self.start : self.start + self.num_frames]
        return frames


@dataclass(frozen=True, kw_only=True)
class PooledFrames:
    """Means of `pool` neighbouring frames each; the last may be of fewer."""

    source: torch.Tensor | StoredFrames | PooledFrames
    pool: int

    def read(self) -> torch.Tensor:
        """The means, `[ceil(T / pool), D]`, in the dtype of the frames."""
        frames_TD = self.source if isinstance(self.source, torch.Tensor) else self.source.read()
        num_whole = len(frames_TD) // self.pool * self.pool
        means_TD = frames_TD[:num_whole].float().reshape(-1, self.pool, frames_TD.shape[1]).mean(dim=1)
        if num_whole < len(frames_TD):
            means_TD = torch.cat([means_TD, frames_TD[num_whole:].float().mean(dim=0, keepdim=True)])
        return means_TD.to(frames_TD.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """One encoded clip: its features, in memory or on disk, and its JSON fields.

    Attributes:
        key: Name of the sample in its shard.
        shard: Name of the shard.
        duration_s: Seconds of audio that were encoded.
        num_frames: Feature frames.
        fields: The sample's JSON object.
        features: The frames, or their place on disk.
    """

    key: str
    shard: str
    duration_s: float
    num_frames: int
    fields: Mapping[str, Any]
    features: torch.Tensor | StoredFrames | PooledFrames

    def frames(self) -> torch.Tensor:
        """The clip's features, `[num_frames, output_dim]`, in the encoder's dtype."""
        return self.features if isinstance(self.features, torch.Tensor) else self.features.read()

    def pooled(self, pool: int) -> Clip:
        """The clip with `pool` neighbouring frames averaged to one; nothing is read or computed yet."""
        if pool == 1:
            return self
        return replace(
            self, num_frames=math.ceil(self.num_frames / pool), features=PooledFrames(source=self.features, pool=pool)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class AudioClip:
    """One clip whose audio was read but not yet encoded.

    Attributes:
        key: Name of the sample in its shard.
        shard: Name of the shard.
        fields: The sample's JSON object.
        waveform: `[S]`, float32.
        is_window: Whether it is one of many windows of a longer clip, so that another seed gives another one.
    """

    key: str
    shard: str
    fields: Mapping[str, Any]
    waveform: NDArray[np.float32]
    is_window: bool = False

    @property
    def duration_s(self) -> float:
        """Seconds of audio."""
        return len(self.waveform) / SAMPLE_RATE_HZ


@dataclass(frozen=True, kw_only=True)
class ClipEncoder:
    """Encodes clips in batches.

    Attributes:
        encoder: Computes the features.
        honours_mask: Whether clips of different lengths may be padded and encoded together. If not, only clips of equal
            length share a batch.
        half_precision: Whether features are cast to float16.
        min_samples: Samples of the shortest clip that the encoder takes.
    """

    encoder: FrozenEncoder
    honours_mask: bool
    half_precision: bool = False
    min_samples: int = 1

    def encode(self, audio_clips: Sequence[AudioClip], seed: str) -> list[Clip]:
        """Encode clips; the result is in the order given, with features in memory.

        Args:
            audio_clips: Any number of clips.
            seed: An encoder that draws random numbers draws the same ones for the same seed.

        Raises:
            EncoderError: The encoder breaks its contract on one of the clips, which is named.
            OutOfMemory: There is too little memory to encode even a single clip.
        """
        clips: list[Clip | None] = [None] * len(audio_clips)
        # Not required: an operation without a deterministic algorithm is no reason to refuse a user's encoder.
        algorithms = deterministic_algorithms(wanted=True, required=False)
        with seeded(int(digest_of(seed)[:15], 16), self.encoder.device), algorithms:
            for batch in self._batches(audio_clips):
                encoded = split_on_out_of_memory(self._encode, [audio_clips[i] for i in batch], "encoding")
                for index, features_TD in zip(batch, encoded, strict=True):
                    audio = audio_clips[index]
                    clips[index] = Clip(
                        key=audio.key,
                        shard=audio.shard,
                        duration_s=audio.duration_s,
                        num_frames=len(features_TD),
                        fields=audio.fields,
                        features=features_TD,
                    )
        return [clip for clip in clips if clip is not None]

    def _encode(self, batch: Sequence[AudioClip]) -> list[torch.Tensor]:
        """The features of every clip of a batch, `[T, D]` each, without the frames that the encoder masks out."""
        lengths = [len(audio.waveform) for audio in batch]
        audio_BS = torch.zeros(len(batch), max(lengths))
        for row, audio in enumerate(batch):
            audio_BS[row, : lengths[row]] = torch.from_numpy(audio.waveform)
        padded = min(lengths) < max(lengths)
        mask_BS = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None] if padded else None
        try:
            features_BTD, mask_BT = self.encoder(audio_BS, mask_BS)
        except EncoderError as cause:
            names = ", ".join(f"{audio.key} of {audio.shard}" for audio in batch[:3])
            more = ", ..." if len(batch) > 3 else ""
            raise EncoderError(cause.clause, f"{cause} (on {names}{more})") from cause
        features = [
            (features_BTD[row] if mask_BT is None else features_BTD[row][mask_BT[row].bool()]).cpu().clone()
            for row in range(len(batch))
        ]
        return list(map(_halved, batch, features)) if self.half_precision else features

    def _batches(self, audio_clips: Sequence[AudioClip]) -> Iterator[list[int]]:
        """Indices of clips to encode together: of equal length, or of similar length where padding is harmless."""
        lengths = [len(audio.waveform) for audio in audio_clips]
        order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
        batch: list[int] = []
        for index in order:
            longest = lengths[batch[0]] if batch else 0
            fits = len(batch) < _BATCH_CLIPS and (len(batch) + 1) * longest <= _BATCH_SAMPLES
            if batch and not (fits and (self.honours_mask or lengths[index] == longest)):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


def _halved(audio: AudioClip, features_TD: torch.Tensor) -> torch.Tensor:
    """The features of a clip in float16.

    Raises:
        UsageError: A value is too large for float16.
    """
    halved_TD = features_TD.half()
    if not torch.isfinite(halved_TD).all():
        raise UsageError(
            f"feature_dtype=float16: the features of {audio.key} of {audio.shard} reach "
            f"{float(features_TD.abs().max()):g}, float16 ends at 65504; leave feature_dtype=encoder"
        )
    return halved_TD


def read_clip(
    sample: Sample,
    shard: str,
    max_audio_s: float | None,
    seed: str,
    min_samples: int = 1,
    corruption: Corruption | None = None,
) -> AudioClip | DroppedSample:
    """Read the audio of a sample; a `DroppedSample` says why it is unusable.

    Args:
        sample: A sample of the shard.
        shard: Name of the shard.
        max_audio_s: Longer audio is cropped to a window of this many seconds; None: never.
        seed: Decides where the window lies, if that is more than a frame's choice (`crop`).
        min_samples: Audio of fewer samples is too short for the encoder.
        corruption: Applied to the waveform, before its length is looked at; None: none is.

    Raises:
        OutOfMemory: There is too little memory to read it.
    """
    if sample.audio is None:
        return DroppedSample(shard=shard, clip=sample.key, reason=sample.problem or "no audio")
    try:
        waveform = read_audio_of(sample, shard)
    except ValueError as cause:
        return DroppedSample(shard=shard, clip=sample.key, reason=str(cause))
    num_samples = len(waveform)
    if max_audio_s is not None:
        waveform = crop(waveform, max_audio_s, seed)
    is_window = num_samples - len(waveform) > SMALL_EXCESS_SAMPLES
    if corruption is not None:
        waveform = corruption.apply(waveform)
    if len(waveform) < min_samples:
        found_ms, least_ms = (1000 * length / SAMPLE_RATE_HZ for length in (len(waveform), min_samples))
        reason = f"audio of {found_ms:.4g} ms; the encoder takes clips of {least_ms:.4g} ms and more"
        return DroppedSample(shard=shard, clip=sample.key, reason=reason)
    return AudioClip(key=sample.key, shard=shard, fields=sample.fields, waveform=waveform, is_window=is_window)
