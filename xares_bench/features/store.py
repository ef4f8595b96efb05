"""Features: what the frozen encoder makes of every clip, computed once and kept.

Because the encoder never changes, a clip's features are data. They are filed per encoder and shard, so that training,
evaluation, other mixes, seeds and decoders all read the same ones. A shard that is read for the first time is decoded
and encoded chunk by chunk, while its clips are used, and written on the way. Chunks are parts of one shard: a clip's
features do not depend on the draw that needs them, nor on whether they are kept.

Shapes: N frames of all clips of a file, D `output_dim`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from xares_bench.core.digests import code_digest, digest_of, library_versions
from xares_bench.core.errors import DamageWarning
from xares_bench.core.store import Entry, Store, Unfinished
from xares_bench.datasets.shards import Sample, Shard, read_samples
from xares_bench.features.budget import KIND, FeatureBudget
from xares_bench.features.encoding import Clip, ClipEncoder, Recording, StoredFrames
from xares_bench.features.prefetch import DecodingRequest, decode_ahead
from xares_bench.scores.records import DroppedSample

ItemT = TypeVar("ItemT")

SAMPLES_FILE = "samples.jsonl"

# Modules whose behaviour features depend on.
_MODULES = (
    "datasets.audio",
    "features.encoding",
    "features.prefetch",
    "runtime.determinism",
    "encoders.loading",
    "features.store",
    "datasets.shards",
)

# Features go to a file once there are this many bytes of them.
_FILE_BYTES = 16 << 20
# Neighbouring samples that are decoded and encoded together, and the bytes of their files: what bounds the memory.
_CHUNK_CLIPS = 64
_CHUNK_BYTES = 8 << 20


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
    recorder: _Recorder | None
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


class FeatureStore:
    """Makes and keeps the features of one encoder.

    Attributes:
        seconds: Spent so far on waiting for samples, encoding and writing.
        budget: The disk that features may take.
        not_kept: Why those of some shards are not kept; None: all are that are read to their end.
    """

    def __init__(self, store: Store, clips: ClipEncoder, budget: FeatureBudget | None = None) -> None:
        """Keep what the features depend on.

        Args:
            store: Where they are kept.
            clips: Makes them.
            budget: How much is kept; None: a share of the disk.
        """
        self.seconds = 0.0
        self.budget = budget or FeatureBudget(store, None)
        self._store = store
        self._clips = clips
        self._recorders: list[_Recorder] = []
        self.not_kept: str | None = None if self.budget.max_bytes else "--feature-budget=0"

    def key(self, shard: Shard, max_audio_s: float | None, max_clips: int | None) -> str:
        """Digest of all that the features of a shard depend on."""
        return digest_of({"shard": shard.digest, "max_clips": max_clips, **features_parts(self._clips, max_audio_s)})

    def read(self, shard: Shard, *, max_clips: int | None, num_threads: int | None) -> Iterator[Clip | DroppedSample]:
        """The whole clips of a shard in order, and the samples among them that cannot be used.

        Args:
            shard: The shard.
            max_clips: Only the first so many samples; None: all.
            num_threads: Threads that decode; None: one per processor.

        Raises:
            DataError: The shard is damaged.
            EncoderError: The encoder does not keep its contract on one of the clips, which is named.
        """
        samples = self.open(shard, max_audio_s=None, max_clips=max_clips, seed="")
        try:
            for sample, result in self.resolve(samples, lambda sample: sample, num_threads):
                made = sample if result is None else result
                assert isinstance(made, Clip | DroppedSample), "nothing is cropped here"
                yield made
        finally:
            self.drop_unfinished()

    def open(
        self, shard: Shard, *, max_audio_s: float | None, max_clips: int | None, seed: str, keep: bool = True
    ) -> Iterator[Clip | Pending | DroppedSample]:
        """The samples of a shard in order: those whose features are kept as clips, the others to be resolved.

        Args:
            shard: The shard.
            max_audio_s: Longer clips are cropped to a window of this many seconds, at every reading another one, so
                that their features are not kept; None: never.
            max_clips: Only the first so many samples; None: all.
            seed: Decides where windows lie, with the names of shard and sample.
            keep: Whether what is made now is kept.

        Raises:
            DataError: The shard is damaged.
        """

        def request(sample: Sample) -> DecodingRequest:
            return DecodingRequest(
                sample=sample, shard=shard.name, max_audio_s=max_audio_s, seed=f"{seed} {shard.name} {sample.key}"
            )

        key = self.key(shard, max_audio_s, max_clips)
        entry = self.budget.use(key)
        if entry is not None:
            yield from _read_entry(entry, shard, request)
            return
        recorder = self._record(key, shard) if keep else None
        num_chunks = 0
        for samples in _chunks(itertools.islice(read_samples(shard), max_clips)):
            chunk = Chunk(
                number=num_chunks,
                requests=tuple(map(request, samples)),
                seed=f"{shard.digest} {num_chunks}",
                recorder=recorder,
            )
            num_chunks += 1
            for place, sample in enumerate(samples):
                if sample.problem is None:
                    yield Pending(sample=sample, chunk=chunk, place=place)
                else:
                    yield DroppedSample(shard=shard.name, clip=sample.key, reason=sample.problem)
            if recorder is not None and recorder.is_open and not chunk.is_requested:
                # Whoever takes these samples has no use for any of them, so nobody will ask; the entry needs them all.
                chunk.is_requested = True
                self._encode(chunk, [request.decode() for request in chunk.requests])
        if recorder is not None:
            recorder.expect(num_chunks)

    def resolve(
        self, items: Iterable[ItemT], sample_of: Callable[[ItemT], object], num_threads: int | None
    ) -> Iterator[tuple[ItemT, Clip | Recording | DroppedSample | None]]:
        """Every item with what its pending sample has become; with None where it has none.

        Args:
            items: Anything that samples have been put into, in the order of `open`, each as soon as it is given; may be
                endless.
            sample_of: What `open` has given for an item.
            num_threads: Threads that decode; None: one per processor. Nothing else depends on it.

        Raises:
            EncoderError: The encoder does not keep its contract on one of the clips, which is named.
        """

        def requests_of(item: ItemT) -> Sequence[DecodingRequest]:
            sample = sample_of(item)
            if not isinstance(sample, Pending) or sample.chunk.is_requested:
                return ()
            sample.chunk.is_requested = True
            return sample.chunk.requests

        threads = os.cpu_count() or 1 if num_threads is None else num_threads
        decoded_items = decode_ahead(items, requests_of, threads)
        while True:
            started = time.perf_counter()
            item, decoded = next(decoded_items, (None, []))
            if item is None:
                return
            sample = sample_of(item)
            if isinstance(sample, Pending) and decoded:
                self._encode(sample.chunk, decoded)
            self.seconds += time.perf_counter() - started
            yield item, sample.chunk.results[sample.place] if isinstance(sample, Pending) else None

    def drop_unfinished(self) -> None:
        """Leave nothing of shards whose reading has ended before their last sample."""
        for recorder in self._recorders:
            recorder.abandon()
        self._recorders.clear()

    def _record(self, key: str, shard: Shard) -> _Recorder | None:
        """What writes the features of a shard; None where there is no room, or another process is at it.

        Nobody waits for another process here: a training has many shards open at once, and two of them could wait for
        each other for ever.
        """
        if self.not_kept is not None:
            return None
        try:
            self.budget.hold(key)
            unfinished = self._store.begin(KIND, key, wait=False)
        except OSError as cause:
            self._note_full(f"features are not kept: {cause}")
            return None
        if unfinished is None:
            return None
        self._recorders = [recorder for recorder in self._recorders if recorder.is_open]
        recorder = _Recorder(unfinished, shard.name, self.budget, self._note_full)
        self._recorders.append(recorder)
        return recorder

    def _note_full(self, reason: str) -> None:
        if self.not_kept is None:
            warnings.warn(f"{reason}; those of more shards are made whenever needed", DamageWarning, stacklevel=2)
            self.not_kept = reason

    def _encode(self, chunk: Chunk, decoded: Sequence[Recording | DroppedSample]) -> None:
        """Encode the recordings of a chunk but windows, which their use encodes, and write what there is to write."""
        whole = [item for item in decoded if isinstance(item, Recording) and not item.is_window]
        clips = iter(self._clips.encode(whole, chunk.seed))
        chunk.results = [
            next(clips) if isinstance(item, Recording) and not item.is_window else item for item in decoded
        ]
        if chunk.recorder is not None:
            chunk.recorder.add(chunk)


def features_parts(clips: ClipEncoder, max_audio_s: float | None) -> dict[str, Any]:
    """What features depend on besides their shard, for keys."""
    return {
        "encoder": clips.encoder.fingerprint,
        "device": clips.encoder.device.type,
        "padded": clips.honours_mask,
        "half_precision": clips.half_precision,
        "max_audio_s": max_audio_s,
        "code": code_digest(*(f"xares_bench.{name}" for name in _MODULES)),
        "libraries": library_versions(("av", "numpy", "soundfile", "soxr", "torch")),
    }


class _Recorder:
    """Writes the features of a shard while they are used: a line a sample, and the frames into a few files."""

    def __init__(
        self, unfinished: Unfinished, shard: str, budget: FeatureBudget, note_full: Callable[[str], None]
    ) -> None:
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


def _chunks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Neighbouring samples, as many as may be held decoded."""
    chunk: list[Sample] = []
    size_bytes = 0
    for sample in samples:
        chunk.append(sample)
        size_bytes += len(sample.audio or b"")
        if len(chunk) == _CHUNK_CLIPS or size_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, size_bytes = [], 0
    if chunk:
        yield chunk


def _read_entry(
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
