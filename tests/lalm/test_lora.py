from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from tests.plain_lalm import save_decoder
from xares_bench.config.catalogue import load_catalogue
from xares_bench.lalm import lora
from xares_bench.lalm.batch import TextTokenizer, Utterance, collate
from xares_bench.lalm.lora import LoRALinear, _dropped_places, merge_lora
from xares_bench.lalm.model import build_lalm

RANK, ALPHA = 4, 8


def adapted(base: nn.Linear | Conv1D, dropout: float = 0.0) -> LoRALinear:
    """A layer whose addition is not zero, in float64: rounding must not decide on any processor."""
    layer = LoRALinear(base.requires_grad_(False), rank=RANK, alpha=ALPHA, dropout=dropout).double()
    nn.init.normal_(layer.lora_B)
    return layer


def written_out(layer: LoRALinear, x: torch.Tensor, mask: torch.Tensor | float, dropout: float) -> torch.Tensor:
    """The formula, for autograd to differentiate."""
    low = functional.linear(x * mask / (1 - dropout), layer.lora_A)
    base: torch.Tensor = layer.base(x)
    return base + ALPHA / RANK * functional.linear(low, layer.lora_B)


BASES: dict[str, Callable[[], nn.Linear | Conv1D]] = {
    "linear": lambda: nn.Linear(6, 5),
    "without bias": lambda: nn.Linear(6, 5, bias=False),
    "conv1d": lambda: Conv1D(5, 6),  # type: ignore[no-untyped-call]
}


def drawn_hits(num_places: int, dropout: float) -> torch.Tensor:
    """Whether dropout hits each of so many places."""
    return torch.zeros(num_places, dtype=torch.bool).index_fill_(0, _dropped_places(num_places, dropout), True)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_output_and_gradients_are_those_of_the_formula(base: str, dropout: float) -> None:
    torch.manual_seed(0)
    layer = adapted(BASES[base](), dropout).train()
    x = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 7, 5)
    torch.manual_seed(1)
    out = layer(x)
    assert "AdaptedLinear" in str(out.grad_fn), "one step of the backward pass"
    torch.manual_seed(1)
    mask = (~drawn_hits(x.numel(), dropout)).view(2, 7, 6).float() if dropout else 1.0
    expected = written_out(layer, x, mask, dropout)
    torch.testing.assert_close(out, expected)
    inputs = (x, layer.lora_A, layer.lora_B)
    ours, theirs = (torch.autograd.grad((result * weights).sum(), inputs) for result in (out, expected))
    for own, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, reference)


@pytest.mark.parametrize("base", BASES)
def test_with_the_dropout_of_a_gpu_they_are_those_of_the_formula(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "_draws_places", lambda device: False)
    torch.manual_seed(0)
    layer = adapted(BASES[base](), dropout=0.25).train()
    x = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 7, 5)
    torch.manual_seed(1)
    out = layer(x)
    torch.manual_seed(1)
    _, mask = torch.native_dropout(x.detach().reshape(-1, 6), 0.25, True)
    assert 0.5 < mask.double().mean() < 1
    expected = written_out(layer, x, mask.view(2, 7, 6), 0.25)
    torch.testing.assert_close(out, expected)
    inputs = (x, layer.lora_A, layer.lora_B)
    ours, theirs = (torch.autograd.grad((result * weights).sum(), inputs) for result in (out, expected))
    for own, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, reference)


def test_float32_takes_the_same_way_as_the_float64_of_these_tests() -> None:
    layer = adapted(nn.Linear(6, 5))
    x = torch.randn(3, 6, dtype=torch.float64)
    expected = layer(x)
    out = layer.float()(x.float())
    assert out.dtype == torch.float32
    assert type(out.grad_fn) is type(expected.grad_fn)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)


def test_nothing_is_dropped_in_eval_mode() -> None:
    layer = adapted(nn.Linear(6, 5), 0.5).eval()
    x = torch.randn(3, 6, dtype=torch.float64)
    assert torch.equal(layer(x), layer(x))
    torch.testing.assert_close(layer(x), written_out(layer, x, 1.0, 0.0))


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_every_place_is_dropped_as_often_as_it_should_be_and_without_regard_to_others(dropout: float) -> None:
    """Counts over 4,000 draws of 20 places against the binomial distribution, alone and in neighbouring pairs."""
    torch.manual_seed(0)
    num_draws = 4000
    dropped = torch.stack([drawn_hits(20, dropout) for _ in range(num_draws)])
    for hits, share in ((dropped, dropout), (dropped[:, 1:] & dropped[:, :-1], dropout**2)):
        deviation = math.sqrt(num_draws * share * (1 - share))
        assert (hits.sum(dim=0) - num_draws * share).abs().max() < 4.5 * deviation
    # The number dropped at once varies as that of independent places does.
    variance = 20 * dropout * (1 - dropout)
    assert dropped.sum(dim=1).float().var().item() == pytest.approx(variance, rel=0.1)


def test_the_mean_over_dropout_is_the_output_without() -> None:
    torch.manual_seed(0)
    layer = adapted(nn.Linear(6, 5), 0.1)
    x = torch.randn(1, 6, dtype=torch.float64)
    many = layer.train()(x.expand(40_000, 6)).mean(dim=0)
    torch.testing.assert_close(many, layer.eval()(x)[0], rtol=0, atol=0.03)


def test_a_layer_of_an_unknown_class_is_called_and_not_recomputed() -> None:
    class Doubling(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    layer = adapted(Doubling(6, 5))
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), written_out(layer, x, 1.0, 0.0))


@pytest.mark.parametrize("base", BASES)
def test_a_merged_layer_gives_the_same(base: str) -> None:
    model: Any = nn.Sequential(adapted(BASES[base]()))
    x = torch.randn(3, 6, dtype=torch.float64)
    expected = model(x)
    merge_lora(model)
    assert isinstance(model[0], nn.Linear | Conv1D)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.versions
def test_a_fresh_addition_is_drawn_as_pefts_is() -> None:
    """A uniform within the same bounds, B zero."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(1000, 500), rank=8, alpha=32, dropout=0.1)
    config = LoraConfig(r=8, lora_alpha=32, target_modules=["0"])
    wrapped: Any = get_peft_model(nn.Sequential(nn.Linear(1000, 500)), config)
    peft = wrapped.base_model.model[0]
    theirs = peft.lora_A["default"].weight
    assert layer.lora_A.shape == theirs.shape
    assert layer.lora_A.std().item() == pytest.approx(theirs.std().item(), rel=0.05)
    assert layer.lora_A.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)
    assert not layer.lora_B.any()
    assert not peft.lora_B["default"].weight.any()


def test_bf16_training_takes_the_plain_way(tmp_path: Path, tokenizer: TextTokenizer, make_clips: Any) -> None:
    """Under autocast the operations are cast one by one; loss and gradients stay near those of float32."""
    recipe = load_catalogue("full").preset.recipe.replace({"lora_dropout": 0.0}).training
    lalm = build_lalm(save_decoder(tmp_path, "llama"), 6, recipe).train()
    with torch.no_grad():
        for name, value in lalm.trained_parameters():
            if "lora_B" in name:
                value.normal_(std=0.02)
    batch = collate(
        [Utterance(clip=clip, prompt_ids=(5, 6), target_ids=(7, tokenizer.eos_id)) for clip in make_clips([3, 5])]
    )
    exact = lalm(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = lalm(batch)
    assert mixed != exact
    torch.testing.assert_close(mixed, exact, rtol=0.02, atol=0)
