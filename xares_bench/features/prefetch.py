"""Reading ahead: audio files become waveforms on a few threads, before they are needed.

libsndfile, soxr and FFmpeg let other threads run while they work. The caller decides what is read and in which order;
the number of threads changes only the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from xares_bench.datasets.shards import Sample
from xares_bench.features.encoding import AudioClip, read_clip
from xares_bench.scores.records import DroppedSample

if TYPE_CHECKING:
    from xares_bench.datasets.corruptions import Corruption

ItemT = TypeVar("ItemT")

# How far ahead to read. Three limits: waveforms take memory; so do the bytes of their files, and a single one may last
# for hours; and items without a request cost nothing, so only their number can stop the loop over them.
_CLIPS_AHEAD = 128
_BYTES_AHEAD = 16 << 20
_ITEMS_AHEAD = 256


@dataclass(frozen=True, kw_only=True)
class ReadRequest:
    """A sample whose audio is to be read.

    Attributes:
        sample: A sample of the shard.
        shard: Name of the shard.
        max_audio_s: Longer audio is cropped to a window of this many seconds; None: never.
        seed: Decides where the window lies.
        min_samples: Audio of fewer samples is too short for the encoder.
        corruption: Applied to the waveform; None: none is.
    """

    sample: Sample
    shard: str
    max_audio_s: float | None
    seed: str
    min_samples: int = 1
    corruption: Corruption | None = None

    @property
    def size_bytes(self) -> int:
        """Size of the audio file."""
        return len(self.sample.audio or b"")

    def read(self) -> AudioClip | DroppedSample:
        """The audio, or why the sample is unusable."""
        return read_clip(self.sample, self.shard, self.max_audio_s, self.seed, self.min_samples, self.corruption)


def read_ahead(
    items: Iterable[ItemT], requests_of: Callable[[ItemT], Sequence[ReadRequest]], num_threads: int
) -> Iterator[tuple[ItemT, list[AudioClip | DroppedSample]]]:
    """Every item with the results of its requests, in order.

    Args:
        items: May be endless; only a few are taken in advance.
        requests_of: The requests of an item; called once per item, in order.
        num_threads: Threads that read; 0: the calling thread reads.
    """
    if num_threads == 0:
        for item in items:
            yield item, [request.read() for request in requests_of(item)]
        return
    ahead: deque[tuple[ItemT, int, list[Future[AudioClip | DroppedSample]]]] = deque()
    num_clips = size_bytes = 0
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="reading")
    try:
        for item in items:
            requests = requests_of(item)
            item_bytes = sum(request.size_bytes for request in requests)
            ahead.append((item, item_bytes, [pool.submit(request.read) for request in requests]))
            num_clips += len(requests)
            size_bytes += item_bytes
            while num_clips > _CLIPS_AHEAD or size_bytes > _BYTES_AHEAD or len(ahead) > _ITEMS_AHEAD:
                # The oldest item, finished or not: results leave in the order of the items, never as they come.
                first, first_bytes, awaited = ahead.popleft()
                num_clips -= len(awaited)
                size_bytes -= first_bytes
                yield first, [future.result() for future in awaited]
        for last, _, awaited in ahead:
            yield last, [future.result() for future in awaited]
    finally:
        pool.shutdown(cancel_futures=True)
