"""Chunks: runs of neighbouring samples of one shard, which are read, encoded and cached together.

A chunk is never a collection of whatever is drawn next. Clips that are encoded together can change each other's last
bits, and so can the seed of an encoder that draws random numbers; with chunks that depend on the shard alone, a clip's
features are the same bits in every session, cached or not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from xares_bench.datasets.shards import Sample, Shard, read_samples
from xares_bench.features.cached_shard import CachedShardWriter
from xares_bench.features.encoding import AudioClip, Clip
from xares_bench.features.prefetch import ReadRequest
from xares_bench.scores.records import DroppedSample

# A chunk ends at so many samples or bytes of their files, which bounds the memory: its waveforms are in memory
# together.
_CHUNK_CLIPS = 64
_CHUNK_BYTES = 8 << 20


@dataclass(kw_only=True, eq=False)
class Chunk:
    """Neighbouring samples of a shard that are read, encoded and written together.

    Attributes:
        number: Its index in the shard.
        requests: One per sample.
        seed: Seeds an encoder that draws random numbers.
        writer: Caches the results; None: they are not cached, or come from the cache.
        is_requested: Whether its requests have been handed out; the first sample that is used takes them all.
        results: One per sample, once they are known.
    """

    number: int
    requests: tuple[ReadRequest, ...]
    seed: str
    writer: CachedShardWriter | None
    is_requested: bool = False
    results: list[Clip | AudioClip | DroppedSample] = field(default_factory=list)

    @property
    def samples(self) -> list[Sample]:
        """Its samples, in their order."""
        return [request.sample for request in self.requests]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pending:
    """A sample that is not encoded yet: the one at `index` in its chunk."""

    sample: Sample
    chunk: Chunk
    index: int

    @property
    def key(self) -> str:
        """Name of the sample in its shard."""
        return self.sample.key

    @property
    def fields(self) -> Mapping[str, Any]:
        """The sample's JSON object."""
        return self.sample.fields


def alone(request: ReadRequest) -> Pending:
    """A sample that is a chunk of its own, and is not cached."""
    return Pending(sample=request.sample, chunk=Chunk(number=0, requests=(request,), seed="", writer=None), index=0)


def chunks_of(
    shard: Shard, max_clips: int | None, request: Callable[[Sample], ReadRequest], writer: CachedShardWriter | None
) -> Iterator[Chunk]:
    """The chunks of a shard, in order: the same ones whoever reads it."""
    for number, samples in enumerate(_chunks(itertools.islice(read_samples(shard), max_clips))):
        requests = tuple(map(request, samples))
        yield Chunk(number=number, requests=requests, seed=f"{shard.digest} {number}", writer=writer)


def _chunks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Runs of neighbouring samples."""
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
