"""Features: what the frozen encoder makes of every clip, computed once and kept.

Because the encoder never changes, a clip's features are data. They are filed per encoder and shard, so that training,
evaluation, other mixes and other recipes all read the same ones.

Shapes: N frames of all clips of a chunk, D `output_dim`.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from xares_bench.audio import SAMPLE_RATE_HZ, crop, decode
from xares_bench.digests import code_digest, digest_of, library_versions
from xares_bench.encoders import FrozenEncoder
from xares_bench.records import DroppedSample
from xares_bench.shards import Sample, Shard, read_samples
from xares_bench.store import Entry, Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CLIPS_FILE = "clips.jsonl"

# Clips that are decoded, sorted by length and encoded together; bounds the memory that a shard needs.
_CHUNK_CLIPS = 256
# Samples of audio in one call of the encoder, padding included (2 minutes), and rows.
_BATCH_SAMPLES = 120 * SAMPLE_RATE_HZ
_BATCH_CLIPS = 32


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One usable clip: its features (on disk) and its JSON fields.

    Attributes:
        key: Name of the sample in its shard.
        shard: Name of the shard.
        duration_s: Seconds of audio that were encoded.
        num_frames: Feature frames.
        fields: The sample's JSON object.
        file: The safetensors file that holds the frames of the clip's chunk.
        start: First frame of the clip in that file.
    """

    key: str
    shard: str
    duration_s: float
    num_frames: int
    fields: Mapping[str, Any]
    file: Path
    start: int

    def frames(self) -> torch.Tensor:
        """The clip's features, `[num_frames, output_dim]`, in the encoder's dtype."""
        frames: torch.Tensor = _open_frames(self.file)[self.start : self.start + self.num_frames]
        return frames


@dataclass(frozen=True, kw_only=True)
class ShardFeatures:
    """The clips of one shard, and what had to be left out.

    Attributes:
        clips: In the order of the shard.
        dropped: Samples without usable audio or JSON, with the reason.
        seconds: Wall time of making them, when they were made.
        reused: Whether they were there already.
    """

    clips: tuple[Clip, ...]
    dropped: tuple[DroppedSample, ...]
    seconds: float
    reused: bool


class FeatureStore:
    """Makes and keeps the features of one encoder."""

    def __init__(self, store: Store, encoder: FrozenEncoder, *, honours_mask: bool) -> None:
        """Keep what the features depend on.

        Args:
            store: Where they are kept.
            encoder: Makes them.
            honours_mask: Whether clips of different lengths may be padded and encoded together. If not, only clips
                of equal length share a batch.
        """
        self._store = store
        self._encoder = encoder
        self._honours_mask = honours_mask

    def key(self, shard: Shard, max_audio_s: float | None, max_clips: int | None) -> str:
        """Digest of all that the features of a shard depend on."""
        return digest_of(
            {
                "encoder": self._encoder.fingerprint,
                "device": self._encoder.device.type,
                "padded": self._honours_mask,
                "shard": shard.digest,
                "max_audio_s": max_audio_s,
                "max_clips": max_clips,
                "code": code_digest(
                    "xares_bench.features", "xares_bench.encoders", "xares_bench.audio", "xares_bench.shards"
                ),
                "libraries": library_versions(("numpy", "soundfile", "soxr", "torch")),
            }
        )

    def obtain(
        self, shard: Shard, *, max_audio_s: float | None = None, max_clips: int | None = None, num_workers: int = 0
    ) -> ShardFeatures:
        """The features of a shard's clips.

        Args:
            shard: The shard.
            max_audio_s: Longer clips are cropped to a random window of this many seconds; None: never.
            max_clips: Only the first so many samples; None: all.
            num_workers: Threads that decode; 0: one per processor.

        Raises:
            DataError: The shard is damaged.
            EncoderError: The encoder does not keep its contract on one of the clips, which is named.
        """
        key = self.key(shard, max_audio_s, max_clips)

        def make(folder: Path) -> dict[str, Any]:
            return self._make(folder, shard, max_audio_s, max_clips, num_workers or os.cpu_count() or 1)

        return _read_entry(self._store.obtain("features", key, make), shard)

    def _make(
        self, folder: Path, shard: Shard, max_audio_s: float | None, max_clips: int | None, num_workers: int
    ) -> dict[str, Any]:
        import time

        started = time.perf_counter()
        dropped: list[dict[str, str]] = []
        lines: list[str] = []
        samples = itertools.islice(read_samples(shard), max_clips)
        with ThreadPoolExecutor(num_workers) as pool, torch.random.fork_rng():
            # An encoder that draws random numbers draws the same ones for the same shard.
            torch.manual_seed(int(shard.digest[:8], 16))
            for number, chunk in enumerate(_chunks(samples, _CHUNK_CLIPS)):
                decoded = pool.map(functools.partial(_decode, max_audio_s=max_audio_s), chunk)
                clips = []
                for sample, waveform in zip(chunk, decoded, strict=True):
                    if isinstance(waveform, str):
                        dropped.append({"clip": sample.key, "reason": waveform})
                    else:
                        clips.append((sample, waveform))
                if clips:
                    frames = self._encode(
                        [waveform for _, waveform in clips], shard, [sample.key for sample, _ in clips]
                    )
                    file = f"{number:05d}.safetensors"
                    save_file({"frames": torch.cat(frames).contiguous()}, folder / file)
                    lines.extend(_describe(clips, frames, file))
        (folder / CLIPS_FILE).write_text("".join(lines), encoding="utf-8")
        return {"shard": shard.name, "dropped": dropped, "seconds": time.perf_counter() - started}

    def _encode(
        self, waveforms: Sequence[NDArray[np.float32]], shard: Shard, keys: Sequence[str]
    ) -> list[torch.Tensor]:
        """Features of every waveform, `[T, D]` each, without the frames that the encoder masks out."""
        from xares_bench.errors import EncoderError

        frames: list[torch.Tensor | None] = [None] * len(waveforms)
        for batch in self._batches(waveforms):
            lengths = [len(waveforms[index]) for index in batch]
            audio_BS = torch.zeros(len(batch), max(lengths))
            for row, index in enumerate(batch):
                audio_BS[row, : lengths[row]] = torch.from_numpy(waveforms[index])
            padded = min(lengths) < max(lengths)
            mask_BS = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None] if padded else None
            try:
                features_BTD, mask_BT = self._encoder(
                    audio_BS.to(self._encoder.device),
                    None if mask_BS is None else mask_BS.long().to(self._encoder.device),
                )
            except EncoderError as cause:
                names = ", ".join(keys[index] for index in batch[:3]) + (", ..." if len(batch) > 3 else "")
                raise EncoderError(cause.clause, f"{cause} (on {names} of {shard.name})") from cause
            for row, index in enumerate(batch):
                features_TD = features_BTD[row] if mask_BT is None else features_BTD[row][mask_BT[row].bool()]
                frames[index] = features_TD.cpu().clone()
        return [features for features in frames if features is not None]

    def _batches(self, waveforms: Sequence[NDArray[np.float32]]) -> Iterator[list[int]]:
        """Indices of clips to encode together: of equal length, or of like length where padding is harmless."""
        order = sorted(range(len(waveforms)), key=lambda index: (-len(waveforms[index]), index))
        batch: list[int] = []
        for index in order:
            longest = len(waveforms[batch[0]]) if batch else 0
            fits = len(batch) < _BATCH_CLIPS and (len(batch) + 1) * longest <= _BATCH_SAMPLES
            if batch and not (fits and (self._honours_mask or len(waveforms[index]) == longest)):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


def _read_entry(entry: Entry, shard: Shard) -> ShardFeatures:
    lines = (entry.folder / CLIPS_FILE).read_text(encoding="utf-8").splitlines()
    clips = []
    for line in lines:
        values = json.loads(line)
        clips.append(Clip(**{**values, "shard": shard.name, "file": entry.folder / values["file"]}))
    return ShardFeatures(
        clips=tuple(clips),
        dropped=tuple(DroppedSample(shard=shard.name, **sample) for sample in entry.manifest["dropped"]),
        seconds=entry.manifest["seconds"],
        reused=entry.reused,
    )


def _describe(
    clips: Iterable[tuple[Sample, NDArray[np.float32]]], frames: Iterable[torch.Tensor], file: str
) -> Iterator[str]:
    """One line of JSON a clip, with the place of its frames in the chunk's file."""
    start = 0
    for (sample, waveform), features_TD in zip(clips, frames, strict=True):
        line = {
            "key": sample.key,
            "duration_s": len(waveform) / SAMPLE_RATE_HZ,
            "num_frames": len(features_TD),
            "fields": sample.fields,
            "file": file,
            "start": start,
        }
        yield json.dumps(line) + "\n"
        start += len(features_TD)


def _decode(sample: Sample, max_audio_s: float | None) -> NDArray[np.float32] | str:
    """The waveform of a sample, or what is wrong with it."""
    if sample.audio is None:
        return sample.problem or "no audio"
    try:
        waveform = decode(sample.audio)
    except ValueError as cause:
        return str(cause)
    return waveform if max_audio_s is None else crop(waveform, max_audio_s, sample.key)


def _chunks(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    while chunk := list(itertools.islice(samples, size)):
        yield chunk


@functools.lru_cache(maxsize=256)
def _open_frames(file: Path) -> Any:
    """The frames of a chunk, memory-mapped: slicing it reads the slice alone."""
    opened: Any = safe_open(file, framework="pt")
    return opened.get_slice("frames")
