"""Robustness: the test clips of every dataset, corrupted as each --corrupt says. No baseline decides about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from xares_bench.scores.records import RobustnessRecord
from xares_bench.session.hooks import SESSION

if TYPE_CHECKING:
    from xares_bench.config.plan import Plan
    from xares_bench.datasets.corruptions import Corruption


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per dataset and corruption, with the mark of the dataset's task."""
    options = metafunc.config.stash[SESSION].options
    metafunc.parametrize(("dataset", "corruption"), list(_pairs(options.plan, options.corruptions)))


def _pairs(plan: Plan, corruptions: tuple[Corruption, ...]) -> Iterator[Any]:
    for task, datasets in plan.tasks.items():
        marks = [getattr(pytest.mark, task)] if task in plan.catalogue.tasks else []
        for dataset in datasets:
            for corruption in corruptions:
                yield pytest.param(dataset, corruption, id=f"{dataset}-{corruption}", marks=marks)


def test_corrupted(
    dataset: str, corruption: Corruption, evaluate_corrupted: Callable[[str, Corruption], RobustnessRecord]
) -> None:
    """The language model is asked about the corrupted clips of this dataset, and what the score loses is recorded."""
    assert evaluate_corrupted(dataset, corruption).num_clips > 0
