"""Tables: scores and predictions of a run as flat rows, for pandas, polars and Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from xares_bench.core.errors import UsageError
from xares_bench.core.store import write_atomically
from xares_bench.reports.described import arguments_in_words
from xares_bench.scores.records import Overall, Prediction, RobustnessRecord, RunManifest, ScoreRecord

# Rows with the same keys: names of columns. Values are texts, numbers, truth values, lists of numbers, or None.
Table: TypeAlias = list[dict[str, Any]]


def score_rows(run: RunManifest, records: Iterable[ScoreRecord]) -> Table:
    """Return a row per dataset. A score that is not a finite number is NaN; its interval is None."""
    return [
        {
            **_about(run),
            "task": record.task,
            "dataset": record.dataset,
            "metric": record.metric,
            "score": float(record.score),
            **_noise(record),
            "weight": float(record.weight),
            "num_clips": record.num_clips,
            "num_rows": record.num_rows,
            "num_dropped": len(record.dropped),
            "partial": record.partial,
            "mix": record.mix,
            "audio_s": record.duration_s,
            "features_s": record.features_s,
            "generation_s": record.generation_s,
        }
        for record in records
    ]


def overall_rows(run: RunManifest, overalls: Iterable[Overall]) -> Table:
    """Return a row per task. `complete`: whether all of its datasets, with all clips, are in the mean."""
    return [
        {
            **_about(run),
            "task": overall.task,
            "score": float(overall.score),
            **_noise(overall),
            "num_datasets": overall.num_datasets,
            "complete": overall.complete,
        }
        for overall in overalls
    ]


def robustness_rows(run: RunManifest, records: Mapping[str, ScoreRecord], losses: Iterable[RobustnessRecord]) -> Table:
    """Return a row per dataset and corruption: the clean score, the corrupted one, and the loss with its interval."""
    rows = []
    for found in losses:
        low, high = found.interval or (None, None)
        rows.append(
            {
                **_about(run),
                "task": records[found.dataset].task,
                "dataset": found.dataset,
                "corruption": found.corruption,
                "metric": records[found.dataset].metric,
                "clean_score": float(records[found.dataset].score),
                "score": float(found.score),
                "loss": float(found.loss),
                "low": low,
                "high": high,
                "num_clips": found.num_clips,
            }
        )
    return rows


def prediction_rows(run: str, dataset: str, predictions: Iterable[Prediction]) -> Table:
    """Return a row per clip and target of a dataset."""
    return [{"run": run, "dataset": dataset, **vars(prediction)} for prediction in predictions]


def write_parquet(folder: Path, tables: Mapping[str, Table]) -> list[Path]:
    """Write each table to `NAME.parquet` in a folder, atomically; return the paths. An empty table is not written.

    Raises:
        UsageError: pyarrow is not installed.
        DiskError: A file cannot be written.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as cause:
        raise UsageError(f"Parquet files need pyarrow ({cause}): pip install pyarrow") from cause
    paths = []
    for name, table in tables.items():
        if table:
            content = pyarrow.BufferOutputStream()
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), content)
            paths.append(folder / f"{name}.parquet")
            write_atomically(paths[-1], content.getvalue().to_pybytes())
    return paths


def _about(run: RunManifest) -> dict[str, Any]:
    arguments = arguments_in_words(run)
    return {"run": run.name, "encoder": run.encoder["name"], "arguments": arguments, "preset": run.preset}


def _noise(found: ScoreRecord | Overall) -> dict[str, Any]:
    """The 95 % confidence interval, the standard error, and the scores of the seeds with their standard deviation."""
    low, high = found.interval or (None, None)
    seed_scores = [*map(float, found.seed_scores)]
    return {"low": low, "high": high, "deviation": found.deviation, "spread": found.spread, "seed_scores": seed_scores}
