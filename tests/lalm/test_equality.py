"""Training and generation against transformers and peft used plainly.

The reference computes one sequence at a time: no padding, no cache, full logits, eager attention, adapters by peft's
own wrapper; and steps are those of transformers' Trainer.

Two correct computations differ by rounding, and by how much in float32 depends on the processor. So equality is shown
in float64, to 1e-9; in float32, ours may be as far from the float64 result as the reference is in float32.

Shapes: B sequences, L positions, T audio frames, H hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import ByT5Tokenizer, Trainer, TrainingArguments, get_scheduler

from tests.conftest import MakeClips
from tests.plain_lalm import FAMILIES, NUM_NEW_TOKENS, OUTPUT_DIM, Float64, Plain, TokenIdTokenizer, save_decoder
from xares_bench.config.catalogue import load_catalogue
from xares_bench.config.recipe import GenerationRecipe, Recipe
from xares_bench.core.progress import Progress
from xares_bench.lalm.batch import TextTokenizer, Utterance, collate
from xares_bench.lalm.generation import generate
from xares_bench.lalm.model import LALM, build_lalm
from xares_bench.training.loop import train

CPU = torch.device("cpu")

# Where LoRA belongs, by the names in the models' sources: all linear layers but the output layer.
LINEAR_LAYERS = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "opt": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "project_in", "project_out"},
}

MakeDecoder = Callable[..., str]
OptimizerSteps = list[list[dict[str, Any]]]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TokenIdTokenizer(ByT5Tokenizer())


@pytest.fixture(scope="module")
def make_decoder(tmp_path_factory: pytest.TempPathFactory) -> MakeDecoder:
    """Makes folders with config and random weights of a family, with other values of the config if need be."""

    def make(family: str, **changes: Any) -> str:
        return save_decoder(tmp_path_factory.mktemp(family), family, **changes)

    return make


@pytest.fixture
def utterances(make_clips: MakeClips, tokenizer: TextTokenizer) -> list[Utterance]:
    """Training sequences of different lengths and different lengths of target."""
    targets = ["yes", "a longer answer", "no", "four", "x"]
    return [
        Utterance(
            clip=clip,
            prompt_ids=tokenizer.prompt(clip, "say it").prompt_ids,
            target_ids=(*tokenizer.prompt(clip, target).prompt_ids, tokenizer.eos_id),
        )
        for clip, target in zip(make_clips([7, 2, 12, 5, 9], output_dim=OUTPUT_DIM), targets, strict=True)
    ]


@pytest.fixture
def recipe() -> Recipe:
    """The published recipe without dropout, which would make every computation differ."""
    return load_catalogue("full").preset.recipe.replace({"lora_dropout": 0.0, "max_new_tokens": NUM_NEW_TOKENS})


@pytest.fixture
def optimizer_steps() -> Iterator[OptimizerSteps]:
    """What every optimiser of the process was about to use: its parameter groups, step by step."""
    seen: OptimizerSteps = []

    def record(optimizer: torch.optim.Optimizer, _args: object, _kwargs: object) -> None:
        seen.append([dict(group) for group in optimizer.param_groups])

    handle = register_optimizer_step_pre_hook(record)
    yield seen
    handle.remove()


def trained_a_little(folder: str, recipe: Recipe) -> LALM:
    """A LALM whose adapters are not zero, where half of their gradients would vanish."""
    lalm = build_lalm(folder, OUTPUT_DIM, recipe.training)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in lalm.trained_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1, generator=generator)
    return lalm


def said_by(
    lalm: LALM, utterances: Sequence[Utterance], tokenizer: TextTokenizer, recipe: GenerationRecipe
) -> list[str]:
    prompts = [Utterance(clip=one.clip, prompt_ids=one.prompt_ids, target_ids=()) for one in utterances]
    return generate(lalm, prompts, tokenizer=tokenizer, recipe=recipe, device=CPU, progress=Progress())


Computed = dict[str, torch.Tensor]


def loss_and_gradients(lalm: LALM, utterances: Sequence[Utterance]) -> Computed:
    """Mean loss of one batch and its gradients by name."""
    batch = collate(utterances)
    loss = lalm(batch) / batch.num_targets
    lalm.zero_grad()
    loss.backward()
    gradients = {name: value.grad for name, value in lalm.named_parameters() if value.grad is not None}
    return {"loss": loss.detach(), **gradients}


def plain_loss_and_gradients(plain: Plain, utterances: Sequence[Utterance]) -> Computed:
    """The same by the reference."""
    num_targets = sum(len(one.target_ids) for one in utterances)
    loss = torch.stack([plain.loss(one) for one in utterances]).sum() / num_targets
    plain.zero_grad()
    torch.autograd.backward(loss)
    return {"loss": loss.detach(), **plain.named_gradients()}


def largest_error(found: Computed, expected: Computed) -> float:
    """The largest difference, relative to the largest value of its tensor: a gradient sums terms of about that size."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name].double() - value).abs().max() / value.abs().max()) for name, value in expected.items()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_the_plain_computation(
    family: str, make_decoder: MakeDecoder, utterances: list[Utterance], recipe: Recipe
) -> None:
    folder = make_decoder(family)
    lalm = trained_a_little(folder, recipe).eval()
    plain = Plain(folder, lalm, recipe).eval()
    with Float64():
        exact = plain_loss_and_gradients(copy.deepcopy(plain).double(), utterances)
        ours = loss_and_gradients(copy.deepcopy(lalm).double(), utterances)
    assert largest_error(ours, exact) < 1e-9
    without = dict(lalm.trained_parameters()).keys() - ours.keys()
    assert all("encoder_attn" in name for name in without), "only attention to an encoder is never used"

    rounding = largest_error(plain_loss_and_gradients(plain, utterances), exact)
    assert largest_error(loss_and_gradients(lalm, utterances), exact) < 5 * rounding + 1e-6


# Where the best token leads by less than this share of the logits' standard deviation, rounding may choose another.
NEAR_TIE = 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_tokens_equal_the_plain_computation(
    family: str, make_decoder: MakeDecoder, utterances: list[Utterance], tokenizer: TextTokenizer, recipe: Recipe
) -> None:
    folder = make_decoder(family)
    lalm = trained_a_little(folder, recipe).eval()
    plain = Plain(folder, lalm, recipe).eval()
    with Float64():
        exact = [plain.double().greedy(one, tokenizer.eos_id) for one in utterances]
        texts = said_by(copy.deepcopy(lalm).double(), utterances, tokenizer, recipe.generation)
    assert texts == [" ".join(map(str, tokens)) for tokens, _ in exact]
    assert len(set(texts)) >= 3, "the decoder says the same to everything, which tests nothing"
    assert max(len(text.split()) for text in texts) == NUM_NEW_TOKENS

    num_compared = 0
    for text, (tokens, leads) in zip(said_by(lalm, utterances, tokenizer, recipe.generation), exact, strict=True):
        first_tie = next((place for place, lead in enumerate(leads) if lead < NEAR_TIE), None)
        assert text.split()[:first_tie] == [str(token) for token in tokens[:first_tie]]
        num_compared += len(tokens[:first_tie])
    assert num_compared > 2 * NUM_NEW_TOKENS, "near-ties everywhere"


@pytest.mark.parametrize("tied", [True, False])
def test_equality_holds_with_tied_and_untied_output_layers_in_batches_of_any_size(
    tied: bool, make_decoder: MakeDecoder, utterances: list[Utterance], tokenizer: TextTokenizer, recipe: Recipe
) -> None:
    folder = make_decoder("llama", tie_word_embeddings=tied)
    lalm = trained_a_little(folder, recipe).eval().double()
    plain = Plain(folder, lalm, recipe).eval().double()
    with Float64():
        expected = [" ".join(map(str, plain.greedy(one, tokenizer.eos_id)[0])) for one in utterances]
        for batch_size in (1, 2, 5):
            generation = recipe.replace({"generation_batch_size": batch_size}).generation
            assert said_by(lalm, utterances, tokenizer, generation) == expected
            losses = [
                lalm(collate(utterances[start : start + batch_size])) for start in range(0, len(utterances), batch_size)
            ]
            torch.testing.assert_close(sum(losses), sum(plain.loss(one) for one in utterances), rtol=1e-9, atol=0)


@pytest.mark.parametrize("family", LINEAR_LAYERS)
@pytest.mark.parametrize("tied", [True, False])
def test_lora_is_on_all_linear_layers_but_the_output_layer(
    tied: bool, family: str, make_decoder: MakeDecoder, recipe: Recipe
) -> None:
    lalm = build_lalm(make_decoder(family, tie_word_embeddings=tied), OUTPUT_DIM, recipe.training)
    adapted = {name.split(".lora_A")[0].split(".")[-1] for name, _ in lalm.trained_parameters() if "lora_A" in name}
    assert adapted == LINEAR_LAYERS[family]
    untrained = {name for name, value in lalm.named_parameters() if not value.requires_grad}
    assert any("embed" in name or "wte" in name for name in untrained)
    assert all("lora" in name or name.startswith("projector") for name, _ in lalm.trained_parameters())
    ranks = {value.shape[0] for name, value in lalm.trained_parameters() if "lora_A" in name}
    assert ranks == {8}


class PlainToTrain(nn.Module):
    """What transformers' Trainer takes: a module that returns the mean loss of the batch with a number."""

    def __init__(self, plain: Plain, batches: Sequence[Sequence[Utterance]]) -> None:
        super().__init__()
        self.plain = plain
        self.batches = batches
        self.losses: list[float] = []

    def forward(self, number: torch.Tensor) -> dict[str, torch.Tensor]:
        batch = self.batches[int(number)]
        num_targets = sum(len(one.target_ids) for one in batch)
        loss = torch.stack([self.plain.loss(one) for one in batch]).sum() / num_targets
        self.losses.append(float(loss.detach()))
        return {"loss": loss}


def trainer_of(model: nn.Module, recipe: Recipe, num_steps: int, folder: Path) -> Trainer:
    """Transformers' Trainer with the recipe's few settings and otherwise its defaults."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=num_steps,
        per_device_train_batch_size=1,
        learning_rate=recipe.training.learning_rate,
        warmup_steps=recipe.training.warmup_steps,
        weight_decay=0.01,
        max_grad_norm=recipe.training.max_grad_norm,
        train_sampling_strategy="sequential",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"number": number} for number in range(num_steps)],
    )


@pytest.mark.parametrize(("adaptation", "max_grad_norm"), [("lora", 1.0), ("full", 1.0), ("lora", 1000.0)])
def test_five_steps_equal_those_of_transformers_trainer(
    adaptation: str,
    max_grad_norm: float,
    make_decoder: MakeDecoder,
    utterances: list[Utterance],
    tokenizer: TextTokenizer,
    recipe: Recipe,
    tmp_path: Path,
    optimizer_steps: OptimizerSteps,
) -> None:
    num_steps = 5
    recipe = recipe.replace({"adaptation": adaptation, "warmup_steps": 2, "max_grad_norm": max_grad_norm})
    folder = make_decoder("llama")
    lalm = trained_a_little(folder, recipe).double()
    before = {name: value.detach().clone() for name, value in lalm.trained_parameters()}
    plain = Plain(folder, lalm, recipe).double()
    batches = [[utterances[(number + place) % 5] for place in range(3)] for number in range(num_steps)]

    with Float64():
        losses = train(
            lalm,
            (collate(batch) for batch in batches),
            num_steps=num_steps,
            recipe=recipe.training,
            accelerator=Accelerator(),
            progress=Progress(),
        )
        own_steps = list(optimizer_steps)
        reference = PlainToTrain(plain, batches)
        trainer_of(reference, recipe, num_steps, tmp_path).train()
    their_steps = optimizer_steps[num_steps:]

    assert [step[0]["lr"] for step in own_steps] == pytest.approx([step[0]["lr"] for step in their_steps], rel=1e-12)
    settings = ("lr", "betas", "eps", "weight_decay", "amsgrad")
    for own_step, their_step in zip(own_steps, their_steps, strict=True):
        assert [[group[key] for key in settings] for group in own_step] == [
            [group[key] for key in settings] for group in their_step
        ]
    assert losses == pytest.approx(reference.losses, rel=1e-9)
    theirs = plain.named_values()
    for name, value in lalm.trained_parameters():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-9, msg=name)
        assert (value - before[name]).abs().max() > 1e-4, f"{name} has hardly moved"


def test_the_learning_rate_is_transformers_linear_schedule_at_every_step(
    make_decoder: MakeDecoder,
    utterances: list[Utterance],
    tokenizer: TextTokenizer,
    recipe: Recipe,
    optimizer_steps: OptimizerSteps,
) -> None:
    num_steps, num_warmup = 23, 6
    recipe = recipe.replace({"warmup_steps": num_warmup})
    train(
        build_lalm(make_decoder("llama", num_hidden_layers=1), OUTPUT_DIM, recipe.training),
        itertools.repeat(collate(utterances[:1])),
        num_steps=num_steps,
        recipe=recipe.training,
        accelerator=Accelerator(),
        progress=Progress(),
    )
    used = [{group["lr"] for group in step} for step in optimizer_steps]
    idle = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedule = get_scheduler("linear", idle, num_warmup_steps=num_warmup, num_training_steps=num_steps)
    for step in range(num_steps):
        rise, fall = step / num_warmup, (num_steps - step) / (num_steps - num_warmup)
        assert schedule.get_last_lr() == pytest.approx([1e-4 * min(rise, fall)])
        assert used[step] == {schedule.get_last_lr()[0]}
        idle.step()
        schedule.step()
    assert schedule.get_last_lr() == [0.0]


@pytest.mark.parametrize(
    ("family", "adaptation"),
    [("llama", "lora"), ("gpt2", "lora"), *((family, "full") for family in ("llama", "gpt2", "qwen3", "opt", "mamba"))],
)
def test_weight_decay_groups_equal_those_of_transformers_trainer(
    family: str,
    adaptation: str,
    make_decoder: MakeDecoder,
    utterances: list[Utterance],
    tokenizer: TextTokenizer,
    recipe: Recipe,
    tmp_path: Path,
    optimizer_steps: OptimizerSteps,
) -> None:
    recipe = recipe.replace({"adaptation": adaptation})
    lalm = build_lalm(make_decoder(family), OUTPUT_DIM, recipe.training)
    names = {value: name for name, value in lalm.named_parameters()}
    theirs = trainer_of(lalm, recipe, 1, tmp_path).create_optimizer()
    train(
        lalm,
        [collate(utterances[:1])],
        num_steps=1,
        recipe=recipe.training,
        accelerator=Accelerator(),
        progress=Progress(),
    )

    def groups(param_groups: Sequence[dict[str, Any]]) -> dict[float, set[str]]:
        return {group["weight_decay"]: {names[value] for value in group["params"]} for group in param_groups}

    own = groups(optimizer_steps[0])
    assert own == groups(theirs.param_groups)
    assert "projector.weight" in own[0.01]
    assert "projector.bias" in own[0.0]
    assert own[0.01] | own[0.0] == {name for name, _ in lalm.trained_parameters()}


@pytest.mark.parametrize(
    ("family", "module_name"), [("llama", "rotary_emb"), ("gpt2", "wpe"), ("opt", "embed_positions")]
)
def test_positions_count_from_the_first_audio_frame_in_training_and_in_generation(
    family: str,
    module_name: str,
    make_decoder: MakeDecoder,
    utterances: list[Utterance],
    tokenizer: TextTokenizer,
    recipe: Recipe,
) -> None:
    """Looked at where the decoder turns positions into angles or rows of a table."""
    lalm = build_lalm(make_decoder(family), OUTPUT_DIM, recipe.training).eval()
    module = next(module for name, module in lalm.named_modules() if name.endswith(module_name))
    used: list[torch.Tensor] = []

    def record(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        positions = keywords["position_ids"] if "position_ids" in keywords else arguments[-1]
        used.append(positions.clone())  # in generation they are counted on in place

    module.register_forward_pre_hook(record, with_kwargs=True)
    lalm(collate(utterances))
    (positions_1N,) = used
    assert positions_1N[0].tolist() == [place for one in utterances for place in range(one.num_positions)]

    used.clear()
    said_by(lalm, utterances, tokenizer, recipe.replace({"generation_batch_size": 5}).generation)
    first, *later = used
    assert len(later) > 3
    lengths = sorted((one.clip.num_frames + len(one.prompt_ids) for one in utterances), reverse=True)
    assert first[0].tolist() == [place for length in lengths for place in range(length)]
    for step, positions in enumerate(later):
        assert positions[0].tolist() == [length + step for length in lengths]
