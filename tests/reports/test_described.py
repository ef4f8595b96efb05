"""A run in words names the encoder's arguments and every deviation, in all reports that people read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from tests.reports.test_report import results, scored
from tests.run_factory import write_finished_run
from xares_bench.core.yaml_text import load_yaml
from xares_bench.reports.compare import compare, comparison_table
from xares_bench.reports.described import arguments_in_words, deviations_in_words, encoder_in_words
from xares_bench.reports.html_report import report_html
from xares_bench.reports.leaderboard import leaderboard_html
from xares_bench.reports.model_card import model_index_yaml
from xares_bench.reports.report import scores_markdown
from xares_bench.reports.results import Background, Results
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
    assert "steps=300" in leaderboard_html([run], tmp_path)


HOSTILE = {
    "text": "x\n| y `code` ``` <script>alert(1)</script> ]]> ---\n- no: yes",
    "unprintable": "\u202e\x9b31m\u2028\udce9",
    "long": "z" * 3000,
}


def hostile() -> Results:
    found = results(scored("esc-50", 0.25, mix="my`mix|x\ny"))
    run = dataclasses.replace(
        found.run,
        encoder={**found.run.encoder, "arguments": HOSTILE, "spec": "a`b.py"},
        deviations={"decoder": ("x", "a|b`c\n# h <b>")},
    )
    return dataclasses.replace(found, run=run)


def test_arguments_stay_in_their_line_and_their_code_span() -> None:
    lines = scores_markdown(hostile()).splitlines()
    (line,) = [line for line in lines if line.startswith("Encoder ")]
    assert line.startswith("Encoder ```` a`b.py {"), "more backticks than the arguments have in a row"
    assert "z" * 3000 + '"} ````, fingerprint' in line
    (line,) = [line for line in lines if line.startswith("Differs")]
    assert "`` decoder=a|b`c # h <b> (preset: x) ``, `` mix=my`mix|x y ``" in line
    assert all(letter.isprintable() for letter in "".join(lines))


def test_every_report_takes_any_arguments(tmp_path: Path) -> None:
    given = hostile()
    (index,) = load_yaml(model_index_yaml(given))["model-index"]
    assert index["name"] == f"{given.run.encoder['name']} {arguments_in_words(given.run)}"
    folder = write_finished_run(tmp_path / "one", {"esc-50": [("a", "dog", "dog"), ("b", "cat", "dog")]})
    run = read_run(folder)
    arguments, deviations = given.run.encoder["arguments"], given.run.deviations
    encoder = {**run.manifest.encoder, "arguments": arguments}
    run = dataclasses.replace(run, manifest=dataclasses.replace(run.manifest, encoder=encoder, deviations=deviations))
    assert comparison_table(compare([run, run])).splitlines()[0].endswith("(preset: x))")
    assert "<script>alert" not in leaderboard_html([run], tmp_path)
    page = report_html(given, tmp_path / "two", Background())
    assert "<script>alert" not in page
    assert "my`mix|x y" in page


@pytest.mark.parametrize("name", ["no", "1e5", "1_000", "012", "1:30", "2024-01-01", "~", "null", "<<", "=", "- a: b"])
def test_names_that_are_words_of_yaml_stay_text(name: str) -> None:
    found = results(scored("esc-50", 0.25))
    run = dataclasses.replace(found.run, encoder={**found.run.encoder, "name": name, "arguments": {}})
    card = model_index_yaml(dataclasses.replace(found, run=run))
    assert load_yaml(card)["model-index"][0]["name"] == yaml.safe_load(card)["model-index"][0]["name"] == name
