"""Features: what the frozen encoder makes of every clip, computed once and kept.

Because the encoder never changes, a clip's features are data. They are filed per encoder and shard, so that training,
evaluation, other mixes, seeds and decoders all read the same ones. A shard that is read for the first time is decoded
and encoded chunk by chunk, while its clips are used, and written on the way. Chunks are parts of one shard: a clip's
features do not depend on the draw that needs them, nor on whether they are kept.

Shapes: N frames of all clips of a file, D `output_dim`.
"""

from __future__ import annotations

import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from xares_bench.core.digests import code_digest, digest_of, library_versions
from xares_bench.core.errors import DamageWarning
from xares_bench.core.store import Store
from xares_bench.datasets.shards import Sample, Shard, read_samples
from xares_bench.features.budget import KIND, FeatureBudget
from xares_bench.features.encoding import Clip, ClipEncoder, Recording
from xares_bench.features.prefetch import DecodingRequest, decode_ahead
from xares_bench.features.recorder import Chunk, Pending, Recorder, read_entry
from xares_bench.scores.records import DroppedSample

ItemT = TypeVar("ItemT")


# Modules whose behaviour features depend on.
_MODULES = (
    "datasets.audio",
    "features.encoding",
    "features.prefetch",
    "features.recorder",
    "runtime.determinism",
    "encoders.loading",
    "features.store",
    "datasets.shards",
)

# Neighbouring samples that are decoded and encoded together, and the bytes of their files: what bounds the memory.
_CHUNK_CLIPS = 64
_CHUNK_BYTES = 8 << 20


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
        self._recorders: list[Recorder] = []
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
            yield from read_entry(entry, shard, request)
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

    def _record(self, key: str, shard: Shard) -> Recorder | None:
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
        recorder = Recorder(unfinished, shard.name, self.budget, self._note_full)
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
