"""The matrix of losses: datasets by corruptions, for the terminal, Markdown and the page."""

from __future__ import annotations

from dataclasses import dataclass

from xares_bench.reports.results import Results
from xares_bench.scores.records import RobustnessRecord


@dataclass(frozen=True, kw_only=True)
class MatrixRow:
    """A dataset in the matrix.

    Attributes:
        dataset: The dataset.
        metric: Name of its metric.
        clean: The score on the clips as they are.
        losses: What is lost by each corruption; None where it was not scored.
    """

    dataset: str
    metric: str
    clean: float
    losses: tuple[RobustnessRecord | None, ...]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """The losses of a run.

    Attributes:
        corruptions: The corruptions, by name and level.
        rows: The datasets, in the catalogue's order.
    """

    corruptions: tuple[str, ...]
    rows: tuple[MatrixRow, ...]


def matrix_of(results: Results) -> Matrix | None:
    """Return the losses of a run; None if nothing was corrupted."""
    found = {(record.dataset, record.corruption): record for record in results.robustness}
    corruptions = tuple(
        dict.fromkeys(record.corruption for record in sorted(results.robustness, key=lambda found: found.order))
    )
    rows = [
        MatrixRow(
            dataset=record.dataset,
            metric=record.metric,
            clean=record.score,
            losses=tuple(found.get((record.dataset, corruption)) for corruption in corruptions),
        )
        for record in results.records
        if any(dataset == record.dataset for dataset, _ in found)
    ]
    return Matrix(corruptions=corruptions, rows=tuple(rows)) if rows else None


def cells(row: MatrixRow, *, intervals: bool) -> list[str]:
    """Return the cells of a row of a table of text: name, metric, clean score, losses.

    Args:
        row: The row.
        intervals: Whether losses have their interval, or else a star if it excludes 0.
    """
    losses = []
    for record in row.losses:
        if record is None:
            losses.append("")
        elif intervals and record.interval is not None:
            low, high = record.interval
            losses.append(f"{record.loss:+.3f} ({low:+.3f} to {high:+.3f})")
        else:
            star = "*" if record.direction else " "  # numbers stay below each other
            losses.append(f"{record.loss:+.3f}" + ("" if intervals else star))
    return [row.dataset, row.metric, f"{row.clean:.3f}", *losses]
