"""What sessions import, in processes of their own, and how often a decoder is built: nothing that is not needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.metrics.captions.factory import write_judges
from tests.shard_factory import tone, write_shard
from xares_bench.config.catalogue import load_catalogue
from xares_bench.metrics.captions import judges
from xares_bench.metrics.captions.files import FOLDER_VARIABLE
from xares_bench.suite import pipeline as pipeline

# Each takes longer to import than a session takes for all else that finds everything finished. accelerate does not: it
# says which device there is.
HEAVY = ("jiwer", "peft", "sacrebleu", "scipy", "sklearn", "soundfile", "soxr", "transformers", "webdataset")
AT_WORK = ("lalm.batch", "training.sampler", "lalm.generation", "lalm.model", "training.loop")

WATCHED_SESSION = f"""
import sys, pytest

class Watcher:
    def pytest_unconfigure(self):
        watched = {(*HEAVY, *(f"xares_bench.{name}" for name in AT_WORK))!r}
        print("imported:", *(name for name in watched if name in sys.modules))

sys.exit(pytest.main(sys.argv[1:], plugins=[Watcher()]))
"""


@pytest.fixture
def session_options(tmp_path: Path) -> list[str]:
    """Options of a session that trains on one tiny dataset and scores it."""
    dataset = load_catalogue("mini").datasets["librispeech"]
    for split in (dataset.train, dataset.eval):
        assert split is not None
        for shard in split.shards:
            clips = [
                (f"{i}", tone(0.2 + 0.05 * i, 150 + 40 * i), {split.target_keys[0]: f"word {i}"}) for i in range(3)
            ]
            write_shard(tmp_path / "data" / shard, clips)
    return [
        *(str(REPOSITORY / "bench"), "-p", "no:cacheprovider", "--preset=mini", "-k", "librispeech"),
        f"--encoder={REPOSITORY / 'examples' / 'logmel_encoder.py'}",
        *("--train=librispeech", f"--data-home={tmp_path / 'data'}", f"--runs-dir={tmp_path / 'runs'}"),
        *("--set", "steps=2", "--set", "batch_size=2", "--set", "max_new_tokens=3"),
    ]


def watched(options: list[str]) -> tuple[str, list[str]]:
    """The output of a session in a process of its own, and what it imported of what is watched."""
    command = [sys.executable, "-c", WATCHED_SESSION, *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
    return done.stdout, done.stdout.splitlines()[-1].removeprefix("imported:").split()


def counted(module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by an item with every call of a function from now on."""
    calls: list[str] = []
    work = getattr(module, name)

    def call(*arguments: Any) -> Any:
        calls.append(name)
        return work(*arguments)

    monkeypatch.setattr(module, name, call)
    return calls


def test_a_session_that_finds_everything_finished_imports_nothing_heavy(session_options: list[str]) -> None:
    output, imported = watched(session_options)
    assert "0 of 1 scores;" in output
    assert "contract check cached" not in output
    assert {"jiwer", "transformers", "xares_bench.lalm.generation", "xares_bench.training.loop"} <= set(imported)
    output, imported = watched(session_options)
    assert "1 of 1 scores;" in output
    assert "contract check cached" in output
    assert imported == []


def test_the_decoder_is_built_once_and_never_for_what_is_finished(
    session_options: list[str], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, tokenizers = (counted(pipeline, name, monkeypatch) for name in ("build_lalm", "load_tokenizer"))
    for _ in range(2):
        assert pytester.runpytest_inprocess(*session_options).ret == pytest.ExitCode.OK
        assert (len(built), len(tokenizers)) == (1, 1)


def test_caption_judges_are_loaded_for_those_who_will_judge(
    session_options: list[str], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(write_judges(tmp_path / "judges")))
    write_shard(tmp_path / "own.tar", [("clip", tone(0.2), {"caption": "a dog"})])
    own = tmp_path / "own.yaml"
    own.write_text(
        "own:\n  data:\n    data:\n    - own.tar\n    key: caption\n    prompt: Describe it.\n"
        "  batch_size: 1\n  num_workers: 0\n  metric: FENSE\n"
    )
    monkeypatch.chdir(tmp_path)
    loaded = counted(judges, "load_judges", monkeypatch)
    options = [*session_options, f"--eval={own}", "-k", "test_custom"]
    assert pytester.runpytest_inprocess(*options).ret == pytest.ExitCode.OK
    num_loaded = len(loaded)
    assert num_loaded > 0
    again = pytester.runpytest_inprocess(*options)
    again.assert_outcomes(passed=1)
    again.stdout.fnmatch_lines(["cached: *1 of 1 scores; *"])
    assert len(loaded) == num_loaded
