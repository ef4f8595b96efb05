"""Metrics: functions of reference and predicted texts. Import `score`, `evaluate` and `METRICS` from here.

registry        every metric by name: compute it, check its arguments, fetch the models it needs
classification  Accuracy, mAP
transcription   iWER, iCER
captioning      chrF, FENSE, DATE
parts           what a metric is made of: `Metric`, `MetricResult`, normalisation, checks, common sums
captions        the models behind FENSE and DATE

Each metric is one `Metric` object beside its function: name, function, score from sums, names for model cards.
Importing this package loads no scoring library; each is loaded when its metric is first computed.

Example:
    >>> score("iWER", ["The cat sat."], ["the cat sits"])
    0.6666666666666667
"""

from xares_bench.metrics.parts import Metric, MetricResult
from xares_bench.metrics.registry import METRICS, evaluate, score

__all__ = ["METRICS", "Metric", "MetricResult", "evaluate", "score"]
