"""Model cards, read back by the hub's own library."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from tests.reports.test_report import COMPLETE, results, scored
from xares_bench.metrics import METRICS, Metric
from xares_bench.reports.model_card import model_index_yaml
from xares_bench.reports.results import Results


def read(given: Results) -> list[Any]:
    data = yaml.safe_load(model_index_yaml(given))
    _, found = model_index_to_eval_results(data["model-index"])
    return found


@pytest.mark.versions
def test_the_hubs_library_reads_every_score() -> None:
    card = ModelCard(f"---\n{model_index_yaml(COMPLETE)}---\n\n# An encoder\n", ignore_metadata_errors=False)
    assert isinstance(card.data, ModelCardData)
    assert card.data.model_name == "LogMelEncoder"
    found = {result.dataset_config: result for result in card.data.eval_results or []}
    assert {name: result.metric_value for name, result in found.items()} == {
        "esc-50": 0.25,
        "gtzan": pytest.approx(2 / 3, abs=1e-6),
        "clotho": 0.125,
        "task1": 0.5625,
        "task2": 0.125,
    }
    assert found["esc-50"].task_type == "audio-classification"
    assert found["clotho"].task_type == "audio-text-to-text"
    assert "mini" in found["esc-50"].dataset_name
    assert found["esc-50"].dataset_type == "xares-bench-mini"
    again = ModelCard(str(card), ignore_metadata_errors=False)
    assert isinstance(again.data, ModelCardData)
    assert again.data.eval_results == card.data.eval_results, "the library writes back what it read"


def test_a_dataset_has_the_repository_of_its_own_data_with_its_commit() -> None:
    data = {
        "repositories": {"owner/data": "abc123", "owner/more": "def456"},
        "test_repositories": {"esc-50": "owner/data", "gtzan": "owner/more"},
    }
    found = read(dataclasses.replace(COMPLETE, run=dataclasses.replace(COMPLETE.run, data=data)))
    assert {result.dataset_config: (result.dataset_type, result.dataset_revision) for result in found} == {
        "esc-50": ("owner/data", "abc123"),
        "gtzan": ("owner/more", "def456"),
        "clotho": ("xares-bench-mini", None),
        "task1": ("xares-bench-mini", None),
        "task2": ("xares-bench-mini", None),
    }


def test_scores_that_cannot_be_compared_are_left_out_or_marked() -> None:
    found = read(results(scored("esc-50", math.nan), scored("gtzan", 0.5, partial=True)))
    assert [result.dataset_config for result in found] == ["gtzan"]
    assert "clips left out" in found[0].dataset_name


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: str(metric.name))
def test_every_metric_has_the_names_of_its_definition(metric: Metric) -> None:
    (found,) = read(results(scored("esc-50", 0.5, metric=metric.name)))
    assert (found.task_type, found.task_name) == (metric.hub_task, metric.task)
    assert (found.metric_type, found.metric_name) == (metric.hub_name, metric.description)


def test_without_a_score_there_is_no_index() -> None:
    assert "model-index" not in yaml.safe_load(model_index_yaml(results(scored("esc-50", math.nan))))
