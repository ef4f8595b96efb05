"""Folders of finished runs, as the suite writes them, for tests of what reads them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xares_bench.metrics.registry import evaluate
from xares_bench.reports.report import write_run
from xares_bench.reports.results import Results
from xares_bench.scores.clip_sums import gather
from xares_bench.scores.records import Prediction, RunManifest, ScoreRecord, predictions_to_jsonl
from xares_bench.scores.statistics import interval_of

TASKS = {"task1": ("esc-50", "gtzan"), "task2": ("librispeech",)}
METRICS = {"librispeech": "iWER"}

# Clip, target and what was said.
Rows = Sequence[tuple[str, str, str]]


def write_finished_run(folder: Path, rows: Mapping[str, Rows], **manifest: Any) -> Path:
    """Write the folder of a run with these rows of datasets; the rest of its manifest can be given."""
    run = RunManifest(
        **{
            "name": folder.name,
            "datasets": tuple(rows),
            "encoder": {
                "spec": f"{folder.name}.py",
                "name": f"{folder.name}Encoder",
                "fingerprint": "0f" * 32,
                "arguments": {},
                "commit": None,
                "output_dim": 512,
                "frames_per_second": 12.5,
                "realtime_factor": 0.001,
            },
            "preset": "mini",
            "decoder": {"name": "tiny", "fingerprint": "dd" * 32, "commit": None},
            "recipe": {"seed": 42, "learning_rate": 0.001},
            "deviations": {},
            "data": {"folder": "fixtures/mini", "revision": "abc", "repositories": {}, "limit": None},
            "tasks": TASKS,
            "environment": {"device": "cpu", "threads": 2, "torch": "2.13.0"},
            "seeds": (42,),
            **manifest,
        }
    )
    records = [_score(folder, name, own, run.tasks) for name, own in rows.items()]
    lalms = ({"mix": "task1", "key": "b" * 64, "seed": 42, "features_s": 1.0, "training_s": 60.0, "num_steps": 3},)
    write_run(folder, Results(run=run, records=tuple(records), lalms=lalms, wall_s=70.0))
    return folder


def change_results(folder: Path, **changes: Any) -> None:
    """Change top-level values of a run's results.json by hand."""
    file = folder / "results.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def _score(folder: Path, dataset: str, rows: Rows, tasks: Mapping[str, Sequence[str]]) -> ScoreRecord:
    metric = METRICS.get(dataset, "Accuracy")
    clips, references, hypotheses = zip(*rows, strict=True)
    result = evaluate(metric, references, hypotheses)
    clip_sums = gather([result], metric=metric, arguments={}, row_clips=clips)
    clip_sums.save(folder / "clip_sums" / f"{dataset}.npz")
    interval = interval_of(clip_sums)
    predictions = [
        Prediction(clip=clip, reference=reference, hypothesis=hypothesis, value=value)
        for (clip, reference, hypothesis), value in zip(rows, result.row_values, strict=True)
    ]
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    (folder / "predictions" / f"{dataset}.jsonl").write_text(predictions_to_jsonl(predictions), encoding="utf-8")
    assert math.isfinite(result.score)
    record = ScoreRecord(
        dataset=dataset,
        task=next(task for task, names in tasks.items() if dataset in names),
        metric=metric,
        score=result.score,
        weight=1.0,
        num_rows=len(rows),
        num_clips=len(clip_sums.clips),
        duration_s=float(len(rows)),
        features_s=1.0,
        generation_s=1.0,
        dropped=(),
        mix="task1",
        key="a" * 64,
        lalm_key="b" * 64,
        reused=False,
        partial=False,
    )
    return dataclasses.replace(
        record,
        interval=(interval.low, interval.high),
        deviation=interval.deviation,
        seed_scores=(result.score,),
    )
