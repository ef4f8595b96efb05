"""Own datasets: those of the YAML file that --eval names."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xares_bench.scores.records import ScoreRecord
from xares_bench.session.hooks import SESSION


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per dataset of --eval."""
    metafunc.parametrize("dataset", list(metafunc.config.stash[SESSION].plan.own_datasets))


def test_dataset(dataset: str, evaluate: Callable[[str], ScoreRecord], gate: Callable[[ScoreRecord], None]) -> None:
    """The language model understands this dataset as well as the baseline's did."""
    gate(evaluate(dataset))
