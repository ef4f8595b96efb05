"""Run against run: the table, the warnings, the clips."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.run_factory import Rows, write_finished_run
from xares_bench.__main__ import main
from xares_bench.core.errors import UsageError
from xares_bench.reports.compare import compare, comparison_table, differing_clips
from xares_bench.reports.runs import Run, read_run


def answers(num_right: int, number: int = 40) -> Rows:
    return [(f"clip{place}", "dog", "dog" if place < num_right else "cat") for place in range(number)]


def finished(folder: Path, esc50: int, gtzan: int = 20, **manifest: object) -> Run:
    rows = {"esc-50": answers(esc50), "gtzan": answers(gtzan)}
    return read_run(write_finished_run(folder, rows, **manifest))


def test_scores_stand_side_by_side_with_paired_differences(tmp_path: Path) -> None:
    first, second = finished(tmp_path / "logmel", 30), finished(tmp_path / "wavlm", 36)
    comparison = compare([first, second])
    row = comparison.rows["task1"][0]
    assert row.what == "esc-50"
    assert row.best == {1}
    assert row.differences[0] is None
    difference = row.differences[1]
    assert difference is not None
    assert difference.difference == pytest.approx(0.15)
    assert difference.low < 0.15 < difference.high
    assert difference.paired
    overall = comparison.rows["task1"][-1]
    assert overall.what == "Overall"
    assert overall.differences[1] is not None
    assert overall.differences[1].difference == pytest.approx(0.075)
    table = comparison_table(comparison)
    assert f"A: {tmp_path / 'logmel'} (logmel.py)" in table
    assert "0.900*" in table
    assert "+0.150" in table
    assert "warning" not in table


def test_a_dataset_that_only_one_run_has_has_no_difference(tmp_path: Path) -> None:
    first = finished(tmp_path / "a", 30)
    second = read_run(write_finished_run(tmp_path / "b", {"gtzan": answers(10)}))
    rows = {row.what: row for row in compare([first, second]).rows["task1"]}
    assert rows["esc-50"].differences == (None, None)
    assert rows["esc-50"].best == frozenset()
    assert rows["gtzan"].differences[1] is not None
    assert rows["Overall"].found[1] is None, "it is incomplete"
    assert comparison_table(compare([first, second]))


def test_without_clip_sums_the_errors_of_both_scores_decide(tmp_path: Path) -> None:
    first, second = finished(tmp_path / "a", 30), finished(tmp_path / "b", 33)
    paired = compare([first, second]).rows["task1"][0].differences[1]
    (tmp_path / "b" / "clip_sums" / "esc-50.npz").unlink()
    unpaired = compare([first, second]).rows["task1"][0].differences[1]
    assert paired is not None
    assert unpaired is not None
    assert not unpaired.paired
    assert unpaired.deviation > paired.deviation


def test_equal_scores_are_both_the_best(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name, 30) for name in "abc"]
    assert compare(runs).rows["task1"][0].best == {0, 1, 2}


def test_presets_are_never_mixed(tmp_path: Path) -> None:
    first, second = finished(tmp_path / "a", 30), finished(tmp_path / "b", 30, preset="full")
    with pytest.raises(UsageError, match=r"different presets .*a has --preset=mini, .*b has --preset=full"):
        compare([first, second])


def test_what_else_differs_is_warned_of(tmp_path: Path) -> None:
    first = finished(tmp_path / "a", 30)
    second = finished(
        tmp_path / "b",
        30,
        recipe={"seed": 42, "learning_rate": 0.01},
        decoder={"name": "big", "fingerprint": "ee" * 32, "commit": None},
        environment={"device": "cpu", "threads": 4, "torch": "2.14.0", "variables": {"NVIDIA_TF32_OVERRIDE": "1"}},
        seeds=(42, 43),
    )
    assert compare([first, second]).warnings == (
        "different decoder: A dddddddddddd, B eeeeeeeeeeee",
        "different seeds: A [42], B [42, 43]",
        "different recipe.learning_rate: A 0.001, B 0.01",
        "different environment.threads: A 2, B 4",
        "different environment.torch: A 2.13.0, B 2.14.0",
        "different variable NVIDIA_TF32_OVERRIDE: A None, B 1",
    )


def test_another_environment_of_a_cached_lalm_is_a_warning(tmp_path: Path) -> None:
    first, second = finished(tmp_path / "a", 30), finished(tmp_path / "b", 30)
    trained = {**second.lalms[0], "environment": {"device": "cpu", "threads": 1, "torch": "2.13.0"}}
    second = dataclasses.replace(second, lalms=(trained,))
    assert compare([first, second]).warnings == ("different environment.threads: A 2, B 2, LALM task1 trained with 1",)


def test_the_rows_that_differ_most_come_first(tmp_path: Path) -> None:
    spoken = [("x", "one two three four", "one two three four"), ("y", "five six", "five six"), ("z", "ten", "ten")]
    other = [("x", "one two three four", "one two three for"), ("y", "five six", "nothing"), ("z", "ten", "ten")]
    first = read_run(write_finished_run(tmp_path / "a", {"librispeech": spoken}))
    second = read_run(write_finished_run(tmp_path / "b", {"librispeech": other}))
    lines = differing_clips(first, second, 10).splitlines()
    assert lines[0] == "rows that differ most (2 of 2)"
    assert lines[3].split() == ["-1.00", "librispeech", "y", "five", "six", "five", "six", "nothing"]
    assert "one two three for" in lines[4]
    assert "1 of 2" in differing_clips(first, second, 1)
    assert differing_clips(first, first, 10) == ""


def test_datasets_take_turns_among_the_rows_that_differ_most(tmp_path: Path) -> None:
    right = {"esc-50": answers(40), "gtzan": answers(40), "librispeech": [("x", "one two", "one two")]}
    other = {"esc-50": answers(30), "gtzan": answers(39), "librispeech": [("x", "one two", "one too")]}
    first, second = (
        read_run(write_finished_run(tmp_path / str(place), rows)) for place, rows in enumerate((right, other))
    )
    lines = differing_clips(first, second, 5).splitlines()
    assert lines[0] == "rows that differ most (5 of 12, datasets in turn, 3 differ)"
    assert [line.split()[1] for line in lines[3:]] == ["esc-50", "gtzan", "librispeech", "esc-50", "esc-50"]
    assert [line.split()[0] for line in lines[3:]] == ["-1.00", "-1.00", "-0.50", "-1.00", "-1.00"]


def test_the_arguments_of_all_encoders_stand_side_by_side(tmp_path: Path) -> None:
    plain = finished(tmp_path / "a", 30)
    given = [
        {**plain.manifest.encoder, "arguments": arguments}
        for arguments in ({"layer": 6, "name": "x"}, {"layer": 9}, {"name\n\u202e": "y\nz"})
    ]
    runs = [
        dataclasses.replace(plain, manifest=dataclasses.replace(plain.manifest, encoder=encoder)) for encoder in given
    ]
    lines = comparison_table(compare(runs[:2])).splitlines()
    assert lines[2:5] == ["arguments of the encoders:", "  layer: A 6, B 9", '  name: A "x", B not given']
    hostile = comparison_table(compare([plain, runs[2]]))
    assert "arguments of the encoders:\n  name  : A not given, B" in hostile
    assert "\u202e" not in hostile
    assert "arguments of the encoders" not in comparison_table(compare([plain, plain]))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path / "a", 30)
    finished(tmp_path / "b", 31)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b" / "results.json"), "--clips=3"]) == 0
    shown = capsys.readouterr().out
    assert "esc-50" in shown
    assert "clip30" in shown
    assert main(["compare", str(tmp_path / "a")]) == 0
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "nothing")]) == 2
    assert "nothing/results.json: no finished run" in capsys.readouterr().err


def test_a_difference_says_over_which_clips_it_is(tmp_path: Path) -> None:
    """Runs with --limit=10 and --limit=30, or with unusable clips: the same predictions are no difference."""
    rows = [(f"c{place}", "dog", "dog" if place % 2 or place > 9 else "cat") for place in range(30)]
    ten, thirty = (
        read_run(write_finished_run(tmp_path / str(number), {"esc-50": rows[:number]})) for number in (10, 30)
    )
    table = comparison_table(compare([ten, thirty]))
    assert "esc-50 (10, 30 clips; compared over 10)" in table
    assert "+0.000" in table
    assert "*" not in table, "scores over other clips are not better"
    assert "clips" not in comparison_table(compare([ten, ten]))


def test_an_overall_over_one_dataset_differs_as_the_dataset_does(tmp_path: Path) -> None:
    tasks = {"task1": ("esc-50",)}
    first, second = (
        read_run(
            write_finished_run(
                tmp_path / str(every),
                {"esc-50": [(f"c{place}", "dog", "dog" if place % every else "cat") for place in range(30)]},
                tasks=tasks,
            )
        )
        for every in (2, 3)
    )
    dataset, overall = compare([first, second]).rows["task1"]
    assert overall.differences == dataset.differences


def test_another_mix_is_warned_of(tmp_path: Path) -> None:
    run = read_run(write_finished_run(tmp_path / "one", {"esc-50": [("a", "dog", "dog")]}))
    records = {name: dataclasses.replace(record, mix="all") for name, record in run.records.items()}
    assert compare([run, dataclasses.replace(run, records=records)]).warnings == (
        "different mix of esc-50: A task1, B all",
    )
