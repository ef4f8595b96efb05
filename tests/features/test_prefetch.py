"""Reading ahead: results and their order do not depend on the threads; how far ahead is bounded."""

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
    """A tone; every seventh sample is unreadable."""
    audio = b"garbage" if number % 7 == 6 else AUDIO[number % len(AUDIO)]
    sample = Sample(key=f"c{number}", audio=audio, suffix="wav", fields={"number": number})
    return ReadRequest(sample=sample, shard="s.tar", max_audio_s=0.05, seed=str(number))


def requests_of(number: int) -> Sequence[ReadRequest]:
    """None, one, two, or three of them."""
    return [request(10 * number + i) for i in range(number % 4)]


def shown(read: list[AudioClip | DroppedSample]) -> list[tuple[str, bytes | str]]:
    return [
        (item.key, item.waveform.tobytes()) if isinstance(item, AudioClip) else (item.clip, item.reason)
        for item in read
    ]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_change_neither_order_nor_bits(num_threads: int) -> None:
    alone, helped = (
        [(number, shown(read)) for number, read in read_ahead(range(40), requests_of, threads)]
        for threads in (0, num_threads)
    )
    assert [number for number, _ in alone] == list(range(40))
    assert [len(read) for _, read in alone] == [number % 4 for number in range(40)]
    assert helped == alone


class SlowRequest(ReadRequest):
    """Notes which thread reads it; every tenth takes longer."""

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
    keys = [shown(read)[0][0] for _, read in read_ahead(range(30), slow, 3)]
    assert keys == [f"c{number}" for number in range(30)]
    assert [key for key, _ in SlowRequest.seen] != keys, "the others did not wait for the slow ones"
    assert len({name for _, name in SlowRequest.seen}) == 3
    SlowRequest.seen.clear()
    list(read_ahead(range(3), slow, 0))
    assert {name for _, name in SlowRequest.seen} == {threading.current_thread().name}


@pytest.mark.parametrize("num_threads", [0, 2])
def test_only_a_few_of_endless_items_are_taken_in_advance(num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
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
        read = read_ahead(items(num_requests), lambda number: [request(i) for i in range(number)], num_threads)
        for num_given in range(1, 50):
            assert len(next(read)[1]) == num_requests
            assert num_taken - num_given <= (bound if num_threads else 0)
        read.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("num_fitting", "num_taken"), [(1, 2), (5, 6), (1000, 40)])
def test_the_bytes_read_ahead_are_bounded(monkeypatch: pytest.MonkeyPatch, num_fitting: int, num_taken: int) -> None:
    monkeypatch.setattr("xares_bench.features.prefetch._BYTES_AHEAD", num_fitting * len(AUDIO[0]))
    taken = []

    def numbers() -> Iterator[int]:
        for number in range(40):
            taken.append(number)
            yield number

    def one_request(number: int) -> list[ReadRequest]:
        sample = Sample(key=f"c{number}", audio=AUDIO[0], suffix="wav", fields={})
        return [ReadRequest(sample=sample, shard="s", max_audio_s=None, seed="")]

    ahead = read_ahead(numbers(), one_request, 2)
    next(ahead)
    assert len(taken) == num_taken
    assert [number for number, _ in ahead] == list(range(1, 40))


def test_threads_end_when_the_iterator_is_closed() -> None:
    before = threading.active_count()
    read = read_ahead(itertools.count(), slow, 3)
    next(read)
    assert threading.active_count() > before
    read.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


class BrokenRequest(ReadRequest):
    """A programming error, which must not be taken for an unusable sample."""

    def read(self) -> AudioClip | DroppedSample:
        raise ZeroDivisionError(self.sample.key)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_an_error_in_a_thread_is_raised_by_the_iterator(num_threads: int) -> None:
    sample = Sample(key="c", audio=b"", suffix="wav", fields={})
    broken = BrokenRequest(sample=sample, shard="s", max_audio_s=None, seed="")
    with pytest.raises(ZeroDivisionError, match=r"^c$"):
        list(read_ahead([1], lambda number: [broken], num_threads))


def test_a_request_reads_its_window() -> None:
    sample = Sample(key="c", audio=encode(np.linspace(0, 0.9, 16_000, dtype=np.float32)), suffix="wav", fields={})
    windows = [ReadRequest(sample=sample, shard="s", max_audio_s=0.25, seed=seed).read() for seed in ("1", "1", "2")]
    starts = [float(window.waveform[0]) for window in windows if isinstance(window, AudioClip) and window.is_window]
    assert starts[0] == starts[1] != starts[2]
