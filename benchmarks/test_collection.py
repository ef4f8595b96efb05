"""What listing the bench tests costs, beside pytest collecting one empty file with the same plugins.

    pytest benchmarks/test_collection.py -v

Whole processes, in turn; compare the medians of one run, the machine's speed drifts.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def empty_project(tmp_path: Path) -> Path:
    """A project of one empty test file."""
    (tmp_path / "test_empty.py").touch()
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def collect(folder: Path, status: int) -> None:
    """Run `pytest --collect-only` on a folder in a new process."""
    command = [sys.executable, "-m", "pytest", str(folder), "--collect-only", "-q", "-p", "no:cacheprovider"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == status


@pytest.mark.benchmark(group="collection", min_rounds=15, warmup=True, warmup_iterations=1)
def test_listing_the_bench_tests(benchmark: BenchmarkFixture) -> None:
    """`pytest bench --collect-only -q`."""
    benchmark(collect, BENCH, pytest.ExitCode.OK)


@pytest.mark.benchmark(group="collection", min_rounds=15, warmup=True, warmup_iterations=1)
def test_collecting_an_empty_file(benchmark: BenchmarkFixture, empty_project: Path) -> None:
    """The control."""
    benchmark(collect, empty_project, pytest.ExitCode.NO_TESTS_COLLECTED)
