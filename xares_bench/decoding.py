"""Decoding in worker processes: samples in, recordings out, in the same order whatever the number of workers.

The main process decides what is decoded and in which order; workers only turn bytes into waveforms. A worker imports
this module and little else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from xares_bench.clips import Recording, decode_sample
from xares_bench.errors import DataError
from xares_bench.records import DroppedSample
from xares_bench.shards import Sample

# Requests that a worker has before it. The main process takes recordings a window (128) at a time: four workers decode
# the next one while this one is trained on.
_REQUESTS_AHEAD = 32


@dataclass(frozen=True, kw_only=True)
class DecodingRequest:
    """A sample to decode.

    Attributes:
        sample: As the shard has it.
        shard: Name of the shard.
        max_audio_s: A longer recording is cropped to a window of this many seconds.
        seed: Decides where the window lies.
    """

    sample: Sample
    shard: str
    max_audio_s: float
    seed: str


def decode_ahead(
    requests: Iterable[DecodingRequest | None], num_workers: int
) -> Iterator[Recording | DroppedSample | None]:
    """The recording of every request, or why there is none, in the order of the requests; None for None.

    Args:
        requests: May be endless; only a few are taken in advance.
        num_workers: Processes that decode; 0: this one.
    """
    workers: dict[str, Any] = {}
    if num_workers:
        workers = {"multiprocessing_context": "spawn", "prefetch_factor": _REQUESTS_AHEAD}
    # Requests take the place of indices: the loader hands each to a worker and keeps their order.
    loader: DataLoader[Recording | DroppedSample | None] = DataLoader(
        _Decoder(),
        sampler=_Requests(requests),
        batch_size=None,
        num_workers=num_workers,
        generator=torch.Generator(),  # else the loader would draw from the generator that dropout draws from
        **workers,
    )
    try:
        yield from loader
    except RuntimeError as cause:
        if "DataLoader worker" not in str(cause):
            raise
        reason = " ".join(str(cause).split())
        raise DataError(
            f"a process that decodes audio has died ({reason}); if memory ran out, use fewer (num_training_workers)"
        ) from None


class _Decoder(Dataset["Recording | DroppedSample | None"]):
    """Decodes one request."""

    def __getitem__(self, request: DecodingRequest | None) -> Recording | DroppedSample | None:
        if request is None:
            return None
        return decode_sample(request.sample, request.shard, request.max_audio_s, request.seed)


class _Requests(Sampler["DecodingRequest | None"]):
    """The requests in their order."""

    def __init__(self, requests: Iterable[DecodingRequest | None]) -> None:
        self._requests = requests

    def __iter__(self) -> Iterator[DecodingRequest | None]:
        return iter(self._requests)
