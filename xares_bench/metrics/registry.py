"""The registry: every metric by name, and what works for each of them.

A new metric needs one more entry in `METRICS`; CONTRIBUTING.md shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xares_bench.core.errors import UsageError
from xares_bench.core.parsing import did_you_mean
from xares_bench.metrics.captioning import CHRF, DATE, FENSE
from xares_bench.metrics.classification import ACCURACY, MEAN_AVERAGE_PRECISION
from xares_bench.metrics.parts import Metric, MetricResult
from xares_bench.metrics.transcription import INVERSE_CHARACTER_ERROR_RATE, INVERSE_WORD_ERROR_RATE

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        ACCURACY,
        MEAN_AVERAGE_PRECISION,
        INVERSE_WORD_ERROR_RATE,
        INVERSE_CHARACTER_ERROR_RATE,
        CHRF,
        FENSE,
        DATE,
    )
}


def score(name: str, references: Sequence[str], hypotheses: Sequence[str], **arguments: int) -> float:
    """Return the score of one dataset, normally between 0 and 1; see `MetricResult`.

    Args:
        name: A key of `METRICS`.
        references: One target text per row.
        hypotheses: One predicted text per row.
        arguments: What the metric requires, such as `num_classes` for mAP.

    Raises:
        UsageError: The metric is unknown, its arguments are wrong, it is undefined for these references, or a model
            that it needs is missing.
        ValueError: There are no rows, or the two sequences differ in length.

    Example:
        >>> score("Accuracy", ["dog", "cat"], ["Dog!", "cow"])
        0.5
        >>> score("iWER", ["The cat sat."], ["the cat sits"])
        0.6666666666666667
    """
    return evaluate(name, references, hypotheses, **arguments).score


def evaluate(name: str, references: Sequence[str], hypotheses: Sequence[str], **arguments: int) -> MetricResult:
    """Return score and row values of one dataset; arguments and errors are those of `score`.

    Example:
        >>> evaluate("mAP", ["dog;cat", "cow"], ["cat;dog", "cow"], num_classes=4)
        MetricResult(score=0.75, row_values=(None, None))
    """
    check_metric(name, arguments)
    return METRICS[name].function(references, hypotheses, **arguments)


def check_metric(name: str, arguments: Mapping[str, object]) -> None:
    """Raise UsageError unless `METRICS[name]` exists and takes exactly these arguments.

    Example:
        >>> check_metric("mAP", {"num_classes": 50})
        >>> check_metric("mAP", {})  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        UsageError: metric 'mAP' requires the argument 'num_classes', a whole number of at least 1
    """
    if name not in METRICS:
        raise UsageError(
            f"unknown metric {name!r}; known metrics: {', '.join(sorted(METRICS))}{did_you_mean(name, METRICS)}"
        )
    metric = METRICS[name]
    for key in arguments:
        if key not in metric.arguments:
            accepted = f"the argument {', '.join(metric.arguments)}" if metric.arguments else "no arguments"
            hint = did_you_mean(key, metric.arguments)
            raise UsageError(f"metric {name!r} does not take the argument {key!r}; it takes {accepted}{hint}")
    for key, argument in metric.arguments.items():
        expected = f"a whole number of at least {argument.minimum}"
        if key not in arguments:
            raise UsageError(f"metric {name!r} requires the argument {key!r}, {expected}")
        value = arguments[key]
        # bool is an int to Python, but `num_classes: yes` is a mistake.
        if not isinstance(value, int) or isinstance(value, bool) or value < argument.minimum:
            raise UsageError(f"argument {key!r} of metric {name!r} is {value!r}; expected {expected}")


def check_available(name: str) -> None:
    """Fetch and load the models that a metric needs, so that scoring does not fail after hours of training.

    Raises:
        UsageError: A model is missing and cannot be fetched, or is unusable.
    """
    if METRICS[name].needs_models:
        from xares_bench.metrics.captions import judges

        judges.check_available()


def metric_identity(name: str) -> dict[str, str]:
    """Return the SHA-256 of each model file that a metric uses, by file name; empty if it uses no models.

    Raises:
        UsageError: A model is missing.

    Example:
        >>> metric_identity("chrF")
        {}
    """
    if not METRICS[name].needs_models:
        return {}
    from xares_bench.metrics.captions.files import identity

    return identity()
