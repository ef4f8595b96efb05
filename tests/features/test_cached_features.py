"""Features across sessions: whole runs over a small dataset, whose encoder notes in a file whenever it is called."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, last_wins
from tests.shard_factory import tone, write_shard
from xares_bench.reports.described import frames_per_second_of
from xares_bench.reports.runs import read_run

Run = Callable[..., pytest.RunResult]

# 25 frames a second of 1,000 values, 100 kB for a second of audio.
ENCODER = """
import pathlib, time
import torch

HERE = pathlib.Path(__file__).parent

class NotingEncoder(torch.nn.Module):
    output_dim = 1000

    def forward(self, audio, mask=None):
        with (HERE / "calls").open("a") as file:
            file.write(f"{len(audio)}\\n")
        if (HERE / "slow").exists():
            time.sleep(0.5)
        num_frames = max(1, audio.shape[1] // 640)
        frames = torch.nn.functional.pad(audio, (0, max(0, 640 - audio.shape[1])))[:, : num_frames * 640]
        return LOUD * torch.cat([frames.reshape(len(audio), num_frames, 640)] * 2, dim=-1)[..., :1000], None

LOUD = 1.0
"""
NUM_CLIPS = 24  # of a shard
FEW_STEPS = ["--set", "steps=3", "--set", "batch_size=4", "--set", "shuffle_buffer=100", "--set", "max_new_tokens=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training shards and one to test on, the two YAML files, and the encoder."""
    folder = tmp_path_factory.mktemp("cached")
    for number, name in enumerate(("train0", "train1", "test")):
        clips = [
            (f"{name}-{i}", tone(0.6 + 0.04 * (i % 3), 150 + 40 * i + 13 * number), {"label": f"word {i % 4}"})
            for i in range(NUM_CLIPS)
        ]
        write_shard(folder / f"{name}.tar", clips)
    what = "prompt: What?, key: label"
    (folder / "train.yaml").write_text(f"train_data: {{mine: {{data: '{folder}/train{{0,1}}.tar', {what}}}}}\n")
    (folder / "eval.yaml").write_text(f"mine: {{data: {{data: {folder}/test.tar, {what}}}, metric: Accuracy}}\n")
    (folder / "noting.py").write_text(ENCODER)
    return folder


def options(folder: Path, runs: Path, decoder: str) -> list[str]:
    """The command line of a run, but for pytest itself."""
    given = [str(REPOSITORY / "bench"), "-p", "no:cacheprovider", "-k", "mine", "--preset=mini", *FEW_STEPS]
    given += [f"--encoder={folder / 'noting.py'}", f"--decoder={decoder}", f"--runs-dir={runs}"]
    return [*given, f"--train={folder / 'train.yaml'}", f"--eval={folder / 'eval.yaml'}"]


@pytest.fixture
def run(pytester: pytest.Pytester, folder: Path, decoder_folder: str) -> Run:
    """Runs a session in this process, into a runs folder."""

    def run_session(runs: Path, *more: str, status: int = 0) -> pytest.RunResult:
        result = pytester.runpytest_inprocess(*last_wins([*options(folder, runs, decoder_folder), *more]))
        assert result.ret == status, result.stdout.str()
        return result

    return run_session


@pytest.fixture(scope="module")
def undisturbed(folder: Path, decoder_folder: str) -> Path:
    """The runs folder of a session that nothing happened to."""
    runs = folder / "undisturbed"
    start(folder, runs, decoder_folder).communicate(timeout=900)
    return runs


def start(folder: Path, runs: Path, decoder: str, max_file_bytes: int | None = None) -> subprocess.Popen[str]:
    """Starts a session as a process of its own, where files may be limited in size."""

    def limit() -> None:
        if max_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))

    command = [sys.executable, "-m", "pytest", *options(folder, runs, decoder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=limit)


def num_calls(folder: Path) -> int:
    """How often the encoder has been called."""
    return len((folder / "calls").read_text().splitlines())


def outcome(runs: Path) -> dict[str, bytes]:
    """What a run in a folder of its own has come to: loss of every step, what was trained, answers, score."""
    patterns = ("store/lalms/*/loss.tsv", "store/lalms/*/*.safetensors", "*/predictions/mine.jsonl", "*/scores.tsv")
    files = [file for pattern in patterns for file in runs.glob(pattern)]
    assert len(files) == len(patterns), files
    return {file.name: file.read_bytes() for file in files}


def warnings_of(text: str) -> list[str]:
    """The warnings that a session shows about the cache."""
    return re.findall(r"CacheWarning: (.*)", text)


def test_another_seed_another_decoder_and_another_recipe_encode_no_clip_again(
    run: Run, folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    runs = shutil.copytree(undisturbed, tmp_path / "runs")
    before = num_calls(folder)
    mini_decoder = str(REPOSITORY / "fixtures" / "mini-decoder")
    another_recipe = ["--set", "learning_rate=0.002", "--set", "steps=4"]
    for number, more in enumerate((["--seed=7"], [f"--decoder={mini_decoder}"], another_recipe)):
        result = run(runs, *more)
        result.stdout.fnmatch_lines(["LALM train.yaml: training from scratch"])
        result.stdout.fnmatch_lines(["cached: features of 3 of 3 shards, 0 of 1 scores; *"])
        before += 2  # by which every session identifies the encoder
        assert num_calls(folder) == before
        assert len(list(runs.glob("store/scores/*/manifest.json"))) == number + 2
    run(runs, "--limit=5")
    assert num_calls(folder) > before + 2, "an entry is all of a shard; a limit needs another one"


def test_the_budget_and_the_number_of_threads_change_nothing_but_the_calls(
    run: Run, folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    plain = outcome(undisturbed)
    train = (folder / "train.yaml").read_text()
    for number, (budget, threads) in enumerate([("0", 0), ("0", 3), ("4MB", 1), ("1GB", 0)]):
        (tmp_path / "train.yaml").write_text(f"{train}num_training_workers: {threads}\n")
        runs = tmp_path / str(number)
        before = num_calls(folder)
        result = run(runs, f"--feature-budget={budget}", f"--train={tmp_path / 'train.yaml'}")
        assert outcome(runs) == plain, (budget, threads)
        warned = warnings_of(result.stdout.str())
        assert len(warned) == (budget == "4MB")
        kept_bytes = sum(file.stat().st_size for file in runs.glob("store/features/*/*.safetensors"))
        assert {"0": kept_bytes == 0, "4MB": 1e6 < kept_bytes < 4e6, "1GB": kept_bytes > 4e6}[budget]
        if warned:
            assert warned[0].startswith("the features' budget is used up (--feature-budget); ")
        assert num_calls(folder) > before


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
@pytest.mark.parametrize("kind", ["features", "lalms", "scores"])
def test_damage_is_found_reported_and_recomputed_to_the_same_scores(
    kind: str, damage: str, run: Run, undisturbed: Path, tmp_path: Path
) -> None:
    runs = shutil.copytree(undisturbed, tmp_path / "runs")
    for made_of_it in {"features": ("lalms", "scores"), "lalms": ("scores",), "scores": ()}[kind]:
        shutil.rmtree(runs / "store" / made_of_it)
    pattern = "*.jsonl" if kind == "scores" else "*.safetensors"
    (file, *_) = sorted((runs / "store" / kind).glob(f"*/{pattern}"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(bytes(content) if damage == "flipped" else content[:-3])
    result = run(runs)
    assert warnings_of(result.stdout.str()) == [f"{file} is damaged; it is recomputed"]
    assert outcome(runs) == outcome(undisturbed)
    assert not warnings_of(run(runs).stdout.str())


def test_a_run_killed_while_features_are_written_leaves_nothing_unfinished_in_use_and_ends_the_same(
    run: Run, folder: Path, undisturbed: Path, decoder_folder: str, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    (folder / "slow").touch()
    try:
        with start(folder, runs, decoder_folder) as process:
            features = runs / "store" / "features"
            while process.poll() is None and not list(features.glob("*/*.safetensors")):
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
    finally:
        (folder / "slow").unlink()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    unfinished = [path for path in features.iterdir() if path.is_dir() and not (path / "manifest.json").exists()]
    assert len(unfinished) >= 2, "the shard that is written, and the folder of leases"
    result = run(runs)
    assert "LALM train.yaml: training from scratch" in result.stdout.str()
    assert not warnings_of(result.stdout.str())
    assert outcome(runs) == outcome(undisturbed)


def test_a_disk_full_of_features_ends_the_caching_and_not_the_run(
    folder: Path, undisturbed: Path, decoder_folder: str, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    # A training shard has 1.5 MB of features; all that is trained has 0.3 MB.
    process = start(folder, runs, decoder_folder, max_file_bytes=1_000_000)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    (warned,) = warnings_of(output)
    assert warned.startswith("features are not cached: ")
    assert not [path for path in runs.glob("store/features/*/*") if path.suffix not in (".lock", ".keys")]
    assert outcome(runs) == outcome(undisturbed)


def test_pooled_frames_need_no_encoder_and_train_as_those_of_an_encoder_that_pools(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "plain.py").write_text(ENCODER)
    whole = run(tmp_path / "runs", f"--encoder={tmp_path / 'plain.py'}")
    cached = {file: file.stat().st_mtime_ns for file in tmp_path.glob("runs/store/features/*/*.safetensors")}
    calls_of_whole = num_calls(tmp_path)
    pooled = run(tmp_path / "runs", f"--encoder={tmp_path / 'plain.py'}", "--pool=4")
    # One call, at most two: the clips that say whether it is the same encoder.
    assert num_calls(tmp_path) - calls_of_whole <= 2
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("runs/store/features/*/*.safetensors")} == cached
    pooled.stdout.fnmatch_lines(["*frame_pool=4*", "cached: features of 3 of 3 shards*"])
    assert "frame_pool" not in whole.stdout.str()
    pools = "return torch.stack([part.mean(dim=1) for part in frames.split(4, dim=1)], dim=1), None"
    source = ENCODER.replace("        return LOUD * ", "        frames = LOUD * ")
    source = source.replace("[..., :1000], None", f"[..., :1000]\n        {pools}")
    (tmp_path / "pooling.py").write_text(source)
    run(tmp_path / "other", f"--encoder={tmp_path / 'pooling.py'}")
    manifests = [read_run(file).manifest for file in sorted(tmp_path.glob("*/*/results.json"))]
    rates = sorted(frames_per_second_of(manifest) for manifest in manifests)
    assert rates == pytest.approx([6.25, 6.25, 25], abs=0.05)
    (expected,) = tmp_path.glob("other/store/lalms/*/loss.tsv")
    found = [file.read_text() for file in tmp_path.glob("runs/store/lalms/*/loss.tsv")]
    assert expected.read_text() in found


def test_half_the_disk_is_a_deviation_and_scores_are_there(run: Run, undisturbed: Path, tmp_path: Path) -> None:
    result = run(tmp_path, "--set", "feature_dtype=float16")
    cached = [runs.glob("store/features/*/*.safetensors") for runs in (undisturbed, tmp_path)]
    sizes = [sum(file.stat().st_size for file in files) for files in cached]
    assert sizes[1] / sizes[0] == pytest.approx(0.5, abs=0.001)
    (file,) = tmp_path.glob("*/results.json")
    results = json.loads(file.read_text())
    assert results["run"]["deviations"]["feature_dtype"] == ["encoder", "float16"]
    assert results["scores"][0]["num_rows"] == NUM_CLIPS
    result.stdout.fnmatch_lines(["*feature_dtype=float16*"])


def test_features_beyond_float16_are_refused_with_the_clip(run: Run, folder: Path, tmp_path: Path) -> None:
    encoder = tmp_path / "loud.py"
    encoder.write_text(ENCODER.replace("LOUD = 1.0", "LOUD = 1e6"))
    option = f"--encoder={encoder}"
    run(tmp_path / "whole", option)
    result = run(tmp_path / "half", option, "--set", "feature_dtype=float16", status=1)
    text = result.stdout.str()
    assert re.search(r"feature_dtype=float16: the features of train\d-\d+ of \S*train\d\.tar reach \d", text)
    assert "leave feature_dtype=encoder" in text
    assert "Traceback" not in text
    assert not list((tmp_path / "half").glob("store/features/*/*.safetensors"))
