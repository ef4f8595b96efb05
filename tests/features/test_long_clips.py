"""How far decoding is ahead is bounded by the size of what is decoded, too: a recording may last for hours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.shard_factory import encode, tone
from xares_bench.datasets.shards import Sample
from xares_bench.features.prefetch import ReadRequest, read_ahead

AUDIO = encode(tone(0.1))


@pytest.mark.parametrize(("num_fitting", "num_taken"), [(1, 2), (5, 6), (1000, 40)])
def test_no_more_than_so_many_bytes_are_decoded_ahead(
    monkeypatch: pytest.MonkeyPatch, num_fitting: int, num_taken: int
) -> None:
    monkeypatch.setattr("xares_bench.features.prefetch._BYTES_AHEAD", num_fitting * len(AUDIO))
    taken = []

    def numbers() -> Iterator[int]:
        for number in range(40):
            taken.append(number)
            yield number

    def requests_of(number: int) -> list[ReadRequest]:
        sample = Sample(key=f"c{number}", audio=AUDIO, suffix="wav", fields={})
        return [ReadRequest(sample=sample, shard="s", max_audio_s=None, seed="")]

    decoded = read_ahead(numbers(), requests_of, 2)
    next(decoded)
    assert len(taken) == num_taken
    assert [number for number, _ in decoded] == list(range(1, 40))
