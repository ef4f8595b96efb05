"""Reports: the files of a run and the terminal's table, to the letter where programs read them."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xares_bench.reports import report as report_module
from xares_bench.reports.report import (
    REPORTS,
    Unwritten,
    results_json,
    scores_markdown,
    scores_tsv,
    terminal_table,
    timings,
    write_run,
)
from xares_bench.reports.results import Background, Results
from xares_bench.scores.baselines import Baseline, BaselineScore
from xares_bench.scores.records import RESULTS_SCHEMA, DroppedSample, RunManifest, ScoreRecord

TASKS = {"task1": ("esc-50", "gtzan"), "task2": ("clotho",)}


def scored(dataset: str, score: float, task: str = "task1", **values: Any) -> ScoreRecord:
    defaults: dict[str, Any] = {
        "metric": "Accuracy",
        "weight": 1.0,
        "num_rows": 50,
        "num_clips": 40,
        "duration_s": 100.0,
        "features_s": 1.0,
        "generation_s": 2.5,
        "dropped": (),
        "mix": task,
        "key": "a" * 64,
        "lalm_key": "b" * 64,
        "reused": False,
        "partial": False,
    }
    return ScoreRecord(dataset=dataset, score=score, task=task, **{**defaults, **values})


def results(*records: ScoreRecord, **values: Any) -> Results:
    run = RunManifest(
        name="logmel-0f0f",
        datasets=("esc-50", "gtzan", "clotho"),
        encoder={"name": "LogMelEncoder", "spec": "enc.py", "fingerprint": "0f" * 32, "arguments": {}},
        preset="mini",
        decoder={"name": "tiny"},
        recipe={"seed": 42},
        deviations={"seed": (42, 7)},
        data={"folder": "fixtures/mini"},
        tasks=TASKS,
        environment={"device": "cpu"},
    )
    lalms = ({"mix": "task1", "key": "b" * 64, "features_s": 4.0, "training_s": 60.0},)
    return Results(run=run, records=records, lalms=lalms, **values)


def baseline(overalls: dict[str, float] | None = None, **scores: float) -> Baseline:
    return Baseline(
        name="base",
        preset="mini",
        scores={name.replace("_", "-"): BaselineScore(score=score) for name, score in scores.items()},
        overalls={task: BaselineScore(score=score) for task, score in (overalls or {}).items()},
        note="",
        fingerprints={},
        path=Path("base.yaml"),
    )


COMPLETE = results(
    scored("esc-50", 0.25),
    scored("gtzan", 2 / 3, weight=3.0),
    scored("clotho", 0.125, "task2", metric="chrF"),
    wall_s=99.5,
)


def rows_of(table: str) -> dict[str, list[str]]:
    """Cells of a terminal table by the first one, with cells told apart by two spaces or more."""
    lines = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if cells}


def test_tsv_to_the_letter() -> None:
    assert scores_tsv(COMPLETE) == (
        "Task\tscore\tweight\n"
        "esc-50\t0.250000\t1\n"
        "gtzan\t0.666667\t3\n"
        "Overall\t0.562500\t4\n"
        "clotho\t0.125000\t1\n"
        "Overall\t0.125000\t1\n"
    )


def test_tsv_says_what_is_incomplete() -> None:
    assert scores_tsv(results(scored("gtzan", 0.5))) == (
        "Task\tscore\tweight\ngtzan\t0.500000\t1\nOverall (incomplete: 1 of 2 datasets)\t0.500000\t1\n"
    )
    limited = results(scored("clotho", 0.5, "task2", partial=True, weight=0.5))
    assert scores_tsv(limited) == (
        "Task\tscore\tweight\nclotho\t0.500000\t0.5\nOverall (incomplete: --limit left clips out)\t0.500000\t0.5\n"
    )


def test_tsv_of_a_nan_and_of_nothing() -> None:
    assert scores_tsv(results(scored("clotho", math.nan, "task2"))) == (
        "Task\tscore\tweight\nclotho\tnan\t1\nOverall\tnan\t1\n"
    )
    assert scores_tsv(results()) == "Task\tscore\tweight\n"


def test_json_is_valid_and_whole() -> None:
    dropped = (DroppedSample(shard="a.tar", clip="狗", reason="no audio member"),)
    given = results(
        scored("esc-50", math.nan, dropped=dropped), scored("clotho", 0.5, "task2"), missing=("gtzan",), wall_s=12.5
    )
    text = results_json(given, {})
    assert "NaN" not in text
    assert "狗" in text
    data = json.loads(text)
    assert next(iter(data)) == "schema"
    assert data["schema"] == RESULTS_SCHEMA == 2
    assert RunManifest.from_json(data["run"]).tasks == TASKS
    assert data["scores"][0]["score"] is None
    assert data["scores"][0]["dropped"] == [{"shard": "a.tar", "clip": "狗", "reason": "no audio member"}]
    assert ScoreRecord.from_json(data["scores"][1]) == given.records[1]
    unknown: dict[str, Any] = {"interval": None, "deviation": None, "seed_scores": []}
    assert data["overall"] == [
        {"task": "task1", "score": None, **unknown, "complete": False, "num_datasets": 1, "num_expected": 2},
        {"task": "task2", "score": 0.5, **unknown, "complete": True, "num_datasets": 1, "num_expected": 1},
    ]
    assert data["missing"] == ["gtzan"]
    assert data["lalms"] == [dict(given.lalms[0])]
    assert data["timings"] == {"wall_s": 12.5, "features_s": 6.0, "training_s": 60.0, "generation_s": 5.0}


def test_timings_add_up() -> None:
    assert timings(COMPLETE) == {"features_s": 7.0, "training_s": 60.0, "generation_s": 7.5}


def test_markdown_has_a_table_a_task() -> None:
    text = scores_markdown(COMPLETE)
    assert text.startswith("# LogMelEncoder on the mini preset\n")
    assert "Encoder `enc.py`, fingerprint `0f0f0f0f0f0f`; run `logmel-0f0f`." in text
    assert text.index("## task1") < text.index("## task2")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["dataset", "metric", "score", "95 % CI", "rows"]
    assert ["esc-50", "Accuracy", "0.250", "", "50"] in rows
    assert ["gtzan", "Accuracy", "0.667", "", "50"] in rows
    assert ["clotho", "chrF", "0.125", "", "50"] in rows
    assert ["**Overall**", "", "**0.562**", "", ""] in rows
    assert len({len(row) for row in rows}) == 1
    incomplete = scores_markdown(results(scored("gtzan", 0.5)))
    assert "**Overall** (incomplete: 1 of 2 datasets)" in incomplete


def test_markdown_has_intervals_and_the_baseline() -> None:
    noise: dict[str, Any] = {"interval": (0.125, 0.375), "deviation": 0.0625, "seed_scores": (0.25,)}
    given = results(scored("esc-50", 0.25, **noise), scored("gtzan", 0.5, **noise), scored("clotho", 0.1, "task2"))
    text = scores_markdown(given, baseline({"task1": 0.5}, esc_50=0.5))
    assert "Baseline `base`." in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["dataset", "metric", "score", "95 % CI", "baseline", "difference", "rows"]
    assert ["esc-50", "Accuracy", "0.250", "0.125 to 0.375", "0.500", "-0.250", "50"] in rows
    assert ["gtzan", "Accuracy", "0.500", "0.125 to 0.375", "", "", "50"] in rows, "the baseline has no score for it"
    assert ["**Overall**", "", "**0.375**", "0.288 to 0.462", "0.500", "-0.125", ""] in rows
    assert len({len(row) for row in rows}) == 1


def test_terminal_table_without_a_baseline() -> None:
    table = terminal_table(COMPLETE, None)
    tables = table.split("\n\n")
    assert [text.splitlines()[0] for text in tables] == ["task1", "task2"]
    header = tables[0].splitlines()[1].replace("95 % CI", "95%CI").split()
    assert header == ["dataset", "metric", "score", "95%CI", "baseline", "difference", "rows", "seconds"]
    assert rows_of(tables[0])["esc-50"] == ["Accuracy", "0.250", "50", "2.5"]
    assert rows_of(tables[0])["Overall"] == ["0.562"]
    assert rows_of(tables[1])["clotho"] == ["chrF", "0.125", "50", "2.5"]


def test_terminal_table_tells_the_noise_of_the_clips_from_that_of_the_training() -> None:
    seeds: dict[str, Any] = {"deviation": 0.05, "seed_scores": (0.4, 0.6)}
    given = results(
        scored("esc-50", 0.5, interval=(0.41, 0.59), **seeds), scored("gtzan", 0.5, interval=(0.4, 0.6), **seeds)
    )
    one = rows_of(terminal_table(given, None))
    assert one["esc-50"] == ["Accuracy", "0.500", "0.410 to 0.590", "50", "2.5"]
    assert one["Overall"] == ["0.500", "0.431 to 0.569"]
    several = dataclasses.replace(given, run=dataclasses.replace(given.run, seeds=(42, 43)))
    rows = rows_of(terminal_table(several, None))
    assert rows["esc-50"] == ["Accuracy", "0.500", "0.410 to 0.590", "±0.141", "50", "2.5"]
    assert rows["Overall"] == ["0.500", "0.431 to 0.569", "±0.141"]


def test_terminal_table_against_a_baseline() -> None:
    table = terminal_table(COMPLETE, baseline({"task1": 0.4622}, esc_50=0.2, gtzan=0.7))
    task1, task2 = table.split("\n\n")
    assert rows_of(task1)["esc-50"] == ["Accuracy", "0.250", "0.200", "+0.050", "50", "2.5"]
    assert rows_of(task1)["gtzan"] == ["Accuracy", "0.667", "0.700", "-0.033", "50", "2.5"]
    assert rows_of(task1)["Overall"] == ["0.562", "0.462", "+0.100"]
    assert rows_of(task2)["clotho"] == ["chrF", "0.125", "50", "2.5"], "the baseline has no score for it"
    assert rows_of(task2)["Overall"] == ["0.125"]


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (results(scored("gtzan", 0.5)), "Overall (incomplete: 1 of 2 datasets)"),
        (
            results(scored("esc-50", 0.5), scored("gtzan", 0.5, partial=True)),
            "Overall (incomplete: --limit left clips out)",
        ),
    ],
)
def test_an_incomplete_overall_is_never_compared_with_a_baseline(given: Results, label: str) -> None:
    table = terminal_table(given, baseline({"task1": 0.111}, esc_50=0.5, gtzan=0.5))
    assert rows_of(table)[label] == ["0.500"]
    assert "0.111" not in table


def test_terminal_table_names_dropped_samples_and_cached_scores() -> None:
    dropped = tuple(DroppedSample(shard="a.tar", clip=f"k{number}", reason="no audio member") for number in range(2))
    rows = rows_of(
        terminal_table(results(scored("gtzan", 0.5, dropped=dropped), scored("esc-50", 0.5, reused=True)), None)
    )
    assert "gtzan (2 dropped)" in rows
    assert rows["esc-50"][-1] == "cached"


def test_terminal_table_of_a_nan() -> None:
    rows = rows_of(terminal_table(results(scored("gtzan", math.nan)), baseline(gtzan=0.5)))
    assert rows["gtzan"] == ["Accuracy", "nan", "0.500", "+nan", "50", "2.5"]


def test_a_run_is_written_with_the_scores_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs" / "logmel"
    written: list[str] = []

    replace = Path.replace

    def note(path: Path, target: Path) -> Path:
        written.append(target.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", note)
    write_run(folder, COMPLETE)
    assert written[:2] == ["results.json", "scores.tsv"]
    names = ["eval_results.yaml", "model_card.yaml", "report.html", "results.json", "scores.md", "scores.tsv"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / "scores.tsv").read_text(encoding="utf-8") == scores_tsv(COMPLETE)
    assert (folder / "scores.md").read_text(encoding="utf-8") == scores_markdown(COMPLETE)
    assert (folder / "results.json").read_text(encoding="utf-8") == results_json(COMPLETE, {})


def test_the_same_results_give_the_same_bytes() -> None:
    again = results(*COMPLETE.records, wall_s=99.5)
    assert results_json(again, {}) == results_json(COMPLETE, {})
    assert scores_tsv(again) == scores_tsv(COMPLETE)


ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=20)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(ANY_TEXT, min_size=6, max_size=6))
def test_whatever_text_comes_from_outside_all_files_are_written(tmp_path: Path, texts: list[str]) -> None:
    """From archives, the command line, models and data: half characters, control characters, markup."""
    spec, argument, key, reason, device, command = texts
    dropped = (DroppedSample(shard=key, clip=key, reason=reason),)
    found = results(scored("esc-50", 0.25, dropped=dropped), scored("gtzan", 0.5), missing=("clotho",))
    run = dataclasses.replace(
        found.run,
        encoder={**found.run.encoder, "spec": spec, "arguments": {argument: [spec]}},
        environment={"device": device},
        data={"folder": spec, "revision": "abc", "repositories": {}, "limit": None},
    )
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    unwritten = write_run(folder, dataclasses.replace(found, run=run), Background(command=command))
    assert unwritten == Unwritten(required=(), optional=())
    assert {path.name for path in folder.iterdir()} == {report.file for report in REPORTS}
    for path in folder.iterdir():
        path.read_text(encoding="utf-8")
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["missing"] == ["clotho"]
    assert yaml.safe_load((folder / "model_card.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("broken", [report.file for report in REPORTS])
@pytest.mark.parametrize("error", [OSError(28, "No space left"), ValueError("broken"), MemoryError()], ids=repr)
def test_no_report_that_fails_takes_another_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, error: Exception
) -> None:
    folder = tmp_path / "run"

    def fail(*_: object) -> str:
        raise error

    failing = [dataclasses.replace(r, text=fail) if r.file == broken else r for r in REPORTS]
    monkeypatch.setattr(report_module, "REPORTS", tuple(failing))
    unwritten = write_run(folder, COMPLETE)
    assert {path.name for path in folder.iterdir()} == {report.file for report in REPORTS} - {broken}
    (line,) = (*unwritten.required, *unwritten.optional)
    assert line.startswith(f"{folder / broken} is not written: {type(error).__name__}: ")
    assert bool(unwritten.required) == (broken in {"results.json", "scores.tsv", "scores.md"})
