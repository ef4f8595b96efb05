"""Steps that are recorded, on the stand-in for a GPU."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.conftest import MakeClips
from tests.plain_lalm import save_decoder
from tests.tape import TapeRecorder
from xares_bench.config.recipe import Recipe
from xares_bench.core.errors import TrainingError
from xares_bench.core.progress import Progress
from xares_bench.lalm import lora
from xares_bench.lalm.batch import Batch, TextTokenizer, Utterance, collate
from xares_bench.lalm.model import LALM, build_lalm
from xares_bench.runtime.recording import Recorder
from xares_bench.training.checkpoints import Checkpoint
from xares_bench.training.loop import train
from xares_bench.training.losses import LossReader
from xares_bench.training.steps import recorder_for

NUM_STEPS = 12


class NeverRecords(TapeRecorder):
    """Steps run on the memory of a recording, kernel by kernel."""

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        return lambda: self.run(work)


@pytest.fixture
def batches(make_clips: MakeClips, tokenizer: TextTokenizer) -> list[Batch]:
    """Batches of two shapes, in turn irregularly; within a shape, of other lengths."""

    def batch(*num_frames: int) -> Batch:
        clips = make_clips(list(num_frames))
        texts = [tokenizer.tokens(text) for text in ("ab", "c", "abcd")]
        return collate(
            [
                Utterance(clip=clip, prompt_ids=texts[2], target_ids=(*texts[number % 2], tokenizer.eos_id))
                for number, clip in enumerate(clips)
            ]
        )

    short = [batch(3, 9), batch(20, 4), batch(11, 11), batch(40, 41)]
    long = [batch(70, 3), batch(80, 90)]
    return [short[0], long[0], *short[1:3], long[1], short[3], *short, long[0], short[0]]


@pytest.fixture
def recipe(mini_recipe: Recipe) -> Recipe:
    return mini_recipe.replace({"adaptation": "lora", "lora_dropout": 0.0, "learning_rate": 0.01, "warmup_steps": 4})


def fit(
    lalm: LALM,
    batches: Iterable[Batch],
    recipe: Recipe,
    recorder: Recorder | None,
    *,
    start: Checkpoint | None = None,
    keep: Callable[[Checkpoint], None] | None = None,
) -> list[float]:
    return train(
        lalm,
        batches,
        num_steps=NUM_STEPS,
        recipe=recipe.training,
        accelerator=Accelerator(),
        progress=Progress(),
        recorder=recorder,
        start=start,
        keep=keep,
        keep_every=7,
    )


def weights(lalm: LALM) -> list[torch.Tensor]:
    return [value.detach().clone() for _, value in lalm.trained_parameters()]


def distance(one: LALM, other: LALM) -> float:
    pairs = zip(weights(one), weights(other), strict=True)
    return max(float((a - b).norm() / b.norm().clamp(min=1e-6)) for a, b in pairs)


@pytest.mark.parametrize("adaptation", ["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_recorded_steps_are_the_plain_ones(
    family: str, adaptation: str, batches: list[Batch], recipe: Recipe, tmp_path: Path
) -> None:
    """Over two shapes, a learning rate that changes, and numbers of targets that differ."""
    recipe = recipe.replace({"adaptation": adaptation, "max_grad_norm": 0.5})
    no_dropout = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0} if family == "gpt2" else {}
    folder = save_decoder(tmp_path, family, **no_dropout)
    packed, plain, recorded = (build_lalm(folder, 6, recipe.training) for _ in range(3))
    recorder = TapeRecorder()
    expected = fit(packed, batches, recipe, None)
    assert fit(plain, batches, recipe, NeverRecords()) == pytest.approx(expected, rel=1e-5)
    losses = fit(recorded, batches, recipe, recorder)
    assert recorder.problem is None
    assert recorder.num_recorded == 2
    assert recorder.num_repeated == NUM_STEPS - 2
    assert losses == pytest.approx(expected, rel=1e-5)
    assert distance(recorded, plain) < 1e-5
    assert not recorded.training
    assert all(value.grad is None for value in recorded.parameters())


def test_dropout_draws_new_numbers_at_every_step_the_same_ones_as_without_recordings(
    batches: list[Batch], recipe: Recipe, decoder_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "_draws_places", lambda device: False)  # a GPU's dropout
    recipe = recipe.replace({"lora_dropout": 0.3, "learning_rate": 1e-30})
    found = []
    for recorder in (NeverRecords(), TapeRecorder(), TapeRecorder()):
        lalm = build_lalm(decoder_folder, 6, recipe.training)
        with torch.no_grad():
            for name, value in lalm.trained_parameters():
                if "lora_B" in name:
                    value.fill_(0.1)
        found.append(fit(lalm, itertools.repeat(batches[0]), recipe, recorder))
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[1] == found[2]
    assert len(set(found[1])) == NUM_STEPS  # nothing is learned, but every step drops other values


def test_a_training_that_was_continued_is_the_same(batches: list[Batch], recipe: Recipe, decoder_folder: str) -> None:
    whole, first, second = (build_lalm(decoder_folder, 6, recipe.training) for _ in range(3))
    losses = fit(whole, batches, recipe, TapeRecorder())
    kept: list[Checkpoint] = []
    fit(first, batches, recipe, TapeRecorder(), keep=kept.append)
    (checkpoint,) = kept
    assert checkpoint.num_steps == 7
    assert fit(second, batches[7:], recipe, TapeRecorder(), start=copy.deepcopy(checkpoint)) == losses
    assert distance(whole, second) == 0
    unrecorded = build_lalm(decoder_folder, 6, recipe.training)
    assert fit(unrecorded, batches[7:], recipe, None, start=checkpoint) == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_without_memory_for_recordings_the_step_is_made_again_and_the_training_goes_on_without_them(
    dropout: float, batches: list[Batch], recipe: Recipe, decoder_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "_draws_places", lambda device: False)
    recipe = recipe.replace({"lora_dropout": dropout})
    lalm, plain = (build_lalm(decoder_folder, 6, recipe.training) for _ in range(2))
    recorder = TapeRecorder()
    failures: list[int] = []

    def fail_at_the_second_shape(module: nn.Module, inputs: object) -> None:
        if recorder.num_recorded and not failures:
            failures.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    decoder: Any = lalm.decoder
    decoder.model.layers[1].mlp.register_forward_pre_hook(fail_at_the_second_shape)
    ordered = [*batches[2:4], *batches]
    with pytest.warns(RuntimeWarning, match="too little memory for training steps as CUDA graphs"):
        losses = fit(lalm, ordered, recipe, recorder)
    assert failures
    # The fourth step is the one that failed. Later ones are not padded here, and dropout then draws other numbers.
    num_compared = 4 if dropout else NUM_STEPS
    expected = fit(plain, ordered, recipe, NeverRecords())
    assert losses[:num_compared] == pytest.approx(expected[:num_compared], rel=1e-5)


def test_a_decoder_that_waits_for_a_value_is_trained_without_recordings(
    batches: list[Batch], recipe: Recipe, decoder_folder: str
) -> None:
    lalm, plain = (build_lalm(decoder_folder, 6, recipe.training) for _ in range(2))
    decoder: Any = lalm.decoder
    decoder.lm_head.register_forward_hook(lambda module, inputs, output: output * float(output.isfinite().all()))
    with pytest.warns(RuntimeWarning, match="one by one, which is slower") as noted:
        losses = fit(lalm, batches, recipe, TapeRecorder())
    assert len([one for one in noted if "one by one" in str(one.message)]) == 1
    assert losses == pytest.approx(fit(plain, batches, recipe, None), rel=1e-5)


def test_a_loss_that_is_read_later_is_named_by_its_own_step_and_nothing_is_kept_after_it(
    batches: list[Batch], recipe: Recipe, decoder_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xares_bench.training.loop.LossReader", lambda device: LossReader(torch.device("cuda")))
    batches[5].frames_FD.fill_(float("nan"))
    kept: list[Checkpoint] = []
    with pytest.raises(TrainingError, match=f"the loss is nan at step 6 of {NUM_STEPS}"):
        fit(build_lalm(decoder_folder, 6, recipe.training), batches, recipe, None, keep=kept.append)
    assert not kept


def test_losses_that_are_read_later_are_complete(
    batches: list[Batch], recipe: Recipe, decoder_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fit(build_lalm(decoder_folder, 6, recipe.training), batches, recipe, None)
    monkeypatch.setattr("xares_bench.training.loop.LossReader", lambda device: LossReader(torch.device("cuda")))
    kept: list[Checkpoint] = []
    found = fit(build_lalm(decoder_folder, 6, recipe.training), batches, recipe, None, keep=kept.append)
    assert found == expected
    assert kept[0].values["losses"] == expected[:7]


def test_only_a_gpu_records_and_only_steps_that_wait_for_nothing(
    recipe: Recipe, decoder_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xares_bench.training.steps.Recorder", lambda device: device.type)
    lalm = build_lalm(decoder_folder, 6, recipe.training)
    padded_anyway = build_lalm(save_decoder(tmp_path, "trocr"), 6, recipe.training)

    def recorder(lalm: LALM = lalm, changes: Mapping[str, Any] | None = None, **own: Any) -> object:
        gpu = {"device": torch.device("cuda"), "num_processes": 1, "scaler": None, **own}
        accelerator: Any = SimpleNamespace(**gpu)
        return recorder_for(lalm, recipe.replace(changes or {}).training, accelerator)

    assert recorder() == "cuda"
    for others in (
        {"device": torch.device("cpu")},
        {"device": torch.device("mps")},
        {"num_processes": 2},
        {"scaler": object()},
        {"changes": {"cuda_graphs": False}},
        {"changes": {"compile": True}},
        {"lalm": padded_anyway},
    ):
        assert recorder(**others) is None, others
