"""What fixtures and hooks ask a session for, without a suite."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.config.test_plan import plan
from tests.reports.test_report import baseline
from tests.session.conftest import OpenSession, add_score
from xares_bench.core.errors import BaselineError, DataError
from xares_bench.scores.records import Overall


def test_selected_datasets_are_in_the_order_of_the_catalogue(open_session: OpenSession) -> None:
    session = open_session()
    assert session.selected == ("esc-50", "gtzan")
    assert session.num_gated == 2


def test_the_run_of_lf_has_the_other_datasets_of_the_run_before_that_the_mix_covers(
    open_session: OpenSession, tmp_path: Path
) -> None:
    session = open_session()
    session.select({"gtzan"}, set(), ["esc-50", "clotho", "gtzan", "of another command"])
    assert (session.selected, session.run_datasets) == (("gtzan",), ("esc-50", "gtzan", "clotho"))
    session = open_session(plan=plan(train="task1", runs_dir=str(tmp_path / "runs")))
    session.select({"gtzan"}, set(), ["esc-50", "clotho", "gtzan"])
    assert session.run_datasets == ("esc-50", "gtzan")
    session.select({"gtzan"}, set(), ["esc-50", "clotho"])
    assert list(session.run_datasets) == ["gtzan"], "what was selected last is another run"


def test_a_task_counts_among_the_gated_tests_only_when_it_is_complete(open_session: OpenSession) -> None:
    session = open_session()
    session.select({"clotho"}, {"task2"})
    assert session.num_gated == 1
    session.select({*session.plan.tasks["task2"]}, {"task1", "task2"})
    assert session.num_gated == len(session.plan.tasks["task2"]) + 1


def test_a_session_that_continues_a_run_is_gated_with_all_of_its_tests(open_session: OpenSession) -> None:
    session = open_session()
    task2 = session.plan.tasks["task2"]
    session.select(set(), {"task2"}, [*task2, "gtzan"])  # only the overall score failed
    assert session.num_gated == len(task2) + 1 + 1
    session.select({"clotho"}, set(), [*task2])
    assert session.num_gated == len(task2) + 1
    session.select({"gtzan"}, set(), [*task2])
    assert session.num_gated == 1, "what was selected last is another run"


def test_a_baseline_without_a_selected_dataset_is_refused_before_a_suite_is_made(open_session: OpenSession) -> None:
    session = open_session(baseline=baseline(esc_50=0.5))
    with pytest.raises(BaselineError, match="no score for gtzan"):
        session.check()
    assert "suite" not in vars(session)


def test_tests_that_need_data_fail_with_what_is_in_the_way(open_session: OpenSession) -> None:
    session = open_session()
    session.not_ready = DataError("the hub cannot be asked")
    with pytest.raises(DataError, match="the hub cannot be asked"):
        session.fetch()


def test_the_gate_fails_a_test_with_its_predictions_file(open_session: OpenSession, pytester: pytest.Pytester) -> None:
    session = open_session(baseline=baseline(esc_50=0.9, gtzan=0.9), by_noise=False, tolerance=0.02)
    item = pytester.getitem("def test_it(): pass", "test_it")
    add_score(session, "esc-50", 89)
    session.apply_gate(item, session.outcomes.records["esc-50"])
    add_score(session, "gtzan", 80)
    with pytest.raises(pytest.fail.Exception, match=r"gtzan: score 0\.8000 .*; predictions: .*/gtzan\.jsonl$"):
        session.apply_gate(item, session.outcomes.records["gtzan"])
    json.dumps(session.outcomes.findings["gtzan"].to_json())


def test_the_gate_fails_an_overall_score_with_the_folder_of_predictions(
    open_session: OpenSession, pytester: pytest.Pytester
) -> None:
    session = open_session(baseline=baseline({"task1": 0.9}, esc_50=0.9), by_noise=False, tolerance=0.02)
    add_score(session, "esc-50", 90)
    overall = Overall(
        task="task1", score=0.8, deviation=None, seed_scores=(0.8,), num_datasets=2, num_expected=2, partial=False
    )
    item = pytester.getitem("def test_it(): pass", "test_it")
    with pytest.raises(pytest.fail.Exception, match=r"task1 overall: .*; predictions: .*/predictions$"):
        session.apply_gate_to_overall(item, overall, 200)


def test_files_are_in_the_folder_of_the_run_that_workers_report(open_session: OpenSession) -> None:
    session = open_session()
    add_score(session, "gtzan", 50)
    folder: Path = session.plan.runs_folder / "logmel-0f0f"
    assert session.clip_sums_file("gtzan") == folder / "clip_sums" / "gtzan.npz"
    assert session.predictions_file("gtzan") == folder / "predictions" / "gtzan.jsonl"


def test_results_need_a_score(open_session: OpenSession) -> None:
    session = open_session()
    assert session.results() is None
    add_score(session, "gtzan", 50)
    found = session.results()
    assert found is not None
    assert found.missing == ("esc-50",)
    assert found.wall_s > 0


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"steps": "600"}, "measured with steps 600, this run 300; run with its values"),
        ({"steps": "300"}, "does not tell what it was measured with: decoder"),
        ({}, "does not tell what it was measured with: steps, decoder"),
        ({"steps": "300", "decoder": "5c"}, None),
    ],
)
def test_a_strict_session_refuses_a_baseline_of_other_or_unknown_conditions(
    open_session: OpenSession, facts: dict[str, str], problem: str | None
) -> None:
    known = dataclasses.replace(baseline(esc_50=0.5, gtzan=0.5), facts=facts)
    for is_strict in (True, False):
        session = open_session(baseline=known, is_strict=is_strict)
        vars(session)["_facts"] = {"steps": "300", "decoder": "5c"}
        vars(session)["suite"] = SimpleNamespace(
            contract=SimpleNamespace(failure=None), check=lambda names: None, close=lambda: None
        )
        with pytest.raises(BaselineError, match=problem) if problem and is_strict else nullcontext():
            session.check()
        assert ("600" in session.gate.caveat) == (facts == {"steps": "600"})
