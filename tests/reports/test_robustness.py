"""The matrix of losses, in every report."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from tests.run_factory import change_results, write_finished_run
from xares_bench.core.errors import UsageError
from xares_bench.reports.earlier import with_earlier
from xares_bench.reports.report import scores_markdown, terminal_table, write_run
from xares_bench.reports.results import Results
from xares_bench.reports.robustness import cells, matrix_of
from xares_bench.reports.runs import read_run
from xares_bench.scores.records import RobustnessRecord

ROWS = [("a", "dog", "dog"), ("b", "cat", "dog")]


def loss(
    dataset: str, corruption: str, value: float, interval: tuple[float, float] | None = (-0.5, 0.5)
) -> RobustnessRecord:
    return RobustnessRecord(
        **{"dataset": dataset, "corruption": corruption, "score": 0.5 + value, "loss": value},  # type: ignore[arg-type]
        **{"interval": interval, "num_clips": 2, "key": "k"},  # type: ignore[arg-type]
    )


LOSSES = (
    loss("gtzan", "noise:10", -0.25, (-0.4, -0.1)),
    loss("esc-50", "noise:10", 0.125, (0.05, 0.2)),
    loss("esc-50", "noise:5", -0.125),
    loss("esc-50", "lowpass:4000", math.nan, None),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run with losses."""
    folder = write_finished_run(tmp_path / "run", {"esc-50": ROWS, "gtzan": ROWS, "librispeech": ROWS})
    write_run(folder, results_of(folder, *LOSSES))
    return folder


def results_of(folder: Path, *losses: RobustnessRecord) -> Results:
    run = read_run(folder)
    return Results(run=run.manifest, records=tuple(run.records.values()), lalms=run.lalms, robustness=losses)


def test_the_matrix_has_datasets_in_order_and_corruptions_by_level(folder: Path) -> None:
    results = results_of(folder, *LOSSES)
    assert [(found.dataset, found.corruption) for found in results.robustness] == [
        *(("esc-50", "lowpass:4000"), ("esc-50", "noise:5"), ("esc-50", "noise:10"), ("gtzan", "noise:10"))
    ]
    matrix = matrix_of(results)
    assert matrix is not None
    assert matrix.corruptions == ("lowpass:4000", "noise:5", "noise:10")
    assert [row.dataset for row in matrix.rows] == ["esc-50", "gtzan"]
    assert matrix.rows[1].losses == (None, None, LOSSES[0])
    assert cells(matrix.rows[0], intervals=False) == ["esc-50", "Accuracy", "0.500", "+nan ", "-0.125 ", "+0.125*"]
    assert cells(matrix.rows[1], intervals=True)[-2:] == ["", "-0.250 (-0.400 to -0.100)"]
    assert matrix_of(results_of(folder)) is None


def test_a_loss_of_a_dataset_without_a_score_is_left_out(folder: Path) -> None:
    assert results_of(folder, loss("clotho", "noise:10", -0.1)).robustness == ()


def test_terminal_and_markdown_have_it_only_where_something_was_corrupted(folder: Path) -> None:
    results, clean = results_of(folder, *LOSSES), results_of(folder)
    table, markdown = terminal_table(results, None), scores_markdown(results)
    assert table.startswith(terminal_table(clean, None))
    assert markdown.startswith(scores_markdown(clean))
    assert re.search(r"^esc-50 +Accuracy +0\.500 +\+nan +-0\.125 +\+0\.125\*$", table, re.MULTILINE)
    assert "| gtzan     | Accuracy | " in markdown
    assert "-0.250 (-0.400 to -0.100) |" in markdown
    assert "obustness" not in terminal_table(clean, None) + scores_markdown(clean)


def test_the_page_colours_what_is_more_than_noise(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    section = page.partition('<section id="robustness"')[2].partition("</section>")[0]
    found = re.findall(r'<span class="(\w+)">([+-][\w.]+)</span>', section)
    assert found == [("faint", "+nan"), ("faint", "-0.125"), ("good", "+0.125"), ("bad", "-0.250")]
    assert '<a href="#robustness">' in page
    write_run(folder, results_of(folder))
    assert "obustness" not in (folder / "report.html").read_text(encoding="utf-8").partition("<body>")[2]


def test_a_run_is_read_with_its_losses_as_a_table(folder: Path, tmp_path: Path) -> None:
    run = read_run(folder)
    assert [row["corruption"] for row in run.robustness] == ["lowpass:4000", "noise:5", "noise:10", "noise:10"]
    last = run.robustness[-1]
    assert (last["dataset"], last["clean_score"], last["score"], last["loss"]) == ("gtzan", 0.5, 0.25, -0.25)
    assert (last["low"], last["high"], last["num_clips"]) == (-0.4, -0.1, 2)
    assert math.isnan(run.robustness[0]["loss"])
    assert run.robustness[0]["low"] is None
    assert {path.name for path in run.write_parquet(tmp_path)} > {"robustness.parquet", "scores.parquet"}


def test_a_run_of_a_version_before_has_no_losses(folder: Path) -> None:
    data = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    del data["robustness"]
    (folder / "results.json").write_text(json.dumps(data), encoding="utf-8")
    assert read_run(folder).robustness == []


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "clotho"},
        {"corruption": "noise"},
        {"corruption": 7},
        {"loss": "much"},
        {"loss": 3.0},
        {"interval": [0.1, -0.1]},
        {"interval": [0.1]},
        {"unknown": 1},
    ],
)
def test_losses_that_were_changed_or_damaged_are_refused(folder: Path, change: dict[str, object]) -> None:
    change_results(folder, robustness=[{**LOSSES[0].to_json(), **change}])
    with pytest.raises(UsageError, match=r"results\.json does not have the fields of a run .*; run the suite again"):
        read_run(folder)


def test_losses_of_earlier_sessions_stay_and_new_ones_replace_them(folder: Path) -> None:
    new = (loss("gtzan", "noise:10", -0.5), loss("gtzan", "mp3:8", 0.0))
    merged, problems = with_earlier(results_of(folder, *new), folder)
    assert problems == []
    assert {(found.dataset, found.corruption, str(found.loss)) for found in merged.robustness} == {
        ("esc-50", "lowpass:4000", "nan"),
        ("esc-50", "noise:5", "-0.125"),
        ("esc-50", "noise:10", "0.125"),
        ("gtzan", "noise:10", "-0.5"),
        ("gtzan", "mp3:8", "0.0"),
    }
    # Those of a dataset whose score is an earlier session's, too.
    part = dataclasses.replace(results_of(folder), records=results_of(folder).records[:1], missing=("gtzan",))
    merged, _ = with_earlier(part, folder)
    assert [record.dataset for record in merged.records] == ["esc-50", "gtzan"]
    assert len(merged.robustness) == 4
