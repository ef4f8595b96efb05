"""Jobs: runs the points of a sweep on this machine, some at a time, each as a process of its own.

Nothing is kept about a sweep but its logs. A point is the command `xares-bench`, whose features, LALMs and scores are
cached by content and under locks: started again, a sweep finds in seconds what is finished, and goes on with the rest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xares_bench.core.errors import UsageError
from xares_bench.reports.runs import Run, read_run
from xares_bench.runtime.variables import END_WITH_PARENT
from xares_bench.sweeps.points import Point

_POLL_S = 0.1
_RESULTS = "results: "
_WRONG_USAGE = 4
# With these the session has come to its end: everything passed, or some score did not.
_ENDED = (0, 1)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A point that has been run.

    Attributes:
        point: The point.
        log: The file with everything that its processes have written.
        seconds: What it took, from its first start to its end.
        run: The run; None if it did not come to its end.
        reason: Why it did not, or why the run does not pass; empty if there is no such reason.
    """

    point: Point
    log: Path
    seconds: float
    run: Run | None
    reason: str = ""


class _Process:
    """A running job."""

    def __init__(self, point: Point, runs: Path, log: Path, slot: int, environment: dict[str, str]) -> None:
        self.point, self.log, self.slot = point, log, slot
        self.started = time.monotonic()
        self.num_starts = 0
        self._runs, self._environment = runs, environment
        self.start()

    def start(self) -> None:
        self.num_starts += 1
        command = [sys.executable, "-m", "xares_bench", *self.point.arguments, f"--runs-dir={self._runs}"]
        with self.log.open("ab") as output:
            output.write(f"$ {self.point.command(self._runs)}\n".encode())
            output.flush()
            self._start_of_output = output.tell()
            # In a session of its own: an interruption from the keyboard reaches the sweep alone, which passes it on.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    def finished(self) -> Job:
        """The job of a process that has ended."""
        with self.log.open("rb") as output:
            output.seek(self._start_of_output)
            lines = output.read().decode(errors="replace").splitlines()
        run, reason = None, _reason(lines, self.process.returncode)
        folders = [line.removeprefix(_RESULTS) for line in lines if line.startswith(_RESULTS)]
        if self.process.returncode in _ENDED and folders:
            with contextlib.suppress(UsageError):
                run = read_run(folders[-1])
        if run is not None and {*run.manifest.datasets} <= {*run.records}:
            reason = "" if self.process.returncode == 0 else "; ".join((run.failures or {"": reason}).values())
        else:
            run = None
        seconds = time.monotonic() - self.started
        return Job(point=self.point, log=self.log, seconds=seconds, run=run, reason=reason)


def run_points(
    points: Sequence[Point], runs: Path, logs: Path, environments: Sequence[dict[str, str]], say: Callable[[str], None]
) -> Iterator[Job]:
    """Run all points and yield each as it ends. One that fails is started once more, unless its command is wrong.

    Args:
        points: The points.
        runs: The folder for results, which all share.
        logs: The folder for logs, one per point.
        environments: One per job that may run at the same time.
        say: Shows a line.

    Raises:
        KeyboardInterrupt: It was interrupted; the jobs have been, too, so that they saved what they could.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting, free = list(reversed(points)), list(reversed(range(len(environments))))
    running: list[_Process] = []
    try:
        while waiting or running:
            while waiting and free:
                point, slot = waiting.pop(), free.pop()
                say(f"started: {point.label}")
                running.append(_Process(point, runs, logs / f"{point.file_name}.log", slot, environments[slot]))
            for job in [job for job in running if job.process.poll() is not None]:
                result = job.finished()
                if result.run is None and job.num_starts == 1 and job.process.returncode != _WRONG_USAGE:
                    say(f"failed, and is started once more: {job.point.label}: {result.reason}")
                    job.start()
                    continue
                running.remove(job)
                free.append(job.slot)
                yield result
            time.sleep(_POLL_S)
    finally:
        _interrupt(running, say)


def environments_of(num_jobs: int | None, gpus: Sequence[str], num_processors: int) -> list[dict[str, str]]:
    """Return the environment variables of each job that may run at the same time.

    Args:
        num_jobs: How many; None: one per GPU, or one.
        gpus: The GPUs, as CUDA_VISIBLE_DEVICES names them; each job sees one.
        num_processors: Processors, which jobs without a GPU share.
    """
    number = num_jobs or len(gpus) or 1
    common = {**os.environ, END_WITH_PARENT: "1"}
    if gpus:
        return [{**common, "CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} for slot in range(number)]
    threads = str(max(1, num_processors // number))
    # More threads than processors wait for each other.
    return [{"OMP_NUM_THREADS": threads, **common} for _ in range(number)] if number > 1 else [common]


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; importing torch takes a second."""
    import torch

    number = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:number] if named else [str(index) for index in range(number)]


def _interrupt(running: Sequence[_Process], say: Callable[[str], None]) -> None:
    """Interrupt what is running, and wait until it has saved its checkpoints; a second interruption ends it at once."""
    if not running:
        return
    say(f"waiting for {len(running)} jobs to save their checkpoints")
    for job in running:
        with contextlib.suppress(ProcessLookupError):
            job.process.send_signal(signal.SIGINT)
    try:
        for job in running:
            job.process.wait()
    finally:
        for job in running:
            job.process.kill()


def _reason(lines: Sequence[str], status: int) -> str:
    """Return why a process has failed, from what it has written."""
    said = [line.removeprefix("xares-bench: ") for line in lines if line.startswith("xares-bench: ")]
    errors = [line for line in lines if line.startswith(("ERROR: ", "not ready: ", "encoder: breaks its contract"))]
    failures = [line for line in said if line.endswith("the run fails")]
    found = errors or failures or said[-1:] or [line for line in lines if line.strip()][-1:]
    ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    return f"{found[0].removeprefix('ERROR: ') if found else 'it has written nothing'} ({ended})"
