from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.reports.test_report import results, scored
from xares_bench.reports.results import Background
from xares_bench.reports.score_rows import score_rows
from xares_bench.scores.baselines import Baseline, BaselineScore

BASELINE = Baseline(
    name="before",
    preset="mini",
    scores={"gtzan": BaselineScore(score=0.75, interval=(0.7, 0.8))},
    overalls={"task1": BaselineScore(score=0.5)},
    note="",
    fingerprints={},
    path=Path("before.yaml"),
)


def test_rows_stand_beside_their_baseline_and_chance_level() -> None:
    found = results(scored("esc-50", 0.75), scored("gtzan", 0.5, weight=3.0))
    background = Background(baseline=BASELINE, differences={"gtzan": (-0.3, -0.2), "task1 overall": (0.01, 0.2)})
    esc50, gtzan, overall = score_rows(found, found.overalls[0], background, {"esc-50": 0.5, "gtzan": 0.25})
    assert (esc50.baseline, esc50.difference, esc50.direction) == (None, None, "")
    assert (gtzan.baseline, gtzan.difference, gtzan.direction) == (0.75, -0.25, "bad")
    assert gtzan.baseline_interval == (0.7, 0.8)
    assert (overall.baseline, overall.direction, overall.is_overall) == (0.5, "good", True)
    assert overall.chance == pytest.approx((0.5 + 3 * 0.25) / 4)


def test_an_overall_chance_level_needs_all_of_them() -> None:
    found = results(scored("esc-50", 0.75), scored("gtzan", 0.5))
    rows = score_rows(found, found.overalls[0], Background(), {"esc-50": 0.5, "gtzan": None})
    assert [row.chance for row in rows] == [0.5, None, None]


@pytest.mark.parametrize(("low", "chance", "expected"), [(0.5, 0.5, True), (0.51, 0.5, False), (0.1, None, False)])
def test_near_chance_is_an_interval_that_reaches_it(low: float, chance: float | None, expected: bool) -> None:
    found = results(dataclasses.replace(scored("gtzan", 0.6), interval=(low, 0.7)))
    row, _ = score_rows(found, found.overalls[0], Background(), {"gtzan": chance})
    assert row.is_near_chance == expected


def test_an_incomplete_overall_says_so_and_has_no_baseline() -> None:
    found = results(scored("gtzan", 0.5, partial=True))
    *_, overall = score_rows(found, found.overalls[0], Background(baseline=BASELINE), {})
    assert overall.name == "Overall, 1 of 2 datasets, some clips left out"
    assert overall.baseline is None
