"""Neighbours: the runs that a run can be shown beside."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.run_factory import change_results, write_finished_run
from xares_bench.reports.neighbours import Neighbour, neighbours_of

ROWS = {
    "esc-50": [("a", "dog", "dog"), ("b", "cat", "dog")],
    "gtzan": [("c", "rock", "rock")],
}


def beside(folder: Path, *datasets: str) -> list[Neighbour]:
    return neighbours_of(folder, preset="mini", device="cpu", datasets=datasets)


def test_other_runs_are_found_with_their_mean_over_the_same_datasets(tmp_path: Path) -> None:
    own, _ = (write_finished_run(tmp_path / name, ROWS) for name in ("own", "other"))
    (found,) = beside(own, "esc-50", "gtzan")
    assert (found.name, found.encoder) == ("other", "otherEncoder")
    assert found.score == pytest.approx(0.75)
    assert beside(own, "esc-50")[0].score == pytest.approx(0.5)


def test_what_cannot_be_compared_or_read_is_passed_over(tmp_path: Path) -> None:
    own = write_finished_run(tmp_path / "own", ROWS)
    write_finished_run(tmp_path / "of-another-preset", ROWS, preset="full")
    write_finished_run(tmp_path / "of-a-gpu", ROWS, environment={"device": "cuda:0"})
    write_finished_run(tmp_path / "incomplete", {"esc-50": ROWS["esc-50"]})
    change_results(write_finished_run(tmp_path / "old", ROWS), schema=1)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "results.json").write_text("[", encoding="utf-8")
    assert beside(own, "esc-50", "gtzan") == []
