from __future__ import annotations

from pathlib import Path

from tests.run_factory import write_finished_run
from xares_bench.reports.runs import read_run
from xares_bench.sweeps.board import board
from xares_bench.sweeps.jobs import Job
from xares_bench.sweeps.points import Point


def test_it_fills_in(tmp_path: Path) -> None:
    points = [Point(label=name, arguments=(name,)) for name in ("one", "two", "three")]
    assert board(points, {}).split()[-6:] == ["one", "waiting", "two", "waiting", "three", "waiting"]
    run = read_run(write_finished_run(tmp_path / "a", {"esc-50": [("a", "dog", "dog"), ("b", "cat", "dog")]}))
    log = tmp_path / "log"
    jobs = {
        points[0]: Job(point=points[0], log=log, seconds=12.3, run=run),
        points[2]: Job(point=points[2], log=log, seconds=4.0, run=None, reason="no file (status 4)"),
    }
    header, _, first, second, third = board(points, jobs).splitlines()
    assert header.split() == ["run", "task1", "95", "%", "CI", "frames/s", "seconds"]
    assert first.split() == ["one", "0.500", "0.000", "to", "1.000", "12.5", "12"]
    assert second.split() == ["two", "waiting"]
    assert third.split() == ["three", "4", "no", "file", "(status", "4)"]
    assert board(points, jobs, "github").startswith("| run")
