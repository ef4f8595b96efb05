"""Roles: which of several processes this one is, as pytest-xdist and launchers tell it before anything is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of xdist's workers."""
    return hasattr(config, "workerinput")


def rank() -> int:
    """Number of this process among those of a launcher."""
    return int(os.environ.get("RANK", "0"))


def is_helper(config: pytest.Config) -> bool:
    """Whether another process collects the scores and writes the results."""
    return is_worker(config) or rank() > 0


def leave_reports_to_the_first(config: pytest.Config, log: Path) -> None:
    """Let what this process prints go to a file, and the files of pytest's own options be written by the first only."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout = log.open("w", buffering=1, encoding="utf-8")  # the terminal reporter, which is made next, writes there
    for option in ("xmlpath", "benchmark_json", "benchmark_save", "benchmark_autosave"):
        setattr(config.option, option, None)
