"""Sweeps on this machine: the same bits as single runs, killed and started again, with failures that are named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPOSITORY
from tests.test_bench import write_data

ENCODER = """
import os, pathlib, signal
import torch

class FrameEncoder(torch.nn.Module):
    output_dim = 4

    def __init__(self, scale=1.0, fault=""):
        super().__init__()
        self.scale = scale
        self.fault = fault

    def forward(self, audio, mask=None):
        if self.fault == "once" and not pathlib.Path("fell").exists():
            pathlib.Path("fell").write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "always":
            raise ValueError("it always fails")
        return self.scale * audio[:, : audio.shape[1] // 400 * 400].reshape(len(audio), -1, 400)[..., :4], None
"""
OPTIONS = (
    "preset: mini, data_home: data, train: clotho, checkpoint_steps: 5, "
    "set: {steps: 40, batch_size: 4, max_new_tokens: 3}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "enc.py").write_text(ENCODER)
    write_data(tmp_path / "data")
    return tmp_path


def write(folder: Path, arguments: str, options: str = OPTIONS) -> None:
    (folder / "sweep.yaml").write_text(
        f"encoders: [{{encoder: enc.py, arguments: {{{arguments}}}}}]\ntasks: clotho\noptions: {{{options}}}\n"
    )


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "xares_bench", "sweep", "sweep.yaml", *more],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def sweep(folder: Path, *more: str, status: int = 0) -> str:
    process = start(folder, *more)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == status, output
    return output


def outcome(folder: Path) -> dict[str, bytes]:
    """Losses and weights of every LALM, scores and predictions, by place."""
    patterns = ("store/lalms/*/loss.tsv", "store/lalms/*/*.safetensors", "*/scores.tsv", "*/predictions/*")
    return {str(file.relative_to(folder)): file.read_bytes() for pattern in patterns for file in folder.glob(pattern)}


def test_killed_and_started_again_it_ends_with_the_same_bits_and_trains_nothing_twice(folder: Path) -> None:
    write(folder, "scale: [1.0, 2.0]")
    shown = sweep(folder, "--runs-dir=undisturbed", "--jobs=2")
    assert shown.startswith("2 runs, 2 at a time; logs: undisturbed/sweeps/sweep\n")
    assert "2 of 2: enc.py scale=" in shown
    expected = outcome(folder / "undisturbed")
    assert len([name for name in expected if name.endswith("loss.tsv")]) == 2
    table = (folder / "undisturbed" / "sweeps" / "sweep" / "table.md").read_text()
    assert table.count("| enc.py scale=") == 2
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = start(folder, "--jobs=2")
        num_checkpoints = len([*folder.glob("runs/store/checkpoints/*/step-*")])
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if len([*folder.glob("runs/store/checkpoints/*/step-*")]) > num_checkpoints:
                break
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(number)
        output, _ = process.communicate(timeout=900)
        _, alive = psutil.wait_procs(children, timeout=120)
        assert alive == [], "the jobs of a sweep end with it"
        if number != signal.SIGKILL and process.returncode != 0:
            assert process.returncode == 130, output
            assert "run the same command again to resume" in output
    shown = sweep(folder, "--jobs=2")
    assert outcome(folder / "runs") == expected
    trained = "\n".join(file.read_text() for file in folder.glob("runs/sweeps/sweep/*.log"))
    assert "training resumes after step" in trained


def test_a_job_that_falls_is_started_once_more_and_one_that_fails_is_named(folder: Path) -> None:
    write(folder, 'fault: ["", once, always]')
    shown = sweep(folder, status=1)
    assert "failed, and is started once more: enc.py fault=once: " in shown
    assert "(signal SIGKILL)" in shown
    assert "failed, and is started once more: enc.py fault=always: " in shown
    assert "xares-bench: 1 of 3 runs do not pass: enc.py fault=always: " in shown
    assert "ValueError: it always fails" in shown
    rows = [line for line in shown.splitlines() if line.startswith("enc.py fault=")]
    assert len(rows) == 3
    assert (folder / "runs" / "sweeps" / "sweep" / "table.md").read_text().count("it always fails") == 1


def test_a_wrong_command_is_not_started_again(folder: Path) -> None:
    write(folder, "scale: 1.0", OPTIONS.replace("train: clotho", "train: nothing"))
    shown = sweep(folder, status=1)
    assert "started once more" not in shown
    assert "--train=nothing" in shown
    assert "(status 4)" in shown


def test_a_dry_run_shows_commands_that_can_be_typed(folder: Path) -> None:
    write(folder, "scale: [1.0, 2.0]", OPTIONS.replace("steps: 40", "steps: 2"))
    first, second = sweep(folder, "--dry-run", "--runs-dir=a b").splitlines()
    assert not (folder / "a b").exists()
    assert "'--encoder-args={\"scale\": 1.0}'" in first
    command = second.replace("xares-bench", f"{sys.executable} -m xares_bench", 1)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", "-c", command], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert len([*(folder / "a b").glob("FrameEncoder-mini-*/scores.tsv")]) == 1


def test_a_number_of_jobs_that_makes_no_sense_is_refused(folder: Path) -> None:
    write(folder, "scale: 1.0")
    assert "--jobs=0: expected a whole number of at least 1" in sweep(folder, "--jobs=0", status=2)
