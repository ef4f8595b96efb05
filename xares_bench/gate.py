"""The gate: whether a score may pass, and if not, why, in one line."""

from __future__ import annotations

import math
from dataclasses import dataclass

from xares_bench.baselines import Baseline, judge
from xares_bench.records import Overall, ScoreRecord


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Holds scores against a baseline; without one, every score that is a number passes.

    Attributes:
        baseline: What scores are held against, or None.
        tolerance: How far below the baseline a score may be.
    """

    baseline: Baseline | None
    tolerance: float

    def problem_of(self, record: ScoreRecord, predictions: object) -> str | None:
        """Why a dataset's score does not pass, or None.

        Args:
            record: The score.
            predictions: Where its predictions are, for the message.
        """
        if self.baseline is not None and record.partial:
            return f"{record.dataset}: a score over fewer clips (--limit) cannot be held against a baseline"
        baseline = None if self.baseline is None else self.baseline.scores.get(record.dataset)
        return self._problem(record.dataset, record.score, baseline, predictions)

    def problem_of_overall(self, overall: Overall, predictions: object) -> str | None:
        """Why a task's complete overall score does not pass, or None."""
        assert overall.complete, overall
        baseline = None if self.baseline is None else self.baseline.overalls.get(overall.task)
        return self._problem(f"{overall.task} overall", overall.score, baseline, predictions)

    def _problem(self, what: str, score: float, baseline: float | None, predictions: object) -> str | None:
        where = f"predictions: {predictions}"
        if not math.isfinite(score):
            return f"{what}: the score is NaN, which is never a pass; {where}"
        if self.baseline is None:
            return None
        if baseline is None:
            return f"{what}: baseline {self.baseline.name} has no score for it; {where}"
        verdict = judge(score, baseline, self.tolerance)
        if verdict.passed:
            return None
        return (
            f"{what}: score {score:.4f} is {-verdict.difference:.4f} below the baseline {baseline:.4f} "
            f"({self.baseline.name}), tolerance {self.tolerance:g}; {where}"
        )
