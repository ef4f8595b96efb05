"""Features: what the frozen encoder makes of every clip, computed once and kept.

Because the encoder never changes, a clip's features are data. They are filed per encoder and shard, so that training,
evaluation, other mixes and other recipes all read the same ones.

Shapes: N frames of all clips of a file, D `output_dim`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from xares_bench.clips import Clip, ClipEncoder, StoredFrames
from xares_bench.digests import code_digest, digest_of, library_versions
from xares_bench.records import DroppedSample
from xares_bench.shards import Shard
from xares_bench.store import Entry, Store

SAMPLES_FILE = "samples.jsonl"

# Modules whose behaviour features depend on.
_MODULES = ("audio", "clips", "determinism", "encoders", "features", "shards")

# Features go to a file once there are this many bytes of them.
_FILE_BYTES = 64 << 20


class FeatureStore:
    """Makes and keeps the features of one encoder; a `ClipReader`."""

    def __init__(self, store: Store, clips: ClipEncoder) -> None:
        """Keep what the features depend on.

        Args:
            store: Where they are kept.
            clips: Makes them.
        """
        self._store = store
        self._clips = clips

    def key(self, shard: Shard, max_audio_s: float | None, max_clips: int | None) -> str:
        """Digest of all that the features of a shard depend on."""
        return digest_of({"shard": shard.digest, "max_clips": max_clips, **features_parts(self._clips, max_audio_s)})

    def read(
        self, shard: Shard, *, max_audio_s: float | None, max_clips: int | None, num_workers: int | None
    ) -> Iterator[Clip | DroppedSample]:
        """The clips of a shard in order, made now if need be; see `ClipReader`."""
        entry = self.obtain(shard, max_audio_s=max_audio_s, max_clips=max_clips, num_workers=num_workers)
        with (entry.folder / SAMPLES_FILE).open(encoding="utf-8") as lines:
            for line in lines:
                yield _read_line(json.loads(line), shard, entry.folder)

    def obtain(
        self, shard: Shard, *, max_audio_s: float | None, max_clips: int | None, num_workers: int | None
    ) -> Entry:
        """The finished features of a shard in the store; arguments and errors are those of `ClipReader.read`."""

        def make(folder: Path) -> dict[str, Any]:
            started = time.perf_counter()
            samples = self._clips.read(shard, max_audio_s=max_audio_s, max_clips=max_clips, num_workers=num_workers)
            _write(samples, folder)
            return {"shard": shard.name, "seconds": time.perf_counter() - started}

        return self._store.obtain("features", self.key(shard, max_audio_s, max_clips), make)


def features_parts(clips: ClipEncoder, max_audio_s: float | None) -> dict[str, Any]:
    """What features depend on besides their shard, for keys."""
    return {
        "encoder": clips.encoder.fingerprint,
        "device": clips.encoder.device.type,
        "padded": clips.honours_mask,
        "max_audio_s": max_audio_s,
        "code": code_digest(*(f"xares_bench.{name}" for name in _MODULES)),
        "libraries": library_versions(("av", "numpy", "soundfile", "soxr", "torch")),
    }


def _write(samples: Iterator[Clip | DroppedSample], folder: Path) -> None:
    """Write a line a sample, and the frames of the clips into a few files."""
    lines: list[str] = []
    frames: list[torch.Tensor] = []
    num_files = num_frames = size_bytes = 0
    for sample in samples:
        line: Mapping[str, Any]
        if isinstance(sample, DroppedSample):
            line = {"key": sample.clip, "reason": sample.reason}
        else:
            features_TD = sample.frames()
            line = {
                "key": sample.key,
                "duration_s": sample.duration_s,
                "num_frames": sample.num_frames,
                "fields": sample.fields,
                "file": _file_name(num_files),
                "start": num_frames,
            }
            frames.append(features_TD)
            num_frames += sample.num_frames
            size_bytes += features_TD.nbytes
        lines.append(json.dumps(line) + "\n")
        if size_bytes >= _FILE_BYTES:
            save_file({"frames": torch.cat(frames)}, folder / _file_name(num_files))
            frames, num_files, num_frames, size_bytes = [], num_files + 1, 0, 0
    if frames:
        save_file({"frames": torch.cat(frames)}, folder / _file_name(num_files))
    (folder / SAMPLES_FILE).write_text("".join(lines), encoding="utf-8")


def _read_line(line: Mapping[str, Any], shard: Shard, folder: Path) -> Clip | DroppedSample:
    if "reason" in line:
        return DroppedSample(shard=shard.name, clip=line["key"], reason=line["reason"])
    return Clip(
        key=line["key"],
        shard=shard.name,
        duration_s=line["duration_s"],
        num_frames=line["num_frames"],
        fields=line["fields"],
        features=StoredFrames(file=folder / line["file"], start=line["start"], num_frames=line["num_frames"]),
    )


def _file_name(number: int) -> str:
    return f"{number:05d}.safetensors"
