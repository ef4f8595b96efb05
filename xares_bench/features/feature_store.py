"""Features: what the frozen encoder computes from every clip, computed once and cached.

Because the encoder never changes, a clip's features are data. They are cached per encoder and shard, so that training,
evaluation, other mixes, seeds and decoders all use the same ones. A shard without cached features is read and encoded
chunk by chunk, while its clips are used, and its features are written on the way.

Processes of a launcher need the same shards at the same time. They encode whole shards, each another one, before the
first of a shard's clips is used (`prepare`), and then read all of them from the cache.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from xares_bench.core.digests import code_digest, digest_of, library_versions
from xares_bench.core.errors import CacheWarning, XaresError
from xares_bench.core.locks import acquire
from xares_bench.core.store import Store
from xares_bench.datasets.shards import Sample, Shard
from xares_bench.features.cached_shard import CachedShardWriter, read_cached_shard
from xares_bench.features.chunks import Chunk, Pending, alone, chunks_of
from xares_bench.features.disk_budget import KIND, FeatureBudget
from xares_bench.features.encoding import AudioClip, Clip, ClipEncoder
from xares_bench.features.prefetch import ReadRequest, read_ahead
from xares_bench.runtime.signals import interrupt_is_waiting
from xares_bench.runtime.variables import keyed_variables
from xares_bench.scores.records import DroppedSample

if TYPE_CHECKING:
    from xares_bench.datasets.corruptions import Corruption

ItemT = TypeVar("ItemT")


# Modules whose code features depend on. A test compares the list with what these modules import
# (`tests/suite/test_keys.py`).
FEATURES_MODULES = (
    "core.parsing",
    "datasets.audio",
    "datasets.containers",
    "datasets.mpeg",
    "datasets.ogg",
    "datasets.part",
    "datasets.shards",
    "encoders.fingerprint",
    "encoders.held_state",
    "encoders.loading",
    "encoders.main_code",
    "encoders.returned",
    "features.cached_shard",
    "features.chunks",
    "features.encoding",
    "features.prefetch",
    "features.feature_store",
    "runtime.determinism",
    "runtime.memory",
    "runtime.patches",
    "runtime.process_state",
    "runtime.settings",
    "runtime.torch_settings",
    "runtime.variables",
    "scores.records",
)

# A process gives up a shard that it encodes in advance if the others have had what they wait for so long. They wait for
# it in a collective operation, which would fail after ten minutes.
_PATIENCE_S = 120.0


class FeatureStore:
    """Computes and caches the features of one encoder.

    Attributes:
        seconds: Time spent so far on waiting for audio, encoding and writing.
        budget: How much disk features may take.
        not_cached_reason: Why the features of some shards are not cached; None: those of every shard that is read to
            its end are.
    """

    def __init__(
        self,
        store: Store,
        clips: ClipEncoder,
        budget: FeatureBudget | None = None,
        num_processes: int = 1,
        corruption: Corruption | None = None,
    ) -> None:
        """Nothing is read or computed yet.

        Args:
            store: Holds the cached features.
            clips: Computes features.
            budget: How much disk they may take; None: a share of the disk.
            num_processes: Processes that use the same shards at the same time; they share the encoding (`prepare`).
            corruption: Applied to every clip before it is encoded; None: none is.
        """
        self.seconds = 0.0
        self.budget = budget or FeatureBudget(store, None)
        self._store = store
        self._clips = clips
        self._num_processes = num_processes
        self._corruption = corruption
        self._writers: list[CachedShardWriter] = []
        self.not_cached_reason: str | None = None if self.budget.max_bytes else "--feature-budget=0"

    def key(self, shard: Shard, max_audio_s: float | None, max_clips: int | None) -> str:
        """Digest of everything that the features of a shard depend on."""
        parts = {"shard": shard.digest, "max_clips": max_clips, **features_parts(self._clips, max_audio_s)}
        # Only where there is one: its code is no part of the key of clean features, which every user has.
        if self._corruption is not None:
            parts["corruption"] = self._corruption.identity
        return digest_of(parts)

    def corrupted(self, corruption: Corruption) -> FeatureStore:
        """A store of the features of the corrupted clips, beside these and within the same budget."""
        return FeatureStore(self._store, self._clips, self.budget, self._num_processes, corruption)

    def read(self, shard: Shard, *, max_clips: int | None, num_threads: int | None) -> Iterator[Clip | DroppedSample]:
        """The clips of a shard in order, never cropped, and the unusable samples among them.

        Args:
            shard: The shard.
            max_clips: Only this many samples; None: all.
            num_threads: Threads that read audio; None: one per processor.

        Raises:
            DataError: The shard is damaged.
            EncoderError: The encoder breaks its contract on one of the clips, which is named.
        """
        samples = self.open(shard, max_audio_s=None, max_clips=max_clips, seed="")
        try:
            for sample, result in self.resolve(samples, lambda sample: sample, num_threads):
                encoded = sample if result is None else result
                assert isinstance(encoded, Clip | DroppedSample), "nothing is cropped here"
                yield encoded
        finally:
            self.abandon_unfinished()

    def open(
        self, shard: Shard, *, max_audio_s: float | None, max_clips: int | None, seed: str, cache: bool = True
    ) -> Iterator[Clip | Pending | DroppedSample]:
        """The samples of a shard in order: as clips if their features are cached, else pending, for `resolve`.

        Args:
            shard: The shard.
            max_audio_s: Longer clips are cropped to a window of this many seconds; None: never. Every pass draws
                another window, so features of windows are never cached: they would not be used again. A clip that is
                longer by no more than a frame has one window, which is cached like a clip.
            max_clips: Only this many samples; None: all.
            seed: Decides where windows lie, with the sample's name and the shard's, or the digest of a user's own.
            cache: Whether to cache what is computed.

        Raises:
            DataError: The shard is damaged.
        """
        request = self._requests(shard, max_audio_s, seed)
        key = self.key(shard, max_audio_s, max_clips)
        entry = self.budget.use(key)
        if entry is not None:
            for cached in read_cached_shard(entry, shard):
                yield alone(request(cached)) if isinstance(cached, Sample) else cached
            return
        writer = self._writer(key, shard) if cache else None
        num_chunks = 0
        for chunk in chunks_of(shard, max_clips, request, writer):
            num_chunks += 1
            for index, sample in enumerate(chunk.samples):
                if sample.problem is None:
                    yield Pending(sample=sample, chunk=chunk, index=index)
                else:
                    yield DroppedSample(shard=shard.name, clip=sample.key, reason=sample.problem)
            if writer is not None and writer.is_open and not chunk.is_requested:
                # The caller uses no sample of this chunk, e.g. because none has a target, and so never resolves one.
                # The entry has to be complete all the same.
                chunk.is_requested = True
                self._encode(chunk, [request.read() for request in chunk.requests])
        if writer is not None:
            writer.expect(num_chunks)

    def prepare(
        self,
        shard: Shard,
        following: Iterable[Shard],
        *,
        max_audio_s: float,
        max_clips: int | None,
        num_threads: int | None,
    ) -> None:
        """Have a shard's features cached, if possible, by one of several processes that are about to open it.

        While another process encodes the shard, this one encodes those that all of them will need next. Nothing is done
        for a process alone, which encodes a shard while its clips are used.

        Args:
            shard: The shard.
            following: The shards after it; as many are encoded in advance as there are other processes.
            max_audio_s: As for `open`.
            max_clips: As for `open`; if not None, it is that of `shard` alone, and nothing is encoded in advance.
            num_threads: Threads that read audio; None: one per processor.

        Raises:
            DataError: A shard is damaged.
            EncoderError: The encoder breaks its contract on one of the clips, which is named.
        """
        if self._num_processes == 1:
            return
        key = self.key(shard, max_audio_s, max_clips)
        ahead = itertools.islice(following, self._num_processes - 1) if max_clips is None else ()
        done_s: list[float] = []

        def is_done() -> bool:
            return self.not_cached_reason is not None or self._store.find(KIND, key) is not None

        def is_awaited() -> bool:
            if is_done():
                done_s.append(time.monotonic())
            return bool(done_s) and time.monotonic() - done_s[0] > _PATIENCE_S

        encode = functools.partial(
            self._encode_whole, max_audio_s=max_audio_s, max_clips=max_clips, num_threads=num_threads
        )
        if not is_done():
            encode(shard, wait=False)
        for candidate in ahead:
            if is_done():
                return
            with contextlib.suppress(XaresError):  # left to whoever opens that shard, which may be nobody
                encode(candidate, wait=False, gives_up=is_awaited)
        if not is_done():
            encode(shard, wait=True)

    def _encode_whole(
        self,
        shard: Shard,
        *,
        wait: bool,
        max_audio_s: float,
        max_clips: int | None,
        num_threads: int | None,
        gives_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """Encode and cache a whole shard, unless it is cached, there is no room, or (without `wait`) another is at it.

        Given up when `gives_up()`, asked after each chunk, or when an interruption waits for the end of the step.
        Others wait for the claim on a shard, never for the lock on its entry: a process alone holds that as long as its
        training takes to come to the shard's end.
        """
        key = self.key(shard, max_audio_s, max_clips)
        claim = FileLock(self._store.root / KIND / "claims" / f"{key}.lock")
        try:
            Path(claim.lock_file).parent.mkdir(parents=True, exist_ok=True)
            claimed = acquire(claim, f"encodes {shard.name}") if wait else claim.acquire(timeout=0)
        except Timeout:
            return
        except OSError as cause:
            self._note_full(f"features are not cached: {cause}")
            return
        with claimed:
            if self._store.find(KIND, key) is not None:
                return
            writer = self._writer(key, shard)
            if writer is None:
                return
            try:
                # Only clips that are cached are encoded: where windows lie makes no difference.
                chunks = chunks_of(shard, max_clips, self._requests(shard, max_audio_s, ""), writer)
                num_chunks = 0
                for chunk, audio in read_ahead(chunks, lambda chunk: chunk.requests, _num_threads(num_threads)):
                    self._encode(chunk, audio)
                    num_chunks += 1
                    if not writer.is_open or gives_up() or interrupt_is_waiting():
                        return
                writer.expect(num_chunks)
            finally:
                writer.abandon()

    def _requests(self, shard: Shard, max_audio_s: float | None, seed: str) -> Callable[[Sample], ReadRequest]:
        """What to ask of the threads that read, for a sample of a shard; arguments are those of `open`."""
        # An absolute path is the place of the user's own tar, which must not decide about windows.
        identity = shard.digest if PurePath(shard.name).is_absolute() else shard.name

        def request(sample: Sample) -> ReadRequest:
            return ReadRequest(
                sample=sample,
                shard=shard.name,
                max_audio_s=max_audio_s,
                seed=f"{seed} {identity} {sample.key}",
                min_samples=self._clips.min_samples,
                corruption=self._corruption,
            )

        return request

    def resolve(
        self, items: Iterable[ItemT], sample_of: Callable[[ItemT], object], num_threads: int | None
    ) -> Iterator[tuple[ItemT, Clip | AudioClip | DroppedSample | None]]:
        """Every item with the result of its pending sample, or with None if it has none.

        Args:
            items: Items that contain samples of `open`, in its order, each passed on at once; may be endless.
            sample_of: The sample of an item, as `open` gave it.
            num_threads: Threads that read audio; None: one per processor. Results do not depend on it.

        Raises:
            EncoderError: The encoder breaks its contract on one of the clips, which is named.
        """

        def requests_of(item: ItemT) -> Sequence[ReadRequest]:
            sample = sample_of(item)
            if not isinstance(sample, Pending) or sample.chunk.is_requested:
                return ()
            sample.chunk.is_requested = True
            return sample.chunk.requests

        items_with_audio = read_ahead(items, requests_of, _num_threads(num_threads))
        while True:
            started = time.perf_counter()
            item, audio = next(items_with_audio, (None, []))
            if item is None:
                return
            sample = sample_of(item)
            if isinstance(sample, Pending) and audio:
                self._encode(sample.chunk, audio)
            self.seconds += time.perf_counter() - started
            yield item, sample.chunk.results[sample.index] if isinstance(sample, Pending) else None

    def abandon_unfinished(self) -> None:
        """Remove the entries of shards that were not read to their end."""
        for writer in self._writers:
            writer.abandon()
        self._writers.clear()

    def _writer(self, key: str, shard: Shard) -> CachedShardWriter | None:
        """Starts to cache a shard; None if there is no room, or another process is caching it.

        That process is not waited for: a training has many shards open at once, so two of them could wait for each
        other forever. Encoding a shard twice gives the same features; only one process writes them.
        """
        if self.not_cached_reason is not None:
            return None
        try:
            self.budget.lease(key)
            unfinished = self._store.begin(KIND, key, wait=False)
        except OSError as cause:
            self._note_full(f"features are not cached: {cause}")
            return None
        if unfinished is None:
            return None
        self._writers = [writer for writer in self._writers if writer.is_open]
        writer = CachedShardWriter(unfinished, shard.name, self.budget, self._note_full)
        self._writers.append(writer)
        return writer

    def _note_full(self, reason: str) -> None:
        if self.not_cached_reason is None:
            warnings.warn(
                f"{reason}; features of further shards are recomputed at every use", CacheWarning, stacklevel=2
            )
            self.not_cached_reason = reason

    def _encode(self, chunk: Chunk, audio: Sequence[AudioClip | DroppedSample]) -> None:
        """Encode the clips of a chunk and write them; windows are encoded later, with the batch that uses them."""
        whole = [item for item in audio if isinstance(item, AudioClip) and not item.is_window]
        clips = iter(self._clips.encode(whole, chunk.seed))
        chunk.results = [next(clips) if isinstance(item, AudioClip) and not item.is_window else item for item in audio]
        if chunk.writer is not None:
            chunk.writer.add(chunk.number, chunk.samples, chunk.results)


def features_parts(clips: ClipEncoder, max_audio_s: float | None) -> dict[str, Any]:
    """What features depend on besides their shard, as part of a key."""
    return {
        "encoder": clips.encoder.fingerprint,
        "device": clips.encoder.device.type,
        "variables": keyed_variables(os.environ),
        "padded": clips.honours_mask,
        "half_precision": clips.half_precision,
        "min_samples": clips.min_samples,
        "max_audio_s": max_audio_s,
        "code": code_digest(*(f"xares_bench.{name}" for name in FEATURES_MODULES)),
        "libraries": library_versions(("av", "numpy", "soundfile", "soxr", "torch")),
    }


def _num_threads(wanted: int | None) -> int:
    return os.cpu_count() or 1 if wanted is None else wanted
