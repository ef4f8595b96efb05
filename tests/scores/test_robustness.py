"""Losses by corruptions, against what is computed by hand from the same clips."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from xares_bench.metrics.registry import evaluate
from xares_bench.scores.clip_sums import ClipSums, gather, joined
from xares_bench.scores.records import RobustnessRecord, ScoreRecord
from xares_bench.scores.robustness import robustness_of
from xares_bench.scores.statistics import NUM_RESAMPLES

CLIPS = [f"c{i}" for i in range(40)]


def sums_of(right: list[bool], clips: list[str] = CLIPS) -> ClipSums:
    said = ["dog" if is_right else "cat" for is_right in right]
    result = evaluate("Accuracy", ["dog"] * len(said), said)
    return gather([result], metric="Accuracy", arguments={}, row_clips=clips)


def record(score: float) -> ScoreRecord:
    values: dict[str, Any] = dict.fromkeys(("weight", "duration_s", "features_s", "generation_s"), 1.0)
    values |= dict.fromkeys(("task", "metric", "mix", "lalm_key"), "x")
    values |= {"num_rows": 40, "num_clips": 40, "dropped": (), "reused": False, "partial": False}
    return ScoreRecord(dataset="esc-50", score=score, key="ab", **values)


def test_the_loss_is_paired_by_clip() -> None:
    clean = [i < 30 for i in range(40)]
    noisy = [i < 20 for i in range(40)]
    found = robustness_of(record(0.5), "noise:10", sums_of(clean), sums_of(noisy))
    assert (found.dataset, found.corruption, found.score, found.num_clips) == ("esc-50", "noise:10", 0.5, 40)
    assert (found.key, found.direction) == ("ab", "bad")
    assert found.loss == pytest.approx(-0.25)
    # The standard error of the mean of 40 differences, of which 10 are -1, and the weight of one clip.
    differences = np.array(noisy, float) - np.array(clean, float)
    deviation = math.hypot(differences.std() / math.sqrt(40), 1 / 40)
    assert found.interval is not None
    half = (found.interval[1] - found.interval[0]) / 2
    assert half == pytest.approx(1.96 * deviation, rel=3 / math.sqrt(NUM_RESAMPLES))
    unpaired = 1.96 * math.hypot(math.sqrt(0.25 * 0.75 / 40), math.sqrt(0.5 * 0.5 / 40))
    assert half < unpaired


def test_a_clip_that_only_one_score_has_is_left_out_of_the_loss() -> None:
    clean = sums_of([True] * 20 + [False] * 20)
    noisy = sums_of([True] * 10 + [False] * 10, CLIPS[:20])
    found = robustness_of(record(0.5), "speed:2", clean, noisy)
    assert found.num_clips == 20
    assert found.loss == pytest.approx(-0.5)


def test_where_nothing_changes_the_interval_is_around_0() -> None:
    same = sums_of([True, False] * 20)
    found = robustness_of(record(0.5), "mp3:160", same, same)
    assert (found.loss, found.direction) == (0, "")
    assert found.interval is not None
    assert found.interval[0] < 0 < found.interval[1]


def test_losses_that_differ_from_seed_to_seed_widen_the_interval() -> None:
    clean = [i < 30 for i in range(40)]
    alike = joined([sums_of([i < 20 for i in range(40)])] * 2)
    apart = joined([sums_of([i < 25 for i in range(40)]), sums_of([i < 15 for i in range(40)])])
    widths = []
    for noisy in (alike, apart):
        found = robustness_of(record(0.5), "noise:10", joined([sums_of(clean)] * 2), noisy)
        assert found.loss == pytest.approx(-0.25)
        assert found.interval is not None
        widths.append(found.interval[1] - found.interval[0])
    assert widths[1] > 2 * widths[0]


def test_a_record_is_read_as_it_was_written() -> None:
    values: dict[str, Any] = {"dataset": "a", "corruption": "noise:-5", "num_clips": 3, "key": "k"}
    found = RobustnessRecord(**values, score=0.5, loss=0.1, interval=(0.05, 0.2))
    assert RobustnessRecord.from_json(found.to_json()) == found
    assert (found.direction, found.order) == ("good", ("noise", -5.0))
    undefined = RobustnessRecord(**values, score=math.nan, loss=math.nan, interval=None)
    written = undefined.to_json()
    assert (written["score"], written["loss"]) == (None, None)
    assert math.isnan(RobustnessRecord.from_json(written).loss)
    assert undefined.direction == ""
