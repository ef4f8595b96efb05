from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch._dynamo.utils import counters
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.conftest import MakeClips
from tests.plain_lalm import Float64, save_decoder
from xares_bench.config.recipe import Recipe
from xares_bench.core.errors import TrainingError, UsageError
from xares_bench.core.progress import Progress
from xares_bench.lalm.batch import Batch, TextTokenizer, Utterance, collate
from xares_bench.lalm.model import LALM, build_lalm
from xares_bench.runtime.device import open_accelerator
from xares_bench.training.loop import train


def fit(lalm: LALM, batches: Iterator[Batch], recipe: Recipe, num_steps: int) -> list[float]:
    return train(
        lalm, batches, num_steps=num_steps, recipe=recipe.training, accelerator=Accelerator(), progress=Progress()
    )


def test_training_learns_and_is_the_same_again(batch: Batch, decoder_folder: str, mini_recipe: Recipe) -> None:
    recipe = mini_recipe.replace({"adaptation": "lora", "learning_rate": 0.02, "warmup_steps": 2})
    first, second = (build_lalm(decoder_folder, 6, recipe.training) for _ in range(2))
    losses = fit(first, itertools.repeat(batch), recipe, 30)
    torch.rand(3)  # somebody else draws from the global generator
    assert fit(second, itertools.repeat(batch), recipe, 30) == losses
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not first.training


@pytest.mark.versions
def test_steps_equal_a_plain_loop(batch: Batch, decoder_folder: str, mini_recipe: Recipe) -> None:
    """The recipe written out: rate, weight decay, clipping and mean over targets, by textbook AdamW."""
    recipe = mini_recipe.replace({"warmup_steps": 2, "learning_rate": 0.01, "max_grad_norm": 0.5})
    lalm, plain = (build_lalm(decoder_folder, 6, recipe.training).double() for _ in range(2))
    with Float64():
        losses = fit(lalm, itertools.repeat(batch), recipe, 6)
        parameters = dict(plain.named_parameters())
        first = {name: torch.zeros_like(value) for name, value in parameters.items()}
        second = {name: torch.zeros_like(value) for name, value in parameters.items()}
        for step, rate in enumerate([0.0, 0.5, 1.0, 0.75, 0.5, 0.25], start=1):
            loss = plain(batch) / batch.num_targets
            torch.testing.assert_close(float(loss.detach()), losses[step - 1], rtol=1e-9, atol=0)
            gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
            norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
            with torch.no_grad():
                for name, value in parameters.items():
                    gradient = gradients[name] * min(1.0, 0.5 / (float(norm) + 1e-6))
                    first[name] = 0.9 * first[name] + 0.1 * gradient
                    second[name] = 0.999 * second[name] + 0.001 * gradient**2
                    decays = 0.01 if not (name.endswith("bias") or "norm" in name) else 0.0
                    value.sub_(0.01 * rate * decays * value)
                    update = (first[name] / (1 - 0.9**step)) / (torch.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
                    value.sub_(0.01 * rate * update)


def test_a_loss_that_is_no_number_ends_the_training(batch: Batch, decoder_folder: str, mini_recipe: Recipe) -> None:
    batch.frames_FD[0, 0] = float("nan")
    lalm = build_lalm(decoder_folder, 6, mini_recipe.training)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1 of 3"):
        fit(lalm, itertools.repeat(batch), mini_recipe, 3)


@pytest.mark.parametrize("deterministic", [True, False])
def test_global_switches_are_left_as_they_were(
    deterministic: bool, batch: Batch, decoder_folder: str, mini_recipe: Recipe
) -> None:
    recipe = mini_recipe.replace({"deterministic": deterministic})
    state = torch.get_rng_state()
    seen: list[bool] = []

    def watched() -> Iterator[Batch]:
        while True:
            seen.append(torch.are_deterministic_algorithms_enabled())
            yield batch

    fit(build_lalm(decoder_folder, 6, recipe.training), watched(), recipe, 2)
    assert seen == [deterministic] * 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def test_bf16_is_only_for_the_training(
    mixed_precision: Callable[[str], None], batch: Batch, decoder_folder: str, mini_recipe: Recipe
) -> None:
    recipe = mini_recipe.replace({"adaptation": "lora", "learning_rate": 0.02, "warmup_steps": 2})
    exact, mixed = (build_lalm(decoder_folder, 6, recipe.training) for _ in range(2))
    exact_losses = fit(exact, itertools.repeat(batch), recipe, 20)
    mixed_precision("bf16")
    accelerator = open_accelerator()
    assert accelerator.mixed_precision == "bf16"
    seen: list[torch.dtype] = []
    decoder: Any = mixed.decoder
    handle = decoder.get_output_embeddings().register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.dtype)
    )
    losses = train(
        mixed,
        itertools.repeat(batch),
        num_steps=20,
        recipe=recipe.training,
        accelerator=accelerator,
        progress=Progress(),
    )
    assert seen == [torch.bfloat16] * 20
    assert losses != exact_losses
    assert losses[-1] < 0.8 * losses[0]
    assert {value.dtype for value in mixed.parameters()} == {torch.float32}

    seen.clear()
    with torch.inference_mode():
        mixed(batch)
    assert seen == [torch.float32], "accelerate's wrapping outlived the training"
    handle.remove()
    assert vars(mixed).keys() == vars(exact).keys()
    assert not mixed.training


@pytest.mark.parametrize("ends_badly", [True, False])
def test_nothing_of_accelerate_is_left_on_the_lalm(
    ends_badly: bool,
    mixed_precision: Callable[[str], None],
    batch: Batch,
    decoder_folder: str,
    mini_recipe: Recipe,
) -> None:
    mixed_precision("bf16")
    lalm = build_lalm(decoder_folder, 6, mini_recipe.training)
    before = set(vars(lalm))
    if ends_badly:
        batch.frames_FD[0, 0] = float("nan")
        with pytest.raises(TrainingError):
            fit(lalm, itertools.repeat(batch), mini_recipe, 1)
    else:
        fit(lalm, itertools.repeat(batch), mini_recipe, 1)
    assert set(vars(lalm)) == before


def test_the_rate_waits_while_steps_are_left_out(batch: Batch, decoder_folder: str, mini_recipe: Recipe) -> None:
    """In fp16, when the gradients overflow: here with a scaler on the CPU that begins with too large a scale."""

    class Scaling(Accelerator):  # type: ignore[misc]
        mixed_precision, native_amp = "fp16", True

        def autocast(self, *_: object) -> AbstractContextManager[None]:
            return nullcontext()

    accelerator = Scaling()
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)
    rates: list[float] = []
    were_skipped: list[bool] = []

    def look(optimizer: Any, _arguments: Any, _options: Any) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        were_skipped.append(bool(optimizer.found_inf))

    handle = register_optimizer_step_pre_hook(look)
    recipe = mini_recipe.replace({"warmup_steps": 2, "learning_rate": 1.0})
    try:
        train(
            build_lalm(decoder_folder, 6, recipe.training),
            itertools.repeat(batch),
            num_steps=12,
            recipe=recipe.training,
            accelerator=accelerator,
            progress=Progress(),
        )
    finally:
        handle.remove()
    num_skipped = sum(were_skipped)
    assert 0 < num_skipped < 12
    assert were_skipped == [True] * num_skipped + [False] * (12 - num_skipped)
    assert rates[: num_skipped + 3] == [0.0] * num_skipped + [0.0, 0.5, 1.0]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_steps_equal_the_others(
    make_clips: MakeClips, decoder_folder: str, tokenizer: TextTokenizer, mini_recipe: Recipe
) -> None:
    """Over batches of different lengths, fewer shapes than batches, and with nothing compiled left behind."""
    recipe = mini_recipe.replace({"adaptation": "lora", "lora_dropout": 0.0, "learning_rate": 0.01, "warmup_steps": 2})
    batches = [
        collate(
            [
                Utterance(clip=clip, prompt_ids=(5, 6), target_ids=(7 + seed, tokenizer.eos_id))
                for clip in make_clips([3 + seed, 8, 5, 20 * seed + 1], seed=seed)
            ]
        )
        for seed in range(4)
    ]
    plain, compiled = (build_lalm(decoder_folder, 6, recipe.training) for _ in range(2))
    before = fit(plain, iter(batches), recipe, 4)
    counters.clear()
    after = fit(compiled, iter(batches), recipe.replace({"compile": True}), 4)
    assert counters["stats"]["unique_graphs"] >= 1
    assert after == pytest.approx(before, rel=1e-4)
    # A step is the rate, 0.01, times a quotient that has few digits left where a gradient is near zero.
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    num_graphs = counters["stats"]["unique_graphs"]
    with torch.no_grad():
        torch.testing.assert_close(compiled(batches[0]), plain(batches[0]), rtol=1e-3, atol=1e-3)
    assert counters["stats"]["unique_graphs"] == num_graphs


def test_a_decoder_without_known_layers_is_not_compiled(batch: Batch, mini_recipe: Recipe, tmp_path: Path) -> None:
    recipe = mini_recipe.replace({"compile": True})
    lalm = build_lalm(save_decoder(tmp_path, "bloom"), 6, recipe.training)
    with pytest.raises(UsageError, match="compile=true: BloomForCausalLM has no layers that can be compiled here"):
        fit(lalm, itertools.repeat(batch), recipe, 1)
