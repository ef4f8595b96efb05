"""Metrics of labels: Accuracy for one label per row, mAP for a set of labels per row.

Shapes: N rows, P sums per row, B weightings of the clips, L labels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xares_bench.core.errors import UsageError
from xares_bench.metrics.parts import (
    Argument,
    Metric,
    MetricResult,
    check_rows,
    mean_of_rows,
    mean_of_sums,
    normalise,
    ratio,
    undefined,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from xares_bench.metrics.parts import Array


def accuracy(references: Sequence[str], hypotheses: Sequence[str]) -> MetricResult:
    """Return the share of rows whose normalised texts are equal.

    Normalisation removes signs and punctuation: "-1" equals "1", "3.5" equals "35", and a label that is only
    punctuation equals an empty prediction. Chance level is one over the number of labels only if all labels are equally
    frequent. Row values are 1.0 and 0.0.

    Raises:
        ValueError: There are no rows, or the two sequences differ in length.

    Example:
        >>> accuracy(["speech", "-1"], ["Speech.", "1"])
        MetricResult(score=1.0, row_values=(1.0, 1.0))
    """
    check_rows(references, hypotheses)
    pairs = zip(references, hypotheses, strict=True)
    return mean_of_rows([float(normalise(reference) == normalise(hypothesis)) for reference, hypothesis in pairs])


ACCURACY = Metric(
    name="Accuracy",
    function=accuracy,
    of_sums=mean_of_sums,
    description="Accuracy",
    task="Audio classification",
    hub_name="accuracy",
    hub_task="audio-classification",
    single_label=True,
)


def mean_average_precision(references: Sequence[str], hypotheses: Sequence[str], *, num_classes: int) -> MetricResult:
    """Return the mean over `num_classes` columns of the average precision of ";"-separated label sets.

    Both texts are normalised with their punctuation kept and split at ";". Labels count as they stand between two ";":
    blanks beside it belong to a label ("dog; cat" has the labels "dog" and " cat"), and nothing at all is a label, too.
    Each label that occurs in a reference is a column of zeros and ones over the rows. Columns without a label are added
    up to `num_classes` and count 0; predicted labels that no reference has are ignored. With predictions of 0 and 1 the
    precision-recall curve has two points, "the predicted rows" and "all rows", so that the step-wise
    `AP = sum_k (R_k - R_{k-1}) P_k` (scikit-learn user guide, "Precision, recall and F-measures") is
    `R * P + (1 - R) * prevalence`.

    It follows that predicting every label in every row, no label at all, and only wrong labels all score the same: the
    mean prevalence of the labels, times the share of columns that have a label. A label predicted more often in wrong
    rows than in right ones can score less than that. There are no row values: a single row has no average precision.

    Raises:
        UsageError: The references contain more labels than `num_classes`, or only blank ones.
        ValueError: There are no rows, the two sequences differ in length, or `num_classes` is less than 1.

    Example:
        >>> mean_average_precision(["dog;cat", "cat"], ["cat", "cat"], num_classes=2).score  # cat 1.0, dog 0.5
        0.75
    """
    check_rows(references, hypotheses)
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; expected at least 1")
    rows = [
        (_labels(reference), _labels(hypothesis)) for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    num_positive: Counter[str] = Counter()
    num_predicted: Counter[str] = Counter()
    num_hits: Counter[str] = Counter()
    for positive, predicted in rows:
        num_positive.update(positive)
        num_predicted.update(predicted)
        num_hits.update(positive & predicted)
    if not any(label.strip() for label in num_positive):
        raise undefined("mAP", len(references), "label")
    if len(num_positive) > num_classes:
        raise UsageError(
            f"the references contain {len(num_positive)} different labels, more than num_classes={num_classes}; "
            f"set num_classes to at least {len(num_positive)}, or check that ';' separates the labels"
        )
    average_precisions = []
    for label, positives in num_positive.items():
        recall = num_hits[label] / positives
        precision = num_hits[label] / max(1, num_predicted[label])
        average_precisions.append(recall * precision + (1 - recall) * positives / len(references))
    return MetricResult(
        # Not from `of_sums`, which adds the labels in order and rounds at each: fsum is exact. The two agree to 1e-12.
        score=math.fsum(average_precisions) / num_classes,
        row_values=(None,) * len(references),
        row_parts=_row_parts(rows, sorted(num_positive)),
    )


def _row_parts(rows: Sequence[tuple[set[str], set[str]]], labels: Sequence[str]) -> Array:
    """Per row: 1, then per label whether it is in the reference, in the prediction, in both: `[N, 1 + 3 L]`."""
    import numpy as np

    columns = {label: column for column, label in enumerate(labels)}
    parts_N3L = np.zeros((len(rows), 3, len(columns)))
    for row, (positive, predicted) in enumerate(rows):
        for part, found in enumerate((positive, predicted, positive & predicted)):
            parts_N3L[row, part, [columns[label] for label in found if label in columns]] = 1
    return np.concatenate([np.ones((len(rows), 1)), parts_N3L.reshape(len(rows), -1)], axis=1)


def _mean_average_precision_of_sums(sums_BP: Array, *, num_classes: int) -> Array:
    """The same formula on sums of `_row_parts`; the mean of the labels that the drawn clips have stands for all labels.

    Otherwise a label of one or two clips, which many resamples do not draw, would count 0 in them, and every resample
    would be below the score.
    """
    import numpy as np

    num_rows_B1 = sums_BP[:, :1]
    positives, predicted, hits = sums_BP[:, 1:].reshape(len(sums_BP), 3, -1).transpose(1, 0, 2)
    recall = hits / np.maximum(1, positives)
    precision = hits / np.maximum(1, predicted)
    average_precision_BL = recall * precision + (1 - recall) * ratio(positives, num_rows_B1)
    num_drawn_B = (positives > 0).sum(axis=1)
    mean_B: Array = ratio(average_precision_BL.sum(axis=1), num_drawn_B) * positives.shape[1] / num_classes
    return mean_B


def _parts_of_labels(sums_P: Array) -> NDArray[np.bool_]:
    """Which sums count for clips with these sums: not those of labels that none of the clips has."""
    import numpy as np

    occurs_L = sums_P[1:].reshape(3, -1)[0] > 0
    return np.concatenate([[True], np.tile(occurs_L, 3)])


def _labels(text: str) -> set[str]:
    """The labels of a text, as they stand between two ";": blanks beside it belong to a label."""
    return set(normalise(text, keep_punctuation=True).split(";"))


MEAN_AVERAGE_PRECISION = Metric(
    name="mAP",
    function=mean_average_precision,
    of_sums=_mean_average_precision_of_sums,
    description="Mean average precision",
    task="Audio tagging",
    hub_name="mean_average_precision",
    hub_task="audio-classification",
    arguments={"num_classes": Argument(minimum=1)},
    counted_parts=_parts_of_labels,
)
