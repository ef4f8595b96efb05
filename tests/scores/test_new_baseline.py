"""A new baseline: written whole or not at all, and read back to the last bit."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.scores.test_baselines import held, plain
from xares_bench.core.errors import BaselineError, DiskError, UsageError
from xares_bench.scores import new_baseline
from xares_bench.scores.baselines import BaselineScore, load_baseline
from xares_bench.scores.clip_sums import ClipSums
from xares_bench.scores.new_baseline import check_new_baseline, write_baseline


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
    seed_scores=(0.5, 1.0),
    weight=2.0,
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
from xares_bench.scores.baselines import BaselineScore
from xares_bench.scores.new_baseline import write_baseline
{moment} = lambda *arguments, **options: os._exit(9)
write_baseline(pathlib.Path({str(path)!r}), preset="mini", scores={{"a": BaselineScore(score=0.5)}})
"""
    root = Path(new_baseline.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, check=False)
    assert done.returncode == 9
    assert not path.exists()
    with pytest.raises(BaselineError):
        load_baseline(str(path), tasks={})
    write_baseline(path, preset="mini", scores=held({"a": 0.5}))
    assert load_baseline(str(path), tasks={}).scores["a"].score == 0.5


# --- the module
