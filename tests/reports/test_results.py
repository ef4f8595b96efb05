from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.config.test_plan import plan
from tests.reports.test_report import results, scored
from xares_bench.reports.results import background_of
from xares_bench.scores.gate import Finding
from xares_bench.scores.statistics import difference_of


def test_every_task_with_a_score_has_an_overall_score_in_the_order_of_the_records() -> None:
    found = results(scored("clotho", 0.5, task="task2"), scored("gtzan", 0.25), scored("esc-50", 0.75))
    assert [(overall.task, overall.score) for overall in found.overalls] == [("task2", 0.5), ("task1", 0.5)]
    assert [record.dataset for record in found.of_task("task1")] == ["gtzan", "esc-50"]
    assert found.of_task("task3") == []


def test_without_scores_there_is_no_overall_score() -> None:
    assert results().overalls == ()


@pytest.fixture
def background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The background of two datasets, one of which is compared with a baseline."""
    monkeypatch.chdir(tmp_path)
    difference = difference_of(-0.1, 0.02, num_clips=100)
    findings = {
        "gtzan": Finding(what="gtzan", score=0.5, baseline=0.6, difference=difference),
        "esc-50": Finding(what="esc-50", score=0.5),
    }
    found = results(scored("gtzan", 0.5), scored("esc-50", 0.5))
    made = plan(data_home="home")
    return made, difference, background_of(made, found, "pytest bench", None, findings, {"gtzan": "too low"})


def test_the_background_has_the_intervals_of_the_scores_that_were_compared(background: Any) -> None:
    _, difference, made = background
    assert made.differences == {"gtzan": (difference.low, difference.high)}
    assert (made.command, made.baseline) == ("pytest bench", None)
    assert (made.failures, made.num_compared) == ({"gtzan": "too low"}, 1)


def test_the_background_knows_prompts_and_test_shards(background: Any) -> None:
    plan_, _, made = background
    assert made.sources.keys() == {"gtzan", "esc-50"}
    dataset = plan_.dataset("gtzan")
    assert made.sources["gtzan"].prompts == dataset.prompts
    assert made.sources["gtzan"].shards == tuple(plan_.data_folder / name for name in dataset.eval.shards)
