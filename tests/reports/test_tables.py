"""A run's tables: pandas, polars and Parquet take them as they are."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import pandas
import polars
import pyarrow.parquet
import pytest

from tests.run_factory import write_finished_run
from xares_bench.core.errors import DiskError, UsageError
from xares_bench.reports.runs import Run, read_run
from xares_bench.reports.tables import overall_rows, score_rows

ROWS = {
    "esc-50": [("a", "dog", "dog"), ("b", "cat", "dog")],
    "librispeech": [("c", "one two", "one"), ("d", "three", "three")],
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return read_run(write_finished_run(tmp_path / "logmel", ROWS))


def test_a_row_per_dataset_task_and_row(run: Run) -> None:
    assert [(row["run"], row["dataset"], row["metric"]) for row in run.scores] == [
        ("logmel", "esc-50", "Accuracy"),
        ("logmel", "librispeech", "iWER"),
    ]
    assert [row["score"] for row in run.scores] == pytest.approx([0.5, 2 / 3])
    assert [(row["task"], row["num_datasets"], row["complete"]) for row in run.overall] == [
        ("task1", 1, False),
        ("task2", 1, True),
    ]
    first, *_, last = run.predictions
    assert first == {
        **{"run": "logmel", "dataset": "esc-50", "clip": "a"},
        **{"reference": "dog", "hypothesis": "dog", "value": 1.0},
    }
    assert (last["dataset"], last["clip"], last["hypothesis"]) == ("librispeech", "d", "three")
    for row in run.scores + run.overall:
        low, high = row["low"], row["high"]
        assert low <= row["score"] <= high


def test_every_row_of_a_table_has_the_same_columns_and_flat_values(run: Run) -> None:
    for table in (run.scores, run.overall, run.predictions):
        assert len({tuple(row) for row in table}) == 1
        for value in (value for row in table for value in row.values()):
            flat = value if isinstance(value, list) else [value]
            assert all(item is None or isinstance(item, str | int | float | bool) for item in flat)


def test_pandas_and_polars_take_them_as_they_are(run: Run, tmp_path: Path) -> None:
    other = read_run(write_finished_run(tmp_path / "other", {"esc-50": [("a", "dog", "cat"), ("b", "cat", "cat")]}))
    scores = pandas.DataFrame(run.scores + other.scores)
    assert scores.pivot(index="dataset", columns="run", values="score").loc["esc-50"].tolist() == [0.5, 0.5]
    assert scores["num_clips"].dtype == "int64"
    joined = polars.DataFrame(run.predictions).join(polars.DataFrame(other.predictions), on=["dataset", "clip"])
    assert joined["hypothesis_right"].to_list() == ["cat", "cat"]
    assert polars.DataFrame(run.scores)["seed_scores"].dtype == polars.List(polars.Float64)


def test_a_score_that_is_no_number_is_nan(run: Run) -> None:
    records = [dataclasses.replace(run.records["esc-50"], score=math.nan, interval=None, deviation=None)]
    (row,) = score_rows(run.manifest, records)
    assert math.isnan(row["score"])
    assert (row["low"], row["high"], row["deviation"]) == (None, None, None)
    overalls = [dataclasses.replace(run.overalls["task1"], score=math.nan, interval=None)]
    assert math.isnan(overall_rows(run.manifest, overalls)[0]["score"])


def test_parquet_files_hold_the_same_rows(run: Run, tmp_path: Path) -> None:
    paths = run.write_parquet(tmp_path / "tables")
    assert [path.name for path in paths] == ["scores.parquet", "overall.parquet", "predictions.parquet"]
    tables = (run.scores, run.overall, run.predictions)
    assert tuple(pyarrow.parquet.read_table(path).to_pylist() for path in paths) == tables
    assert run.write_parquet() == [run.folder / path.name for path in paths]


def test_without_pyarrow_the_error_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"Parquet files need pyarrow .*: pip install pyarrow"):
        run.write_parquet(tmp_path / "tables")
    assert not (tmp_path / "tables").exists()


def test_a_folder_that_is_a_file_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(DiskError, match="taken"):
        run.write_parquet(tmp_path / "taken")


def test_a_run_without_predictions_has_none(run: Run, tmp_path: Path) -> None:
    for file in (run.folder / "predictions").iterdir():
        file.unlink()
    assert run.predictions == []
    assert [path.name for path in run.write_parquet(tmp_path)] == ["scores.parquet", "overall.parquet"]
