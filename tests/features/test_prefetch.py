"""Decoding ahead: what comes out, and in which order, does not depend on the threads; what is ahead is bounded."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from tests.shard_factory import encode, tone
from xares_bench.datasets.shards import Sample
from xares_bench.features.encoding import AudioClip
from xares_bench.features.prefetch import ReadRequest, read_ahead
from xares_bench.scores.records import DroppedSample

AUDIO = [encode(tone(0.02 * (1 + i % 5), 200 + 10 * i)) for i in range(12)]


def request(number: int) -> ReadRequest:
    """A tone; every seventh sample cannot be decoded."""
    audio = b"garbage" if number % 7 == 6 else AUDIO[number % len(AUDIO)]
    sample = Sample(key=f"c{number}", audio=audio, suffix="wav", fields={"number": number})
    return ReadRequest(sample=sample, shard="s.tar", max_audio_s=0.05, seed=str(number))


def requests_of(number: int) -> Sequence[ReadRequest]:
    """None, one, two, or three of them."""
    return [request(10 * number + i) for i in range(number % 4)]


def shown(decoded: list[AudioClip | DroppedSample]) -> list[tuple[str, bytes | str]]:
    return [
        (item.key, item.waveform.tobytes()) if isinstance(item, AudioClip) else (item.clip, item.reason)
        for item in decoded
    ]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_change_neither_order_nor_bits(num_threads: int) -> None:
    alone, helped = (
        [(number, shown(decoded)) for number, decoded in read_ahead(range(40), requests_of, threads)]
        for threads in (0, num_threads)
    )
    assert [number for number, _ in alone] == list(range(40))
    assert [len(decoded) for _, decoded in alone] == [number % 4 for number in range(40)]
    assert helped == alone


class SlowRequest(ReadRequest):
    """Notes who decodes it; earlier ones take longer."""

    seen: list[tuple[str, str]] = []  # noqa: RUF012

    def read(self) -> AudioClip | DroppedSample:
        time.sleep(0.02 if self.sample.key.endswith("0") else 0)
        self.seen.append((self.sample.key, threading.current_thread().name))
        return super().read()


def slow(number: int) -> list[SlowRequest]:
    sample = Sample(key=f"c{number}", audio=AUDIO[0], suffix="wav", fields={})
    return [SlowRequest(sample=sample, shard="s.tar", max_audio_s=None, seed="")]


def test_what_is_done_later_but_asked_first_comes_first() -> None:
    SlowRequest.seen.clear()
    keys = [shown(decoded)[0][0] for _, decoded in read_ahead(range(30), slow, 3)]
    assert keys == [f"c{number}" for number in range(30)]
    assert [key for key, _ in SlowRequest.seen] != keys, "the others did not wait for the slow ones"
    assert len({name for _, name in SlowRequest.seen}) == 3
    SlowRequest.seen.clear()
    list(read_ahead(range(3), slow, 0))
    assert {name for _, name in SlowRequest.seen} == {threading.current_thread().name}


@pytest.mark.parametrize("num_threads", [0, 2])
def test_of_endless_items_only_a_few_are_taken_in_advance(num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xares_bench.features.prefetch._CLIPS_AHEAD", 12)
    monkeypatch.setattr("xares_bench.features.prefetch._ITEMS_AHEAD", 20)
    num_taken = 0

    def items(num_requests: int) -> Iterator[int]:
        nonlocal num_taken
        num_taken = 0
        while True:
            num_taken += 1
            yield num_requests

    for num_requests, bound in ((3, 4), (0, 20)):
        decoded = read_ahead(items(num_requests), lambda number: [request(i) for i in range(number)], num_threads)
        for num_given in range(1, 50):
            assert len(next(decoded)[1]) == num_requests
            assert num_taken - num_given <= (bound if num_threads else 0)
        decoded.close()  # type: ignore[attr-defined]


def test_threads_end_with_whoever_asked_for_them() -> None:
    before = threading.active_count()
    decoded = read_ahead(itertools.count(), slow, 3)
    next(decoded)
    assert threading.active_count() > before
    decoded.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


class BrokenRequest(ReadRequest):
    """A mistake of ours, which must not be taken for an unusable sample."""

    def read(self) -> AudioClip | DroppedSample:
        raise ZeroDivisionError(self.sample.key)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_mistake_in_a_thread_is_told_to_whoever_asked(num_threads: int) -> None:
    sample = Sample(key="c", audio=b"", suffix="wav", fields={})
    broken = BrokenRequest(sample=sample, shard="s", max_audio_s=None, seed="")
    with pytest.raises(ZeroDivisionError, match=r"^c$"):
        list(read_ahead([1], lambda number: [broken], num_threads))


def test_a_request_decodes_its_window() -> None:
    sample = Sample(key="c", audio=encode(np.linspace(0, 0.9, 16_000, dtype=np.float32)), suffix="wav", fields={})
    windows = [ReadRequest(sample=sample, shard="s", max_audio_s=0.25, seed=seed).read() for seed in ("1", "1", "2")]
    starts = [float(window.waveform[0]) for window in windows if isinstance(window, AudioClip) and window.is_window]
    assert starts[0] == starts[1] != starts[2]
