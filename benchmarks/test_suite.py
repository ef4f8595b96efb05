"""The mini suite as users start it: with nothing cached, and with everything cached.

    pytest benchmarks/test_suite.py

Whole processes; once each, since one is minutes.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import torch

from benchmarks.comparison import Comparison
from benchmarks.processes import peak_bytes_of
from benchmarks.sizes import REPOSITORY, Size

_REDUCED = ("--train=esc-50", "-k", "esc-50", "--set", "steps=2", "--set", "max_new_tokens=4", "--limit=8")


def run_suite(size: Size, runs: Path) -> int:
    """Run the mini preset on log-mel; its peak resident memory in bytes."""
    command = [sys.executable, "-m", "pytest", "bench", "--preset=mini", "-q", "-p", "no:cacheprovider"]
    command += ["--encoder=examples/logmel_encoder.py", f"--runs-dir={runs}", *(() if size.is_real else _REDUCED)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return peak_bytes_of(command, cwd=REPOSITORY, env=environment)


def test_mini_suite(comparison: Comparison, size: Size, tmp_path: Path) -> None:
    """All features, trainings and scores, then the same command again."""
    peaks: list[int] = []
    once = dataclasses.replace(comparison, rounds=1)
    once.measure(
        lambda: peaks.append(run_suite(size, tmp_path)),
        {"with nothing there": lambda: peaks.append(run_suite(size, tmp_path))},
    )
    once.say(f"peak memory {peaks[0] / 1e9:.2f} GB, {peaks[1] / 1e9:.2f} GB with everything cached")
    once.note(peak_bytes=peaks[0], cached_peak_bytes=peaks[1])
