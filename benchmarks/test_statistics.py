"""Time and memory of confidence intervals and of comparisons of runs.

pytest benchmarks/test_statistics.py
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.comparison import Report
from benchmarks.processes import peak_bytes_of
from tests.run_factory import TASKS, write_finished_run
from xares_bench.scores.clip_sums import ClipSums
from xares_bench.scores.statistics import interval_of


@pytest.mark.parametrize(("metric", "num_parts"), [("Accuracy", 2), ("chrF", 18), ("mAP", 601)])
def test_interval_of_ten_thousand_clips(benchmark: BenchmarkFixture, metric: str, num_parts: int) -> None:
    """1,000 resamples; the aim is a second."""
    generator = np.random.default_rng(0)
    parts = generator.integers(1, 5, (1, 10_000, num_parts)).astype(float)
    clips = tuple(map(str, range(10_000)))
    arguments = {"num_classes": 200} if metric == "mAP" else {}
    clip_sums = ClipSums(metric=metric, arguments=arguments, clips=clips, parts=parts)
    measure: Any = benchmark.pedantic
    measure(interval_of, args=(clip_sums,), rounds=3, warmup_rounds=1)


@pytest.fixture(scope="module")
def ten_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ten runs of 20 datasets with 5,000 rows each."""
    folder = tmp_path_factory.mktemp("runs")
    random_ = random.Random(0)
    datasets = [f"d{place}" for place in range(20)]
    for number in range(10):
        rows = {
            name: [(f"clip{row}", "dog", random_.choice(("dog", "dog", "cat"))) for row in range(5000)]
            for name in datasets
        }
        write_finished_run(folder / f"run{number}", rows, tasks={**TASKS, "task1": tuple(datasets)})
    return folder


@pytest.mark.parametrize("command", ["compare", "leaderboard"])
def test_ten_runs(benchmark: BenchmarkFixture, report: Report, ten_runs: Path, tmp_path: Path, command: str) -> None:
    """Whole processes; the aims are 10 s and 1 GB."""
    arguments = (
        [*sorted(ten_runs.iterdir())] if command == "compare" else [ten_runs, "--output", tmp_path / "board.html"]
    )
    peaks: list[int] = []

    def run() -> None:
        peaks.append(peak_bytes_of([sys.executable, "-m", "xares_bench", command, *map(str, arguments)]))

    measure: Any = benchmark.pedantic
    measure(run, rounds=3)
    benchmark.extra_info["peak_bytes"] = max(peaks)
    report(f"peak memory {max(peaks) / 1e6:.0f} MB")
