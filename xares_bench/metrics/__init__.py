"""Metrics: functions of reference and predicted texts. This package's names are the public door to them."""

from xares_bench.metrics.registry import METRICS, MetricResult, evaluate, score

__all__ = ["METRICS", "MetricResult", "evaluate", "score"]
