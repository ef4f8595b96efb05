"""Scores of earlier sessions stay in a run's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.run_factory import write_finished_run
from xares_bench.reports.earlier import with_earlier
from xares_bench.reports.report import write_run
from xares_bench.reports.results import Results
from xares_bench.reports.runs import read_run

ROWS = [("a", "dog", "dog"), ("b", "cat", "dog")]


def part_of(folder: Path, *names: str, **values: object) -> Results:
    """What a session brings that ran only some datasets of the finished run."""
    finished = read_run(folder)
    records = tuple(finished.records[name] for name in names)
    missing = tuple(name for name in finished.manifest.datasets if name not in names)
    return Results(run=finished.manifest, records=records, lalms=(), missing=missing, **values)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_finished_run(tmp_path / "run", {"esc-50": ROWS, "gtzan": ROWS, "librispeech": ROWS})


def test_scores_that_a_session_lacks_are_those_of_the_one_before(folder: Path) -> None:
    before = json.loads((folder / "results.json").read_text())
    merged, problems = with_earlier(part_of(folder, "gtzan"), folder)
    assert problems == []
    assert merged.missing == ()
    assert [record.dataset for record in merged.records] == ["esc-50", "gtzan", "librispeech"]
    assert [record.reused for record in merged.records] == [True, False, True]
    write_run(folder, merged)
    after = json.loads((folder / "results.json").read_text())
    assert [record["score"] for record in after["scores"]] == [record["score"] for record in before["scores"]]
    assert after["overall"] == before["overall"]
    assert after["lalms"] == before["lalms"]


def test_a_complete_session_needs_nothing_of_the_one_before(folder: Path) -> None:
    complete = part_of(folder, "esc-50", "gtzan", "librispeech")
    (folder / "results.json").write_text("damaged")
    assert with_earlier(complete, folder) == (complete, [])


def test_what_was_never_scored_stays_missing(folder: Path) -> None:
    write_run(folder, part_of(folder, "gtzan"))
    part = part_of(folder, "gtzan")
    assert with_earlier(part, folder)[0].missing == part.missing


def test_a_damaged_file_is_named_and_nothing_is_taken_from_it(folder: Path) -> None:
    part = part_of(folder, "gtzan")
    (folder / "results.json").write_text('{"schema": 2,')
    merged, (problem,) = with_earlier(part, folder)
    assert merged == part
    assert problem.startswith("scores of earlier sessions are not kept: ")
    assert "results.json is truncated or damaged" in problem


def test_another_run_in_the_folder_is_named(folder: Path, tmp_path: Path) -> None:
    part = part_of(folder, "gtzan")
    other = write_finished_run(tmp_path / "other", {"esc-50": ROWS, "gtzan": ROWS})
    merged, (problem,) = with_earlier(part, other)
    assert merged == part
    assert problem.endswith("is of other")
