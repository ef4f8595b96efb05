"""--corrupt as users run it: whole sessions over tiny data and an encoder that notes how many clips it hears."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import xares_bench
from tests.conftest import NUM_BENCH_TESTS, REPOSITORY, last_wins
from tests.encoders.conftest import PLAIN
from tests.shard_factory import tone, write_shard
from tests.test_bench import FEW_STEPS, run_folder, write_data
from xares_bench.config.catalogue import load_catalogue
from xares_bench.reports.runs import read_run
from xares_bench.scores.clip_sums import load_clip_sums
from xares_bench.scores.statistics import paired_difference

Run = Callable[..., pytest.RunResult]

# Frames that hear noise and high tones: a language model of random weights says something else about them.
ENCODER = """
import pathlib
import torch

HERE = pathlib.Path(__file__).parent

class NotingEncoder(torch.nn.Module):
    output_dim = 640

    def forward(self, audio, mask=None):
        with (HERE / "calls").open("a") as file:
            file.write(f"{len(audio)}\\n")
        num_frames = -(-audio.shape[1] // 640)
        frames = torch.nn.functional.pad(audio, (0, num_frames * 640 - audio.shape[1]))
        return frames.reshape(len(audio), num_frames, 640), None
"""
TEXTS = ("noise:-20", "lowpass:300")
CORRUPT = tuple(f"--corrupt={text}" for text in TEXTS)
# Enough to tell the three clips of a dataset from each other, when they are clean.
LEARN = ("--set", "steps=100", "--set", "max_new_tokens=8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and an encoder."""
    folder = tmp_path_factory.mktemp("corrupt")
    write_data(folder / "data")
    (folder / "noting.py").write_text(ENCODER)
    return folder


def options(folder: Path, runs: Path, *more: str) -> list[str]:
    """The command line of a run, but for pytest itself."""
    given = ["--preset=mini", f"--encoder={folder / 'noting.py'}", f"--data-home={folder / 'data'}"]
    repeated = [option for option in more if option.startswith("--corrupt=")]
    own = last_wins([*FEW_STEPS, *given, f"--runs-dir={runs}", *(option for option in more if option not in repeated)])
    return [str(REPOSITORY / "bench"), "-p", "no:cacheprovider", *own, *repeated]


@pytest.fixture
def run(pytester: pytest.Pytester, folder: Path) -> Run:
    """Runs a session in this process, into a runs folder."""

    def run_session(runs: Path, *more: str, status: int = 0) -> pytest.RunResult:
        result = pytester.runpytest_inprocess(*options(folder, runs, *more))
        assert result.ret == status, result.stdout.str()
        return result

    return run_session


def num_heard(folder: Path) -> int:
    """How many clips the encoder has been given."""
    return sum(map(int, (folder / "calls").read_text().split()))


def entries(runs: Path, kind: str) -> dict[str, int]:
    """The entries of a kind in the store, with the time at which each was written."""
    return {file.parent.name: file.stat().st_mtime_ns for file in runs.glob(f"store/{kind}/*/manifest.json")}


def robustness(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["robustness"]
    return found


def test_corrupted_test_clips_are_scored_without_training_and_clean_scores_stay_as_they_are(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    which = ("--train=esc-50", "-k", "esc-50", *LEARN)
    clean = run_folder(run(tmp_path, *which))
    assert robustness(clean) == []
    assert not (clean / "corrupted").exists()
    before = {kind: entries(tmp_path, kind) for kind in ("lalms", "scores", "features")}
    files = {name: (clean / name).read_bytes() for name in ("scores.tsv", "predictions/esc-50.jsonl")}
    heard = num_heard(folder)

    result = run(tmp_path, *which, *CORRUPT)
    result.assert_outcomes(passed=3, deselected=NUM_BENCH_TESTS - 1 + 2 * 19)
    result.stdout.fnmatch_lines(["corruptions: noise:-20, lowpass:300, *", "LALM esc-50: cached"])
    assert run_folder(result) == clean, "a run is named after its clean scores"
    assert {name: (clean / name).read_bytes() for name in files} == files
    after = {kind: entries(tmp_path, kind) for kind in before}
    assert after["lalms"] == before["lalms"], "nothing is trained"
    assert before["scores"].items() <= after["scores"].items(), "the clean score is the very same entry"
    assert len(after["scores"]) == 3
    # Two corruptions of three clips, and the clips by which a session knows the encoder.
    identified = num_heard(folder) - heard - 2 * 3
    heard = num_heard(folder)

    found = robustness(clean)
    assert [(loss["dataset"], loss["corruption"]) for loss in found] == [
        ("esc-50", "lowpass:300"),
        ("esc-50", "noise:-20"),
    ]
    assert found[1]["loss"] < 0, "what is learned of clean clips says little of noise"
    results = json.loads((clean / "results.json").read_text())
    assert results["failures"] == {}
    for loss in found:
        own = clean / "corrupted" / loss["corruption"].replace(":", "-")
        assert len((own / "predictions" / "esc-50.jsonl").read_text().splitlines()) == 3
        sums = load_clip_sums(own / "clip_sums" / "esc-50.npz")
        difference = paired_difference(load_clip_sums(clean / "clip_sums" / "esc-50.npz"), sums)
        assert difference is not None
        assert (loss["loss"], tuple(loss["interval"])) == (difference.difference, (difference.low, difference.high))
        assert loss["score"] == float(sums.scores()[0])
        assert loss["key"] in after["scores"]
    result.stdout.fnmatch_lines(["robustness: *", "dataset *lowpass:300 *noise:-20*", "esc-50 *Accuracy *"])

    again = run(tmp_path, *which, *CORRUPT)
    assert num_heard(folder) - heard == identified, "cached"
    assert entries(tmp_path, "scores") == after["scores"]
    assert robustness(clean) == found
    again.stdout.fnmatch_lines(["robustness: *"])
    run(tmp_path, *which)
    assert robustness(clean) == found, "a session without --corrupt keeps what an earlier one has found"


def test_tests_are_listed_and_selected_with_their_datasets(pytester: pytest.Pytester, folder: Path) -> None:
    def listed(*more: str) -> list[str]:
        command = [str(REPOSITORY / "bench"), "--collect-only", "-q", "--preset=mini", "-p", "no:cacheprovider", *more]
        return [line for line in pytester.runpytest_inprocess(*command).outlines if "::" in line]

    assert not [line for line in listed() if "robustness" in line]
    assert len(listed(*CORRUPT)) == NUM_BENCH_TESTS + 2 * 20
    for choice in (["-m", "task1"], ["-k", "task1"]):
        found = listed(*CORRUPT, *choice)
        assert len(found) == 16 + 2 * 15
        assert all("robustness" not in line for line in found[:16]), "clean scores come first"
    assert len(listed(*CORRUPT, "-k", "clotho and noise")) == 1
    assert len(listed(*CORRUPT, "-k", "robustness")) == 40


def test_corrupted_alone_is_a_run_with_its_clean_scores(run: Run, tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", "--train=clotho", "-k", "clotho and noise", *CORRUPT)
    alone.assert_outcomes(passed=1, deselected=NUM_BENCH_TESTS + 39)
    assert [loss["corruption"] for loss in robustness(run_folder(alone))] == ["noise:-20"]
    both = run(tmp_path / "both", "--train=clotho", "-k", "clotho", *CORRUPT)
    name = "scores.tsv"
    assert (run_folder(alone) / name).read_bytes() == (run_folder(both) / name).read_bytes()
    assert run_folder(alone).name == run_folder(both).name
    assert robustness(run_folder(alone)) == robustness(run_folder(both))[1:]


def test_no_baseline_decides_about_corrupted_clips(run: Run, tmp_path: Path) -> None:
    which = ("--train=esc-50", "-k", "esc-50", *LEARN)
    baseline = tmp_path / "mine.yaml"
    run(tmp_path, *which, f"--save-baseline={baseline}")
    saved = baseline.read_bytes()
    result = run(tmp_path, *which, "--corrupt=noise:-20", f"--baseline={baseline}", "--tolerance=0")
    result.assert_outcomes(passed=2, deselected=NUM_BENCH_TESTS - 1 + 19)
    assert robustness(run_folder(result))[0]["loss"] < 0
    run(tmp_path, *which, "--corrupt=noise:-20", f"--save-baseline={baseline}", "--force")
    assert baseline.read_bytes() == saved


def test_a_dataset_without_a_clean_score_has_no_corrupted_one_and_says_why(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "data", tmp_path / "data")
    split = load_catalogue("mini").datasets["esc-50"].eval
    assert split is not None
    (tmp_path / "data" / split.shards[0]).unlink()
    more = ("-k", "esc-50 or gtzan", "--corrupt=noise:10", f"--data-home={tmp_path / 'data'}", "-rs")
    result = run(tmp_path / "runs", *more, status=1)
    result.assert_outcomes(passed=2, failed=1, skipped=1, deselected=NUM_BENCH_TESTS - 2 + 18)
    result.stdout.fnmatch_lines(["SKIPPED*esc-50 has no clean score, so nothing to compare with: *esc-50*"])
    assert [loss["dataset"] for loss in robustness(run_folder(result))] == ["gtzan"]


def test_a_corruption_that_leaves_no_clip_fails_its_own_test_in_one_line(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    clips = [(f"clip-{i}", tone(0.03, 150 + 40 * i), {"label": f"w{i}"}) for i in range(3)]
    write_shard(tmp_path / "mine.tar", clips)
    (tmp_path / "plain.py").write_text(PLAIN)  # which takes clips of 25 ms and more
    what = f"data: {tmp_path}/mine.tar, key: label, prompt: What?"
    (tmp_path / "train.yaml").write_text(f"train_data: {{mine: {{{what}}}}}\n")
    (tmp_path / "eval.yaml").write_text(f"mine: {{data: {{{what}}}, metric: Accuracy}}\n")
    own = (f"--train={tmp_path / 'train.yaml'}", f"--eval={tmp_path / 'eval.yaml'}", "-k", "mine")
    more = (*own, f"--encoder={tmp_path / 'plain.py'}", "--corrupt=speed:2", "--corrupt=noise:10")
    result = run(tmp_path / "runs", *more, status=1)
    assert result.parseoutcomes()["failed"] == 1
    assert result.parseoutcomes()["passed"] == 2
    text = result.stdout.str()
    assert re.search(r"mine: 3 of 3 samples are unusable.*audio of 15 ms; the encoder takes clips of 25 ms", text)
    assert "Traceback" not in text
    assert [loss["corruption"] for loss in robustness(run_folder(result))] == ["noise:10"]


@pytest.mark.parametrize("value", ["nose:10", "noise", "mp3:20"])
def test_a_bad_value_is_wrong_usage_before_anything_is_done(run: Run, tmp_path: Path, value: str) -> None:
    result = run(tmp_path / "runs", f"--corrupt={value}", status=4)
    result.stderr.fnmatch_lines([f"ERROR: --corrupt={value}: *"])
    assert not (tmp_path / "runs").exists()


def test_a_session_killed_while_corrupted_clips_are_scored_goes_on_to_the_same(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    more = ("--train=esc-50", "-k", "esc-50", "--corrupt=noise:10", "--corrupt=mp3:8", "--corrupt=reverb")
    command = [sys.executable, "-m", "pytest", *options(folder, runs, *more)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and len(entries(runs, "scores")) < 2:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    before = {kind: entries(runs, kind) for kind in ("lalms", "scores")}
    assert 2 <= len(before["scores"]) < 4, "the session had come further"
    result = run(runs, *more)
    assert entries(runs, "lalms") == before["lalms"]
    assert before["scores"].items() <= entries(runs, "scores").items()
    undisturbed = run(tmp_path / "undisturbed", *more)
    assert robustness(run_folder(result)) == robustness(run_folder(undisturbed))


def test_xdists_workers_come_to_the_same(folder: Path, run: Run, tmp_path: Path) -> None:
    more = ("-k", "esc-50 or gtzan or clotho", *CORRUPT)
    alone = run_folder(run(tmp_path / "alone", *more))
    command = [sys.executable, "-m", "pytest", "-n", "2", *options(folder, tmp_path / "two", *more)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"})
    assert done.returncode == 0, done.stdout
    together = tmp_path / "two" / alone.name
    assert len(robustness(together)) == 6
    assert robustness(together) == robustness(alone)
    assert (together / "scores.tsv").read_bytes() == (alone / "scores.tsv").read_bytes()
    assert "robustness: loss on corrupted test clips" in done.stdout
    assert len(entries(tmp_path / "two", "scores")) == 9


def test_from_python_the_losses_are_a_table(folder: Path, tmp_path: Path) -> None:
    result = xares_bench.run(
        folder / "noting.py",
        preset="mini",
        tasks="esc-50",
        train="esc-50",
        data_home=folder / "data",
        runs_dir=tmp_path,
        corrupt=list(TEXTS),
        set={"steps": 2, "batch_size": 4, "max_new_tokens": 3},
    )
    assert [row["corruption"] for row in result.robustness] == ["lowpass:300", "noise:-20"]
    assert read_run(result.folder).robustness == result.robustness
