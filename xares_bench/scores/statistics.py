"""Statistics: how sure a score is, and whether a difference is more than noise.

Clips are the sample: they are drawn with replacement (Efron 1979), all rows of a clip together, and the metric is
computed anew from their sums. Two runs over the same clips are resampled together, so that what both find hard cancels.
A difference's spread becomes a probability through the normal distribution, as small ones are needed where many
datasets are tested, and a thousand resamples have none below a thousandth.

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

from xares_bench.scores.clip_sums import Array, ClipSums

NUM_RESAMPLES = 1000
ALPHA = 0.05
_BLOCK_NUMBERS = 4_000_000  # weights that are in memory at a time
_NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score's 95 % interval.

    Attributes:
        low: 2.5th percentile of the resamples.
        high: 97.5th.
        deviation: Standard deviation of the resamples: the score's standard error.
    """

    low: float
    high: float
    deviation: float


@dataclass(frozen=True, kw_only=True)
class TrainingNoise:
    """What another seed of the training would change in the difference of two scores.

    Attributes:
        deviation: Standard error of the difference by that.
        degrees_of_freedom: How well it is known: seeds that it was estimated from, less one per score.
    """

    deviation: float
    degrees_of_freedom: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How one score stands to another.

    Attributes:
        difference: The second minus the first.
        low: Lower end of its 95 % interval.
        high: Upper end.
        deviation: Its standard error.
        p_loss: Probability of a loss as great as this, or a greater one, were the second no worse than the first.
        num_clips: Clips behind it.
        paired: Whether the two were held against each other clip by clip.
    """

    difference: float
    low: float
    high: float
    deviation: float
    p_loss: float
    num_clips: int
    paired: bool


def resampled(clip_sums: ClipSums, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Array:
    """The score of sets of C clips drawn with replacement, `[B]`; those that make no score are left out."""
    blocks = _weights(len(clip_sums.clips), num_resamples, seed)
    scores = np.concatenate([clip_sums.scores(weights_BC) for weights_BC in blocks])
    finite: Array = scores[np.isfinite(scores)]
    return finite


def interval_of(clip_sums: ClipSums) -> Interval:
    """The 95 % interval of a score.

    A score that no clip disagrees with, such as an accuracy of 1, has an interval of no width: resampling cannot know
    of clips that it has not seen.
    """
    scores = resampled(clip_sums)
    if len(scores) == 0:
        return Interval(low=math.nan, high=math.nan, deviation=math.nan)
    low, high = np.quantile(scores, [ALPHA / 2, 1 - ALPHA / 2])
    return Interval(low=float(low), high=float(high), deviation=float(scores.std()))


def paired_difference(first: ClipSums, second: ClipSums, *, training: TrainingNoise | None = None) -> Difference | None:
    """How the second score stands to the first over the clips that both have; None where there is none.

    Args:
        first: The one it is held against.
        second: The one in question.
        training: The noise of training, which clips do not show; None: it is not known, or not asked for.
    """
    in_second = set(second.clips)
    common = [clip for clip in first.clips if clip in in_second]
    if not common or (first.metric, first.arguments) != (second.metric, second.arguments):
        return None
    first, second = first.select(common), second.select(common)
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
    """A difference with its interval and the probability of such a loss.

    Args:
        difference: The second score minus the first.
        deviation: Its standard error by the clips. The worth of one clip is added: where all clips agree resampling
            shows no error, and where few disagree the normal distribution's tail is too thin.
        num_clips: Clips behind it.
        training: The noise of training. As it is known from a few seeds only, Student's distribution takes the place of
            the normal one, with degrees of freedom by Satterthwaite (1946).
        paired: See `Difference`.
    """
    by_clips = math.hypot(deviation, 1 / num_clips)
    by_training = 0.0 if training is None else training.deviation
    total = math.hypot(by_clips, by_training)
    degrees = math.inf
    if training is not None and by_training > 0:
        degrees = training.degrees_of_freedom * (total / by_training) ** 4
    half = -_student_quantile(ALPHA / 2, degrees) * total
    return Difference(
        difference=difference,
        low=difference - half,
        high=difference + half,
        deviation=total,
        p_loss=_student_cdf(difference / total, degrees),
        num_clips=num_clips,
        paired=paired,
    )


def pooled_training_noise(*scores: tuple[float | None, int]) -> TrainingNoise | None:
    """The training's noise in the difference of two scores, each given by its spread over seeds and their number.

    A score of one seed has no spread: the other's is taken for it. None where neither has one.

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
    """Which of several findings are significant, with all of them together wrong at most `alpha` of the time.

    Holm 1979, "A simple sequentially rejective multiple test procedure".

    Args:
        p_values: One per finding.
        alpha: Probability of a single wrong finding or more.
        num_tests: Findings that there are in all; those that are not yet known count as not significant. What is
            significant stays so when more become known.

    Example:
        >>> holm([0.001, 0.04, 0.02])
        [True, True, True]
        >>> holm([0.001, 0.04, 0.02], num_tests=20)
        [True, False, False]
    """
    num_left = len(p_values) if num_tests is None else num_tests
    significant = [False] * len(p_values)
    for place in sorted(range(len(p_values)), key=lambda place: (math.isnan(p_values[place]), p_values[place])):
        if not p_values[place] <= alpha / num_left:
            break
        significant[place] = True
        num_left -= 1
    return significant


def _student_cdf(value: float, degrees: float) -> float:
    """Student's distribution function, of any positive number of degrees of freedom; the normal one beyond 1000.

    With t = sqrt(degrees) tan(angle) its density is proportional to cos(angle) ** (degrees - 1).
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
    """The value that so large a share, of at most half, lies below."""
    if degrees > 1000:
        return _NORMAL.inv_cdf(share)
    low, high = -50.0, 0.0  # of 2.5 % it is -12.7 with one degree of freedom
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, degrees) < share else (low, middle)
    return high


def _weights(num_clips: int, num_resamples: int, seed: int) -> Iterator[Array]:
    """How often each clip is drawn, `[B, C]`, block by block; the same for all datasets of as many clips."""
    block = max(1, min(num_resamples, _BLOCK_NUMBERS // num_clips))
    for start in range(0, num_resamples, block):
        yield _drawn(num_clips, min(block, num_resamples - start), seed + start).astype(np.float64)


@functools.lru_cache(maxsize=8)
def _drawn(num_clips: int, num_resamples: int, seed: int) -> NDArray[np.uint16]:
    """Counts of clips drawn with replacement, `[B, C]`."""
    drawn = np.random.default_rng(seed).integers(0, num_clips, (num_resamples, num_clips))
    drawn += np.arange(num_resamples)[:, None] * num_clips
    counts = np.bincount(drawn.ravel(), minlength=num_resamples * num_clips)
    return counts.reshape(num_resamples, num_clips).astype(np.uint16)
