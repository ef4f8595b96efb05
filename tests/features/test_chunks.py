from __future__ import annotations

from pathlib import Path

import pytest

from tests.shard_factory import shard_at, tone, write_shard
from xares_bench.datasets.shards import Sample, Shard
from xares_bench.features.chunks import alone, chunks_of
from xares_bench.features.prefetch import ReadRequest


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    clips = [(f"clip-{i}", tone(duration_s), {"label": "x"}) for i, duration_s in enumerate((0.1, 0.1, 0.1, 1.0, 0.1))]
    return shard_at(write_shard(tmp_path / "a.tar", clips))


def request(sample: Sample) -> ReadRequest:
    return ReadRequest(sample=sample, shard="a.tar", max_audio_s=None, seed="")


@pytest.mark.parametrize(("max_clips", "sizes"), [(None, [2, 2, 1]), (5, [2, 2, 1]), (3, [2, 1]), (2, [2]), (1, [1])])
def test_chunks_are_neighbours_up_to_the_limit(
    shard: Shard, max_clips: int | None, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xares_bench.features.chunks._CHUNK_CLIPS", 2)
    chunks = list(chunks_of(shard, max_clips, request, None))
    assert [len(chunk.requests) for chunk in chunks] == sizes
    assert [chunk.number for chunk in chunks] == list(range(len(sizes)))
    assert [chunk.seed for chunk in chunks] == [f"{shard.digest} {number}" for number in range(len(sizes))]
    assert [sample.key for chunk in chunks for sample in chunk.samples] == [f"clip-{i}" for i in range(sum(sizes))]


def test_a_chunk_ends_where_its_files_have_so_many_bytes(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xares_bench.features.chunks._CHUNK_BYTES", 10_000)
    assert [len(chunk.requests) for chunk in chunks_of(shard, None, request, None)] == [4, 1]


def test_a_sample_alone_is_a_chunk_that_nobody_caches(shard: Shard) -> None:
    (chunk,) = chunks_of(shard, 1, request, None)
    pending = alone(chunk.requests[0])
    assert (pending.key, pending.index, pending.chunk.writer) == ("clip-0", 0, None)
    assert pending.fields == {"label": "x"}
    assert pending.chunk.samples == [pending.sample]
