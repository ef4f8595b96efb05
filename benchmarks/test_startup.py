"""Start-up: time to the first training step, and of sessions that find everything cached, beside a control.

    pytest benchmarks/test_startup.py -v

The control is pytest on one test file that imports torch; no session of ours can be faster. The sessions are those of
the mini suite: its listing, its rerun with everything finished (a first session of one step a LALM makes that), and the
first training step of a LALM on task 1 with nothing cached, on 8 clips per dataset, so that it is not the encoding of
the mini corpus that is measured. Compare the medians of one run, the machine's speed drifts.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

REPOSITORY = Path(__file__).parent.parent
ENCODER = REPOSITORY / "examples" / "logmel_encoder.py"
MINI = [
    *(str(REPOSITORY / "bench"), "-q", "-p", "no:cacheprovider", "--preset=mini"),
    *("--set", "steps=1", "--set", "max_new_tokens=1"),
]

# Ends the process before the optimiser's first step, with a status of its own.
FIRST_STEP = 100
UNTIL_FIRST_STEP = f"""
import os, sys, pytest

class Watcher:
    def pytest_collection_finish(self):
        from torch.optim.optimizer import register_optimizer_step_pre_hook
        register_optimizer_step_pre_hook(lambda *_: os._exit({FIRST_STEP}))

sys.exit(pytest.main(sys.argv[1:], plugins=[Watcher()]))
"""


def run(command: list[str], status: int) -> None:
    """Run Python in a new process."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a session of the mini suite that finds everything finished."""
    options = [*MINI, f"--encoder={ENCODER}", f"--runs-dir={tmp_path_factory.mktemp('runs')}"]
    run(["-m", "pytest", *options], pytest.ExitCode.OK)
    return options


@pytest.mark.benchmark(group="startup", min_rounds=7)
def test_importing_torch_in_an_empty_test(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """The control."""
    (tmp_path / "test_torch.py").write_text("import torch\n\n\ndef test_nothing():\n    pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    benchmark(run, ["-m", "pytest", str(tmp_path), "-p", "no:cacheprovider"], pytest.ExitCode.OK)


@pytest.mark.benchmark(group="startup", min_rounds=7)
def test_listing(benchmark: BenchmarkFixture) -> None:
    """`pytest bench --collect-only -q`."""
    benchmark(run, ["-m", "pytest", *MINI, "--collect-only"], pytest.ExitCode.OK)


@pytest.mark.benchmark(group="startup", min_rounds=7)
def test_rerun_with_everything_finished(benchmark: BenchmarkFixture, finished: list[str]) -> None:
    """The mini suite once more."""
    benchmark(run, ["-m", "pytest", *finished], pytest.ExitCode.OK)


@pytest.mark.benchmark(group="startup")
def test_until_the_first_training_step(benchmark: BenchmarkFixture, tmp_path_factory: pytest.TempPathFactory) -> None:
    """From the command to the first step of an optimiser."""

    def start_anew() -> tuple[tuple[list[str], int], dict[str, object]]:
        options = [*MINI, f"--encoder={ENCODER}", "-k", "task1", "--limit=8"]
        runs = tmp_path_factory.mktemp("runs")
        return (["-c", UNTIL_FIRST_STEP, *options, f"--runs-dir={runs}"], FIRST_STEP), {}

    measure: Callable[..., None] = benchmark.pedantic
    measure(run, setup=start_anew, rounds=7)
