"""Several processes of a launcher: one table, one set of files, the scores of one process, and no waiting for the dead.

With gloo on this machine's processor; on GPUs nothing of this was run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from accelerate import Accelerator

from tests.conftest import REPOSITORY
from tests.shard_factory import tone, write_shard
from tests.test_bench import ENCODER
from tests.training.test_resume import Sessions, outcome, wait_for_step
from xares_bench.core.errors import DataError, XaresError
from xares_bench.core.store import Entry, Store
from xares_bench.runtime import processes
from xares_bench.runtime.processes import (
    broadcast_from_main,
    end_session_on_error,
    in_lockstep,
    obtain_in_all_processes,
    sum_over_processes,
)

# Two threads that stand for two processes.


class Group:
    """Collective operations of two threads, in place of accelerate's."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2, timeout=60)
        self._values: list[Any] = [None, None]
        self._own = threading.local()

    def exchange(self, value: Any) -> list[Any]:
        self._values[self._own.number] = value
        self._barrier.wait()
        values = list(self._values)
        self._barrier.wait()
        return values

    def broadcast(self, values: list[Any], from_process: int) -> None:
        values[:] = self.exchange(list(values))[from_process]

    def gather(self, values: list[Any]) -> list[Any]:
        return [value for part in self.exchange(values) for value in part]

    def run(self, work: Callable[[Accelerator], Any]) -> list[Any]:
        """The results, or errors, of calling `work` in each."""
        results: list[Any] = [None, None]

        def call(number: int) -> None:
            self._own.number = number
            accelerator = SimpleNamespace(
                num_processes=2,
                process_index=number,
                is_main_process=number == 0,
                device="cpu",
                reduce=lambda tensor, _: sum(self.exchange(tensor)),
            )
            try:
                results[number] = work(cast(Accelerator, accelerator))
            except BaseException as error:
                results[number] = error

        threads = [threading.Thread(target=call, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    made = Group()
    monkeypatch.setattr(processes, "broadcast_object_list", made.broadcast)
    monkeypatch.setattr(processes, "gather_object", made.gather)
    return made


def test_all_compute_an_entry_and_only_the_main_one_fills_it(group: Group, tmp_path: Path) -> None:
    called: list[int] = []

    def obtain(accelerator: Accelerator) -> Entry:
        def make(folder: Path) -> dict[str, Any]:
            called.append(accelerator.process_index)
            group.exchange(None)  # needs the other one
            if accelerator.is_main_process:
                (folder / "file").write_text("content")
            return {"steps": 3}

        return obtain_in_all_processes(accelerator, Store(root=tmp_path), "lalms", "key", make)

    first = group.run(obtain)
    assert sorted(called) == [0, 1]
    assert [(entry.manifest["steps"], entry.reused) for entry in first] == [(3, False)] * 2
    assert [entry.reused for entry in group.run(obtain)] == [True, True]
    assert len(called) == 2


@pytest.mark.parametrize("failing", [(0,), (0, 1)])
def test_an_error_of_the_main_process_is_raised_in_both(group: Group, tmp_path: Path, failing: Sequence[int]) -> None:
    def obtain(accelerator: Accelerator) -> Entry:
        def make(folder: Path) -> dict[str, Any]:
            if accelerator.process_index in failing:
                raise DataError("a.tar is damaged")
            return {}

        return obtain_in_all_processes(accelerator, Store(root=tmp_path), "lalms", "key", make)

    for error in group.run(obtain):
        assert isinstance(error, XaresError)
        assert str(error) == "a.tar is damaged"
    assert Store(root=tmp_path).find("lalms", "key") is None


def test_in_lockstep_nobody_gets_an_item_that_the_other_could_not_make(group: Group) -> None:
    got: dict[int, list[int]] = {0: [], 1: []}

    def take(accelerator: Accelerator) -> None:
        def items() -> Iterator[int]:
            yield from range(3)
            if accelerator.process_index == 1:
                raise ValueError("a clip is damaged")
            yield 3

        for item in in_lockstep(accelerator, items()):
            got[accelerator.process_index].append(item)

    waiting, failed = group.run(take)
    assert got == {0: [0, 1, 2], 1: [0, 1, 2]}
    assert isinstance(failed, ValueError)
    assert isinstance(waiting, XaresError)
    assert str(waiting) == "process 1: ValueError: a clip is damaged"


def test_sums_and_broadcasts_are_the_same_in_both(group: Group) -> None:
    def work(accelerator: Accelerator) -> tuple[list[float], str]:
        number = accelerator.process_index
        sums = sum_over_processes(accelerator, [1.0, float(number)])
        return sums, broadcast_from_main(accelerator, lambda: f"from {number}")

    assert group.run(work) == [([2.0, 1.0], "from 0")] * 2


def test_an_error_ends_the_session_only_where_others_wait(group: Group) -> None:
    def fail(accelerator: Accelerator) -> None:
        with end_session_on_error(accelerator):
            raise ValueError("broken")

    for number, error in enumerate(group.run(fail)):
        assert isinstance(error, KeyboardInterrupt)
        assert str(error) == f"process {number} of 2 failed: ValueError: broken"
    with pytest.raises(ValueError, match="broken"):
        fail(cast(Accelerator, SimpleNamespace(num_processes=1)))


# Whole sessions. In the process of number 1 this encoder does what FAULT says when it meets a clip of a quarter of a
# second.
FAULTY = """
import os, signal
import torch

class FaultyEncoder(torch.nn.Module):
    output_dim = 400

    def forward(self, audio, mask=None):
        if audio.shape[1] == 4000 and os.environ.get("RANK") == "1":
            match os.environ["FAULT"]:
                case "raises":
                    raise ValueError("only here")
                case "is killed":
                    os.kill(os.getpid(), signal.SIGKILL)
        return audio[:, : audio.shape[1] // 400 * 400].reshape(len(audio), -1, 400), None
"""

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


class Launched(Sessions):
    """Sessions in two processes."""

    num_steps = 120

    def command(self, runs: Path, *options: str) -> list[str]:
        first, *rest = super().command(runs, *options)
        return [first, *LAUNCHER, *rest]

    def start(self, runs: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
        # One thread each: processes that wait for each other with several threads spin, and starve on a busy machine.
        return subprocess.Popen(
            self.command(runs, *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment},
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    sessions = Sessions(tmp_path_factory.mktemp("alone"))
    sessions.num_steps = Launched.num_steps
    return sessions


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    return Launched(tmp_path_factory.mktemp("launched"))


@pytest.fixture(scope="module")
def undisturbed(launched: Launched) -> Path:
    """The runs folder of two processes that nothing happened to."""
    runs = launched.folder / "undisturbed"
    output = launched.run(runs, f"--junitxml={launched.folder / 'junit.xml'}")
    assert output.count("= xares-bench =") == 1, output
    assert output.count("on cpu:0, 2 processes") == 1, output
    return runs


def losses(runs: Path) -> list[float]:
    (file,) = runs.glob("store/lalms/*/loss.tsv")
    return [float(line.split("\t")[1]) for line in file.read_text().splitlines()[1:]]


def score(runs: Path) -> float:
    (file,) = runs.glob("*/results.json")
    return float(json.loads(file.read_text())["scores"][0]["score"])


def test_two_processes_make_one_set_of_files_and_the_scores_of_one(
    alone: Sessions, launched: Launched, undisturbed: Path
) -> None:
    alone.run(alone.folder / "runs")
    assert losses(undisturbed)[:50] == pytest.approx(losses(alone.folder / "runs")[:50], rel=1e-3)
    assert score(undisturbed) == pytest.approx(score(alone.folder / "runs"), abs=0.02)
    (results,) = undisturbed.glob("*/results.json")
    assert json.loads(results.read_text())["run"]["environment"]["processes"] == 2
    assert outcome(undisturbed).keys() == outcome(alone.folder / "runs").keys()
    assert not list(undisturbed.rglob("*.part"))
    assert (launched.folder / "junit.xml").read_text().count("<testcase") == 1
    assert "1 passed" in (undisturbed / "process-1.log").read_text()


def test_the_table_has_the_seconds_of_a_score_once_whichever_process_computed_it(
    launched: Launched, undisturbed: Path
) -> None:
    """The main process reads back what the processes computed before its test began."""

    def shown_seconds(runs: Path) -> str:
        (row,) = (line for line in launched.run(runs).splitlines() if line.startswith("clotho "))
        return row.split()[-1]

    runs = launched.folder / "again"
    shutil.copytree(undisturbed, runs)
    shutil.rmtree(runs / "store" / "scores")
    assert re.fullmatch(r"\d+\.\d", shown_seconds(runs))
    assert shown_seconds(runs) == "cached"


def test_after_both_are_killed_they_resume_together(launched: Launched, undisturbed: Path) -> None:
    runs = launched.folder / "killed"
    process = launched.start(runs)
    wait_for_step(process, runs, 20)
    for worker in psutil.Process(process.pid).children(recursive=True):
        worker.kill()
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert "training resumes after step" in launched.run(runs)
    assert outcome(runs) == outcome(undisturbed)


def test_after_a_signal_to_the_launcher_both_resume(launched: Launched, undisturbed: Path) -> None:
    runs = launched.folder / "terminated"
    process = launched.start(runs)
    wait_for_step(process, runs, 20)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=900)
    assert process.returncode != 0
    assert "was interrupted after step" in output
    assert "training resumes after step" in launched.run(runs)
    assert outcome(runs) == outcome(undisturbed)


def test_a_launcher_that_is_killed_leaves_no_process(launched: Launched, undisturbed: Path) -> None:
    runs = launched.folder / "orphaned"
    process = launched.start(runs)
    wait_for_step(process, runs, 20)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    _, alive = psutil.wait_procs(workers, timeout=120)
    process.communicate()
    assert alive == []
    assert "training resumes after step" in launched.run(runs)
    assert outcome(runs) == outcome(undisturbed)


@pytest.mark.parametrize("fault", ["raises", "is killed"])
def test_one_that_fails_ends_the_run(launched: Launched, fault: str, tmp_path: Path) -> None:
    """Soon, with a status that says so, and nothing is left that a later run could trust."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    runs = tmp_path / "runs"
    # Each encodes all clips itself: with a cache, the other process may have encoded the short ones.
    options = (f"--encoder={tmp_path / 'faulty.py'}", "--feature-budget=0")
    process = launched.start(runs, *options, FAULT=fault)
    output, _ = process.communicate(timeout=900)
    assert process.returncode != 0, output
    assert not list(runs.glob("store/lalms/*/manifest.json"))
    if fault == "raises":
        assert "process 1: EncoderError: " in output
        assert "only here" in output
    again = launched.start(runs, *options, FAULT="none")
    output, _ = again.communicate(timeout=900)
    assert again.returncode == 0, output


# LOG has a line for every chunk that a process encodes for the training; ALONE lets each encode all by itself.
NOTED = """
import os
from xares_bench.features.feature_store import FeatureStore

encode, make = FeatureStore._encode, FeatureStore.__init__

def encode_and_note(self, chunk, audio):
    if os.environ["LOG"]:
        first = chunk.requests[0]
        with open(os.environ["LOG"], "a") as log:
            log.write(f"{os.environ['RANK']} {first.shard} {chunk.number} {first.max_audio_s}\\n")
    return encode(self, chunk, audio)

FeatureStore._encode = encode_and_note
if os.environ["ALONE"]:
    FeatureStore.__init__ = lambda self, store, clips, budget, num_processes: make(self, store, clips, budget)
"""


def test_each_shard_of_a_training_is_encoded_by_one_of_two_with_the_same_bytes(tmp_path: Path) -> None:
    for number in range(6):
        clips = [(f"clip-{i}", tone(0.2, 150 + 90 * number + 40 * i), {"label": f"w{i}"}) for i in range(3)]
        write_shard(tmp_path / f"t{number}.tar", clips)
    (tmp_path / "noted.py").write_text(NOTED)
    (tmp_path / "train.yaml").write_text("train_data: {mine: {prompt: What?, data: 't*.tar', key: label}}\n")
    (tmp_path / "eval.yaml").write_text("mine: {data: {data: t0.tar, key: label, prompt: What?}, metric: Accuracy}\n")
    few = ("steps=12", "batch_size=2", "shuffle_buffer=4", "sort_window=4", "max_new_tokens=4")
    encoded: dict[str, list[str]] = {}
    for name, alone in (("shared", ""), ("alone", "1")):
        finished = subprocess.run(
            [
                *(sys.executable, *LAUNCHER, "-m", "pytest", REPOSITORY / "bench" / "test_custom.py"),
                *("-p", "no:cacheprovider", "-p", "noted", "--preset=mini", f"--encoder={ENCODER}"),
                *("--train=train.yaml", "--eval=eval.yaml", f"--runs-dir={name}", *(f"--set={one}" for one in few)),
            ],
            cwd=tmp_path,
            env={
                **os.environ,
                "ACCELERATE_USE_CPU": "true",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": f"{tmp_path}:{REPOSITORY}",
                "LOG": str(tmp_path / f"{name}.log"),
                "ALONE": alone,
            },
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        lines = (tmp_path / f"{name}.log").read_text().splitlines()
        encoded[name] = [line for line in lines if not line.endswith(" None")]  # those that may be cropped
    chunks = [line.partition(" ")[2] for line in encoded["shared"]]
    assert len(chunks) == len(set(chunks)) == 6
    assert {line[0] for line in encoded["shared"]} == {"0", "1"}
    assert len(encoded["alone"]) > 6
    assert outcome(tmp_path / "shared") == outcome(tmp_path / "alone")


def test_more_processes_than_a_batch_has_samples_are_refused(launched: Launched, tmp_path: Path) -> None:
    process = launched.start(tmp_path / "runs", "--set", "batch_size=1")
    output, _ = process.communicate(timeout=900)
    assert process.returncode != 0
    assert "2 processes cannot share batches of 1 samples; start at most 1" in output


def test_a_launcher_and_xdist_are_refused_together(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", REPOSITORY / "bench", "--preset=mini", f"--encoder={ENCODER}", "-n", "2"],
        env={**os.environ, "WORLD_SIZE": "2", "RANK": "0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert finished.returncode == 4
    assert "-n cannot be combined with a launcher, which has started 2 processes" in finished.stderr + finished.stdout
