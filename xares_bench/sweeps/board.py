"""The board: the table of a sweep, in the order of its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xares_bench.reports.described import frames_per_second_of
from xares_bench.reports.report import shown_interval, tabulated
from xares_bench.sweeps.jobs import Job
from xares_bench.sweeps.points import Point

_LABEL = "run"


def board(points: Sequence[Point], jobs: Mapping[Point, Job], form: str = "simple") -> str:
    """Return the table of all points: overall scores of those that have ended, with their confidence intervals.

    Args:
        points: All points of the sweep.
        jobs: Those that have ended.
        form: One of tabulate's formats.
    """
    runs = {point: job.run for point, job in jobs.items() if job.run is not None}
    tasks = list(dict.fromkeys(task for run in runs.values() for task in run.overalls))
    headers = [_LABEL, *(cell for task in tasks for cell in (task, "95 % CI")), "frames/s", "seconds", ""]
    rows = []
    for point in points:
        run, job = runs.get(point), jobs.get(point)
        cells = [point.label]
        for task in tasks:
            overall = None if run is None else run.overalls.get(task)
            cells += ["", ""] if overall is None else [f"{overall.score:.3f}", shown_interval(overall.interval)]
        cells.append("" if run is None else f"{frames_per_second_of(run.manifest):.4g}")
        cells.append("" if job is None else f"{job.seconds:.0f}")
        rows.append([*cells, "waiting" if job is None else job.reason])
    return tabulated(rows, headers, form, left=(_LABEL, ""))
