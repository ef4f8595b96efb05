from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from xares_bench.metrics.parts import mean_of_rows
from xares_bench.metrics.registry import METRICS, evaluate
from xares_bench.scores.clip_sums import ClipSums, gather
from xares_bench.scores.records import overall_of
from xares_bench.scores.statistics import (
    difference_of,
    holm,
    interval_of,
    overall_difference,
    paired_difference,
    pooled_training_noise,
    resampled,
)


def accuracy(right_C: NDArray[Any]) -> ClipSums:
    """The clip sums of an accuracy, from a 0 or 1 for every clip."""
    parts = np.stack([right_C, np.ones_like(right_C)], axis=-1)[None].astype(float)
    return ClipSums(
        metric="Accuracy", arguments={}, clips=tuple(f"c{place}" for place in range(len(right_C))), parts=parts
    )


def wilson(share: float, number: int) -> tuple[float, float]:
    """Wilson's interval of a share (1927)."""
    z = 1.959964
    centre = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z / (1 + z**2 / number) * math.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
    return centre - half, centre + half


@pytest.mark.parametrize(("num_right", "number"), [(50, 99), (30, 99), (500, 2000), (1800, 2000)])
def test_the_interval_of_an_accuracy_is_wilsons(num_right: int, number: int) -> None:
    interval = interval_of(accuracy(np.arange(number) < num_right))
    assert (interval.low, interval.high) == pytest.approx(wilson(num_right / number, number), abs=1.2 / number + 0.005)
    assert interval.deviation == pytest.approx(
        math.sqrt(num_right / number * (1 - num_right / number) / number), rel=0.1
    )


def test_the_same_clip_sums_have_the_same_interval() -> None:
    clip_sums = accuracy(np.arange(300) % 3 > 0)
    assert interval_of(clip_sums) == interval_of(clip_sums)
    assert np.array_equal(resampled(clip_sums), resampled(clip_sums))
    assert not np.array_equal(resampled(clip_sums), resampled(clip_sums, seed=1))


def test_rows_of_a_clip_stay_together() -> None:
    """Ten equal rows a clip say no more than one."""
    alone = accuracy(np.arange(200) % 2)
    repeated = ClipSums(metric="Accuracy", arguments={}, clips=alone.clips, parts=alone.parts * 10)
    assert interval_of(repeated) == interval_of(alone)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        interval = interval_of(accuracy(generator.random(150) < 0.7))
        covered += interval.low <= 0.7 <= interval.high
    assert 0.90 <= covered / 200 <= 0.99


def test_clips_that_are_hard_for_both_cancel_out() -> None:
    generator = np.random.default_rng(1)
    right = generator.random(400) < 0.6
    lost = right & (generator.random(400) > 0.1)
    paired = paired_difference(accuracy(right), accuracy(lost))
    assert paired is not None
    assert paired.num_clips == 400
    assert paired.difference == pytest.approx(lost.mean() - right.mean())
    assert paired.low <= paired.difference <= paired.high
    assert paired.deviation < 0.5 * math.hypot(
        interval_of(accuracy(right)).deviation, interval_of(accuracy(lost)).deviation
    )


def test_only_common_clips_are_compared() -> None:
    first, second = accuracy(np.arange(10) % 2), accuracy(np.arange(20) % 2)
    paired = paired_difference(first, second)
    assert paired is not None
    assert (paired.num_clips, paired.difference) == (10, 0.0)
    other = ClipSums(metric="Accuracy", arguments={}, clips=tuple("abcdefghij"), parts=first.parts)
    assert paired_difference(first, other) is None


def test_one_clip_is_never_a_significant_loss() -> None:
    for number in (5, 99, 1000):
        right = np.ones(number)
        lost = right.copy()
        lost[0] = 0
        paired = paired_difference(accuracy(right), accuracy(lost))
        assert paired is not None
        assert paired.p_loss > 0.05
    assert difference_of(0.0, 0.0, num_clips=7).p_loss == 0.5


@pytest.mark.parametrize(("num_seeds", "quantile"), [(2, 4.3027), (3, 2.7764), (6, 2.2281)])
def test_noise_known_from_a_few_seeds_widens_the_interval_as_students_distribution_does(
    num_seeds: int, quantile: float
) -> None:
    training = pooled_training_noise((0.1, num_seeds), (0.1, num_seeds))
    assert training is not None
    assert training.deviation == pytest.approx(0.1 * math.sqrt(2 / num_seeds))
    assert training.degrees_of_freedom == 2 * (num_seeds - 1)
    difference = difference_of(0.0, 0.0, num_clips=10**9, training=training)
    assert difference.high == pytest.approx(quantile * training.deviation, rel=1e-4)
    assert difference.low == -difference.high


def test_scores_of_one_seed_have_no_known_noise_of_training() -> None:
    assert pooled_training_noise((None, 1), (None, 1)) is None


def test_holm_corrects_for_many_tests() -> None:
    assert holm([]) == []
    assert holm([0.01, 0.04, 0.03]) == [True, False, False]
    assert holm([0.01, 0.02, 0.03]) == [True, True, True]
    assert holm([math.nan, 0.001]) == [False, True]


def test_a_significant_test_stays_significant_when_more_p_values_are_known() -> None:
    generator = np.random.default_rng(2)
    for _ in range(200):
        p_values = list(generator.random(12) ** 3 / 4)
        early = holm(p_values[:5], num_tests=12)
        late = holm(p_values, num_tests=12)
        assert all(now or not before for before, now in zip(early, late, strict=False))


def test_ten_thousand_clips_are_resampled_in_blocks() -> None:
    """With the sums of a mean average precision over 200 labels; benchmarks/test_statistics.py measures the time."""
    generator = np.random.default_rng(3)
    positive, predicted = generator.random((2, 10_000, 200)) < 0.02
    parts = np.concatenate([np.ones((10_000, 1)), positive, predicted | positive, positive], axis=1)[None].astype(float)
    clips = tuple(map(str, range(10_000)))
    clip_sums = ClipSums(metric="mAP", arguments={"num_classes": 200}, clips=clips, parts=parts)
    scores = resampled(clip_sums, num_resamples=500)
    assert len(scores) == 500
    assert scores.mean() == pytest.approx(clip_sums.scores()[0], abs=0.01)


def tagged(positives_NL: NDArray[np.bool_], predicted_NL: NDArray[np.bool_]) -> ClipSums:
    """The clip sums of an mAP over these labels."""
    references, hypotheses = (
        [";".join(f"label{place}" for place in np.flatnonzero(row)) for row in rows_NL]
        for rows_NL in (positives_NL, predicted_NL)
    )
    arguments = {"num_classes": positives_NL.shape[1] + 1}  # with that of clips without a label
    result = evaluate("mAP", references, hypotheses, **arguments)
    names = [f"c{place}" for place in range(len(references))]
    return gather([result], metric="mAP", arguments=arguments, row_clips=names)


def drawn_labels(rng: np.random.Generator, num_clips: int, share: float, recall: float) -> ClipSums:
    """Labels of which each clip has a share; found by the given recall, predicted wrongly half as often as missed."""
    positives = rng.random((num_clips, 40)) < share
    wrongly = share * (1 - recall) / 2
    predicted = np.where(positives, rng.random(positives.shape) < recall, rng.random(positives.shape) < wrongly)
    return tagged(positives, predicted)


@pytest.mark.parametrize("recall", [1.0, 0.6])
def test_the_interval_of_rare_labels_holds_its_score(recall: float) -> None:
    """Labels that one or two clips of sixty have."""
    rng = np.random.default_rng(0)
    positives = np.zeros((60, 40), bool)
    for label in range(40):
        positives[rng.choice(60, 1 + label % 2, replace=False), label] = True
    clip_sums = tagged(positives, positives & (rng.random(positives.shape) < recall))
    interval, score = interval_of(clip_sums), float(clip_sums.scores()[0])
    assert interval.low <= score <= interval.high
    if recall == 1:
        assert (interval.low, interval.high) == (1.0, 1.0), "as of an accuracy of 1"
    else:
        assert abs((interval.low + interval.high) / 2 - score) < 0.3 * (interval.high - interval.low)


@pytest.mark.parametrize(("num_clips", "share"), [(150, 0.02), (150, 0.2)], ids=["rare labels", "ordinary labels"])
def test_the_interval_of_an_mean_average_precision_covers_the_truth(num_clips: int, share: float) -> None:
    rng = np.random.default_rng(1)
    truth = np.mean([drawn_labels(rng, num_clips, share, 0.6).scores()[0] for _ in range(150)])
    intervals = [interval_of(drawn_labels(rng, num_clips, share, 0.6)) for _ in range(80)]
    covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    assert 0.87 <= covered <= 1


WORDS = st.lists(st.sampled_from(["dog", "cat", "a dog barks", "", "10", "x;y", "cat; dog"]), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    metric=st.sampled_from(sorted(name for name in METRICS if not METRICS[name].needs_models)),
    references=WORDS,
    data=st.data(),
)
def test_an_interval_holds_its_score_within_the_range(metric: str, references: list[str], data: st.DataObject) -> None:
    references = [*references, "dog"]
    size = len(references)
    hypotheses = [data.draw(st.lists(st.sampled_from([*references, "z"]), min_size=size, max_size=size)) for _ in "ab"]
    names = data.draw(st.lists(st.sampled_from("abcde"), min_size=size, max_size=size))
    arguments = {"num_classes": 20} if metric == "mAP" else {}
    results = [evaluate(metric, references, own, **arguments) for own in hypotheses]
    both = gather(results, metric=metric, arguments=arguments, row_clips=names)
    interval, score = interval_of(both), float(both.scores()[0])
    assert 0 <= interval.low <= score + 1e-12
    assert score - 1e-12 <= interval.high <= 1
    one, other = (gather([result], metric=metric, arguments=arguments, row_clips=names) for result in results)
    difference = paired_difference(one, other)
    assert difference is not None
    assert -1 <= difference.low <= difference.high <= 1


def test_the_overall_of_a_lone_dataset_has_its_interval(scored: Any) -> None:
    record = scored("gtzan", 0.98, interval=(0.93, 1.0), deviation=0.02)
    assert overall_of("task1", [record], ["gtzan"]).interval == (0.93, 1.0)
    two = overall_of("task1", [record, scored("esc-50", 0.99, interval=(0.9, 1.0), deviation=0.02)], ["gtzan"])
    assert two.interval is not None
    assert two.interval[1] == 1.0


@pytest.fixture
def scored() -> Any:
    from tests.reports.test_report import scored

    return scored


def test_labels_that_the_chosen_clips_do_not_have_are_left_out_of_both_scores() -> None:
    """Runs of --limit=30 and --limit=60 with the same predictions differ by nothing over the clips of both."""
    rng = np.random.default_rng(2)
    positives = rng.random((60, 40)) < 0.02
    positives[:, 0] = True
    predicted = positives & (rng.random(positives.shape) < 0.6)
    small, large = tagged(positives[:30], predicted[:30]), tagged(positives, predicted)
    assert large.select(small.clips).scores() == pytest.approx(small.scores(), abs=1e-12)
    difference = paired_difference(small, large)
    assert difference is not None
    assert (difference.difference, difference.deviation_by_clips) == pytest.approx((0, 0), abs=1e-12)


@pytest.mark.parametrize("metric", ["FENSE", "DATE"])
@pytest.mark.parametrize("score", [-0.001, 0.001])
def test_a_score_near_0_has_an_interval_on_both_sides_where_its_metric_has(metric: str, score: float) -> None:
    values = np.random.default_rng(0).normal(0, 0.1, 50)
    result = mean_of_rows(list(values + score - values.mean()))
    interval = interval_of(gather([result], metric=metric, arguments={}, row_clips=list(map(str, range(50)))))
    assert -0.04 < interval.low < -0.015
    assert 0.015 < interval.high < 0.04


def test_the_overall_of_scores_below_0_may_be_below_0(scored: Any) -> None:
    captions = scored("mecat", 0.001, interval=(-0.03, 0.03), deviation=0.015)
    labels = scored("esc-50", 0.001, interval=(0.0, 0.03), deviation=0.015)
    mixed, none = (overall_of("task1", records, []).interval for records in ([captions, labels], [labels] * 1))
    assert mixed is not None
    assert mixed[0] < 0 <= mixed[1]
    assert none == (0.0, 0.03)
    both = overall_of("task1", [labels, scored("gtzan", 0.001, interval=(0.0, 0.03), deviation=0.015)], [])
    assert both.interval is not None
    assert both.interval[0] == 0


def test_the_difference_of_an_overall_over_a_lone_dataset_is_the_datasets() -> None:
    right = np.arange(99) % 3 > 0
    training = pooled_training_noise((0.02, 5), (0.03, 5))
    lone = paired_difference(accuracy(right), accuracy(right & (np.arange(99) % 7 > 0)), training=training)
    assert lone is not None
    assert overall_difference(lone.difference, [(1.0, lone)], training=training) == lone


def test_the_noise_of_clips_is_combined_and_that_of_training_is_not() -> None:
    training = pooled_training_noise((0.05, 5), (0.05, 5))
    members = [difference_of(-0.1, 0.03, num_clips=10**6, training=training) for _ in range(9)]
    overall = overall_difference(-0.1, [(1 / 9, member) for member in members], training=training)
    assert overall.deviation_by_clips == pytest.approx(0.01)
    assert training is not None
    assert overall.deviation == pytest.approx(math.hypot(0.01, training.deviation))
