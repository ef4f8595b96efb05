from __future__ import annotations

from tests.conftest import MakeClips
from xares_bench.catalogue import Split
from xares_bench.rows import FALLBACK_TARGET_KEYS, make_rows


def test_rows_are_clips_times_targets_and_clips_without_a_target_are_named(make_clips: MakeClips) -> None:
    first, second, third = make_clips([1, 1, 1])
    object.__setattr__(first, "fields", {"captions": ["a", "b"]})
    object.__setattr__(second, "fields", {"other": "x"})
    object.__setattr__(third, "fields", {"label": 3})
    rows, dropped = make_rows([first, second, third], Split(shards=(), target_keys=("label",)))
    assert [(row.clip.key, row.target) for row in rows] == [("clip-0", "a"), ("clip-0", "b"), ("clip-2", "3")]
    assert [(sample.clip, sample.shard) for sample in dropped] == [("clip-1", "shard")]
    assert "label" in dropped[0].reason
    assert "other" in dropped[0].reason


def test_fallback_keys_are_the_published_ones() -> None:
    assert FALLBACK_TARGET_KEYS == ("captions", "caption", "text")
