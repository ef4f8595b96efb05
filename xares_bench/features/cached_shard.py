"""Files of a shard's cached features: written chunk by chunk, read back clip by clip.

An entry of the store holds `samples.jsonl`, one JSON object per sample of the shard and in its order, and the frames of
all clips, one behind the other, in a few safetensors files. Windows of long clips are not in it, only a mark.

Shapes: N frames of all clips of a file, D `output_dim`.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from xares_bench.core.store import Entry, Unfinished
from xares_bench.core.text import encoded
from xares_bench.datasets.shards import Sample, Shard, read_samples
from xares_bench.features.disk_budget import FeatureBudget
from xares_bench.features.encoding import AudioClip, Clip, StoredFrames
from xares_bench.scores.records import DroppedSample

SAMPLES_FILE = "samples.jsonl"

# Frames are gathered to files of this size: one file per chunk would be thousands for a large dataset.
_FILE_BYTES = 16 << 20


class CachedShardWriter:
    """Writes the features of a shard while they are used."""

    def __init__(
        self, unfinished: Unfinished, shard: str, budget: FeatureBudget, note_full: Callable[[str], None]
    ) -> None:
        """Start an entry of the store; `note_full` is called with the reason if it cannot be finished."""
        self.is_open = True
        self._unfinished = unfinished
        self._shard = shard
        self._budget = budget
        self._note_full = note_full
        self._started = time.perf_counter()
        self._num_expected: int | None = None
        # Chunks may arrive out of order: a chunk of which no sample is used is encoded when the reader has passed it,
        # while earlier chunks may still be waiting in the read-ahead. Frames are written as they arrive, since every
        # line names the file and the index of its frames; only the lines must stand in the order of the shard.
        self._lines: dict[int, list[str]] = {}  # by number of the chunk
        self._frames: list[torch.Tensor] = []
        self._num_files = self._num_frames = 0
        self._reserved_bytes = 0

    def expect(self, num_chunks: int) -> None:
        """Finish the entry once it has this many chunks; the number is known only when the shard was read."""
        self._num_expected = num_chunks
        with self._abandoned_without_room():
            self._finish_if_complete()

    def add(
        self, chunk_number: int, samples: Sequence[Sample], results: Sequence[Clip | AudioClip | DroppedSample]
    ) -> None:
        """Write the results of a chunk's samples: features, a window that is not cached, or an unusable sample."""
        if not self.is_open:
            return
        lines = [json.dumps(self._line(sample, result)) + "\n" for sample, result in zip(samples, results, strict=True)]
        self._lines[chunk_number] = lines
        size_bytes = sum(result.frames().nbytes for result in results if isinstance(result, Clip))
        size_bytes += sum(map(len, lines))
        if not self._budget.reserve(size_bytes):
            self.abandon()
            self._note_full("the features' budget is used up (--feature-budget)")
            return
        self._reserved_bytes += size_bytes
        with self._abandoned_without_room():
            if sum(frames_TD.nbytes for frames_TD in self._frames) >= _FILE_BYTES:
                self._write_frames()
            self._finish_if_complete()

    def abandon(self) -> None:
        """Remove the unfinished entry."""
        if self.is_open:
            self.is_open = False
            self._unfinished.abandon()
            self._budget.release(self._reserved_bytes)

    @contextlib.contextmanager
    def _abandoned_without_room(self) -> Iterator[None]:
        """Abandon the entry if the block finds the disk full; the clips in memory are used all the same."""
        try:
            yield
        except (OSError, SafetensorError) as cause:  # safetensors reports a full disk in an exception of its own
            self.abandon()
            self._note_full(f"features are not cached: {cause}")

    def _line(self, sample: Sample, result: Clip | AudioClip | DroppedSample) -> Mapping[str, Any]:
        if isinstance(result, AudioClip):
            return {"key": sample.key, "is_window": True}
        if isinstance(result, DroppedSample):
            # A sample with fields is drawn and then found unusable; one without is never drawn. The fields decide
            # which, so that the draws from the cache are those of the first pass.
            return {
                "key": sample.key,
                "reason": result.reason,
                "fields": None if sample.problem is not None else dict(sample.fields),
            }
        start = self._num_frames
        self._frames.append(result.frames())
        self._num_frames += result.num_frames
        return {
            "key": sample.key,
            "duration_s": result.duration_s,
            "num_frames": result.num_frames,
            "fields": result.fields,
            "file": _file_name(self._num_files),
            "start": start,
        }

    def _write_frames(self) -> None:
        save_file({"frames": torch.cat(self._frames)}, self._unfinished.folder / _file_name(self._num_files))
        self._frames, self._num_files, self._num_frames = [], self._num_files + 1, 0

    def _finish_if_complete(self) -> None:
        if not self.is_open or len(self._lines) != self._num_expected:
            return
        if self._frames:
            self._write_frames()
        lines = "".join(line for number in sorted(self._lines) for line in self._lines[number])
        (self._unfinished.folder / SAMPLES_FILE).write_bytes(encoded(lines))
        num_samples = sum(map(len, self._lines.values()))
        self._unfinished.finish(
            {"shard": self._shard, "num_samples": num_samples, "seconds": time.perf_counter() - self._started}
        )
        self.is_open = False
        self._budget.release(self._reserved_bytes)
        # Marks the entry as used, now that it is finished: evicting it for the next shard of the same pass would leave
        # a dataset larger than the budget with nothing cached at the next pass.
        self._budget.use(self._unfinished.folder.name)


def read_cached_shard(entry: Entry, shard: Shard) -> Iterator[Clip | Sample | DroppedSample]:
    """The samples of a shard with cached features, in order: as clips where they have features.

    A sample whose features are not in the entry comes as a `Sample`, to be read like one of the shard: a clip of which
    another window is needed at every pass, for which the shard is opened again, or one whose audio is unusable.
    """
    stored = (entry.folder / SAMPLES_FILE).read_text(encoding="utf-8")
    lines: list[dict[str, Any]] = [json.loads(line) for line in stored.splitlines()]
    samples = read_samples(shard) if any("is_window" in line for line in lines) else iter(())
    for line in lines:
        if "is_window" in line:
            yield next(sample for sample in samples if sample.key == line["key"])
        elif "reason" not in line:
            yield _clip(line, shard, entry.folder)
        elif line["fields"] is None:
            yield DroppedSample(shard=shard.name, clip=line["key"], reason=line["reason"])
        else:
            yield Sample(key=line["key"], audio=None, fields=line["fields"], problem=line["reason"])


def _clip(line: Mapping[str, Any], shard: Shard, folder: Path) -> Clip:
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
