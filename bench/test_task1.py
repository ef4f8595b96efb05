"""Task 1: classification, 15 datasets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xares_bench.config.catalogue import load_catalogue
from xares_bench.scores.records import ScoreRecord

pytestmark = pytest.mark.task1


@pytest.mark.parametrize("dataset", load_catalogue("full").tasks["task1"])
def test_dataset(dataset: str, evaluate: Callable[[str], ScoreRecord], gate: Callable[[ScoreRecord], None]) -> None:
    """The language model understands this dataset as well as the baseline's did."""
    gate(evaluate(dataset))


@pytest.mark.parametrize("task", ["task1"])
def test_overall(task: str, gate_overall: Callable[[str], None]) -> None:
    """So it does on the average of the task."""
    gate_overall(task)
