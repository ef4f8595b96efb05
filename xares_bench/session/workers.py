"""Workers: scores and findings on their way from the process that ran a test to the one that writes the results.

They travel on pytest's reports as plain mappings, from xdist's workers in the same way as within one process.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from xares_bench.core.text import writable
from xares_bench.scores.records import RobustnessRecord, RunManifest, ScoreRecord

if TYPE_CHECKING:
    from xares_bench.reports.results import Results
    from xares_bench.scores.gate import Finding

_PAYLOAD_KEY = pytest.StashKey[dict[str, Any]]()
_SHOWN_KEY = pytest.StashKey[tempfile.TemporaryDirectory[str]]()
_REPORT_ATTRIBUTE = "xares_bench"
# In the input of xdist's workers: a folder with an empty file for each line that one of them has shown.
_SHOWN = "xares_bench_shown"


def attach(item: pytest.Item, **content: Any) -> None:
    """Attach content to a test, for its report.

    Args:
        item: The test.
        content: `record` with `run` and `lalms`, `robustness` with `run`, or `finding`, as values that JSON can hold.
    """
    item.stash.setdefault(_PAYLOAD_KEY, {}).update(writable(content))


def carry(item: pytest.Item, report: pytest.TestReport) -> None:
    """Put on a report what is attached to its test."""
    if report.when == "call" and _PAYLOAD_KEY in item.stash:
        setattr(report, _REPORT_ATTRIBUTE, item.stash[_PAYLOAD_KEY])


class Outcomes:
    """What the reports have brought so far.

    Attributes:
        run: The run; None before the first score.
        records: Scores, by dataset.
        robustness: Losses by corruptions, by dataset and corruption.
        findings: Findings of the gate, by dataset or `TASK overall`.
        failures: Messages of failed tests, by the short name of the test.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.run: RunManifest | None = None
        self.records: dict[str, ScoreRecord] = {}
        self.robustness: dict[tuple[str, str], RobustnessRecord] = {}
        self.findings: dict[str, Finding] = {}
        self.failures: dict[str, str] = {}
        self._lalms: dict[str, Mapping[str, Any]] = {}
        self._failed_by_gate: set[str] = set()

    def enter(self, report: pytest.TestReport) -> None:
        """Add what a report carries, and the message of its test if it failed."""
        if report.failed:
            self.failures[_short_name(report.nodeid)] = report.longreprtext
        payload: Mapping[str, Any] = getattr(report, _REPORT_ATTRIBUTE, {})
        if "finding" in payload:
            from xares_bench.scores.gate import Finding

            finding = Finding.from_json(payload["finding"])
            self.findings[finding.what] = finding
            if report.failed:
                self._failed_by_gate.add(finding.what)
        if "record" in payload:
            self.run = RunManifest.from_json(payload["run"])
            self.add(ScoreRecord.from_json(payload["record"]), payload["lalms"])
        if "robustness" in payload:
            self.run = RunManifest.from_json(payload["run"])
            found = RobustnessRecord.from_json(payload["robustness"])
            self.robustness[found.dataset, found.corruption] = found

    def add(self, record: ScoreRecord, lalms: Iterable[Mapping[str, Any]]) -> None:
        """Add a score, and the manifests of its LALMs."""
        self.records[record.dataset] = record
        self._lalms.update((lalm["key"], lalm) for lalm in lalms)

    @property
    def missing(self) -> tuple[str, ...]:
        """The datasets of the run without a score; empty before the first score."""
        return tuple(name for name in self.datasets if name not in self.records)

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets of the run; empty before the first score."""
        return () if self.run is None else self.run.datasets

    def late(self, failures: Mapping[str, str]) -> list[str]:
        """Return the gate's failures that no test has failed with, because they were found after it had passed."""
        return [failure for what, failure in failures.items() if what not in self._failed_by_gate]

    def results(self, order: Iterable[str], wall_s: float) -> Results | None:
        """Return everything that has come in; None where there is no score.

        Args:
            order: All datasets, in the order of the reports.
            wall_s: Seconds since the session began.
        """
        if self.run is None:
            return None
        from xares_bench.reports.results import Results

        return Results(
            run=self.run,
            records=tuple(self.records[name] for name in order if name in self.records),
            lalms=tuple(self._lalms[key] for key in sorted(self._lalms)),
            missing=self.missing,
            robustness=tuple(self.robustness.values()),
            wall_s=wall_s,
        )


def _short_name(test: str) -> str:
    """Return the short name of a test: `esc-50` for `bench/test_task1.py::test_dataset[esc-50]`."""
    name = test.rpartition("::")[2]
    _, bracket, inner = name.partition("[")
    return inner.removesuffix("]") if bracket else name


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of xdist's workers."""
    return hasattr(config, "workerinput")


def is_first_worker(config: pytest.Config) -> bool:
    """Whether this process is the first of xdist's workers."""
    return is_worker(config) and os.environ.get("PYTEST_XDIST_WORKER") == "gw0"


def rank() -> int:
    """Return the number of this process among those of a launcher; 0 without one."""
    return _number_of_launcher("RANK", default=0)


def num_processes() -> int:
    """Return the number of processes that a launcher has started; 1 without one."""
    return _number_of_launcher("WORLD_SIZE", default=1)


def _number_of_launcher(name: str, *, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise pytest.UsageError(
            f"the environment variable {name}={text} is not a number; a launcher such as torchrun sets it, so unset it "
            "or start one"
        )
    return int(text)


def is_launched() -> bool:
    """Whether `accelerate launch`, `torchrun` or another launcher has started this process."""
    return any(name in os.environ for name in ("LOCAL_RANK", "ACCELERATE_DYNAMO_BACKEND"))


def is_helper(config: pytest.Config) -> bool:
    """Whether another process collects the scores and writes the results."""
    return is_worker(config) or rank() > 0


def share_shown_lines(config: pytest.Config, worker_input: dict[str, Any]) -> None:
    """Let xdist's workers, one of which is about to start with this input, know what the others have shown."""
    folder = config.stash.get(_SHOWN_KEY, None)
    if folder is None:
        folder = config.stash[_SHOWN_KEY] = tempfile.TemporaryDirectory(prefix="xares-bench-")
        config.add_cleanup(folder.cleanup)
    worker_input[_SHOWN] = folder.name


def say_at_once(config: pytest.Config, line: str) -> None:
    """Show a line during the tests; what several of xdist's workers find, the first of them shows."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if is_worker(config):
        reporter = None  # what it writes is lost
        worker: Any = config
        try:
            (Path(worker.workerinput[_SHOWN]) / hashlib.sha256(line.encode()).hexdigest()).touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:
            pass  # of a worker elsewhere, which shares no folder with the others
    if reporter is None:
        sys.stderr.write(f"xares-bench: {line}\n")
        return
    reporter.ensure_newline()
    reporter.write_line(f"xares-bench: {line}", yellow=True)


def leave_reports_to_the_first(config: pytest.Config, log: Path) -> None:
    """Send what this process prints to a file, and leave the files of pytest's own options to the first process."""
    log.parent.mkdir(parents=True, exist_ok=True)
    # The terminal reporter, which is made next, writes there.
    sys.stdout = log.open("w", buffering=1, encoding="utf-8", errors="backslashreplace")
    for option in ("xmlpath", "benchmark_json", "benchmark_save", "benchmark_autosave"):
        setattr(config.option, option, None)
