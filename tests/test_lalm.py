from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tests.conftest import MakeClips
from xares_bench.batches import Encoding, Utterance, collate
from xares_bench.lalm import build_lalm, decoder_digest
from xares_bench.recipe import Recipe
from xares_bench.rows import Row


@pytest.fixture
def examples(make_clips: MakeClips, encoding: Encoding) -> list[Utterance]:
    targets = ["yes", "a longer answer", "no", "four"]
    clips = make_clips([7, 2, 12, 5])
    return [
        encoding.example(Row(clip=clip, target=target), "say it") for clip, target in zip(clips, targets, strict=True)
    ]


@pytest.mark.parametrize("adaptation", ["full", "lora"])
def test_loss_and_gradients_equal_a_plain_computation_sample_by_sample(
    adaptation: str, decoder_folder: str, examples: list[Utterance], encoding: Encoding, mini_recipe: Recipe
) -> None:
    """Padding, batching and the audio's place leave no trace: full logits of every sequence alone give the same."""
    recipe = mini_recipe.replace({"adaptation": adaptation, "lora_dropout": 0.0}).training
    lalm = build_lalm(decoder_folder, 6, recipe)
    with torch.no_grad():  # adapters start at zero, where half of their gradients vanish
        for name, value in lalm.trained_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    loss = lalm(collate(examples, pad_id=encoding.pad_id, padding="right"))
    loss.backward()
    gradients = {name: value.grad.clone() for name, value in lalm.trained_parameters() if value.grad is not None}
    assert len(gradients) == len(dict(lalm.trained_parameters()))

    lalm.zero_grad()
    expected = torch.zeros(())
    for example in examples:
        tokens = torch.tensor(example.prompt_ids + example.target_ids)
        audio_TH = example.clip.frames() @ lalm.projector.weight.T + lalm.projector.bias
        inputs_LH = torch.cat([audio_TH, lalm.decoder.get_input_embeddings()(tokens)])
        logits_LV = lalm.decoder(inputs_embeds=inputs_LH[None]).logits[0]
        num_targets = len(example.target_ids)
        expected = expected + functional.nll_loss(
            torch.log_softmax(logits_LV[-num_targets - 1 : -1], dim=-1), tokens[-num_targets:], reduction="sum"
        )
    torch.autograd.backward(expected)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for name, value in lalm.trained_parameters():
        assert value.grad is not None, name
        difference = (gradients[name] - value.grad).norm() / value.grad.norm()
        assert difference < 1e-5, (name, float(difference))


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


@pytest.mark.parametrize("adaptation", ["full", "lora"])
def test_a_saved_lalm_comes_back_the_same(
    adaptation: str,
    decoder_folder: str,
    examples: list[Utterance],
    encoding: Encoding,
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
    batch = collate(examples, pad_id=encoding.pad_id, padding="right")
    assert not torch.equal(again(batch), lalm(batch))
    again.load(tmp_path)
    assert torch.equal(again(batch), lalm(batch))


def test_a_decoder_with_weights_is_loaded_with_them(decoder_folder: str, mini_recipe: Recipe, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    decoder = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(decoder_folder))  # type: ignore[no-untyped-call]
    decoder.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(decoder_folder).save_pretrained(tmp_path)
    lalm = build_lalm(str(tmp_path), 6, mini_recipe.training)
    loaded = dict(lalm.decoder.named_parameters())
    assert all(torch.equal(loaded[name], value) for name, value in decoder.named_parameters())


def test_a_decoders_digest_follows_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = decoder_digest(str(tmp_path))
    (tmp_path / "config.json").write_text("{ }")
    assert decoder_digest(str(tmp_path)) != before
    assert decoder_digest("some/name") != decoder_digest("some/other-name")
