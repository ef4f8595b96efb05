"""The gate: whether scores may pass, and if not, why, in one line each.

By default a dataset fails when its loss against the baseline is more than noise and more than a floor. Noise is that of
the test clips (paired, where the baseline kept its clips) and that of the training (where several seeds were trained).
The datasets of a run are tested together (Holm), so that a run of an encoder that lost nothing fails one time in
twenty, however many datasets it has.
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
        by_noise: As far as noise explains (`ci`), instead of by a fixed number.
        number: The fixed number; with `by_noise` the floor, a loss up to which is never a failure.
    """

    by_noise: bool = True
    number: float = DEFAULT_FLOOR

    def __str__(self) -> str:
        """As on the command line."""
        if not self.by_noise:
            return f"{self.number:g}"
        return "ci" if self.number == DEFAULT_FLOOR else f"ci:{self.number:g}"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What there is to say of one score, alone.

    Attributes:
        what: A dataset, or a task's overall score.
        score: The score.
        baseline: What it is held against; None without one.
        difference: How it stands to that; None where noise is not asked for.
        problem: Why it cannot pass whatever the others do; None where nothing stands against it.
    """

    what: str
    score: float
    baseline: float | None = None
    difference: Difference | None = None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain mapping; `from_json` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Finding:
        """The finding that `to_json` wrote."""
        difference = None if data["difference"] is None else Difference(**data["difference"])
        return cls(**{**data, "difference": difference})


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Holds scores against a baseline; without one, every score that is a number passes.

    Attributes:
        baseline: What scores are held against, or None.
        tolerance: How far below the baseline a score may be.
    """

    baseline: Baseline | None
    tolerance: Tolerance

    def examine(self, record: ScoreRecord, clip_sums: ClipSums) -> Finding:
        """What there is to say of a dataset's score.

        Args:
            record: The score.
            clip_sums: What it is made of.
        """
        what = record.dataset
        held = None if self.baseline is None else self.baseline.scores.get(what)
        if self.baseline is not None and record.partial:
            problem = f"{what}: a score over fewer clips (--limit) cannot be held against a baseline"
            return Finding(what=what, score=record.score, problem=problem)
        if held is not None and held.num_rows not in (None, record.num_rows):
            problem = (
                f"{what}: scored over {record.num_rows} rows, its baseline over {held.num_rows}; "
                "these are not the same test set"
            )
            return Finding(what=what, score=record.score, baseline=held.score, problem=problem)
        return self._finding(what, record, held, record.num_clips, clip_sums)

    def examine_overall(self, overall: Overall, num_clips: int) -> Finding:
        """What there is to say of a task's complete overall score, over so many clips."""
        assert overall.complete, overall
        held = None if self.baseline is None else self.baseline.overalls.get(overall.task)
        return self._finding(f"{overall.task} overall", overall, held, num_clips, None)

    def failures(self, findings: Sequence[Finding], num_tests: int) -> dict[str, str]:
        """Why scores do not pass, in one line each, by what they are scores of.

        Args:
            findings: What is known so far.
            num_tests: How many findings there will be in all. What fails now fails also when the others are known.
        """
        tested = [finding for finding in findings if finding.problem is None and finding.difference is not None]
        significant = holm([_p(finding) for finding in tested], num_tests=max(num_tests, len(tested)))
        failures: dict[str, str] = {found.what: found.problem for found in findings if found.problem is not None}
        for finding, is_significant in zip(tested, significant, strict=True):
            if is_significant and _loss(finding) > self.tolerance.number:
                failures[finding.what] = self._describe(finding, num_tests)
        return failures

    def improvements(self, findings: Sequence[Finding], num_tests: int) -> list[str]:
        """What is better than the baseline by more than noise and floor; never a failure, and good to know."""
        tested = [finding for finding in findings if finding.problem is None and finding.difference is not None]
        significant = holm([1 - _p(finding) for finding in tested], num_tests=max(num_tests, len(tested)))
        pairs = zip(tested, significant, strict=True)
        return [finding.what for finding, is_it in pairs if is_it and -_loss(finding) > self.tolerance.number]

    def _finding(
        self,
        what: str,
        found: ScoreRecord | Overall,
        held: BaselineScore | None,
        num_clips: int,
        clip_sums: ClipSums | None,
    ) -> Finding:
        score = found.score
        if not math.isfinite(score):
            return Finding(what=what, score=score, problem=f"{what}: the score is NaN, which is never a pass")
        if self.baseline is None:
            return Finding(what=what, score=score)
        if held is None:
            unknown = f"{what}: baseline {self.baseline.name} has no score for it"
            return Finding(what=what, score=score, problem=unknown)
        if self.tolerance.by_noise:
            difference = self._difference(found, held, num_clips, clip_sums)
            return Finding(what=what, score=score, baseline=held.score, difference=difference)
        problem: str | None = None
        if not is_within_tolerance(score, held.score, self.tolerance.number):
            problem = (
                f"{what}: score {score:.4f} is {held.score - score:.4f} below the baseline {held.score:.4f} "
                f"({self.baseline.name}), tolerance {self.tolerance}"
            )
        return Finding(what=what, score=score, baseline=held.score, problem=problem)

    def _difference(
        self, found: ScoreRecord | Overall, held: BaselineScore, num_clips: int, clip_sums: ClipSums | None
    ) -> Difference:
        """Score minus baseline: over common clips where both kept theirs, else by the errors of both scores."""
        training = pooled_training_noise((found.spread, len(found.seed_scores)), (held.spread, held.num_seeds))
        if clip_sums is not None and held.clip_sums is not None:
            paired = paired_difference(held.clip_sums, clip_sums, training=training)
            if paired is not None and paired.num_clips == num_clips:
                return paired
        deviation = math.hypot(found.deviation or 0.0, held.deviation or 0.0)
        return difference_of(found.score - held.score, deviation, num_clips=num_clips, training=training)

    def _describe(self, finding: Finding, num_tests: int) -> str:
        assert self.baseline is not None
        assert finding.baseline is not None
        assert finding.difference is not None
        difference = finding.difference
        how = "over the same clips" if difference.paired else "by the errors of both scores"
        return (
            f"{finding.what}: score {finding.score:.4f} is {_loss(finding):.4f} below the baseline "
            f"{finding.baseline:.4f} ({self.baseline.name}), tolerance {self.tolerance}; 95 % of the difference is "
            f"{difference.low:+.4f} to {difference.high:+.4f} {how}, p {difference.p_loss:.2g} among {num_tests} tests"
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
