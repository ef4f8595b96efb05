from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeClips
from xares_bench.config.catalogue import Dataset, Split
from xares_bench.core.errors import DataError
from xares_bench.datasets.shards import Shard
from xares_bench.datasets.targets import NO_TARGETS, Targets
from xares_bench.features.encoding import Clip
from xares_bench.features.rows import Part, SampleCount, parts_of, read_clip_batches
from xares_bench.scores.records import DroppedSample

SPLIT = Split(shards=(), target_keys=("label",))
DATASET = Dataset(
    name="mine", task="custom", prompts=("?",), metric="Accuracy", metric_arguments={}, train=None, eval=SPLIT
)


class Samples:
    """A reader of clips that are there already."""

    def __init__(self, *samples: Clip | DroppedSample) -> None:
        self.samples = samples

    def read(self, shard: Shard, *, max_clips: int | None, num_threads: int | None) -> Iterator[Clip | DroppedSample]:
        yield from self.samples[:max_clips]


def a_shard(name: str = "shard") -> Shard:
    return Shard(path=Path(name), name=name, digest=name)


def sample_count(max_dropped_share: float = 0.5) -> SampleCount:
    return SampleCount(dataset="mine", max_dropped_share=max_dropped_share)


def test_rows_are_clips_times_targets_and_unusable_samples_are_named(make_clips: MakeClips) -> None:
    first, second, third = make_clips([1, 1, 1])
    object.__setattr__(first, "fields", {"captions": ["a", "b"]})
    object.__setattr__(second, "fields", {"other": "x"})
    object.__setattr__(third, "fields", {"label": 3})
    silent = DroppedSample(shard="shard", clip="silent", reason="no audio")
    counted = sample_count()
    part = Part(shards=(a_shard(),), limit=None)
    (batch,) = read_clip_batches(Samples(first, silent, second, third), SPLIT, part, count=counted)
    assert [(row.clip.key, row.target) for row in batch.rows] == [("clip-0", "a"), ("clip-0", "b"), ("clip-2", "3")]
    assert batch.clips == (first, third)
    assert counted.num_samples == 4
    assert [sample.clip for sample in counted.dropped] == ["silent", "clip-1"]
    assert "label" in counted.dropped[1].reason
    assert "other" in counted.dropped[1].reason


def test_batches_have_a_bounded_number_of_clips_and_seconds(
    make_clips: MakeClips, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = make_clips([10, 10, 50, 10, 10])  # of 1 s, 1 s, 5 s, 1 s, 1 s
    monkeypatch.setattr("xares_bench.features.rows._BATCH_CLIPS", 3)
    monkeypatch.setattr("xares_bench.features.rows._BATCH_S", 5.0)
    part = Part(shards=(a_shard(), a_shard("two")), limit=8)
    batches = list(read_clip_batches(Samples(*clips), SPLIT, part, count=sample_count()))
    assert [[clip.duration_s for clip in batch.clips] for batch in batches] == [[1, 1, 5], [1, 1, 1], [1, 5]]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, [("a", "b", None), ("c", None), ("d", "e", None)]),
        (1, [("a", 1)]),
        (3, [("a", "b", 3)]),
        (4, [("a", "b", 4), ("c", 1)]),
        (9, [("a", "b", 9), ("c", 6), ("d", "e", 2)]),
        (100, [("a", "b", 100), ("c", 97), ("d", "e", 93)]),
    ],
)
def test_parts_are_whole_shards_up_to_the_limit(
    limit: int | None, expected: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xares_bench.features.rows._PART_SAMPLES", 3)
    sizes = {"a": 2, "b": 1, "c": 4, "d": 1, "e": 1}
    parts = parts_of(map(a_shard, sizes), lambda shard: sizes[shard.name], limit)
    assert [(*(shard.name for shard in part.shards), part.limit) for part in parts] == expected


def test_counts_of_parts_add_up_in_their_order() -> None:
    whole, first, second = sample_count(), sample_count(), sample_count()
    corrupt = Targets(corrupt=("?",))
    seen: list[tuple[SampleCount, str, Targets]] = [
        (first, "a", NO_TARGETS),
        (first, "b", Targets(texts=("x",), corrupt=("first",), fallback_key="text")),
        (second, "c", corrupt),
        (second, "d", Targets(texts=("x",), fallback_key="text")),
    ]
    for counted, key, targets in seen:
        usable = bool(targets.texts)
        sample = object() if usable else DroppedSample(shard="s.tar", clip=key, reason="of no use")
        for of in (whole, counted):
            of.add(sample, targets)
    added = sample_count().plus(json.loads(json.dumps(first.to_json()))).plus(second.to_json())
    assert added == whole
    assert added.corrupt_example == "first"


def test_more_unusable_samples_than_allowed_are_an_error_that_names_some() -> None:
    counted = sample_count(0.01)
    counted.num_samples = 100
    counted.dropped += [DroppedSample(shard="s.tar", clip=f"c{i}", reason="silent") for i in range(2)]
    counted.check(complete=False)  # two of the first hundred may be chance
    with pytest.raises(DataError, match=r"^mine: 2 of 100 samples are unusable, .*1\.0% \(c0 of s\.tar: silent; c1 of"):
        counted.check(complete=True)
    counted.dropped += counted.dropped * 2
    with pytest.raises(DataError, match="6 of 100"):
        counted.check(complete=False)


def test_the_first_samples_are_no_error_if_the_others_may_be_usable() -> None:
    """Of a tar with one sample, for example."""
    for targets, is_unusable in ((Targets(corrupt=("???",)), False), (NO_TARGETS, True)):
        counted = sample_count(0.01)
        counted.add(DroppedSample(shard="s.tar", clip="c", reason="of no use"), targets)
        assert bool(counted.dropped) == is_unusable
        counted.check(complete=False)
        with pytest.raises(
            DataError, match=r"mine: (none of 1 samples has a usable target|1 of 1 samples are unusable)"
        ):
            counted.check(complete=True)


def test_counts_go_through_json_whatever_was_counted() -> None:
    counted = sample_count()
    counted.add(DroppedSample(shard="s.tar", clip="c", reason="silent"), NO_TARGETS)
    counted.add(DroppedSample(shard="s.tar", clip="d", reason="corrupt"), Targets(corrupt=("???",)))
    for key in ("text", "caption", "text"):
        counted.add(object(), Targets(texts=("x",), fallback_key=key))
    again = sample_count().continued(json.loads(json.dumps(counted.to_json())))
    assert again == counted
    again.add(object(), Targets(texts=("x",), fallback_key="text"))
    assert again.fallbacks == {"text": 3, "caption": 1}


def test_no_sample_at_all_is_an_error_at_the_end_only() -> None:
    sample_count().check(complete=False)
    with pytest.raises(DataError, match="mine: its shards contain no samples"):
        sample_count().check(complete=True)
