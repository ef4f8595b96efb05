from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from xares_bench.baselines import Baseline
from xares_bench.gate import Gate
from xares_bench.records import ScoreRecord, overall_of

RECORD = ScoreRecord(
    dataset="gtzan",
    task="task1",
    metric="Accuracy",
    score=0.7,
    weight=1.0,
    num_rows=99,
    num_clips=99,
    duration_s=99.0,
    features_s=1.0,
    generation_s=1.0,
    dropped=(),
    mix="task1",
    key="k",
    lalm_key="l",
    reused=False,
    partial=False,
)


def gate(score: float | None, tolerance: float = 0.02) -> Gate:
    scores = {} if score is None else {"gtzan": score}
    overalls = {} if score is None else {"task1": score}
    baseline = Baseline(
        name="base", preset="mini", scores=scores, overalls=overalls, note="", fingerprints={}, path=Path("b.yaml")
    )
    return Gate(baseline=baseline, tolerance=tolerance)


@pytest.mark.parametrize("baseline", [0.1, 0.7, 0.72])
def test_a_score_down_to_the_tolerance_passes(baseline: float) -> None:
    assert gate(baseline).problem_of(RECORD, "p.jsonl") is None
    assert gate(baseline).problem_of_overall(overall_of("task1", [RECORD], ["gtzan"]), "p") is None


def test_a_lower_one_is_told_with_score_baseline_tolerance_and_predictions() -> None:
    assert gate(0.73).problem_of(RECORD, "p.jsonl") == (
        "gtzan: score 0.7000 is 0.0300 below the baseline 0.7300 (base), tolerance 0.02; predictions: p.jsonl"
    )
    problem = gate(0.73).problem_of_overall(overall_of("task1", [RECORD], ["gtzan"]), "p")
    assert problem is not None
    assert problem.startswith("task1 overall: score 0.7000 is 0.0300 below the baseline 0.7300")


@pytest.mark.parametrize(
    ("record", "held", "expected"),
    [
        (dataclasses.replace(RECORD, score=math.nan), gate(0.0, tolerance=1.0), "the score is NaN"),
        (dataclasses.replace(RECORD, score=math.nan), Gate(baseline=None, tolerance=0.0), "the score is NaN"),
        (RECORD, gate(None), "baseline base has no score for it"),
        (dataclasses.replace(RECORD, partial=True), gate(0.0), "fewer clips (--limit)"),
    ],
)
def test_what_cannot_be_compared_never_passes(record: ScoreRecord, held: Gate, expected: str) -> None:
    assert expected in str(held.problem_of(record, "p.jsonl"))


def test_without_a_baseline_every_number_passes() -> None:
    assert Gate(baseline=None, tolerance=0.0).problem_of(RECORD, "p.jsonl") is None


def test_an_incomplete_overall_is_not_even_asked_about() -> None:
    with pytest.raises(AssertionError):
        gate(0.0).problem_of_overall(overall_of("task1", [RECORD], ["gtzan", "esc-50"]), "p")
