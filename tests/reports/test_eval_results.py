"""Evaluation results, read back by the hub's own library."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResultEntry, parse_eval_result_entries

from tests.reports.test_report import COMPLETE, results, scored
from xares_bench.reports.eval_results import eval_results_yaml, has_entries, left_out
from xares_bench.reports.origin import Origin
from xares_bench.reports.results import Results

COMMIT = "0123456789" * 4
DATA = {
    "repositories": {"owner/data": COMMIT, "owner/more": "e" * 40},
    "test_repositories": {"esc-50": "owner/data", "gtzan": "owner/data", "clotho": "owner/more"},
    "limit": None,
}


def on_the_hub(found: Results, **run: Any) -> Results:
    run = {"preset": "full", "data": DATA, "deviations": {}, **run}
    return dataclasses.replace(found, run=dataclasses.replace(found.run, **run))


def read(found: Results) -> dict[str, EvalResultEntry]:
    entries = parse_eval_result_entries(yaml.safe_load(eval_results_yaml(found)))
    assert has_entries(found) == bool(entries)
    return {entry.task_id: entry for entry in entries}


@pytest.mark.versions
def test_the_hubs_library_reads_every_score_with_the_repository_of_its_own_data() -> None:
    date = datetime(2026, 11, 27, 16, 33, 22, tzinfo=UTC)
    found = read(dataclasses.replace(on_the_hub(COMPLETE), origin=Origin(version="0.2.0", date=date)))
    assert {name: (entry.dataset_id, entry.dataset_revision, entry.value) for name, entry in found.items()} == {
        "esc-50": ("owner/data", COMMIT, 0.25),
        "gtzan": ("owner/data", COMMIT, pytest.approx(2 / 3, abs=1e-6)),
        "clotho": ("owner/more", "e" * 40, 0.125),
        "task1": ("owner/data", COMMIT, 0.5625),
        "task2": ("owner/more", "e" * 40, 0.125),
    }
    assert {entry.date for entry in found.values()} == {"2026-11-27T16:33:22+00:00"}
    assert found["esc-50"].notes == "xares-bench 0.2.0, preset full; metric Accuracy; encoder LogMelEncoder"
    assert found["task1"].notes == (
        "xares-bench 0.2.0, preset full; weighted mean over 2 datasets; encoder LogMelEncoder"
    )


def test_the_notes_name_arguments_seeds_and_what_differs_from_the_preset() -> None:
    changed = on_the_hub(
        COMPLETE,
        encoder={**COMPLETE.run.encoder, "arguments": {"layer": 6}},
        deviations={"steps": [700, 10]},
        seeds=(1, 2, 3),
        data={**DATA, "repositories": {"owner/data": None}},
    )
    entry = read(changed)["esc-50"]
    assert entry.dataset_revision is None
    assert entry.notes == (
        'xares-bench, preset full; metric Accuracy; encoder LogMelEncoder {"layer": 6}; mean over 3 trainings; the '
        "commit of the data is not known; steps=10 (preset: 700)"
    )


def test_data_that_are_not_on_the_hub_get_no_invented_name() -> None:
    mini = dataclasses.replace(COMPLETE, run=dataclasses.replace(COMPLETE.run, data={"repositories": {}}))
    assert read(mini) == {}
    (line,) = left_out(mini)
    assert line == "esc-50, gtzan, clotho, task1 overall, task2 overall: the data are in no repository of the hub"
    assert eval_results_yaml(mini) == f"# No entry for {line}\n[]\n"
    # One dataset of the user's from the hub gives the others no repository.
    own = on_the_hub(
        COMPLETE, data={"repositories": {"owner/more": None}, "test_repositories": {"clotho": "owner/more"}}
    )
    assert set(read(own)) == {"clotho", "task2"}


def test_an_overall_score_over_several_repositories_has_no_entry() -> None:
    data = {**DATA, "test_repositories": {**DATA["test_repositories"], "gtzan": "owner/more"}}  # type: ignore[dict-item]
    found = on_the_hub(COMPLETE, data=data)
    assert set(read(found)) == {"esc-50", "gtzan", "clotho", "task2"}
    assert left_out(found) == ["task1 overall: the data are in several repositories of the hub"]


def test_scores_that_cannot_be_compared_have_no_entry() -> None:
    found = on_the_hub(results(scored("esc-50", math.nan), scored("gtzan", 0.5, partial=True)))
    assert read(found) == {}
    assert left_out(found) == [
        "esc-50: the score is not a number",
        "gtzan: some clips are left out",
        "task1 overall: the overall score is incomplete",
    ]
    assert set(read(on_the_hub(results(scored("esc-50", 0.5))))) == {"esc-50"}


@pytest.mark.parametrize("text", ["a\nb: c", "\x1b[31m", "# \u2028", "\ud83d"])
def test_text_from_outside_stays_in_its_note_or_comment(text: str) -> None:
    found = on_the_hub(COMPLETE, encoder={**COMPLETE.run.encoder, "name": text})
    assert len(read(found)) == 5
    records = tuple(dataclasses.replace(record, dataset=record.dataset + text) for record in COMPLETE.records)
    assert read(dataclasses.replace(COMPLETE, records=records)) == {}


def test_a_run_without_entries_does_not_import_the_hubs_library() -> None:
    code = (
        "import sys\n"
        "from tests.reports.test_report import COMPLETE\n"
        "from xares_bench.reports.eval_results import eval_results_yaml\n"
        "assert eval_results_yaml(COMPLETE).endswith('[]\\n')\n"
        "print('huggingface_hub' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
