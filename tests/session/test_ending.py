"""What is written at the end of a session, and why a run fails although no test has."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reports.test_report import baseline
from tests.session.conftest import OpenSession, add_score
from xares_bench.core.errors import DiskError
from xares_bench.reports import report
from xares_bench.scores.baselines import load_baseline
from xares_bench.session.ending import end_session


def test_a_complete_session_writes_its_files_and_has_no_problems(open_session: OpenSession) -> None:
    session = open_session()
    add_score(session, "esc-50", 80)
    add_score(session, "gtzan", 70)
    ending = end_session(session)
    assert (ending.problems, ending.notes, ending.failures) == ((), (), {})
    folder = session.plan.runs_folder / "logmel-0f0f"
    assert {"results.json", "scores.md", "scores.tsv", "report.html", "eval_results.yaml", "model_card.yaml"} <= {
        path.name for path in folder.iterdir()
    }
    assert "pytest bench --preset=mini" in (folder / "report.html").read_text()


def test_a_dataset_without_a_score_fails_the_run(open_session: OpenSession) -> None:
    session = open_session()
    assert end_session(session).problems == ("no score for esc-50, gtzan: the run fails",)
    add_score(session, "gtzan", 70)
    session.outcomes.failures["esc-50"] = "broken"
    ending = end_session(session)
    assert ending.problems == ("no score for esc-50: the run fails",)
    assert ending.failures == {"esc-50": "broken", "xares-bench": "no score for esc-50: the run fails"}


def test_a_loss_that_turns_out_significant_beside_later_ones_fails_the_run(open_session: OpenSession) -> None:
    session = open_session(baseline=baseline(esc_50=0.9, gtzan=0.9), by_noise=False, tolerance=0.02)
    add_score(session, "esc-50", 80)  # and no test has failed for it
    add_score(session, "gtzan", 90)
    (problem,) = end_session(session).problems
    assert problem.startswith("also below the baseline after Holm correction over all 2 tests: esc-50: score 0.8000")


def test_scores_are_saved_as_a_baseline_with_their_clip_sums(open_session: OpenSession, tmp_path: Path) -> None:
    session = open_session(save_to=tmp_path / "mine.yaml")
    add_score(session, "esc-50", 80)
    (problem,) = [text for text in end_session(session).problems if "mine.yaml" in text]
    assert problem.endswith("mine.yaml is not written: not every selected dataset has a score")
    add_score(session, "gtzan", 70)
    assert end_session(session).problems == ()
    saved = load_baseline(str(tmp_path / "mine.yaml"), tasks={})
    assert {name: score.score for name, score in saved.scores.items()} == {"esc-50": 0.8, "gtzan": 0.7}
    assert saved.note == "enc.py, run logmel-0f0f"
    assert saved.scores["gtzan"].clip_sums is not None
    (problem,) = end_session(session).problems
    assert "exists already" in problem


def test_a_full_disk_is_a_problem_and_ends_nothing_else(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise DiskError("no space left")

    monkeypatch.setattr(report, "write_atomically", fail)
    session = open_session(save_to=tmp_path / "mine.yaml")
    add_score(session, "esc-50", 80)
    add_score(session, "gtzan", 70)
    assert end_session(session).problems == ("no space left",) * 3  # one per required file
    assert (tmp_path / "mine.yaml").exists()
