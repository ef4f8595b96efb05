"""What comes in on reports, and in which order it may."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

from tests.reports.test_report import results, scored
from xares_bench.scores.gate import Finding
from xares_bench.scores.records import ScoreRecord
from xares_bench.session.workers import (
    Outcomes,
    attach,
    carry,
    is_first_worker,
    num_processes,
    rank,
    say_at_once,
    share_shown_lines,
)

RUN = results().run


class ReportOf(Protocol):
    """A report as it comes from the process that ran the test of a dataset."""

    def __call__(self, name: str, outcome: Literal["passed", "failed"] = "passed", **content: Any) -> pytest.TestReport:
        """With this attached to the test."""


@pytest.fixture
def report_of(pytester: pytest.Pytester) -> ReportOf:
    def make(name: str, outcome: Literal["passed", "failed"] = "passed", **content: Any) -> pytest.TestReport:
        item = pytester.getitem("def test_it(): pass", "test_it")
        report = pytest.TestReport(
            f"bench/test_task1.py::test_dataset[{name}]", ("", 0, ""), {}, outcome, "broken", "call"
        )
        if content:
            attach(item, **content)
        carry(item, report)
        return report

    return make


def content_of(record: ScoreRecord) -> dict[str, Any]:
    """What is attached to a dataset's test."""
    lalm = {"key": record.lalm_key, "mix": record.mix}
    return {"record": record.to_json(), "run": RUN.to_json(), "lalms": [lalm]}


def test_scores_come_in_any_order_and_are_listed_in_one(report_of: ReportOf) -> None:
    outcomes = Outcomes()
    assert outcomes.results(["esc-50", "gtzan", "clotho"], 1.0) is None
    for record in (scored("gtzan", 0.25), scored("esc-50", 0.5)):
        outcomes.enter(report_of(record.dataset, **content_of(record)))
    found = outcomes.results(["esc-50", "gtzan", "clotho"], 1.0)
    assert found is not None
    assert [record.dataset for record in found.records] == ["esc-50", "gtzan"]
    assert found.missing == ("clotho",)
    assert [lalm["key"] for lalm in found.lalms] == ["b" * 64], "one LALM, however many datasets tell of it"
    assert found.run == RUN


def test_a_failure_is_kept_under_what_it_is_about(report_of: ReportOf) -> None:
    outcomes = Outcomes()
    outcomes.enter(report_of("gtzan", "failed"))
    outcomes.enter(report_of("esc-50"))
    assert outcomes.failures == {"gtzan": "broken"}
    assert not outcomes.records


def test_only_failures_that_no_test_has_had_are_late(report_of: ReportOf) -> None:
    outcomes = Outcomes()
    outcomes.enter(report_of("gtzan", "failed", finding=Finding(what="gtzan", score=0.5).to_json()))
    outcomes.enter(report_of("esc-50", finding=Finding(what="esc-50", score=0.5).to_json()))
    assert outcomes.findings.keys() == {"gtzan", "esc-50"}
    assert outcomes.late({"gtzan": "gtzan lost", "esc-50": "esc-50 lost"}) == ["esc-50 lost"]


def test_a_worker_without_the_shared_folder_shows_what_it_finds(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One on another machine, for example."""
    worker = pytester.parseconfig()
    inputs: dict[str, str] = {}
    share_shown_lines(pytester.parseconfig(), inputs)
    worker.workerinput = dict.fromkeys(inputs, str(tmp_path / "elsewhere"))  # type: ignore[attr-defined]
    say_at_once(worker, "alone")
    assert capsys.readouterr().err == "xares-bench: alone\n"


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_a_number_of_a_launcher_that_is_none_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = {"RANK": rank, "WORLD_SIZE": num_processes}[name]
    monkeypatch.setenv(name, "3")
    assert read() == 3
    for value in ("", "-1", "first"):
        monkeypatch.setenv(name, value)
        with pytest.raises(pytest.UsageError, match=f"{name}={value} is not a number"):
            read()


def test_a_line_is_shown_at_once_and_by_one_of_several_workers(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    controller, *workers = (pytester.parseconfig() for _ in range(3))
    say_at_once(controller, "no terminal")
    for worker in workers:
        worker.workerinput = {}  # type: ignore[attr-defined]
        share_shown_lines(controller, worker.workerinput)  # type: ignore[attr-defined]
    say_at_once(workers[1], "of the second")
    for worker in workers:
        say_at_once(worker, "of both")
    assert capsys.readouterr().err.splitlines() == [
        f"xares-bench: {line}" for line in ("no terminal", "of the second", "of both")
    ]
    (folder,) = {worker.workerinput.popitem()[1] for worker in workers}  # type: ignore[attr-defined]
    controller._ensure_unconfigure()
    assert not Path(folder).exists()


def test_one_of_the_workers_is_the_first(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    config = pytester.parseconfig()
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    assert not is_first_worker(config), "a session that a worker started"
    config.workerinput = {}  # type: ignore[attr-defined]
    assert is_first_worker(config)
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw1")
    assert not is_first_worker(config)
