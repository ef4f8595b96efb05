"""ConfusionMatrix: which label was said in the place of which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from xares_bench.metrics.parts import normalise
from xares_bench.scores.records import Prediction

OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class ConfusionMatrix:
    """Counts of rows by what they are and what was said.

    Attributes:
        labels: The L labels that are told apart, the most frequent first.
        counts: `[L + 1][L + 1]`, a line a label, a column what was said; the last of both stands for all others, what
            was said and is no label at all included.
        most_frequent: The commonest mistake among labels told apart: label, what was said, rows; None without one.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    most_frequent: tuple[str, str, int] | None

    @property
    def has_other_labels(self) -> bool:
        """Whether there are more labels than those told apart."""
        return any(self.counts[-1])


def confusion_matrix_of(predictions: Iterable[Prediction], max_labels: int = 20) -> ConfusionMatrix:
    """Count the rows of a classification, texts compared as accuracy compares them.

    Args:
        predictions: The rows.
        max_labels: Labels that are told apart; the most frequent ones.
    """
    rows = [(normalise(row.reference), normalise(row.hypothesis), row.reference) for row in predictions]
    shown = dict(reversed([(label, text) for label, _, text in rows]))  # as it is written first
    frequencies = Counter(label for label, _, _ in rows)
    kept = sorted(frequencies, key=lambda label: (-frequencies[label], label))[:max_labels]
    places = {label: place for place, label in enumerate(kept)}
    counts = [[0] * (len(kept) + 1) for _ in range(len(kept) + 1)]
    for label, said, _ in rows:
        counts[places.get(label, -1)][places.get(said, -1)] += 1
    wrong = [
        (counts[line][column], -line, -column)
        for line in range(len(kept))
        for column in range(len(kept))
        if line != column and counts[line][column]
    ]
    most_frequent = None
    if wrong:
        count, line, column = max(wrong)
        most_frequent = (shown[kept[-line]], shown[kept[-column]], count)
    return ConfusionMatrix(
        labels=tuple(shown[label] for label in kept),
        counts=tuple(map(tuple, counts)),
        most_frequent=most_frequent,
    )
