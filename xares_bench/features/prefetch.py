"""Decoding: samples in, recordings out, by a few threads that are ahead of whoever needs them.

libsndfile, soxr and FFmpeg let other threads run while they work. What is decoded, and in which order, is decided by
who asks; the number of threads changes nothing but the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from xares_bench.datasets.shards import Sample
from xares_bench.features.encoding import Recording, decode_sample
from xares_bench.scores.records import DroppedSample

ItemT = TypeVar("ItemT")

# What may be asked for in advance: recordings, which take memory, the bytes of their files (a recording may last for
# hours), and items that need none.
_RECORDINGS_AHEAD = 128
_BYTES_AHEAD = 16 << 20
_ITEMS_AHEAD = 256


@dataclass(frozen=True, kw_only=True)
class DecodingRequest:
    """A sample to decode.

    Attributes:
        sample: As the shard has it.
        shard: Name of the shard.
        max_audio_s: A longer recording is cropped to a window of this many seconds; None: never.
        seed: Decides where the window lies.
    """

    sample: Sample
    shard: str
    max_audio_s: float | None
    seed: str

    @property
    def size_bytes(self) -> int:
        """Size of the encoded audio."""
        return len(self.sample.audio or b"")

    def decode(self) -> Recording | DroppedSample:
        """The recording, or why there is none."""
        return decode_sample(self.sample, self.shard, self.max_audio_s, self.seed)


def decode_ahead(
    items: Iterable[ItemT], requests_of: Callable[[ItemT], Sequence[DecodingRequest]], num_threads: int
) -> Iterator[tuple[ItemT, list[Recording | DroppedSample]]]:
    """Every item with its decoded requests, in order.

    Args:
        items: May be endless; only a few are taken in advance.
        requests_of: What to decode for an item, asked once each, in order.
        num_threads: Threads that decode; 0: the one that asks.
    """
    if num_threads == 0:
        for item in items:
            yield item, [request.decode() for request in requests_of(item)]
        return
    ahead: deque[tuple[ItemT, int, list[Future[Recording | DroppedSample]]]] = deque()
    num_recordings = size_bytes = 0
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decoding")
    try:
        for item in items:
            requests = requests_of(item)
            item_bytes = sum(request.size_bytes for request in requests)
            ahead.append((item, item_bytes, [pool.submit(request.decode) for request in requests]))
            num_recordings += len(requests)
            size_bytes += item_bytes
            while num_recordings > _RECORDINGS_AHEAD or size_bytes > _BYTES_AHEAD or len(ahead) > _ITEMS_AHEAD:
                first, first_bytes, awaited = ahead.popleft()
                num_recordings -= len(awaited)
                size_bytes -= first_bytes
                yield first, [future.result() for future in awaited]
        for last, _, awaited in ahead:
            yield last, [future.result() for future in awaited]
    finally:
        pool.shutdown(cancel_futures=True)
