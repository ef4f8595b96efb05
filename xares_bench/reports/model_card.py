"""Model cards: a run's scores as the hub's `model-index`, for the front matter of a model's README.

It is the hub's older form; `eval_results` has the present one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from xares_bench.core.yaml_text import dump_yaml
from xares_bench.metrics import METRICS
from xares_bench.reports.described import arguments_in_words, deviations_in_words
from xares_bench.reports.results import Results
from xares_bench.scores.records import ScoreRecord


def model_index_yaml(results: Results) -> str:
    """Return the scores as YAML, to paste between the `---` lines at the top of a model's README.

    Scores that are not finite and incomplete overall scores are left out, as they cannot be compared. The name of a
    score over only some of its dataset's clips says so.
    """
    run = results.run
    found = [_result(results, record) for record in results.records if math.isfinite(record.score)]
    found += [
        {
            "task": {"type": "audio-classification" if overall.task == "task1" else "audio-text-to-text"},
            "dataset": {
                **_data(results, run.tasks.get(overall.task, ())),
                "name": f"XARES-LLM {overall.task} ({_setting(results)})",
                "config": overall.task,
            },
            "metrics": [_metric("overall", f"Mean over {overall.num_datasets} datasets", overall.score)],
        }
        for overall in results.overalls
        if overall.complete and math.isfinite(overall.score)
    ]
    card: dict[str, Any] = {"tags": ["audio", "audio-encoder", "xares-llm"]}
    if found:
        card["model-index"] = [
            {"name": " ".join([run.encoder["name"], arguments_in_words(run)]).strip(), "results": found}
        ]
    return dump_yaml(card)


def _result(results: Results, record: ScoreRecord) -> dict[str, Any]:
    metric = METRICS[record.metric]
    part = " (some clips left out)" if record.partial else ""
    name = f"{record.dataset}{part}, XARES-LLM {_setting(results)}"
    return {
        "task": {"type": metric.hub_task, "name": metric.task},
        "dataset": {**_data(results, [record.dataset]), "name": name, "config": record.dataset, "split": "test"},
        "metrics": [_metric(metric.hub_name, metric.description, record.score)],
    }


def _setting(results: Results) -> str:
    """The preset, and everything in which the run differs from it."""
    return ", ".join([results.run.preset, *deviations_in_words(results.run, results.records)])


def _data(results: Results, datasets: Iterable[str]) -> dict[str, Any]:
    """The repository of the test data and its commit, if all of it comes from one repository."""
    found = results.run.test_repository(datasets)
    if found is None:
        return {"type": f"xares-bench-{results.run.preset}"}
    repository, commit = found
    return {"type": repository, **({"revision": commit} if commit else {})}


def _metric(kind: str, name: str, score: float) -> dict[str, Any]:
    return {"type": kind, "name": name, "value": round(float(score), 6)}
