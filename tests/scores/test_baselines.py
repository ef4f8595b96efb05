"""Baselines: which ship, what is read and refused, what is written."""

from __future__ import annotations

import dataclasses
import doctest
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml

from xares_bench.core.errors import BaselineError, DiskError, UsageError
from xares_bench.scores import baselines
from xares_bench.scores.baselines import (
    Baseline,
    BaselineScore,
    check_comparable,
    check_new_baseline,
    load_baseline,
    shipped_baselines,
    write_baseline,
)
from xares_bench.scores.clip_sums import ClipSums

TASKS = {
    "task1": [
        *("asvspoof2015", "cremad", "esc-50", "fluentspeechcommands", "freemusicarchive", "fsd50k", "fsdkaggle2018"),
        *(
            "gtzan",
            "libricount",
            "nsynth",
            "speechcommandsv1",
            "urbansound8k",
            "vocalsound",
            "voxceleb1",
            "voxlingua33",
        ),
    ],
    "task2": ["aishell-1", "clotho", "librispeech", "mecat", "songdescriber"],
}
GOOD = """\
schema: 1
preset: mini
note: made by hand
scores: {esc-50: 0.5, gtzan: 1, cremad: 0}
fingerprints: {encoder: abc}
"""


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "base.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def made(preset: str = "mini", **scores: float) -> Baseline:
    return Baseline(
        name="base",
        preset=preset,
        scores=held(scores),
        overalls={},
        note="",
        fingerprints={},
        path=Path("base.yaml"),
    )


def held(scores: Mapping[str, float]) -> dict[str, BaselineScore]:
    return {name: BaselineScore(score=score) for name, score in scores.items()}


def plain(held: Mapping[str, BaselineScore]) -> dict[str, float]:
    return {name: score.score for name, score in held.items()}


# --- shipped


def test_both_published_encoders_and_the_example_ship() -> None:
    assert shipped_baselines() == ("dasheng-base", "logmel-mini", "whisper-base")


def test_the_shipped_example_is_of_five_seeds_and_knows_its_clips() -> None:
    baseline = load_baseline("logmel-mini", tasks=TASKS)
    assert baseline.preset == "mini"
    assert set(baseline.scores) == {*TASKS["task1"], *TASKS["task2"]}
    for name, held in baseline.scores.items():
        assert held.clip_sums is not None, name
        assert held.clip_sums.parts.shape[:2] == (5, held.num_clips)
        assert held.spread is not None


@pytest.mark.parametrize("name", ["dasheng-base", "whisper-base"])
def test_shipped_baseline_covers_all_20_datasets_under_the_full_preset(name: str) -> None:
    baseline = load_baseline(name, tasks=TASKS)
    assert set(baseline.scores) == {*TASKS["task1"], *TASKS["task2"]}
    assert baseline.preset == "full"
    assert baseline.name == name
    assert baseline.path.is_file()


def test_shipped_overalls_are_the_means_of_the_rows_and_agree_with_the_published_ones_where_those_do() -> None:
    whisper, dasheng = load_baseline("whisper-base", tasks=TASKS), load_baseline("dasheng-base", tasks=TASKS)
    assert plain(whisper.overalls) == pytest.approx({"task1": 0.6515333, "task2": 0.4352}, abs=1e-6)
    assert plain(dasheng.overalls) == pytest.approx({"task1": 0.6141333, "task2": 0.2676}, abs=1e-6)
    assert round(whisper.overalls["task1"].score, 3) == 0.652
    assert round(dasheng.overalls["task1"].score, 3) == 0.614
    assert round(dasheng.overalls["task2"].score, 2) == 0.27
    # The one that does not: 0.40 is printed.
    assert round(whisper.overalls["task2"].score, 2) == 0.44
    assert "0.40" in whisper.note


@pytest.mark.parametrize(
    ("name", "dataset", "expected"),
    [
        ("whisper-base", "gtzan", 0.697),
        ("whisper-base", "aishell-1", 0.361),  # not the README's 0.937
        ("dasheng-base", "voxlingua33", 0.311),
        ("dasheng-base", "librispeech", 0.103),  # not the README's 0.00
    ],
)
def test_shipped_scores_are_the_published_ones(name: str, dataset: str, expected: float) -> None:
    assert load_baseline(name, tasks={}).scores[dataset].score == expected


# --- reading


def test_load_reads_a_file(tmp_path: Path) -> None:
    name = written(tmp_path, GOOD)
    baseline = load_baseline(name, tasks={"one": ["esc-50", "gtzan"], "two": ["esc-50", "nsynth"], "none": []})
    assert baseline.name == name
    assert baseline.path == Path(name)
    assert baseline.preset == "mini"
    assert plain(baseline.scores) == {"esc-50": 0.5, "gtzan": 1.0, "cremad": 0.0}
    assert all(type(held.score) is float for held in baseline.scores.values())
    assert baseline.note == "made by hand"
    assert baseline.fingerprints == {"encoder": "abc"}
    # A task with a dataset missing has no overall, rather than one over fewer datasets; a task without any has none.
    assert plain(baseline.overalls) == {"one": 0.75}


def test_note_and_fingerprints_are_optional(tmp_path: Path) -> None:
    baseline = load_baseline(written(tmp_path, "schema: 1\npreset: mini\nscores: {a: 0.1}\n"), tasks={})
    assert (baseline.note, baseline.fingerprints) == ("", {})


def test_a_shipped_name_wins_over_a_file_and_a_path_reaches_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whisper-base").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert load_baseline("whisper-base", tasks={}).preset == "full"
    assert load_baseline("./whisper-base", tasks={}).preset == "mini"


@pytest.mark.parametrize("name", ["whisper-large", "nowhere/base.yaml", "", ".", "../whisper-base"])
def test_a_missing_baseline_is_an_error_that_lists_what_ships(name: str) -> None:
    with pytest.raises(BaselineError, match="dasheng-base, logmel-mini, whisper-base"):
        load_baseline(name, tasks={})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema: 1", "schema: 3", "schema: found 3, this version reads 1 to 2"),
        ("schema: 1", "schema: one", "schema: "),
        ("schema: 1\n", "", "schema: missing"),
        ("preset: mini\n", "", "preset: missing"),
        ("preset: mini", "preset: 3", "preset: "),
        ("preset: mini", "preset: ''", "preset: "),
        ("note: made", "nota: made", "nota: unknown key"),
        ("note: made by hand", "note: [made]", "note: "),
        ("scores: {esc-50: 0.5, gtzan: 1, cremad: 0}\n", "", "scores: missing"),
        ("{esc-50: 0.5, gtzan: 1, cremad: 0}", "{}", "scores: found no dataset"),
        ("{esc-50: 0.5, gtzan: 1, cremad: 0}", "[0.5]", "scores: "),
        ("gtzan: 1,", "gtzan: .nan,", r"scores\.gtzan: "),
        ("gtzan: 1,", "gtzan: .inf,", r"scores\.gtzan: "),
        ("gtzan: 1,", "gtzan: 1.0001,", r"scores\.gtzan: found 1\.0001"),
        ("gtzan: 1,", "gtzan: 65.2,", r"scores\.gtzan: "),
        ("gtzan: 1,", "gtzan: -1.1,", r"scores\.gtzan: found -1\.1"),
        ("gtzan: 1,", "gtzan: true,", r"scores\.gtzan: "),
        ("gtzan: 1,", "gtzan: '0.5',", r"scores\.gtzan: "),
        ("gtzan: 1,", "gtzan: ,", r"scores\.gtzan: "),
        ("gtzan: 1,", "on: 1,", r"scores\.True: .*quotes"),
        ("gtzan: 1,", "esc-50: 0.9,", "esc-50"),
        ("encoder: abc", "encoder: 17", r"fingerprints\.encoder: "),
        ("schema: 1", "schema: [1", "not a valid YAML file"),
    ],
)
def test_an_ill_formed_file_is_an_error_that_names_file_and_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    name = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(BaselineError, match=message) as caught:
        load_baseline(name, tasks={})
    assert name in str(caught.value)


def test_a_file_that_is_not_a_mapping_is_an_error(tmp_path: Path) -> None:
    for text in ("", "- 1\n", "just words\n"):
        with pytest.raises(BaselineError, match=r"base\.yaml"):
            load_baseline(written(tmp_path, text), tasks={})


# --- comparing


def test_comparable_if_preset_and_datasets_fit() -> None:
    check_comparable(made(a=0.5, b=0.5), preset="mini", datasets=["b"])


def test_another_preset_is_not_comparable() -> None:
    with pytest.raises(BaselineError, match="--preset=full and this run uses --preset=mini"):
        check_comparable(load_baseline("whisper-base", tasks={}), preset="mini", datasets=["gtzan"])


def test_a_dataset_missing_from_the_baseline_is_not_comparable() -> None:
    with pytest.raises(BaselineError, match="no score for c, d;"):
        check_comparable(made(a=0.5), preset="mini", datasets=["d", "a", "c"])


# --- writing


def test_what_is_written_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    scores = {"wörter": 1 / 3, "esc-50": 0.1 + 0.2, "no": 1e-5, "007": 0.0, "z": 1.0, "np": np.float64(2 / 3)}
    path = tmp_path / "base.yaml"
    write_baseline(path, preset="mini", scores=held(scores), note="näive: yes # no", fingerprints={"encoder": "1e5"})
    baseline = load_baseline(str(path), tasks={"all": list(scores)})
    assert plain(baseline.scores) == scores
    assert (baseline.preset, baseline.note, baseline.fingerprints) == ("mini", "näive: yes # no", {"encoder": "1e5"})
    assert plain(baseline.overalls) == {"all": pytest.approx(sum(scores.values()) / 6)}
    assert list(yaml.safe_load(path.read_text(encoding="utf-8"))["scores"]) == sorted(scores)


def test_the_same_scores_give_the_same_bytes(tmp_path: Path) -> None:
    write_baseline(tmp_path / "one.yaml", preset="mini", scores=held({"a": 0.25, "b": 0.5}))
    write_baseline(tmp_path / "two.yaml", preset="mini", scores=held({"b": 0.5, "a": 0.25}))
    assert (tmp_path / "one.yaml").read_bytes() == (tmp_path / "two.yaml").read_bytes()


def test_missing_folders_are_created(tmp_path: Path) -> None:
    path = tmp_path / "new" / "newer" / "base.yaml"
    check_new_baseline(path)
    assert not path.parent.exists()
    write_baseline(path, preset="mini", scores=held({"a": 0.5}))
    assert load_baseline(str(path), tasks={}).scores["a"].score == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.01, 1.01, 65.2])
def test_a_score_out_of_range_is_not_written(tmp_path: Path, value: float) -> None:
    path = tmp_path / "base.yaml"
    with pytest.raises(BaselineError, match="the score of bad is"):
        write_baseline(path, preset="mini", scores=held({"good": 0.5, "bad": value}))
    assert list(tmp_path.iterdir()) == []


def test_a_baseline_without_scores_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="there are no scores to save"):
        write_baseline(tmp_path / "base.yaml", preset="mini", scores={})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "base.yaml"
    path.write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        check_new_baseline(path)
    with pytest.raises(UsageError, match="exists already"):
        write_baseline(path, preset="mini", scores=held({"a": 0.5}))
    assert path.read_text() == "precious"


def test_a_dangling_link_counts_as_an_existing_file(tmp_path: Path) -> None:
    link = tmp_path / "link.yaml"
    link.symlink_to(tmp_path / "nothing.yaml")
    with pytest.raises(UsageError, match="exists already"):
        check_new_baseline(link)


def test_a_baseline_is_a_yaml_file(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_new_baseline(tmp_path / "folder.yaml", replace=True)
    with pytest.raises(UsageError, match=r"expected a file name that ends in \.yaml"):
        check_new_baseline(tmp_path / "base.json")


def test_a_file_is_overwritten_on_request(tmp_path: Path) -> None:
    path = tmp_path / "base.yaml"
    write_baseline(path, preset="mini", scores=held({"a": 0.5}))
    write_baseline(path, preset="mini", scores=held({"a": 0.25}), replace=True)
    assert load_baseline(str(path), tasks={}).scores["a"].score == 0.25


CLIP_SUMS = ClipSums(
    metric="Accuracy", arguments={}, clips=("x", "y"), parts=np.array([[[1.0, 1.0], [0.0, 1.0]], [[1.0, 1.0]] * 2])
)
WHOLE = BaselineScore(
    score=0.75,
    interval=(0.5, 1.0),
    deviation=0.25,
    spread=0.1,
    num_seeds=2,
    num_rows=2,
    num_clips=2,
    clip_sums=CLIP_SUMS,
)


def test_a_score_is_read_back_with_its_error_and_clip_sums(tmp_path: Path) -> None:
    path = tmp_path / "base.yaml"
    write_baseline(path, preset="mini", scores={"a": WHOLE, "b": BaselineScore(score=0.5)})
    found = load_baseline(str(path), tasks={"one": ["a"], "both": ["a", "b"]})
    read = found.scores["a"]
    assert read.clip_sums is not None
    assert np.array_equal(read.clip_sums.parts, CLIP_SUMS.parts)
    assert dataclasses.replace(read, clip_sums=None).__dict__ == dataclasses.replace(WHOLE, clip_sums=None).__dict__
    assert (found.overalls["one"].deviation, found.overalls["one"].num_seeds) == (0.25, 2)
    assert found.overalls["both"].deviation is None


def test_without_its_clip_sums_a_baseline_still_stands(tmp_path: Path) -> None:
    path = tmp_path / "base.yaml"
    write_baseline(path, preset="mini", scores={"a": WHOLE})
    (tmp_path / "base.clip_sums" / "a.npz").unlink()
    assert load_baseline(str(path), tasks={}).scores["a"].clip_sums is None


def test_clip_sums_of_another_baseline_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.yaml"
    write_baseline(path, preset="mini", scores={"a": WHOLE})
    CLIP_SUMS.select(["x"]).save(tmp_path / "base.clip_sums" / "a.npz")
    with pytest.raises(BaselineError, match=r"scores\.a\.clip_sums: .*a\.npz is not the file"):
        load_baseline(str(path), tasks={})


def test_a_score_that_does_not_follow_from_its_clip_sums_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.yaml"
    write_baseline(path, preset="mini", scores={"a": WHOLE})
    path.write_text(path.read_text().replace("score: 0.75", "score: 0.7"))
    with pytest.raises(BaselineError, match=r"scores\.a\.score: found 0\.7, but .*a\.npz gives 0\.750000"):
        load_baseline(str(path), tasks={})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("score: 0.75", "score: 1.5", r"scores\.a\.score: found 1\.5"),
        ("deviation: 0.25", "deviation: -1", r"scores\.a\.deviation: found -1"),
        ("rows: 2", "rows: 0", r"scores\.a\.rows: "),
        ("rows: 2", "lines: 2", r"scores\.a\.lines: unknown key"),
        ("- 0.5\n    - 1.0", "- 0.5", r"scores\.a\.interval: found \[0\.5\], expected two numbers"),
        ("- 0.5\n    - 1.0", "- 1\n    - 0.5", r"scores\.a\.interval: "),
        ("- 0.5\n    - 1.0", "- a\n    - b", r"scores\.a\.interval: "),
    ],
)
def test_an_invalid_score_is_an_error_that_names_its_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "base.yaml"
    write_baseline(path, preset="mini", scores={"a": WHOLE})
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(BaselineError, match=message):
        load_baseline(str(path), tasks={})


def test_a_file_where_a_folder_should_be_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a folder"):
        check_new_baseline(tmp_path / "file" / "sub" / "base.yaml")


def test_a_full_disk_leaves_the_baseline_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "base.yaml"
    write_baseline(path, preset="mini", scores={"a": WHOLE, "b": WHOLE})
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    num_left = 2

    def run_full(descriptor: int) -> None:
        nonlocal num_left
        num_left -= 1
        if num_left < 0:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", run_full)
    other = dataclasses.replace(WHOLE, score=WHOLE.score / 2)
    with pytest.raises(DiskError, match=r"base.yaml cannot be written: No space left on device; make room"):
        write_baseline(path, preset="mini", scores={"a": other, "b": other}, replace=True)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("moment", ["os.fsync", "os.replace"])
def test_killed_half_way_leaves_no_baseline_and_the_next_attempt_succeeds(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "base.yaml"
    program = f"""
import os, pathlib
from xares_bench.scores.baselines import BaselineScore, write_baseline
{moment} = lambda *arguments, **options: os._exit(9)
write_baseline(pathlib.Path({str(path)!r}), preset="mini", scores={{"a": BaselineScore(score=0.5)}})
"""
    root = Path(baselines.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, check=False)
    assert done.returncode == 9
    assert not path.exists()
    with pytest.raises(BaselineError):
        load_baseline(str(path), tasks={})
    write_baseline(path, preset="mini", scores=held({"a": 0.5}))
    assert load_baseline(str(path), tasks={}).scores["a"].score == 0.5


# --- the module


def test_examples_in_docstrings() -> None:
    outcome = doctest.testmod(baselines)
    assert outcome.attempted >= 3
    assert outcome.failed == 0
