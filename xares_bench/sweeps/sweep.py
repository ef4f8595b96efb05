"""A sweep from its file to its table."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from xares_bench.core.errors import XaresError
from xares_bench.core.store import write_atomically
from xares_bench.sweeps.board import board
from xares_bench.sweeps.jobs import Job, environments_of, run_points, visible_gpus
from xares_bench.sweeps.points import Point, read_points


def commands(file: Path, runs: Path) -> list[str]:
    """Return the command of every run of a sweep, for any shell or scheduler.

    Raises:
        UsageError: The file is ill-formed.
    """
    return [point.command(runs) for point in read_points(file)]


def sweep(file: Path, runs: Path, num_jobs: int | None, say: Callable[[str], None]) -> None:
    """Run a sweep; its logs and its table go below the folder for results.

    Args:
        file: The sweep's file.
        runs: The folder for results.
        num_jobs: How many run at a time; None: one per GPU, or one.
        say: Shows a line.

    Raises:
        UsageError: The file is ill-formed.
        XaresError: Some runs do not pass; the message names them.
        KeyboardInterrupt: It was interrupted.
    """
    points = read_points(file)
    environments = environments_of(num_jobs, visible_gpus(), os.cpu_count() or 1)
    logs = runs / "sweeps" / file.stem
    say(f"{len(points)} runs, {len(environments)} at a time; logs: {logs}")
    jobs: dict[Point, Job] = {}
    for job in run_points(points, runs, logs, environments, say):
        jobs[job.point] = job
        say(f"{len(jobs)} of {len(points)}: {job.point.label}: {job.reason or 'done'}, {job.seconds:.0f} s")
        write_atomically(logs / "table.md", board(points, jobs, "github") + "\n")
    say(f"\n{board(points, jobs)}\n\ntable: {logs / 'table.md'}")
    failed = [f"{job.point.label}: {job.reason} ({job.log})" for job in jobs.values() if job.reason]
    if failed:
        raise XaresError(f"{len(failed)} of {len(points)} runs do not pass: {'; '.join(failed)}")
