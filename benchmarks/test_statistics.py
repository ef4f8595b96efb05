"""Error bars, and runs held against runs: how long they take and how much memory.

pytest benchmarks/test_statistics.py
"""

from __future__ import annotations

import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.comparison import Report
from tests.run_factory import TASKS, write_finished_run
from xares_bench.evidence import Evidence
from xares_bench.statistics import interval_of


@pytest.mark.parametrize(("metric", "num_parts"), [("Accuracy", 2), ("chrF", 18), ("mAP", 601)])
def test_interval_of_ten_thousand_clips(benchmark: BenchmarkFixture, metric: str, num_parts: int) -> None:
    """1,000 resamples; the aim is a second."""
    generator = np.random.default_rng(0)
    parts = generator.integers(1, 5, (1, 10_000, num_parts)).astype(float)
    clips = tuple(map(str, range(10_000)))
    evidence = Evidence(metric=metric, arguments={"num_classes": 200}, clips=clips, parts=parts)
    measure: Any = benchmark.pedantic
    measure(interval_of, args=(evidence,), rounds=3, warmup_rounds=1)


def test_comparison_of_ten_runs(benchmark: BenchmarkFixture, report: Report, tmp_path: Path) -> None:
    """Ten runs of 20 datasets with 5,000 rows each; the aims are 10 s and 1 GB."""
    random_ = random.Random(0)
    datasets = [f"d{place}" for place in range(20)]
    folders = []
    for number in range(10):
        rows = {
            name: [(f"clip{row}", "dog", random_.choice(("dog", "dog", "cat"))) for row in range(5000)]
            for name in datasets
        }
        folders.append(write_finished_run(tmp_path / f"run{number}", rows, tasks={**TASKS, "task1": tuple(datasets)}))
    command = [sys.executable, "-m", "xares_bench", "compare", *map(str, folders)]
    measure: Any = benchmark.pedantic
    measure(subprocess.run, args=(command,), kwargs={"check": True, "capture_output": True}, rounds=3)
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    benchmark.extra_info["peak_mb"] = peak_mb
    report(f"peak memory {peak_mb:.0f} MB")
