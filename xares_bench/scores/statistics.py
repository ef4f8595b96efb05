"""Statistics: confidence intervals of scores, and whether a difference between two scores is more than noise.

The bootstrap (Efron 1979) by clip: clips are drawn with replacement, each with all its rows, and the metric is
recomputed from their sums. Two runs over the same clips are resampled with the same draws, so the clips that are hard
for both cancel out. The standard error of a difference becomes a p-value through the normal distribution: correcting
for many tests needs small p-values, and counting among 1000 resamples gives none between 0 and 0.001.

Shapes: B resamples, C clips.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from xares_bench.metrics.registry import METRICS
from xares_bench.scores.clip_sums import Array, ClipSums

NUM_RESAMPLES = 1000
ALPHA = 0.05
_BLOCK_NUMBERS = 4_000_000  # weights in memory at a time: 32 MB
_NORMAL = NormalDist()
# Standard errors of the mean of the resamples: more than chance explains.
_BIAS_IN_ERRORS = 4


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The 95 % confidence interval of a score.

    Attributes:
        low: 2.5th percentile of the resamples, corrected for their bias.
        high: 97.5th percentile, likewise.
        deviation: Standard deviation of the resamples: the score's standard error.
    """

    low: float
    high: float
    deviation: float


@dataclass(frozen=True, kw_only=True)
class TrainingNoise:
    """How much the difference of two scores varies with the training seeds.

    Attributes:
        deviation: Standard error of the difference, from the training alone.
        degrees_of_freedom: Of that estimate: the number of seeds, minus one per score.
    """

    deviation: float
    degrees_of_freedom: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference between two scores.

    Attributes:
        difference: The second score minus the first.
        low: Lower end of its 95 % confidence interval.
        high: Upper end of the interval.
        deviation: Its standard error.
        deviation_by_clips: The part of it that resampling clips shows.
        p_loss: One-sided p-value: the probability of a loss at least this large if the second score were no worse.
        num_clips: Clips that it is over.
        paired: Whether both scores were resampled over the same clips.
    """

    difference: float
    low: float
    high: float
    deviation: float
    deviation_by_clips: float
    p_loss: float
    num_clips: int
    paired: bool


def resampled(clip_sums: ClipSums, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Array:
    """Return the scores of resamples of the clips, at most `[B]`; resamples without a finite score are left out."""
    blocks = _weights(len(clip_sums.clips), num_resamples, seed)
    scores = np.concatenate([clip_sums.scores(weights_BC) for weights_BC in blocks])
    finite: Array = scores[np.isfinite(scores)]
    return finite


def interval_of(clip_sums: ClipSums) -> Interval:
    """Return the 95 % confidence interval of a score.

    The interval has no width where all clips agree, as for an accuracy of 1: resampling only repeats the clips at hand.

    The mean of the resamples of a metric that is no mean, such as mAP, can differ from the score. Where it does so by
    more than chance, the percentiles are shifted by the difference (Efron and Tibshirani 1993, chapter 10).
    """
    scores = resampled(clip_sums)
    if len(scores) == 0:
        return Interval(low=math.nan, high=math.nan, deviation=math.nan)
    score, deviation = float(clip_sums.scores()[0]), float(scores.std())
    bias = float(scores.mean()) - score
    low, high = np.quantile(scores, [ALPHA / 2, 1 - ALPHA / 2])
    if abs(bias) > _BIAS_IN_ERRORS * deviation / math.sqrt(len(scores)):
        low, high = low - bias, high - bias
    low = max(float(low), METRICS[clip_sums.metric].lowest)
    high = min(float(high), 1.0)
    return Interval(low=min(low, score), high=max(high, score), deviation=deviation)


def paired_difference(first: ClipSums, second: ClipSums, *, training: TrainingNoise | None = None) -> Difference | None:
    """Compare two scores over the clips that both have.

    Args:
        first: The score to compare with.
        second: The score to examine.
        training: The noise of training, which resampling clips does not show; None if it is unknown.

    Returns:
        The second score minus the first; None if they have no clip in common or another metric.
    """
    in_second = set(second.clips)
    common = [clip for clip in first.clips if clip in in_second]
    if not common or (first.metric, first.arguments) != (second.metric, second.arguments):
        return None
    first, second = first.select(common), second.select(common)
    # Now both have the same clips in the same order, so the same weights draw the same clips from both.
    differences = np.concatenate(
        [second.scores(weights) - first.scores(weights) for weights in _weights(len(common), NUM_RESAMPLES, 0)]
    )
    return difference_of(
        float(second.scores()[0] - first.scores()[0]),
        float(differences[np.isfinite(differences)].std()),
        num_clips=len(common),
        training=training,
        paired=True,
    )


def difference_of(
    difference: float,
    deviation: float,
    *,
    num_clips: int,
    training: TrainingNoise | None = None,
    paired: bool = False,
) -> Difference:
    """Return a difference with its confidence interval and p-value.

    Args:
        difference: The second score minus the first.
        deviation: Its standard error from resampling clips.
        num_clips: Clips that it is over.
        training: The noise of training. It is estimated from a few seeds, so Student's t distribution replaces the
            normal one, with degrees of freedom by Satterthwaite (1946).
        paired: See `Difference`.
    """
    # The weight of one clip is added: where all clips agree, resampling shows no error at all, and where few disagree,
    # the tail of the normal distribution is too thin. So one clip alone is never a significant loss.
    by_clips = math.hypot(deviation, 1 / num_clips)
    by_training = 0.0 if training is None else training.deviation
    total = math.hypot(by_clips, by_training)
    degrees = math.inf
    if training is not None and by_training > 0:
        # Satterthwaite's formula with infinite degrees of freedom for the clips' share of the variance.
        degrees = training.degrees_of_freedom * (total / by_training) ** 4
    half = -_student_quantile(ALPHA / 2, degrees) * total
    return Difference(
        difference=difference,
        low=max(-1.0, difference - half),
        high=min(1.0, difference + half),
        deviation=total,
        deviation_by_clips=deviation,
        p_loss=_student_cdf(difference / total, degrees),
        num_clips=num_clips,
        paired=paired,
    )


def overall_difference(
    difference: float, members: Sequence[tuple[float, Difference]], *, training: TrainingNoise | None = None
) -> Difference:
    """Return the difference between two overall scores, given those of their datasets.

    Args:
        difference: The second overall score minus the first.
        members: The share of each dataset in the overall score, and the difference of its scores. The datasets have no
            test clips in common, so the noise of their clips is independent.
        training: The noise of training of the overall scores themselves; that of the datasets is not independent, as
            they share a LALM.
    """
    return difference_of(
        difference,
        math.hypot(*(share * member.deviation_by_clips for share, member in members)),
        num_clips=sum(member.num_clips for _, member in members),
        training=training,
        paired=all(member.paired for _, member in members),
    )


def pooled_training_noise(*scores: tuple[float | None, int]) -> TrainingNoise | None:
    """Return the noise of training in the difference of two scores.

    Args:
        scores: Per score, its standard deviation over the training seeds, and their number. A score of one seed has no
            standard deviation; it gets that of the other score.

    Returns:
        The noise; None if both scores have a single seed.

    Example:
        >>> pooled_training_noise((None, 1), (0.02, 5))
        TrainingNoise(deviation=0.021908902300206645, degrees_of_freedom=4)
    """
    known = [(spread, num_seeds - 1) for spread, num_seeds in scores if spread is not None]
    if not known:
        return None
    degrees = sum(count for _, count in known)
    variance = sum(spread**2 * count for spread, count in known) / degrees
    return TrainingNoise(
        deviation=math.sqrt(variance * sum(1 / max(1, num_seeds) for _, num_seeds in scores)),
        degrees_of_freedom=degrees,
    )


def holm(p_values: Sequence[float], *, alpha: float = ALPHA, num_tests: int | None = None) -> list[bool]:
    """Return which tests are significant, with a probability of at most `alpha` that any of them is a false alarm.

    Holm 1979, "A simple sequentially rejective multiple test procedure".

    Args:
        p_values: The p-values known so far; NaN is never significant.
        alpha: The family-wise error rate.
        num_tests: Tests in all, if some p-values are not known yet. Those count as not significant. A test that is
            significant now stays so when the others become known; one that is not can become significant.

    Example:
        >>> holm([0.001, 0.04, 0.02])
        [True, True, True]
        >>> holm([0.001, 0.04, 0.02], num_tests=20)
        [True, False, False]
    """
    # The k-th smallest of N p-values must be at most alpha / (N - k + 1), and so must all smaller ones. With N known
    # from the start, significant stays significant: a new p-value below significant ones takes the place of one of
    # them, whose bound it meets, as it is smaller; those behind it move to later places, where the bounds are higher.
    num_left = len(p_values) if num_tests is None else num_tests
    significant = [False] * len(p_values)
    for place in sorted(range(len(p_values)), key=lambda place: (math.isnan(p_values[place]), p_values[place])):
        if not p_values[place] <= alpha / num_left:
            break
        significant[place] = True
        num_left -= 1
    return significant


def _student_cdf(value: float, degrees: float) -> float:
    """Return Student's t distribution function; beyond 1000 degrees of freedom, the normal one.

    By the substitution t = sqrt(degrees) tan(angle), under which the density is proportional to
    cos(angle) ** (degrees - 1); so scipy is not needed.
    """
    if degrees > 1000 or value == 0:
        return _NORMAL.cdf(value)
    below, whole = (
        np.trapezoid(np.cos(angles) ** (degrees - 1), angles)
        for angles in (
            np.linspace(-math.pi / 2, -abs(math.atan(value / math.sqrt(degrees))), 20_001),
            np.linspace(-math.pi / 2, 0, 20_001),
        )
    )
    tail = float(below / whole / 2)
    return tail if value < 0 else 1 - tail


def _student_quantile(share: float, degrees: float) -> float:
    """Return the quantile of Student's t distribution, for a share of at most a half."""
    if degrees > 1000:
        return _NORMAL.inv_cdf(share)
    low, high = -50.0, 0.0  # the 2.5 % quantile is -12.7 with one degree of freedom
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, degrees) < share else (low, middle)
    return high


def _weights(num_clips: int, num_resamples: int, seed: int) -> Iterator[Array]:
    """Yield how often each clip is drawn, `[B, C]`, in blocks of resamples that fit in memory.

    Datasets with equal numbers of clips get equal weights, so `_drawn` can cache them.
    """
    block = max(1, min(num_resamples, _BLOCK_NUMBERS // num_clips))
    for start in range(0, num_resamples, block):
        # Each block has a seed of its own, so that it can be drawn, and cached, without those before it.
        yield _drawn(num_clips, min(block, num_resamples - start), seed + start).astype(np.float64)


@functools.lru_cache(maxsize=8)
def _drawn(num_clips: int, num_resamples: int, seed: int) -> NDArray[np.uint16]:
    """Return how often each clip is drawn when C clips are drawn with replacement, `[B, C]`."""
    drawn = np.random.default_rng(seed).integers(0, num_clips, (num_resamples, num_clips))
    # Numbered on from row to row, so that a single bincount counts every resample.
    drawn += np.arange(num_resamples)[:, None] * num_clips
    counts = np.bincount(drawn.ravel(), minlength=num_resamples * num_clips)
    return counts.reshape(num_resamples, num_clips).astype(np.uint16)
