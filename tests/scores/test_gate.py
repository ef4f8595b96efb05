from __future__ import annotations

import dataclasses
import doctest
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from xares_bench.scores import baselines, gate
from xares_bench.scores.baselines import Baseline, BaselineScore
from xares_bench.scores.clip_sums import ClipSums
from xares_bench.scores.gate import Finding, Gate, Tolerance, is_within_tolerance
from xares_bench.scores.records import ScoreRecord, overall_of
from xares_bench.scores.statistics import interval_of

RECORD = ScoreRecord(
    dataset="gtzan",
    task="task1",
    metric="Accuracy",
    score=0.7,
    weight=1.0,
    num_rows=100,
    num_clips=100,
    duration_s=99.0,
    features_s=1.0,
    generation_s=1.0,
    dropped=(),
    mix="task1",
    key="k",
    lalm_key="l",
    reused=False,
    partial=False,
    seed_scores=(0.7,),
)
PLAIN = Tolerance(by_noise=False, number=0.02)


def clip_sums_of(right_C: NDArray[np.bool_], prefix: str = "clip") -> ClipSums:
    parts = np.stack([right_C, np.ones(len(right_C))], axis=-1)[None].astype(float)
    clips = tuple(f"{prefix}{place}" for place in range(len(right_C)))
    return ClipSums(metric="Accuracy", arguments={}, clips=clips, parts=parts)


def record_of(clip_sums: ClipSums, dataset: str = "gtzan") -> ScoreRecord:
    interval = interval_of(clip_sums)
    score = float(clip_sums.scores()[0])
    return dataclasses.replace(
        RECORD,
        dataset=dataset,
        score=score,
        seed_scores=(score,),
        num_rows=len(clip_sums.clips),
        num_clips=len(clip_sums.clips),
        interval=(interval.low, interval.high),
        deviation=interval.deviation,
    )


def held_of(record: ScoreRecord, clip_sums: ClipSums | None = None) -> BaselineScore:
    return BaselineScore(
        score=record.score,
        interval=record.interval,
        deviation=record.deviation,
        num_rows=record.num_rows,
        num_clips=record.num_clips,
        clip_sums=clip_sums,
    )


def gate_of(scores: Mapping[str, BaselineScore], tolerance: Tolerance | None = None) -> Gate:
    overalls = {"task1": next(iter(scores.values()))} if scores else {}
    baseline = Baseline(
        name="base", preset="mini", scores=scores, overalls=overalls, note="", fingerprints={}, path=Path("b.yaml")
    )
    return Gate(baseline=baseline, tolerance=tolerance or Tolerance())


def failures(gate: Gate, record: ScoreRecord, clip_sums: ClipSums, num_tests: int = 1) -> dict[str, str]:
    return gate.failures([gate.examine(record, clip_sums)], num_tests)


CLIP_SUMS = clip_sums_of(np.arange(100) < 70)


@pytest.mark.parametrize("baseline", [0.1, 0.7, 0.72])
def test_a_number_lets_a_score_down_to_it_pass(baseline: float) -> None:
    gate = gate_of({"gtzan": BaselineScore(score=baseline)}, PLAIN)
    overall = overall_of("task1", [RECORD], ["gtzan"])
    assert failures(gate, RECORD, CLIP_SUMS) == {}
    assert gate.failures([gate.examine_overall(overall, 100)], 1) == {}


def test_a_failure_names_score_baseline_and_tolerance() -> None:
    gate = gate_of({"gtzan": BaselineScore(score=0.73)}, PLAIN)
    assert failures(gate, RECORD, CLIP_SUMS) == {
        "gtzan": "gtzan: score 0.7000 is 0.0300 below the baseline 0.7300 (base), tolerance 0.02"
    }
    overall = gate.examine_overall(overall_of("task1", [RECORD], ["gtzan"]), 100)
    assert "task1 overall: score 0.7000 is 0.0300 below" in gate.failures([overall], 1)["task1 overall"]


@pytest.mark.parametrize("tolerance", [PLAIN, Tolerance()])
@pytest.mark.parametrize(
    ("record", "scores", "expected"),
    [
        (dataclasses.replace(RECORD, score=math.nan), {"gtzan": BaselineScore(score=0.0)}, "the score is NaN"),
        (RECORD, {}, "no score in the baseline base"),
        (dataclasses.replace(RECORD, partial=True), {"gtzan": BaselineScore(score=0.0)}, "fewer clips (--limit)"),
        (RECORD, {"gtzan": BaselineScore(score=0.0, num_rows=99)}, "over 100 rows, the baseline's over 99"),
    ],
)
def test_what_cannot_be_compared_never_passes(
    record: ScoreRecord, scores: Mapping[str, BaselineScore], expected: str, tolerance: Tolerance
) -> None:
    assert expected in failures(gate_of(scores, tolerance), record, CLIP_SUMS)["gtzan"]


def test_without_a_baseline_every_number_passes() -> None:
    gate = Gate(baseline=None, tolerance=Tolerance())
    assert failures(gate, RECORD, CLIP_SUMS) == {}
    assert "NaN" in failures(gate, dataclasses.replace(RECORD, score=math.nan), CLIP_SUMS)["gtzan"]


def test_an_incomplete_overall_score_is_never_compared() -> None:
    with pytest.raises(AssertionError):
        gate_of({}).examine_overall(overall_of("task1", [RECORD], ["gtzan", "esc-50"]), 100)


def test_a_loss_within_the_noise_passes_and_beyond_it_fails() -> None:
    """A published score, of which nothing is known but itself: 100 clips at 0.7 have a standard error of 0.046."""
    record = record_of(CLIP_SUMS)
    assert failures(gate_of({"gtzan": BaselineScore(score=0.76)}), record, CLIP_SUMS) == {}
    message = failures(gate_of({"gtzan": BaselineScore(score=0.79)}), record, CLIP_SUMS)["gtzan"]
    assert message == (
        "gtzan: score 0.7000 is 0.0900 below the baseline 0.7900 (base), tolerance ci; two-sided 95 % confidence "
        "interval of the difference [-0.1835, +0.0035], not paired by clip; a loss is tested one-sided at 5 %: "
        "p = 0.03 before Holm correction over 1 test"
    )


def test_pairing_by_clip_finds_smaller_losses() -> None:
    """Twelve clips lost of 400 are noise between test sets, and none where the other 388 stayed as they were."""
    right = np.arange(400) < 280
    lost = right.copy()
    lost[:12] = False
    before, now = clip_sums_of(right), clip_sums_of(lost)
    held = record_of(before)
    assert failures(gate_of({"gtzan": held_of(held)}), record_of(now), now) == {}
    message = failures(gate_of({"gtzan": held_of(held, before)}), record_of(now), now)["gtzan"]
    assert ", paired by clip; a loss is tested one-sided at 5 %: p = " in message


def test_clips_of_another_test_set_are_not_paired() -> None:
    before, now = clip_sums_of(np.arange(400) < 280, "other"), clip_sums_of(np.arange(400) < 268)
    assert failures(gate_of({"gtzan": held_of(record_of(before), before)}), record_of(now), now) == {}


def test_a_significant_loss_below_the_floor_passes() -> None:
    right = np.ones(20_000, dtype=bool)
    lost = right.copy()
    lost[:90] = False  # 0.0045
    before, now = clip_sums_of(right), clip_sums_of(lost)
    scores = {"gtzan": held_of(record_of(before), before)}
    assert failures(gate_of(scores), record_of(now), now) == {}
    assert "gtzan" in failures(gate_of(scores, Tolerance(number=0.004)), record_of(now), now)


def test_the_noise_of_training_excuses_what_clips_do_not() -> None:
    before, now = clip_sums_of(np.arange(1000) < 800), clip_sums_of(np.arange(1000) < 760)
    held = held_of(record_of(before), before)
    assert "gtzan" in failures(gate_of({"gtzan": held}), record_of(now), now)
    noisy = dataclasses.replace(held, spread=0.03, num_seeds=5)
    assert failures(gate_of({"gtzan": noisy}), record_of(now), now) == {}


def test_a_loss_counts_less_among_many_tests() -> None:
    record = record_of(CLIP_SUMS)
    gate = gate_of({"gtzan": BaselineScore(score=0.79)})
    assert "gtzan" in failures(gate, record, CLIP_SUMS, num_tests=1)
    assert failures(gate, record, CLIP_SUMS, num_tests=20) == {}


def test_another_loss_found_later_can_make_this_one_fail() -> None:
    first = record_of(CLIP_SUMS)
    second = dataclasses.replace(first, dataset="esc-50")
    gate = gate_of({"gtzan": BaselineScore(score=0.785), "esc-50": BaselineScore(score=0.95)})
    early = [gate.examine(first, CLIP_SUMS)]
    assert gate.failures(early, 2) == {}
    late = [*early, gate.examine(second, CLIP_SUMS)]
    assert set(gate.failures(late, 2)) == {"gtzan", "esc-50"}


def test_improvements_are_reported() -> None:
    record = record_of(CLIP_SUMS)
    gate = gate_of({"gtzan": BaselineScore(score=0.5)})
    findings = [gate.examine(record, CLIP_SUMS)]
    assert gate.failures(findings, 1) == {}
    assert gate.improvements(findings, 1) == ["gtzan"]
    assert gate_of({"gtzan": BaselineScore(score=0.69)}).improvements(findings, 1) == ["gtzan"]


def test_findings_travel_as_json() -> None:
    gate = gate_of({"gtzan": BaselineScore(score=0.75)})
    finding = gate.examine(record_of(CLIP_SUMS), CLIP_SUMS)
    assert Finding.from_json(json.loads(json.dumps(finding.to_json()))) == finding


def test_two_runs_of_the_same_model_on_different_test_samples_fail_at_most_one_time_in_twenty() -> None:
    """200 runs over 20 datasets of 60 to 250 clips, whose baselines were measured on other clips."""
    generator = np.random.default_rng(0)
    num_failed = 0
    for _ in range(200):
        scores, found = {}, []
        for place in range(20):
            number, share = int(generator.integers(60, 250)), generator.uniform(0.2, 0.95)
            before = clip_sums_of(generator.random(number) < share, "before")
            now = clip_sums_of(generator.random(number) < share, "now")
            scores[f"d{place}"] = held_of(record_of(before, f"d{place}"), before)
            found.append((record_of(now, f"d{place}"), now))
        gate = gate_of(scores)
        num_failed += bool(gate.failures([gate.examine(*pair) for pair in found], 20))
    assert num_failed / 200 <= 0.05


@pytest.mark.parametrize("correlation", [0.0, 1.0])
def test_overalls_whose_datasets_vary_together_fail_at_most_one_time_in_twenty(correlation: float) -> None:
    """The seeds of a LALM move all datasets of a task, up to entirely together; the encoders are equally good."""
    rng = np.random.default_rng(3)
    num_failed, num_runs, names = 0, 150, [f"d{number}" for number in range(10)]
    any_record = record_of(clip_sums_of(np.arange(100) < 50))

    def overall(num_seeds: int) -> tuple[list[ScoreRecord], Mapping[str, BaselineScore]]:
        common, own = rng.normal(0, 0.05, (1, num_seeds)), rng.normal(0, 0.05, (10, num_seeds))
        scores_DS = 0.5 + math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
        records = [
            dataclasses.replace(
                any_record, dataset=name, score=float(row.mean()), seed_scores=tuple(row), deviation=0.0
            )
            for name, row in zip(names, scores_DS, strict=True)
        ]
        return records, {record.dataset: held_of(record) for record in records}

    for _ in range(num_runs):
        _, expected = overall(5)
        records, _ = overall(2)
        baseline = dataclasses.replace(
            gate_of({}).baseline,  # type: ignore[type-var]
            scores=expected,
            overalls=baselines._overalls(expected, {"task1": names}),
        )
        found = Gate(baseline=baseline, tolerance=Tolerance(number=0.0)).examine_overall(
            overall_of("task1", records, names), num_clips=100_000
        )
        assert found.difference is not None
        num_failed += found.difference.p_loss < 0.05
    assert 0.005 <= num_failed / num_runs <= 0.1


def test_two_models_that_are_equally_good_on_the_same_clips_fail_at_most_one_time_in_twenty() -> None:
    """They err on other clips: each answer changes with a chance of one in ten."""
    generator = np.random.default_rng(1)
    num_failed = 0
    for _ in range(200):
        scores, found = {}, []
        for place in range(20):
            number = int(generator.integers(60, 250))
            difficulty, noise = generator.random(number) < 0.7, generator.random((2, number))
            before, now = (clip_sums_of(difficulty ^ (flips < 0.05)) for flips in noise)
            scores[f"d{place}"] = held_of(record_of(before, f"d{place}"), before)
            found.append((record_of(now, f"d{place}"), now))
        gate = gate_of(scores)
        num_failed += bool(gate.failures([gate.examine(*pair) for pair in found], 20))
    assert num_failed / 200 <= 0.05


@pytest.mark.parametrize("num_tests", [1, 20])
def test_a_true_loss_of_three_points_on_a_thousand_clips_is_caught(num_tests: int) -> None:
    """The encoder loses 4.4 % of the clips and gains 1.4 %: caught at least four times in five, also among 20 tests."""
    generator = np.random.default_rng(2)
    num_caught = 0
    for _ in range(100):
        right = generator.random(1000) < 0.75
        lost = generator.random(1000) < 0.044 / 0.75
        gained = generator.random(1000) < 0.014 / 0.25
        before, now = clip_sums_of(right), clip_sums_of((right & ~lost) | (~right & gained))
        gate = gate_of({"gtzan": held_of(record_of(before), before)})
        num_caught += "gtzan" in failures(gate, record_of(now), now, num_tests)
    assert num_caught / 100 >= 0.8


@pytest.mark.parametrize(
    ("score", "baseline", "tolerance", "passed"),
    [
        (0.87, 0.87, 0.0, True),
        (0.9, 0.87, 0.0, True),
        (0.85, 0.87, 0.02, True),
        (0.3, 0.4, 0.1, True),
        (0.2, 0.3, 0.1, True),
        (0.8499, 0.87, 0.02, False),
        (0.8699999, 0.87, 0.0, False),
        (0.0, 0.5, 0.5, True),
        (math.nan, 0.0, 1.0, False),
        (0.5, math.nan, 1.0, False),
        (math.inf, 0.5, 0.0, False),
        (-math.inf, 0.5, 0.0, False),
        (0.5, -math.inf, 0.0, False),
    ],
)
def test_a_score_passes_down_to_its_tolerance(score: float, baseline: float, tolerance: float, passed: bool) -> None:
    assert is_within_tolerance(score, baseline, tolerance) is passed


def test_no_score_in_steps_of_a_thousandth_fails_at_exactly_its_floor() -> None:
    for baseline in range(1001):
        for tolerance in (5, 10, 20, 100):
            at_floor, below = baseline - tolerance, baseline - tolerance - 1
            assert is_within_tolerance(at_floor / 1000, baseline / 1000, tolerance / 1000)
            assert not is_within_tolerance(below / 1000, baseline / 1000, tolerance / 1000)


@pytest.mark.parametrize("tolerance", [-0.01, math.nan, math.inf])
def test_an_impossible_tolerance_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance is"):
        is_within_tolerance(0.5, 0.5, tolerance)


def test_examples_in_docstrings() -> None:
    outcome = doctest.testmod(gate)
    assert outcome.attempted >= 1
    assert outcome.failed == 0
