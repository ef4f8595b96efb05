"""Finished runs: read back; damaged or changed ones are refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.run_factory import change_results, write_finished_run
from xares_bench.core.errors import RunWarning, UsageError
from xares_bench.reports.runs import OtherRun, other_runs, read_run, read_runs
from xares_bench.scores.clip_sums import load_clip_sums

ROWS = {
    "esc-50": [("a", "dog", "dog"), ("b", "cat", "dog")],
    "librispeech": [("c", "one two", "one"), ("d", "three", "three")],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_finished_run(tmp_path / "logmel", ROWS)


def test_a_run_is_read_back(folder: Path) -> None:
    for path in (folder, folder / "results.json"):
        run = read_run(path)
        assert run.folder == folder
        assert {name: record.score for name, record in run.records.items()} == pytest.approx(
            {"esc-50": 0.5, "librispeech": 2 / 3}
        )
        assert run.overalls["task2"].complete
        assert not run.overalls["task1"].complete
        clip_sums = run.clip_sums("esc-50")
        assert clip_sums is not None
        assert clip_sums.clips == ("a", "b")
        assert [row.hypothesis for row in run.predictions_of("esc-50")] == ["dog", "dog"]


def test_missing_clip_sums_and_predictions_are_not_an_error(folder: Path) -> None:
    (folder / "clip_sums" / "esc-50.npz").unlink()
    (folder / "predictions" / "esc-50.jsonl").unlink()
    run = read_run(folder)
    assert run.clip_sums("esc-50") is None
    assert run.predictions_of("esc-50") == []


def test_a_run_tells_why_it_does_not_pass(folder: Path) -> None:
    assert read_run(folder).failures == {}
    change_results(folder, failures={"esc-50": "below the baseline"})
    assert read_run(folder).failures == {"esc-50": "below the baseline"}
    change_results(folder, failures=None)
    assert read_run(folder).failures is None, "of an earlier version"


def test_all_runs_of_a_folder_and_a_warning_for_what_is_none(folder: Path) -> None:
    truncate(write_finished_run(folder.parent / "other", ROWS))
    with pytest.warns(RunWarning, match=r"left out: .*other/results.json is truncated or damaged"):
        (run,) = read_runs(str(folder.parent))
    assert run.name == "logmel"
    with pytest.raises(UsageError, match="no finished run in"):
        read_runs(folder)


def truncate(folder: Path) -> None:
    file = folder / "results.json"
    file.write_bytes(file.read_bytes()[:-200])


def set_value(folder: Path, name: str, value: object) -> None:
    scores = json.loads((folder / "results.json").read_text(encoding="utf-8"))["scores"]
    scores[0][name] = value
    change_results(folder, scores=scores)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "results.json").unlink(), "no finished run"),
        (truncate, "is truncated or damaged"),
        (lambda folder: (folder / "results.json").write_text("[" * 10_000), "is truncated or damaged"),
        (lambda folder: (folder / "results.json").write_text("[]"), "has schema None; this version reads schema 2"),
        (lambda folder: change_results(folder, schema=1), "has schema 1; this version reads schema 2"),
        (lambda folder: change_results(folder, run={}), "does not have the fields of a run"),
        (lambda folder: change_results(folder, scores=[{}]), "does not have the fields of a run"),
        (lambda folder: change_results(folder, overall=[]), "the overall score of task1 is None"),
        (
            lambda folder: set_value(folder, "score", 0.9),
            "the overall score of task1 is 0.5, but its datasets give 0.900000",
        ),
        (lambda folder: set_value(folder, "score", "high"), "does not have the fields of a run"),
        (lambda folder: set_value(folder, "score", 7), "the score of esc-50 is 7, expected a number within -1 and 1"),
        (lambda folder: set_value(folder, "weight", 0), "the weight of esc-50 is 0, expected a number above 0"),
    ],
)
def test_files_that_no_run_wrote_are_refused_in_one_line(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(UsageError) as caught:
        read_run(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_score_that_does_not_follow_from_its_clip_sums_is_refused(folder: Path) -> None:
    path = folder / "clip_sums" / "esc-50.npz"
    load_clip_sums(path).select(["a"]).save(path)
    with pytest.raises(UsageError, match=r"the score of esc-50 is 0\.500000, but .* gives 1\.000000"):
        read_run(folder).clip_sums("esc-50")


def test_a_prediction_can_hold_any_line_separator(tmp_path: Path) -> None:
    said = "one\u2028two\u0085three"
    run = read_run(write_finished_run(tmp_path / "logmel", {"esc-50": [("a", "dog", said)]}))
    assert [row.hypothesis for row in run.predictions_of("esc-50")] == [said]


def test_damaged_predictions_are_refused(folder: Path) -> None:
    (folder / "predictions" / "esc-50.jsonl").write_text('{"clip": "a"}\n')
    with pytest.raises(UsageError, match=r"esc-50\.jsonl cannot be read"):
        read_run(folder).predictions_of("esc-50")


OTHER_ROWS = {
    "esc-50": [("a", "dog", "dog"), ("b", "cat", "dog")],
    "gtzan": [("c", "rock", "rock")],
}


def beside(folder: Path, *datasets: str) -> list[OtherRun]:
    return other_runs(folder, preset="mini", device="cpu", datasets=datasets)


def test_other_runs_are_found_with_their_mean_over_the_same_datasets(tmp_path: Path) -> None:
    own, _ = (write_finished_run(tmp_path / name, OTHER_ROWS) for name in ("own", "other"))
    (found,) = beside(own, "esc-50", "gtzan")
    assert (found.name, found.encoder) == ("other", "otherEncoder")
    assert found.score == pytest.approx(0.75)
    assert beside(own, "esc-50")[0].score == pytest.approx(0.5)


def test_what_cannot_be_compared_or_read_is_passed_over(tmp_path: Path) -> None:
    own = write_finished_run(tmp_path / "own", OTHER_ROWS)
    write_finished_run(tmp_path / "of-another-preset", OTHER_ROWS, preset="full")
    write_finished_run(tmp_path / "of-a-gpu", OTHER_ROWS, environment={"device": "cuda:0"})
    write_finished_run(tmp_path / "incomplete", {"esc-50": OTHER_ROWS["esc-50"]})
    change_results(write_finished_run(tmp_path / "old", OTHER_ROWS), schema=1)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "results.json").write_text("[", encoding="utf-8")
    assert beside(own, "esc-50", "gtzan") == []
