"""The recorder: features of a shard on their way to the disk, and back.

Shapes: N frames of all clips of a file, D `output_dim`.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from xares_bench.core.store import Entry, Unfinished
from xares_bench.datasets.shards import Sample, Shard, read_samples
from xares_bench.features.budget import FeatureBudget
from xares_bench.features.encoding import Clip, Recording, StoredFrames
from xares_bench.features.prefetch import DecodingRequest
from xares_bench.scores.records import DroppedSample

SAMPLES_FILE = "samples.jsonl"

# Features go to a file once there are this many bytes of them.
_FILE_BYTES = 16 << 20


@dataclass(kw_only=True, eq=False)
class Chunk:
    """Samples that are decoded, encoded and written together.

    Attributes:
        number: Its place in the shard.
        requests: What to decode for them.
        seed: Of an encoder that draws random numbers.
        recorder: Writes what becomes of them; None: it is written already, or not kept.
        is_requested: Whether their decoding has been asked for.
        results: What became of them, once it is known.
    """

    number: int
    requests: tuple[DecodingRequest, ...]
    seed: str
    recorder: Recorder | None
    is_requested: bool = False
    results: list[Clip | Recording | DroppedSample] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pending:
    """A sample that is not encoded yet, and its place in its chunk."""

    sample: Sample
    chunk: Chunk
    place: int

    @property
    def key(self) -> str:
        """Name of the sample in its shard."""
        return self.sample.key

    @property
    def fields(self) -> Mapping[str, Any]:
        """The sample's JSON object."""
        return self.sample.fields


class Recorder:
    """Writes the features of a shard while they are used: a line a sample, and the frames into a few files."""

    def __init__(
        self, unfinished: Unfinished, shard: str, budget: FeatureBudget, note_full: Callable[[str], None]
    ) -> None:
        """Begin an entry of the store; `note_full` is told why where it cannot be finished."""
        self.is_open = True
        self._unfinished = unfinished
        self._shard = shard
        self._budget = budget
        self._note_full = note_full
        self._started = time.perf_counter()
        self._num_expected: int | None = None
        self._lines: dict[int, list[str]] = {}  # of every chunk; they may come in another order than they stand in
        self._frames: list[torch.Tensor] = []
        self._num_files = self._num_frames = 0
        self._reserved_bytes = 0

    def expect(self, num_chunks: int) -> None:
        """Finish with so many chunks."""
        self._num_expected = num_chunks
        with self._abandoned_without_room():
            self._finish_if_complete()

    def add(self, chunk: Chunk) -> None:
        """Write what became of a chunk's samples."""
        if not self.is_open:
            return
        lines = [
            json.dumps(self._line(request.sample, result)) + "\n"
            for request, result in zip(chunk.requests, chunk.results, strict=True)
        ]
        self._lines[chunk.number] = lines
        size_bytes = sum(result.frames().nbytes for result in chunk.results if isinstance(result, Clip))
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
        """Leave nothing of it."""
        if self.is_open:
            self.is_open = False
            self._unfinished.abandon()
            self._budget.release(self._reserved_bytes)

    @contextlib.contextmanager
    def _abandoned_without_room(self) -> Iterator[None]:
        """Give the entry up where the block finds the disk full: its clips are of use without it."""
        try:
            yield
        except (OSError, SafetensorError) as cause:  # safetensors reports a full disk in an exception of its own
            self.abandon()
            self._note_full(f"features are not kept: {cause}")

    def _line(self, sample: Sample, result: Clip | Recording | DroppedSample) -> Mapping[str, Any]:
        if isinstance(result, Recording):
            return {"key": sample.key, "is_window": True}
        if isinstance(result, DroppedSample):
            # With its fields where it has them: only then it is drawn, and found to be of no use, as the first time.
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
        (self._unfinished.folder / SAMPLES_FILE).write_text(lines, encoding="utf-8")
        num_samples = sum(map(len, self._lines.values()))
        self._unfinished.finish(
            {"shard": self._shard, "num_samples": num_samples, "seconds": time.perf_counter() - self._started}
        )
        self.is_open = False
        self._budget.release(self._reserved_bytes)
        # From now on this process's: of data that the budget is too small for, it must not give up the first shards for
        # the last ones, and find none of them at the next pass.
        self._budget.use(self._unfinished.folder.name)


def read_entry(
    entry: Entry, shard: Shard, request: Callable[[Sample], DecodingRequest]
) -> Iterator[Clip | Pending | DroppedSample]:
    """The samples of a shard whose features are kept; the shard itself is read where a clip needs a window of it."""
    recorded = (entry.folder / SAMPLES_FILE).read_text(encoding="utf-8")
    lines: list[dict[str, Any]] = [json.loads(line) for line in recorded.splitlines()]
    samples = read_samples(shard) if any("is_window" in line for line in lines) else iter(())
    for line in lines:
        if "is_window" in line:
            sample = next(sample for sample in samples if sample.key == line["key"])
            yield _alone(request(sample))
        elif "reason" not in line:
            yield _clip(line, shard, entry.folder)
        elif line["fields"] is None:
            yield DroppedSample(shard=shard.name, clip=line["key"], reason=line["reason"])
        else:
            failed = Sample(key=line["key"], audio=None, fields=line["fields"], problem=line["reason"])
            yield _alone(request(failed))


def _alone(request: DecodingRequest) -> Pending:
    """A sample that is a chunk of its own."""
    return Pending(sample=request.sample, chunk=Chunk(number=0, requests=(request,), seed="", recorder=None), place=0)


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
