"""Confusion matrices: how often each label was predicted for each true label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from xares_bench.metrics.parts import normalise
from xares_bench.scores.records import Prediction

OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class ConfusionMatrix:
    """Counts of rows by true and predicted label.

    Attributes:
        labels: The L most frequent labels, the most frequent first.
        counts: `[L + 1, L + 1]`; rows: true label; columns: predicted label. The last of both stands for all other
            labels, as a column also for predictions that are no label.
        most_frequent: The most frequent mistake among these labels: true label, predicted label, count; None if there
            is none.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    most_frequent: tuple[str, str, int] | None

    @property
    def has_other_labels(self) -> bool:
        """Whether there are more than the L labels."""
        return any(self.counts[-1])


def confusion_matrix_of(predictions: Iterable[Prediction], max_labels: int = 20) -> ConfusionMatrix:
    """Count the rows of a classification; labels are compared as `Accuracy` compares them.

    Args:
        predictions: The rows.
        max_labels: At most this many labels get rows and columns of their own.
    """
    rows = [(normalise(row.reference), normalise(row.hypothesis), row.reference) for row in predictions]
    shown = dict(reversed([(label, text) for label, _, text in rows]))  # a label's spelling in its first row
    frequencies = Counter(label for label, _, _ in rows)
    labels = sorted(frequencies, key=lambda label: (-frequencies[label], label))[:max_labels]
    places = {label: place for place, label in enumerate(labels)}
    counts = [[0] * (len(labels) + 1) for _ in range(len(labels) + 1)]
    for label, predicted, _ in rows:
        counts[places.get(label, -1)][places.get(predicted, -1)] += 1
    # Negative places, so that among equal counts the maximum is the mistake of the more frequent labels.
    mistakes = [
        (counts[row][column], -row, -column)
        for row in range(len(labels))
        for column in range(len(labels))
        if row != column and counts[row][column]
    ]
    most_frequent = None
    if mistakes:
        count, row, column = max(mistakes)
        most_frequent = (shown[labels[-row]], shown[labels[-column]], count)
    return ConfusionMatrix(
        labels=tuple(shown[label] for label in labels),
        counts=tuple(map(tuple, counts)),
        most_frequent=most_frequent,
    )
