"""Texts of test sets: several processes share each set, and the result is that of one, whatever happens to the others.

With gloo on this machine's processor; on GPUs nothing of this was run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.runtime.test_processes import LAUNCHER
from tests.shard_factory import tone, write_shard
from xares_bench.core.errors import DataError
from xares_bench.core.store import Store
from xares_bench.suite.texts import PartTexts, TextStore, remove_texts


def a_part(number: int) -> PartTexts:
    return PartTexts(
        clips=[f"clip-{number}", "\ud800"],
        texts=[f"text {number}", 'ü "\x00'],
        rows=[(0, "a"), (1, "b"), (1, "c")],
        counts={"num_samples": 3},
        duration_s=0.1 + 0.2,
        features_s=1.5,
        generation_s=2.5,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(root=tmp_path / "store")


def test_a_part_is_read_as_it_was_written(tmp_path: Path) -> None:
    a_part(1).save(tmp_path)
    assert PartTexts.load(tmp_path) == a_part(1)


def test_parts_are_made_once_and_removed_with_the_score(store: Store) -> None:
    made: list[int] = []

    def make(number: int) -> PartTexts:
        made.append(number)
        return a_part(number)

    TextStore(store, "score", 2, make).make_free()
    assert TextStore(store, "score", 3, make).all() == [a_part(0), a_part(1), a_part(2)]
    TextStore(store, "other", 1, make).make_free()
    assert made == [0, 1, 2, 0]
    store.obtain("scores", "score", lambda _: {})
    remove_texts(store, "score")
    TextStore(store, "score", 3, make).make_free()
    assert made == [0, 1, 2, 0], "what is scored needs no texts"
    assert [path.name for path in (store.root / "texts").iterdir()] == ["other"]


def test_a_part_that_somebody_is_at_is_left_to_them_and_waited_for_only_at_the_end(store: Store) -> None:
    begun, go_on = threading.Event(), threading.Event()
    made: list[tuple[str, int]] = []

    def make_slowly(number: int) -> PartTexts:
        begun.set()
        assert go_on.wait(60)
        made.append(("slow", number))
        return a_part(number)

    def make(number: int) -> PartTexts:
        made.append(("quick", number))
        return a_part(number)

    slow = threading.Thread(target=TextStore(store, "score", 1, make_slowly).make_free)
    slow.start()
    assert begun.wait(60)
    quick = TextStore(Store(root=store.root), "score", 3, make)
    quick.make_free()
    assert made == [("quick", 1), ("quick", 2)]
    threading.Timer(0.3, go_on.set).start()
    assert quick.all() == [a_part(0), a_part(1), a_part(2)]
    assert made[2:] == [("slow", 0)]
    slow.join()


def test_a_part_that_failed_is_free_for_the_next(store: Store) -> None:
    def fail(number: int) -> PartTexts:
        raise DataError(f"part {number}")

    with pytest.raises(DataError, match="part 0"):
        TextStore(store, "score", 2, fail).make_free()
    assert TextStore(store, "score", 2, a_part).all() == [a_part(0), a_part(1)]


def test_nothing_is_made_for_a_set_that_is_scored_meanwhile(store: Store) -> None:
    """Another process stores the score and removes the parts between this one's look at the score and at the part."""
    texts = TextStore(store, "score", 1, lambda _: pytest.fail("made again"))
    looks = iter([False, True])
    texts._is_scored = lambda: next(looks)  # type: ignore[method-assign]
    texts.make_free()
    assert store.find("texts/score", texts._key(0)) is None


# Whole sessions. Parts of two samples, so that a few clips have several; FAULT says what the process of number 1 does
# when it is to generate. LOG has a line for every part that a process has generated for.
PLUGIN = """
import os, signal, time
from pathlib import Path
from xares_bench.core.errors import OutOfMemory
from xares_bench.features import rows
from xares_bench.suite.pipeline import Pipeline
from xares_bench.suite.suite import Suite

rows._PART_SAMPLES = 2
generate = Pipeline.generate
rank, fault = os.environ["RANK"], os.environ["FAULT"]

def generate_and_note(self, dataset, lalm, part, title, corruption):
    time.sleep(0.3)
    if rank == "1" and fault == "no memory":
        raise OutOfMemory("not enough memory for generation of one clip")
    if rank == "1" and fault == "is killed" and Path(os.environ["LOG"]).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    made = generate(self, dataset, lalm, part, title, corruption)
    with open(os.environ["LOG"], "a") as log:
        log.write(f"{rank} {title}\\n")
    return made

def wait_for_scores(self, names, corrupted):
    while len(list(self.plan.runs_folder.glob("store/scores/*/manifest.json"))) < len(names):
        time.sleep(0.1)

Pipeline.generate = generate_and_note
if rank == "1" and fault == "leaves all to the other":
    Suite.evaluate_share = wait_for_scores
"""
TRAIN = "train_data: {large: {prompt: What?, data: 'large_0.tar', key: label}}\n"
EVAL = "".join(
    f"{name}: {{data: {{data: '{name}_*.tar', key: label, prompt: What?}}, metric: Accuracy}}\n"
    for name in ("large", "small", "broken")
)


class Launched:
    """Sessions in two processes, over a large test set, a small one, and one with too many unusable samples."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "parts_of_two.py").write_text(PLUGIN)
        (folder / "train.yaml").write_text(TRAIN)
        (folder / "eval.yaml").write_text(EVAL)
        for name, num_shards in (("large", 6), ("small", 1), ("broken", 3)):
            for number in range(num_shards):
                clips: list[tuple[str, Any, dict[str, Any]]] = [
                    (f"clip-{i}", tone(0.2, 150 + 90 * number + 40 * i), {"label": f"w{i}"}) for i in range(3)
                ]
                if (name, number) == ("large", 2):
                    clips[1] = ("silent", b"no audio", {"label": "w1"})
                    clips[2] = ("corrupt", tone(0.2), {"label": "???"})
                if name == "broken":
                    clips[1:] = [(f"silent-{i}", b"no audio", {"label": "w1"}) for i in range(2)]
                write_shard(folder / f"{name}_{number}.tar", clips)

    def start(self, runs: str, fault: str, *options: str) -> subprocess.Popen[str]:
        few = ("steps=2", "batch_size=2", "shuffle_buffer=4", "sort_window=4", "max_new_tokens=4")
        return subprocess.Popen(
            [
                *(sys.executable, *LAUNCHER, "-m", "pytest", str(REPOSITORY / "bench" / "test_custom.py")),
                *("-p", "no:cacheprovider", "-p", "parts_of_two", "--preset=mini", f"--runs-dir={runs}"),
                *(f"--encoder={REPOSITORY / 'examples' / 'logmel_encoder.py'}", "--train=train.yaml"),
                *("--eval=eval.yaml", *(f"--set={change}" for change in (*few, "max_dropped_share=0.2")), *options),
            ],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "ACCELERATE_USE_CPU": "true",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": f"{self.folder}:{REPOSITORY}",
                "FAULT": fault,
                "LOG": str(self.folder / f"{runs}.log"),
            },
        )

    def run(self, runs: str, fault: str, *options: str) -> tuple[int, str]:
        process = self.start(runs, fault, *options)
        output, _ = process.communicate(timeout=900)
        return process.returncode, output

    def made(self, runs: str) -> list[tuple[str, str]]:
        """The process and the title of every part that was generated for."""
        lines = (self.folder / f"{runs}.log").read_text().splitlines()
        return [(line[0], line[2:]) for line in lines]

    def outcome(self, runs: str) -> dict[str, Any]:
        """All that must not depend on who generated for what."""
        folder = self.folder / runs
        patterns = ("*/predictions/*", "*/scores.tsv", "store/scores/*/predictions.jsonl", "store/scores/*/*.npz")
        found: dict[str, Any] = {
            str(path.relative_to(folder)): path.read_bytes() for pattern in patterns for path in folder.glob(pattern)
        }
        (results,) = folder.glob("*/results.json")
        for record in json.loads(results.read_text())["scores"]:
            times = ("features_s", "generation_s", "reused")
            found[record["dataset"]] = {name: value for name, value in record.items() if name not in times}
        return found


USABLE = ("-k", "large or small")


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    return Launched(tmp_path_factory.mktemp("launched"))


@pytest.fixture(scope="module")
def by_one(launched: Launched) -> dict[str, Any]:
    """What comes out if one of the processes generates all texts."""
    status, output = launched.run("one", "leaves all to the other", *USABLE)
    assert status == 0, output
    assert {rank for rank, _ in launched.made("one")} == {"0"}
    return launched.outcome("one")


def parts_left(runs: Path) -> Iterator[Path]:
    return runs.glob("store/texts/*")


def test_two_processes_share_a_set_and_its_score_is_that_of_one(launched: Launched, by_one: dict[str, Any]) -> None:
    status, output = launched.run("two", "none", *USABLE)
    assert status == 0, output
    made = launched.made("two")
    assert Counter(title for _, title in made) == Counter(
        ["small", *(f"large, part {number} of 6" for number in range(1, 7))]
    )
    assert {rank for rank, title in made if title != "small"} == {"0", "1"}
    assert launched.outcome("two") == by_one
    large = by_one["large"]
    assert [dropped["clip"] for dropped in large["dropped"]] == ["silent", "corrupt"]
    assert (large["num_clips"], large["num_rows"], large["num_corrupt_targets"]) == (16, 16, 1)
    assert not list(parts_left(launched.folder / "two"))


def test_one_that_has_no_memory_fails_the_run_and_the_next_goes_on(launched: Launched, by_one: dict[str, Any]) -> None:
    """Also without cached features."""
    status, output = launched.run("no-memory", "no memory", "--feature-budget=0", *USABLE)
    assert status != 0, output
    assert "xares-bench: process 1 of 2: small: not enough memory for generation of one clip" in output
    assert {rank for rank, _ in launched.made("no-memory")} == {"0"}
    status, output = launched.run("no-memory", "none", "--feature-budget=0", *USABLE)
    assert status == 0, output
    assert set(Counter(launched.made("no-memory")).values()) == {1}, "what is finished is not made again"
    assert launched.outcome("no-memory") == by_one


def test_one_that_is_killed_ends_the_run_and_the_next_goes_on(launched: Launched, by_one: dict[str, Any]) -> None:
    status, output = launched.run("killed", "is killed", *USABLE)
    assert status != 0, output
    finished = launched.made("killed")
    assert finished
    status, output = launched.run("killed", "none", *USABLE)
    assert status == 0, output
    titles = Counter(title for _, title in launched.made("killed"))
    assert all(titles[title] == 1 for _, title in finished[:-1]), "what is finished is not made again"
    assert launched.outcome("killed") == by_one


def test_a_set_with_too_many_unusable_samples_fails_alone(launched: Launched, by_one: dict[str, Any]) -> None:
    status, output = launched.run("broken", "none")
    assert status != 0
    assert "2 passed" in output
    assert "broken: 6 of 9 samples are unusable, more than the allowed share of 20.0%" in output
    for name in ("large", "small"):
        assert launched.outcome("broken")[name] == by_one[name]


def test_two_processes_share_corrupted_sets_too(launched: Launched, by_one: dict[str, Any]) -> None:
    corrupt = ("--corrupt=noise:0", str(REPOSITORY / "bench" / "test_robustness.py"))
    status, output = launched.run("corrupted", "none", *USABLE, *corrupt)
    assert status == 0, output
    outcome = launched.outcome("corrupted")
    assert {name: outcome[name] for name in by_one} == by_one, "clean scores are what they are without"
    titles = Counter(title for _, title in launched.made("corrupted"))
    assert set(titles.values()) == {1}
    assert {title for title in titles if "noise" in title} == {
        "small with noise:0",
        *(f"large with noise:0, part {number} of 6" for number in range(1, 7)),
    }
    assert not list(parts_left(launched.folder / "corrupted"))
