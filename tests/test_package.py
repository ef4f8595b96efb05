"""What is public to Python, and that the house is in order: a line and tests for every module."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import xares_bench
from tests.conftest import REPOSITORY
from xares_bench import metrics

PACKAGE = Path(xares_bench.__file__).parent
MODULES = [file for file in PACKAGE.rglob("*.py") if not file.name.startswith("__") and file.parent != PACKAGE]
MAX_LINES = 400


def test_public_are_running_reading_the_metrics_and_the_version() -> None:
    assert xares_bench.__all__ == ["Run", "__version__", "metrics", "read_run", "read_runs", "run"]
    assert all(getattr(xares_bench, name).__doc__ for name in xares_bench.__all__)
    with pytest.raises(AttributeError, match="'xares_bench' has no attribute 'runs'"):
        xares_bench.runs  # noqa: B018
    code = "from xares_bench import *; print(metrics.score('Accuracy', ['a', 'b'], ['a', 'c']), __version__)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["0.5", importlib.metadata.version("xares-bench")]


def test_all_that_metrics_names_is_there() -> None:
    assert all(hasattr(metrics, name) for name in metrics.__all__)
    assert "score" in metrics.__all__


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_module_has_a_line_in_its_package_and_tests_of_its_name(file: Path) -> None:
    package = (file.parent / "__init__.py").read_text(encoding="utf-8")
    assert re.search(rf"^{file.stem} +\S", package, re.MULTILINE), "describe it in the docstring of its package"
    folder = REPOSITORY / "tests" / file.parent.relative_to(PACKAGE)
    assert (folder / f"test_{file.name}").is_file(), "test it directly"
    assert file.read_text(encoding="utf-8").count("\n") <= MAX_LINES, "split it at its second subject"
