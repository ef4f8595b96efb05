"""Model cards: a run's scores as the hub's `model-index`, for the front matter of a model's README."""

from __future__ import annotations

import math
from typing import Any

import yaml

from xares_bench.reports.results import Results
from xares_bench.scores.records import ScoreRecord

# The hub's names of what was done; what is not listed is described in text.
_TASKS = {
    "Accuracy": ("audio-classification", "Audio classification"),
    "mAP": ("audio-classification", "Audio tagging"),
    "iWER": ("automatic-speech-recognition", "Speech recognition"),
    "iCER": ("automatic-speech-recognition", "Speech recognition"),
}
_OTHER_TASK = ("audio-text-to-text", "Audio captioning")
_METRICS = {
    "Accuracy": ("accuracy", "Accuracy"),
    "mAP": ("mean_average_precision", "Mean average precision"),
    "iWER": ("iwer", "1 - word error rate, at least 0"),
    "iCER": ("icer", "1 - character error rate, at least 0"),
    "chrF": ("chrf", "chrF2, 0 to 1"),
}


def model_index_yaml(results: Results) -> str:
    """The scores as YAML, to be put between the `---` lines at the top of a model's README.

    Scores that are no number are left out, and so are overall scores that are not complete: nobody could compare them.
    What is over fewer clips than its dataset has says so.
    """
    run = results.run
    data = _dataset(results)
    found = [_result(results, record) for record in results.records if math.isfinite(record.score)]
    found += [
        {
            "task": {"type": "audio-classification" if overall.task == "task1" else _OTHER_TASK[0]},
            "dataset": {
                **data,
                "name": f"XARES-LLM {overall.task} ({run.preset})",
                "config": overall.task,
            },
            "metrics": [_metric("overall", f"Mean over {overall.num_datasets} datasets", overall.score)],
        }
        for overall in results.overalls
        if overall.complete and math.isfinite(overall.score)
    ]
    card: dict[str, Any] = {"tags": ["audio", "audio-encoder", "xares-llm"]}
    if found:
        card["model-index"] = [{"name": run.encoder["name"], "results": found}]
    return yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=120)


def _result(results: Results, record: ScoreRecord) -> dict[str, Any]:
    task, task_name = _TASKS.get(record.metric, _OTHER_TASK)
    metric, metric_name = _METRICS.get(record.metric, (record.metric.lower(), record.metric))
    part = " (some clips left out)" if record.partial else ""
    name = f"{record.dataset}{part}, XARES-LLM {results.run.preset}"
    return {
        "task": {"type": task, "name": task_name},
        "dataset": {**_dataset(results), "name": name, "config": record.dataset, "split": "test"},
        "metrics": [_metric(metric, metric_name, record.score)],
    }


def _dataset(results: Results) -> dict[str, Any]:
    """The repository of the data and its commit, where there is one of each."""
    repositories = dict(results.run.data.get("repositories", {}))
    if len(repositories) != 1:
        return {"type": f"xares-bench-{results.run.preset}"}
    (repository, commit), *_ = repositories.items()
    return {"type": repository, **({"revision": commit} if commit else {})}


def _metric(kind: str, name: str, score: float) -> dict[str, Any]:
    return {"type": kind, "name": name, "value": round(float(score), 6)}
