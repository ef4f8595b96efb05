"""What is public to Python."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import xares_bench
from xares_bench import metrics


def test_public_are_the_metrics_and_the_version() -> None:
    assert xares_bench.__all__ == ["__version__", "metrics"]
    code = "from xares_bench import *; print(metrics.score('Accuracy', ['a', 'b'], ['a', 'c']), __version__)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["0.5", importlib.metadata.version("xares-bench")]


def test_all_that_metrics_names_is_there() -> None:
    assert all(hasattr(metrics, name) for name in metrics.__all__)
    assert "score" in metrics.__all__
