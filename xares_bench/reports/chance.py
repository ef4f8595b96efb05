"""Chance levels: what an answer that hears nothing scores, where a metric has such a level."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from xares_bench.core.errors import UsageError
from xares_bench.metrics import METRICS
from xares_bench.metrics.classification import MEAN_AVERAGE_PRECISION
from xares_bench.metrics.parts import normalise
from xares_bench.metrics.registry import evaluate


def chance_level(metric: str, references: Sequence[str], arguments: Mapping[str, int]) -> float | None:
    """Return the score of the best answer that is the same for all clips; None if there is no such level.

    For one label per row it is the share of the most frequent label, which is at least one over the number of labels.
    For mAP it is the mean prevalence of the labels, which no labels and all labels score alike. Transcripts
    and captions have none: what one text for all clips scores depends on the text.

    Args:
        metric: Name of the metric.
        references: One target per row, all rows of the dataset.
        arguments: The metric's arguments.

    Example:
        >>> chance_level("Accuracy", ["dog", "Dog.", "cat", "cow"], {})
        0.5
        >>> chance_level("iWER", ["dog", "dog"], {}) is None
        True
    """
    if not references:
        return None
    if METRICS[metric].single_label:
        ((_, count),) = Counter(map(normalise, references)).most_common(1)
        return count / len(references)
    if metric == MEAN_AVERAGE_PRECISION.name:
        try:
            return evaluate(metric, references, [""] * len(references), **arguments).score
        except UsageError:
            return None
    return None
