from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.plain_lalm import Float64, save_decoder
from xares_bench.config.recipe import Recipe
from xares_bench.lalm.batch import TextTokenizer, Utterance, collate
from xares_bench.lalm.model import build_lalm

SMALL: dict[str, Any] = {"vocab_size": 384, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize("adaptation", ["full", "lora"])
def test_loss_and_gradients_equal_a_plain_computation_sample_by_sample(
    adaptation: str, decoder_folder: str, examples: list[Utterance], tokenizer: TextTokenizer, mini_recipe: Recipe
) -> None:
    """Padding, batching and the audio's place leave no trace: full logits of every sequence alone give the same."""
    recipe = mini_recipe.replace({"adaptation": adaptation, "lora_dropout": 0.0}).training
    lalm = build_lalm(decoder_folder, 6, recipe)
    with torch.no_grad():  # adapters start at zero, where half of their gradients vanish
        for name, value in lalm.trained_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    lalm.double()
    with Float64():
        loss = lalm(collate(examples))
        loss.backward()
        gradients = {name: value.grad.clone() for name, value in lalm.trained_parameters() if value.grad is not None}
        assert len(gradients) == len(dict(lalm.trained_parameters()))

        lalm.zero_grad()
        lalm.decoder.set_attn_implementation("eager")
        expected = torch.zeros(())
        for example in examples:
            tokens = torch.tensor(example.prompt_ids + example.target_ids)
            audio_TH = example.clip.frames().double() @ lalm.projector.weight.T + lalm.projector.bias
            inputs_LH = torch.cat([audio_TH, lalm.decoder.get_input_embeddings()(tokens)])
            logits_LV = lalm.decoder(inputs_embeds=inputs_LH[None]).logits[0]
            num_targets = len(example.target_ids)
            expected = expected + functional.nll_loss(
                torch.log_softmax(logits_LV[-num_targets - 1 : -1], dim=-1), tokens[-num_targets:], reduction="sum"
            )
        torch.autograd.backward(expected)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    for name, value in lalm.trained_parameters():
        assert value.grad is not None, name
        difference = (gradients[name] - value.grad).norm() / value.grad.norm()
        assert difference < 1e-9, (name, float(difference))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("gpt2", {"n_positions": 24}),  # fewer than the rows have
        ("gemma3_text", {}),
        ("trocr", {}),  # reads no packed sequences
    ],
)
def test_padding_changes_neither_loss_nor_gradients(
    family: str, changes: dict[str, Any], examples: list[Utterance], mini_recipe: Recipe, tmp_path: Path
) -> None:
    lalm = build_lalm(save_decoder(tmp_path, family, **changes), 6, mini_recipe.training).double()
    packed = collate(examples)
    padded = packed.padded(8 if family == "trocr" else 64)
    assert padded.num_positions > packed.num_positions
    found = []
    with Float64():
        for batch in (packed, padded):
            lalm.zero_grad()
            loss = lalm(batch)
            loss.backward()
            found.append([loss, *(value.grad for value in lalm.parameters() if value.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_batch_is_padded_on_a_gpu_only_and_not_for_a_decoder_that_counts_positions_itself(
    decoder_folder: str, examples: list[Utterance], mini_recipe: Recipe, tmp_path: Path
) -> None:
    batch = collate(examples)
    lalm = build_lalm(decoder_folder, 6, mini_recipe.training)
    assert lalm.place(batch, torch.device("cpu")).row_length is None
    placed = lalm.place(batch, torch.device("meta"))
    assert placed.row_length == 64
    assert placed.frames_FD.device.type == "meta"
    padded_anyway = build_lalm(save_decoder(tmp_path, "trocr"), 6, mini_recipe.training)
    assert padded_anyway.place(batch, torch.device("meta")).row_length is None


@pytest.mark.versions
def test_only_adapters_and_projector_are_trained_with_lora(decoder_folder: str, mini_recipe: Recipe) -> None:
    lalm = build_lalm(decoder_folder, 6, mini_recipe.replace({"adaptation": "lora"}).training)
    trained = {name for name, _ in lalm.trained_parameters()}
    assert {"projector.weight", "projector.bias"} < trained
    assert all("lora_" in name for name in trained if not name.startswith("projector"))
    linear_layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    for layer in linear_layers:
        assert sum(layer in name for name in trained) == 2 * 2, layer  # two matrices in each of two layers


def test_everything_is_trained_without(decoder_folder: str, mini_recipe: Recipe) -> None:
    lalm = build_lalm(decoder_folder, 6, mini_recipe.training)
    assert all(value.requires_grad for value in lalm.parameters())


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone(
    decoder_folder: str, mini_recipe: Recipe
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (build_lalm(decoder_folder, 6, mini_recipe.training) for _ in range(2))
    other = build_lalm(decoder_folder, 6, mini_recipe.replace({"seed": 7}).training)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.projector.weight, other.projector.weight)


@pytest.mark.versions
@pytest.mark.parametrize("adaptation", ["full", "lora"])
def test_a_saved_lalm_comes_back_the_same(
    adaptation: str,
    decoder_folder: str,
    examples: list[Utterance],
    tokenizer: TextTokenizer,
    mini_recipe: Recipe,
    tmp_path: Path,
) -> None:
    recipe = mini_recipe.replace({"adaptation": adaptation}).training
    lalm = build_lalm(decoder_folder, 6, recipe).eval()
    with torch.no_grad():
        for _, value in lalm.trained_parameters():
            value.add_(torch.randn_like(value) * 0.1)
    lalm.save(tmp_path)
    again = build_lalm(decoder_folder, 6, recipe).eval()
    batch = collate(examples)
    assert not torch.equal(again(batch), lalm(batch))
    again.load(tmp_path)
    assert torch.equal(again(batch), lalm(batch))


def test_a_compiled_step_states_the_width_of_the_processor_s_vectors(
    decoder_folder: str, mini_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's cache of compiled code tells processors apart by nothing else."""
    asked: list[dict[str, Any]] = []
    lalm = build_lalm(decoder_folder, 6, mini_recipe.training)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **values: asked.append(values))
    with lalm.compiled(torch.device("cpu")):
        assert asked == [{"options": {"cpp.simdlen": asked[0]["options"]["cpp.simdlen"]}}] * 2
    widths = {"DEFAULT": 0, "AVX2": 256, "AVX512": 512}
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() == "x86_64":
        assert asked[0]["options"]["cpp.simdlen"] == widths[capability]
    asked.clear()
    with lalm.compiled(torch.device("cuda")):
        assert asked == [{"mode": "reduce-overhead"}] * 2


_COMPILED = """
import torch
from torch._dynamo.utils import counters
from xares_bench.lalm.model import _cpu_compile_options
torch.compile(lambda x: (x.sin() + 1).cos(), options=_cpu_compile_options())(torch.ones(64))
print(counters["inductor"].get("fxgraph_cache_hit", 0))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="needs a processor that can pass for two older ones"
)
def test_code_for_narrower_vectors_is_not_run_from_a_cache_that_machines_share(tmp_path: Path) -> None:
    def hits(capability: str) -> str:
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "ATEN_CPU_CAPABILITY": capability}
        command = [sys.executable, "-c", _COMPILED]
        return subprocess.run(
            command, env={**os.environ, **environment}, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert [hits("avx2"), hits("avx2"), hits("avx512"), hits("default")] == ["0", "1", "0", "0"]
