"""Layers of decoders that are built like Llama: the bits of transformers' forward on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.plain_lalm import FAMILIES, save_decoder
from xares_bench.config.recipe import Recipe
from xares_bench.lalm import model as lalm_module
from xares_bench.lalm.batch import Utterance, collate
from xares_bench.lalm.decoder import let_read_packed
from xares_bench.lalm.llama import llama_layers
from xares_bench.lalm.model import LALM, build_lalm

BUILT_LIKE_LLAMA = {"llama", "qwen2"}


def loaded(folder: Path, family: str, **changes: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(save_decoder(folder, family, **changes), dtype=torch.float32)
    assert let_read_packed(model)
    return model


def gradients(lalm: LALM, batch: Any) -> dict[str, torch.Tensor]:
    lalm.zero_grad()
    lalm(batch).backward()
    return {name: value.grad.clone() for name, value in lalm.named_parameters() if value.grad is not None}


@pytest.mark.versions
@pytest.mark.parametrize("adaptation", ["full", "lora"])
@pytest.mark.parametrize("family", sorted(BUILT_LIKE_LLAMA))
def test_loss_and_gradients_have_the_bits_of_transformers(
    family: str,
    adaptation: str,
    examples: list[Utterance],
    mini_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, batch = save_decoder(tmp_path, family), collate(examples)
    recipe = mini_recipe.replace({"adaptation": adaptation}).training
    ours = build_lalm(folder, 6, recipe).train()
    monkeypatch.setattr(lalm_module, "llama_layers", lambda decoder: None)
    theirs = build_lalm(folder, 6, recipe).train()
    found = []
    for lalm in (ours, theirs):
        torch.manual_seed(2)  # for dropout
        loss = lalm(batch)
        torch.manual_seed(2)
        found.append({"loss": loss, **gradients(lalm, batch)})
    assert found[0].keys() == found[1].keys()
    assert [name for name, value in found[0].items() if not torch.equal(value, found[1][name])] == []


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_only_decoders_that_are_built_like_llama_get_its_layers(family: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_decoder(tmp_path, family), dtype=torch.float32)
    layers = llama_layers(model) if let_read_packed(model) else None
    assert (layers is not None) == (family in BUILT_LIKE_LLAMA)


def test_mistral_gets_them_without_its_window(tmp_path: Path) -> None:
    assert llama_layers(loaded(tmp_path, "mistral", sliding_window=None)) is not None


def test_a_decoder_that_computes_something_else_with_the_same_modules_keeps_its_own(tmp_path: Path) -> None:
    model = loaded(tmp_path, "llama")
    norm = model.model.layers[0].input_layernorm
    norm.forward = lambda hidden: (1 + norm.weight) * hidden
    assert llama_layers(model) is None


def test_a_decoder_whose_modules_raise_keeps_its_own(tmp_path: Path) -> None:
    model = loaded(tmp_path, "llama")
    model.model.layers[0].self_attn.head_dim = 5
    own = model.model.layers[0].self_attn.forward
    model.model.layers[0].self_attn.forward = lambda *args, **kwargs: _with_head_dim(own, model, *args, **kwargs)
    assert llama_layers(model) is None


def _with_head_dim(forward: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    attention = model.model.layers[0].self_attn
    attention.head_dim = 8
    try:
        return forward(*args, **kwargs)
    finally:
        attention.head_dim = 5
