"""The gate: decides which scores pass, and gives the reason for each that fails in one line.

By default a dataset fails when its score is below the baseline by more than noise and by more than a floor. Noise comes
from the test clips (paired by clip where the baseline has clip sums) and from the training (where several seeds were
trained). Holm's correction covers all datasets of a run: an encoder that lost nothing fails in at most one run of
twenty, however many datasets there are.

The gate decides in two steps, since each dataset is a pytest test of its own. `examine` looks at one score when its
test runs; `failures` then decides on all findings so far. It is told how many findings there will be, so a test that
fails now also fails when all are known. One that passes now can still fail at the end, as Holm's bound for the second
smallest p-value is higher than for the smallest: the session asks again when all are known.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xares_bench.scores.baselines import Baseline, BaselineScore
from xares_bench.scores.clip_sums import ClipSums
from xares_bench.scores.records import Overall, ScoreRecord
from xares_bench.scores.statistics import Difference, difference_of, holm, paired_difference, pooled_training_noise

DEFAULT_FLOOR = 0.005

# A score of 0.85 against 0.87 with tolerance 0.02 is at the floor, but 0.87 - 0.02 is above 0.85 in binary.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far below its baseline a score may be.

    Attributes:
        by_noise: Whether as far as noise explains (`ci`) instead of by a fixed number.
        number: The fixed number; with `by_noise` the floor: a loss up to it never fails.
    """

    by_noise: bool = True
    number: float = DEFAULT_FLOOR

    def __str__(self) -> str:
        """Return the tolerance as on the command line."""
        if not self.by_noise:
            return f"{self.number:g}"
        return "ci" if self.number == DEFAULT_FLOOR else f"ci:{self.number:g}"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The comparison of one score with its baseline, before the correction for many tests.

    Attributes:
        what: A dataset, or a task's overall score.
        score: The score.
        baseline: The score to compare it with; None if there is none.
        difference: Score minus baseline, with its error; None if the tolerance is a fixed number.
        problem: Why the score fails whatever the other findings are; None if it may pass.
    """

    what: str
    score: float
    baseline: float | None = None
    difference: Difference | None = None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a plain mapping; `from_json` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Finding:
        """Return the finding that `to_json` wrote."""
        difference = None if data["difference"] is None else Difference(**data["difference"])
        return cls(**{**data, "difference": difference})


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Compares scores with a baseline; without one, every finite score passes.

    Attributes:
        baseline: The scores to compare with, or None.
        tolerance: How far below the baseline a score may be.
        caveat: What the baseline and this run do not have in common, for messages; empty if nothing is known.
    """

    baseline: Baseline | None
    tolerance: Tolerance
    caveat: str = ""

    def examine(self, record: ScoreRecord, clip_sums: ClipSums) -> Finding:
        """Compare a dataset's score with the baseline.

        Args:
            record: The score.
            clip_sums: The clip sums behind it.
        """
        what = record.dataset
        expected = None if self.baseline is None else self.baseline.scores.get(what)
        if self.baseline is not None and record.partial:
            problem = f"{what}: a score over fewer clips (--limit) cannot be compared with a baseline"
            return Finding(what=what, score=record.score, problem=problem)
        # Before any comparison: scores of two test sets differ without any change to the encoder.
        if expected is not None and expected.num_rows not in (None, record.num_rows):
            problem = (
                f"{what}: the score is over {record.num_rows} rows, the baseline's over {expected.num_rows}; "
                "the test sets differ, so the scores cannot be compared"
            )
            return Finding(what=what, score=record.score, baseline=expected.score, problem=problem)
        return self._finding(what, record, expected, record.num_clips, clip_sums)

    def examine_overall(self, overall: Overall, num_clips: int) -> Finding:
        """Compare a task's complete overall score, over so many clips, with the baseline."""
        assert overall.complete, overall
        expected = None if self.baseline is None else self.baseline.overalls.get(overall.task)
        return self._finding(f"{overall.task} overall", overall, expected, num_clips, None)

    def failures(self, findings: Sequence[Finding], num_tests: int) -> dict[str, str]:
        """Return the reason for each score that fails, by dataset or overall score.

        Args:
            findings: The findings so far.
            num_tests: How many there will be in all. A score that fails now also fails when all are known.
        """
        tested = [finding for finding in findings if finding.problem is None and finding.difference is not None]
        significant = holm([_p(finding) for finding in tested], num_tests=max(num_tests, len(tested)))
        caveat = f"; the baseline was measured with {self.caveat}" if self.caveat else ""
        failures: dict[str, str] = {f.what: f.problem + caveat for f in findings if f.problem is not None}
        for finding, is_significant in zip(tested, significant, strict=True):
            if is_significant and _loss(finding) > self.tolerance.number:
                failures[finding.what] = self._describe(finding, num_tests) + caveat
        return failures

    def improvements(self, findings: Sequence[Finding], num_tests: int) -> list[str]:
        """Return the scores above the baseline by more than noise and the floor, for the report only."""
        tested = [finding for finding in findings if finding.problem is None and finding.difference is not None]
        significant = holm([1 - _p(finding) for finding in tested], num_tests=max(num_tests, len(tested)))
        pairs = zip(tested, significant, strict=True)
        return [finding.what for finding, is_it in pairs if is_it and -_loss(finding) > self.tolerance.number]

    def _finding(
        self,
        what: str,
        found: ScoreRecord | Overall,
        expected: BaselineScore | None,
        num_clips: int,
        clip_sums: ClipSums | None,
    ) -> Finding:
        score = found.score
        if not math.isfinite(score):
            return Finding(what=what, score=score, problem=f"{what}: the score is NaN, so the test fails")
        if self.baseline is None:
            return Finding(what=what, score=score)
        if expected is None:
            unknown = f"{what}: no score in the baseline {self.baseline.name}"
            return Finding(what=what, score=score, problem=unknown)
        if self.tolerance.by_noise:
            difference = self._difference(found, expected, num_clips, clip_sums)
            return Finding(what=what, score=score, baseline=expected.score, difference=difference)
        problem: str | None = None
        if not is_within_tolerance(score, expected.score, self.tolerance.number):
            problem = (
                f"{what}: score {score:.4f} is {expected.score - score:.4f} below the baseline {expected.score:.4f} "
                f"({self.baseline.name}), tolerance {self.tolerance}"
            )
        return Finding(what=what, score=score, baseline=expected.score, problem=problem)

    def _difference(
        self, found: ScoreRecord | Overall, expected: BaselineScore, num_clips: int, clip_sums: ClipSums | None
    ) -> Difference:
        """Return score minus baseline: paired by clip if both have clip sums, else with the errors of both scores."""
        training = pooled_training_noise((found.spread, len(found.seed_scores)), (expected.spread, expected.num_seeds))
        if clip_sums is not None and expected.clip_sums is not None:
            paired = paired_difference(expected.clip_sums, clip_sums, training=training)
            # Only over all clips: the loss over some of them need not be the loss of the score that the message names.
            if paired is not None and paired.num_clips == num_clips:
                return paired
        # A published score has no error; it counts as exact.
        deviation = math.hypot(found.deviation or 0.0, expected.deviation or 0.0)
        return difference_of(found.score - expected.score, deviation, num_clips=num_clips, training=training)

    def _describe(self, finding: Finding, num_tests: int) -> str:
        assert self.baseline is not None
        assert finding.baseline is not None
        assert finding.difference is not None
        difference = finding.difference
        how = "paired by clip" if difference.paired else "not paired by clip"
        return (
            f"{finding.what}: score {finding.score:.4f} is {_loss(finding):.4f} below the baseline "
            f"{finding.baseline:.4f} ({self.baseline.name}), tolerance {self.tolerance}; two-sided 95 % confidence "
            f"interval of the difference [{difference.low:+.4f}, {difference.high:+.4f}], {how}; a loss is tested "
            f"one-sided at 5 %: p = {difference.p_loss:.2g} before Holm correction over {num_tests} "
            f"{'test' if num_tests == 1 else 'tests'}"
        )


def is_within_tolerance(score: float, baseline: float, tolerance: float) -> bool:
    """Return whether a score is at most `tolerance` below a baseline.

    Differences within 1e-9 do not count. A score or baseline that is not finite never passes.

    Args:
        score: The measured score.
        baseline: The score to compare it with.
        tolerance: How far below the baseline the score may be; finite and not negative.

    Raises:
        ValueError: The tolerance is negative or not finite.

    Example:
        >>> is_within_tolerance(0.85, 0.87, 0.02), is_within_tolerance(0.84, 0.87, 0.02)
        (True, False)
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance is {tolerance}; expected a finite number of at least 0")
    finite = math.isfinite(score) and math.isfinite(baseline)
    return finite and score >= baseline - tolerance - _ROUNDING


def _loss(finding: Finding) -> float:
    assert finding.difference is not None
    return -finding.difference.difference


def _p(finding: Finding) -> float:
    assert finding.difference is not None
    return finding.difference.p_loss
