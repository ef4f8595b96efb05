"""What sessions import, in processes of their own, and how often a decoder is built: nothing that is not needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.shard_factory import tone, write_shard
from xares_bench import lalm
from xares_bench.catalogue import load_catalogue

# Each takes longer to import than a session takes for all else that finds everything finished. accelerate does not: it
# says which device there is.
HEAVY = ("jiwer", "peft", "sacrebleu", "scipy", "sklearn", "soundfile", "soxr", "transformers", "webdataset")
AT_WORK = ("batches", "draws", "generation", "lalm", "training")

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


def test_a_session_that_finds_everything_finished_imports_nothing_heavy(session_options: list[str]) -> None:
    output, imported = watched(session_options)
    assert "0 of 1 scores reused" in output
    assert "contract reused" not in output
    assert {"jiwer", "transformers", "xares_bench.generation", "xares_bench.training"} <= set(imported)
    output, imported = watched(session_options)
    assert "1 of 1 scores reused" in output
    assert "contract reused" in output
    assert imported == []


def test_the_decoder_is_built_once_and_never_for_what_is_finished(
    session_options: list[str], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def count(name: str) -> None:
        work = getattr(lalm, name)

        def counted(*arguments: Any) -> Any:
            loaded.append(name)
            return work(*arguments)

        monkeypatch.setattr(lalm, name, counted)

    count("build_lalm")
    count("load_tokenizer")
    assert pytester.runpytest_inprocess(*session_options).ret == pytest.ExitCode.OK
    assert sorted(loaded) == ["build_lalm", "load_tokenizer"]
    assert pytester.runpytest_inprocess(*session_options).ret == pytest.ExitCode.OK
    assert sorted(loaded) == ["build_lalm", "load_tokenizer"]
