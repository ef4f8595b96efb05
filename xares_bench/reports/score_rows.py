"""The rows of a page's table of scores: each score beside its baseline and its chance level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from xares_bench.reports.results import Background, Results
from xares_bench.scores.records import Overall


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """A row of the table of scores.

    Attributes:
        name: Dataset, or `Overall`, with what is missing from it.
        metric: Name of the metric; empty for an overall score.
        score: The score, which may be NaN.
        interval: Its 95 % confidence interval.
        spread: Standard deviation over the training seeds.
        chance: The chance level; see `chance.chance_level`.
        baseline: The baseline's score.
        baseline_interval: The 95 % confidence interval of the baseline's score.
        difference_interval: The 95 % confidence interval of score minus baseline.
        num_rows: Rows that were scored; None for an overall score.
        is_overall: Whether it is an overall score.
    """

    name: str
    metric: str
    score: float
    interval: tuple[float, float] | None
    spread: float | None
    chance: float | None
    baseline: float | None
    baseline_interval: tuple[float, float] | None
    difference_interval: tuple[float, float] | None
    num_rows: int | None
    is_overall: bool = False

    @property
    def difference(self) -> float | None:
        """Score minus baseline; None without a baseline."""
        return None if self.baseline is None else self.score - self.baseline

    @property
    def direction(self) -> str:
        """`good` or `bad` if the confidence interval of the difference excludes 0, else empty."""
        if self.difference_interval is None:
            return ""
        low, high = self.difference_interval
        return "good" if low > 0 else "bad" if high < 0 else ""

    @property
    def is_near_chance(self) -> bool:
        """Whether the confidence interval of the score does not lie above the chance level."""
        return self.chance is not None and self.interval is not None and self.interval[0] <= self.chance


def score_rows(
    results: Results, overall: Overall, background: Background, chances: Mapping[str, float | None]
) -> tuple[ScoreRow, ...]:
    """Return a row for each dataset of a task, and one for its overall score.

    Args:
        results: The results of the session.
        overall: The overall score of the task.
        background: The baseline, if there is one.
        chances: The chance level of each dataset.
    """
    records = results.of_task(overall.task)
    baseline = background.baseline
    rows = []
    for record in records:
        expected = None if baseline is None or record.partial else baseline.scores.get(record.dataset)
        rows.append(
            ScoreRow(
                name=record.dataset,
                metric=record.metric,
                score=record.score,
                interval=record.interval,
                spread=record.spread,
                chance=chances.get(record.dataset),
                baseline=None if expected is None else expected.score,
                baseline_interval=None if expected is None else expected.interval,
                difference_interval=background.differences.get(record.dataset),
                num_rows=record.num_rows,
            )
        )
    expected = baseline.overalls.get(overall.task) if baseline is not None and overall.complete else None
    name = "Overall"
    if overall.num_datasets < overall.num_expected:
        name += f", {overall.num_datasets} of {overall.num_expected} datasets"
    known = [(record.weight, row.chance) for record, row in zip(records, rows, strict=True) if row.chance is not None]
    weight = math.fsum(record.weight for record in records)
    is_known = len(known) == len(rows)
    rows.append(
        ScoreRow(
            name=name + (", some clips left out" if overall.partial else ""),
            metric="",
            score=overall.score,
            interval=overall.interval if math.isfinite(overall.score) else None,
            spread=overall.spread,
            chance=math.fsum(own * chance for own, chance in known) / weight if is_known else None,
            baseline=None if expected is None else expected.score,
            baseline_interval=None if expected is None else expected.interval,
            difference_interval=background.differences.get(f"{overall.task} overall"),
            num_rows=None,
            is_overall=True,
        )
    )
    return tuple(rows)
