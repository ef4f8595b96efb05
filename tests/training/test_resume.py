"""An interrupted training goes on where it was: the same bits as if nothing had happened."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY, last_wins
from tests.test_bench import ENCODER, write_data
from tests.training.test_sampler import dataset, training_data, write_difficult_data
from xares_bench.config.catalogue import make_mix
from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.config.recipe import Recipe, TrainingRecipe
from xares_bench.core.progress import Progress
from xares_bench.core.store import Store
from xares_bench.encoders.loading import load_encoder
from xares_bench.features.disk_budget import FeatureBudget
from xares_bench.features.encoding import ClipEncoder
from xares_bench.features.feature_store import FeatureStore
from xares_bench.features.prefetch import ReadRequest
from xares_bench.lalm.batch import Batch, TextTokenizer
from xares_bench.lalm.model import LALM, build_lalm
from xares_bench.runtime.device import open_accelerator
from xares_bench.training.checkpoints import Checkpoint
from xares_bench.training.dataloader import past_of, training_batches
from xares_bench.training.loop import train
from xares_bench.training.sampler import TrainingData, draws

FRAMES = """
import torch

class FrameEncoder(torch.nn.Module):
    output_dim = 4

    def forward(self, audio, mask=None):
        return audio[:, : audio.shape[1] // 400 * 400].reshape(len(audio), -1, 4), None
"""

NUM_BATCHES = 60


@pytest.fixture
def recipe(mini_recipe: Recipe) -> TrainingRecipe:
    """Windows of two and a half batches, so that batches and windows end in different places."""
    return mini_recipe.replace({"batch_size": 4, "shuffle_buffer": 16, "sort_window": 10}).training


class Reading:
    """The batches of difficult data: several targets, none, clips that cannot be decoded, windows of long ones."""

    def __init__(self, folder: Path, tokenizer: TextTokenizer, recipe: TrainingRecipe) -> None:
        self.folder, self.tokenizer, self.recipe = folder, tokenizer, recipe
        (folder / "frames.py").write_text(FRAMES)
        encoder = load_encoder(parse_encoder_spec(str(folder / "frames.py"), None), torch.device("cpu"))
        # Of an encoder that lets padding show, features tell in which company they were encoded.
        self.clips = ClipEncoder(encoder=encoder, honours_mask=True)
        self.mix = make_mix("mix", [dataset("a", ["x?", "y?"]), dataset("b")], [3, 1], steps=1)
        self.shards = write_difficult_data(folder)

    def data(self) -> TrainingData:
        return training_data(self.mix, self.shards, max_audio_s=0.2, max_dropped_share=0.5)

    def continued(self, num_past: int, counts: Mapping[str, Any]) -> TrainingData:
        return self.data().continued(counts, past_of(self.recipe, num_past, counts["unusable"]))

    @contextlib.contextmanager
    def batches(
        self, data: TrainingData, num_past: int, store: str, max_bytes: int = 1 << 30
    ) -> Iterator[Iterator[Batch]]:
        kept = Store(root=self.folder / store)
        features = FeatureStore(kept, self.clips, FeatureBudget(kept, max_bytes))
        drawn = draws(data, features, 0)
        with contextlib.closing(training_batches(drawn, self.clips, self.tokenizer, self.recipe, num_past)) as batches:
            yield batches
        features.abandon_unfinished()


@pytest.fixture
def reading(
    tmp_path: Path, tokenizer: TextTokenizer, recipe: TrainingRecipe, monkeypatch: pytest.MonkeyPatch
) -> Reading:
    monkeypatch.setattr("xares_bench.features.chunks._CHUNK_CLIPS", 4)
    return Reading(tmp_path, tokenizer, recipe)


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    """Whether batches are equal, to the last bit of their features."""
    return len(first) == len(second) and all(
        one.lengths == other.lengths
        and torch.equal(one.frames_FD, other.frames_FD)
        and torch.equal(one.text_ids_M, other.text_ids_M)
        and torch.equal(one.target_ids_T, other.target_ids_T)
        for one, other in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("store", ["the same store", "an empty store", "nothing is kept"])
def test_batches_and_counts_go_on_after_any_step(reading: Reading, store: str) -> None:
    """After every number of batches, with what an interrupted session knows of its samples."""
    counts: list[dict[str, Any]] = []
    undisturbed: list[Batch] = []
    data = reading.data()
    with reading.batches(data, 0, "the same store") as batches:
        for made in itertools.islice(batches, NUM_BATCHES):
            undisturbed.append(made)
            counts.append(json.loads(json.dumps(data.counts())))
    assert counts[-1]["unusable"], "some samples are unusable"
    for num_past in range(1, NUM_BATCHES):
        data = reading.continued(num_past, counts[num_past - 1])
        name = store if store == "the same store" else f"{store} {num_past}"
        with reading.batches(data, num_past, name, 0 if store == "nothing is kept" else 1 << 30) as batches:
            continued = list(itertools.islice(batches, NUM_BATCHES - num_past))
        assert same(continued, undisturbed[num_past:]), num_past
        assert data.counts() == counts[-1], num_past


def test_what_was_used_is_not_decoded_again(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only chunks with rows that still wait in the buffer, or in the window that is sorted, are decoded."""
    decoded: list[str] = []
    read = ReadRequest.read

    def counted(request: ReadRequest) -> object:
        decoded.append(request.sample.key)
        return read(request)

    monkeypatch.setattr(ReadRequest, "read", counted)
    data = reading.data()
    with reading.batches(data, 0, "nothing is kept", 0) as batches:
        list(itertools.islice(batches, 3 * NUM_BATCHES))
    num_undisturbed = len(decoded)
    decoded.clear()
    continued = reading.continued(3 * NUM_BATCHES, data.counts())
    with reading.batches(continued, 3 * NUM_BATCHES, "nothing is kept", 0) as batches:
        next(batches)
    # Of the 16 in the buffer and the 10 in the window; a chunk is 4 samples.
    assert len(continued.past.still_needed) <= 26
    assert len(decoded) <= 4 * 28 < num_undisturbed / 2


# The loop.


@pytest.fixture
def lora(mini_recipe: Recipe) -> Recipe:
    """With dropout, whose random numbers go on, too."""
    return mini_recipe.replace({"adaptation": "lora", "learning_rate": 0.02, "warmup_steps": 4, "lora_dropout": 0.3})


def fit(
    lalm: LALM, batches: Iterator[Batch], recipe: Recipe, start: Checkpoint | None, kept: list[Checkpoint]
) -> list[float]:
    return train(
        lalm,
        batches,
        num_steps=12,
        recipe=recipe.training,
        accelerator=open_accelerator(),
        progress=Progress(),
        start=start,
        keep=kept.append,
        keep_every=5,
    )


def test_parameters_and_losses_are_those_of_an_undisturbed_training(
    batch: Batch,
    decoder_folder: str,
    lora: Recipe,
) -> None:
    undisturbed, continued = (build_lalm(decoder_folder, 6, lora.training) for _ in range(2))
    kept: list[Checkpoint] = []
    losses = fit(undisturbed, itertools.repeat(batch), lora, None, kept)
    assert [checkpoint.num_steps for checkpoint in kept] == [5, 10]
    for start in kept:
        continued = build_lalm(decoder_folder, 6, lora.training)
        torch.rand(3)  # somebody else draws from the global generator
        assert fit(continued, itertools.repeat(batch), lora, start, []) == losses
        for one, other in zip(undisturbed.parameters(), continued.parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_training_after_its_step_and_keeps_it(
    batch: Batch,
    decoder_folder: str,
    lora: Recipe,
    number: signal.Signals,
) -> None:
    def batches() -> Iterator[Batch]:
        for step in itertools.count(1):
            if step == 3:
                os.kill(os.getpid(), number)
            yield batch

    before = signal.getsignal(number)
    undisturbed, interrupted = (build_lalm(decoder_folder, 6, lora.training) for _ in range(2))
    losses = fit(undisturbed, itertools.repeat(batch), lora, None, [])
    kept: list[Checkpoint] = []
    with pytest.raises(KeyboardInterrupt, match="training was interrupted after step 3 of 12"):
        fit(interrupted, batches(), lora, None, kept)
    assert signal.getsignal(number) is before
    assert [checkpoint.num_steps for checkpoint in kept] == [3]
    continued = build_lalm(decoder_folder, 6, lora.training)
    assert fit(continued, itertools.repeat(batch), lora, kept[0], []) == losses


# Whole sessions.


class Sessions:
    """Sessions of one dataset in processes of their own, on the same data."""

    num_steps = 400

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = write_data(folder / "data")

    def command(self, runs: Path, *options: str) -> list[str]:
        return [
            *(sys.executable, "-m", "pytest", str(REPOSITORY / "bench"), "-p", "no:cacheprovider"),
            *last_wins(
                [
                    *("--preset=mini", f"--encoder={ENCODER}", f"--data-home={self.data}", f"--runs-dir={runs}"),
                    *("--train=clotho", "-k", "clotho", "--set", f"steps={self.num_steps}", "--set", "batch_size=4"),
                    *("--set", "max_new_tokens=3", "--checkpoint-steps=20", *options),
                ]
            ),
        ]

    def start(self, runs: Path, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(runs, *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def run(self, runs: Path, *options: str) -> str:
        process = self.start(runs, *options)
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
        return output


def outcome(runs: Path) -> dict[str, bytes]:
    """What a session has made that must not depend on interruptions."""
    patterns = ("store/lalms/*/trained.safetensors", "store/lalms/*/loss.tsv", "*/scores.tsv", "*/predictions/*")
    return {path.name: path.read_bytes() for pattern in patterns for path in runs.glob(pattern)}


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    return Sessions(tmp_path_factory.mktemp("sessions"))


@pytest.fixture(scope="module")
def undisturbed(sessions: Sessions) -> dict[str, bytes]:
    sessions.run(sessions.folder / "undisturbed")
    found = outcome(sessions.folder / "undisturbed")
    assert found.keys() == {"trained.safetensors", "loss.tsv", "scores.tsv", "clotho.jsonl"}
    return found


def step_of(runs: Path) -> int:
    """The step of the newest checkpoint."""
    found = sorted(runs.glob("store/checkpoints/*/step-*/manifest.json"))
    return int(found[-1].parent.name.removeprefix("step-")) if found else 0


def wait_for_step(process: subprocess.Popen[str], runs: Path, step: int) -> None:
    while process.poll() is None and step_of(runs) < step:
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_session_goes_on(
    sessions: Sessions, undisturbed: dict[str, bytes], number: signal.Signals
) -> None:
    runs = sessions.folder / f"interrupted by {number.name}"
    process = sessions.start(runs)
    wait_for_step(process, runs, 40)
    process.send_signal(number)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 2, output
    assert "training clotho was interrupted after step" in output
    step = step_of(runs)
    output = sessions.run(runs)
    assert f"LALM clotho: training resumes after step {step} of 400" in output
    assert outcome(runs) == undisturbed
    assert not list(runs.glob("store/checkpoints/*")), "of a finished training nothing is left"


def test_another_recipe_begins_anew_with_a_word(sessions: Sessions, undisturbed: dict[str, bytes]) -> None:
    runs = sessions.folder / "another recipe"
    process = sessions.start(runs, "--set", "learning_rate=0.001")
    wait_for_step(process, runs, 20)
    process.kill()
    process.communicate()
    step = step_of(runs)
    output = sessions.run(runs)
    assert f"LALM clotho: training from scratch; found a checkpoint at step {step}, but recipe, " in output
    assert outcome(runs) == undisturbed


@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_end_is_the_same(
    sessions: Sessions, undisturbed: dict[str, bytes], num_kills: int
) -> None:
    """At random moments of the whole session: starting, encoding, training, writing, generating."""
    folders = (sessions.folder / f"killed {num_kills} times, try {number}" for number in itertools.count())
    runs = next(folders)
    moments = random.Random(num_kills)
    started = time.monotonic()
    sessions.run(sessions.folder / f"timed {num_kills}")
    lasted_s = time.monotonic() - started
    num_killed = 0
    while num_killed < num_kills:
        process = sessions.start(runs)
        try:
            process.communicate(timeout=moments.uniform(0.3, 1) * lasted_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            num_killed += 1
        else:  # it was finished, in spite of all: once more, from nothing
            assert process.returncode == 0
            assert outcome(runs) == undisturbed
            runs = next(folders)
    sessions.run(runs)
    assert outcome(runs) == undisturbed
