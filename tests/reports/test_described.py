"""A run in words names the encoder's arguments and every deviation, in all reports that people read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from tests.reports.test_report import results, scored
from tests.run_factory import write_finished_run
from xares_bench.reports.compare import compare, comparison_table
from xares_bench.reports.described import arguments_in_words, deviations_in_words, encoder_in_words
from xares_bench.reports.leaderboard import leaderboard_html
from xares_bench.reports.model_card import model_index_yaml
from xares_bench.reports.report import scores_markdown
from xares_bench.reports.results import Results
from xares_bench.reports.runs import read_run


def deviating() -> Results:
    found = results(scored("esc-50", 0.25, partial=True, mix="all"))
    run = dataclasses.replace(
        found.run,
        encoder={**found.run.encoder, "arguments": {"layer": 6}},
        deviations={"steps": (None, 300), "learning_rate": (0.001, 0.01)},
        data={"folder": "x", "limit": 10, "repositories": {}},
    )
    return dataclasses.replace(found, run=run)


def test_everything_that_differs_is_named() -> None:
    found = deviating()
    assert encoder_in_words(found.run) == 'enc.py {"layer": 6}'
    assert deviations_in_words(found.run, found.records) == [
        "steps=300",
        "learning_rate=0.01 (preset: 0.001)",
        "--limit=10",
        "mix=all",
    ]


def test_a_plain_run_has_no_deviations() -> None:
    found = results(scored("esc-50", 0.25))
    run = dataclasses.replace(found.run, deviations={})
    assert (arguments_in_words(run), deviations_in_words(run, found.records)) == ("", [])


def test_the_reports_of_a_run_name_them() -> None:
    markdown, card = scores_markdown(deviating()), yaml.safe_load(model_index_yaml(deviating()))
    assert 'Encoder `enc.py {"layer": 6}`' in markdown
    assert "Differs from the preset: `steps=300`, `learning_rate=0.01 (preset: 0.001)`, `--limit=10`" in markdown
    (index,) = card["model-index"]
    assert index["name"] == 'LogMelEncoder {"layer": 6}'
    assert "steps=300" in index["results"][0]["dataset"]["name"]


def test_comparisons_name_them_and_say_over_how_many_clips(tmp_path: Path) -> None:
    rows = {"esc-50": [("a", "dog", "dog"), ("b", "cat", "dog")]}
    folder = write_finished_run(tmp_path / "one", rows, deviations={"steps": [None, 300]})
    run = read_run(folder)
    part = dataclasses.replace(
        run, records={name: dataclasses.replace(record, partial=True) for name, record in run.records.items()}
    )
    table = comparison_table(compare([part, run]))
    assert "steps=300" in table.splitlines()[0]
    assert "esc-50 (2 clips)" in table
    assert "(2 clips)" not in comparison_table(compare([run, run]))
    assert "steps=300" in leaderboard_html([run])
