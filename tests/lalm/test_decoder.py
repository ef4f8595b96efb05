from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, LlamaConfig

from tests.conftest import MakeClips
from tests.plain_lalm import save_decoder
from xares_bench.config.recipe import Recipe
from xares_bench.core.errors import UsageError
from xares_bench.core.progress import Progress
from xares_bench.lalm.batch import TextTokenizer, Utterance, collate
from xares_bench.lalm.generation import generate
from xares_bench.lalm.model import build_lalm

SMALL: dict[str, Any] = {"vocab_size": 384, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def saved(folder: Path, family: str, **values: Any) -> str:
    """A folder with config and random weights of a small model."""
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**values))  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    return str(folder)


def test_a_decoder_with_weights_is_loaded_with_them(decoder_folder: str, mini_recipe: Recipe, tmp_path: Path) -> None:
    decoder = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(decoder_folder))  # type: ignore[no-untyped-call]
    decoder.save_pretrained(tmp_path)
    lalm = build_lalm(str(tmp_path), 6, mini_recipe.training)
    loaded = dict(lalm.decoder.named_parameters())
    assert all(torch.equal(loaded[name], value) for name, value in decoder.named_parameters())


@pytest.mark.parametrize("with_weights", [True, False])
def test_parameters_are_float32_whatever_the_decoder_is_stored_in(
    with_weights: bool, mini_recipe: Recipe, tmp_path: Path
) -> None:
    config = LlamaConfig(**SMALL, intermediate_size=64, dtype="bfloat16")
    config.save_pretrained(tmp_path)
    if with_weights:
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    lalm = build_lalm(str(tmp_path), 6, mini_recipe.training)
    assert {value.dtype for value in lalm.parameters()} == {torch.float32}


@pytest.mark.parametrize("with_weights", [True, False])
def test_code_that_comes_with_a_decoder_does_not_run(
    with_weights: bool, mini_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda question: "y")
    config = {"model_type": "brand-new", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'has_run')!r}, 'w').close()\n")
    if with_weights:
        save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="custom code"):
        build_lalm(str(tmp_path), 6, mini_recipe.training)
    assert not (tmp_path / "has_run").exists()


def test_a_decoder_that_lacks_weights_is_refused(mini_recipe: Recipe, tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama", **SMALL, intermediate_size=64)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        UsageError, match=r"lack 1 tensors of LlamaForCausalLM, the first is model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        build_lalm(folder, 6, mini_recipe.training)


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("bert", {"intermediate_size": 64}, "BertLMHeadModel is not causal"),
        ("xlnet", {"d_model": 32, "n_head": 4, "d_inner": 64}, "XLNetLMHeadModel cannot generate from embeddings"),
        (
            "gemma4_text",
            {
                "intermediate_size": 64,
                "head_dim": 8,
                "num_key_value_heads": 2,
                "num_hidden_layers": 6,
                "vocab_size_per_layer_input": 384,
                "hidden_size_per_layer_input": 8,
            },
            "Gemma4ForCausalLM does not accept embeddings as input",
        ),
        ("mamba", {}, "LoRA cannot be added to MambaForCausalLM .* --set adaptation=full"),
    ],
)
def test_a_decoder_that_cannot_be_used_is_refused_in_one_line(
    family: str, values: dict[str, Any], message: str, mini_recipe: Recipe, tmp_path: Path
) -> None:
    folder = saved(tmp_path, family, **{**SMALL, **values})
    with pytest.raises(UsageError, match=message) as raised:
        build_lalm(folder, 6, mini_recipe.replace({"adaptation": "lora"}).training)
    assert str(raised.value).startswith(f"--decoder={folder}: ")
    assert "\n" not in str(raised.value)


def test_a_sequence_that_the_table_of_positions_is_too_short_for_is_refused(
    examples: list[Utterance], tokenizer: TextTokenizer, mini_recipe: Recipe, tmp_path: Path
) -> None:
    folder = saved(tmp_path, "gpt2", vocab_size=384, n_embd=32, n_layer=1, n_head=4, n_positions=20)
    lalm = build_lalm(folder, 6, mini_recipe.training)
    batch = collate(examples)
    longest = max(one.num_positions for one in examples)
    with pytest.raises(UsageError, match=rf"needs {longest} positions, the decoder GPT2LMHeadModel has 20"):
        lalm(batch)


SCALED = {
    # name: (family, values, positions up to which nothing is scaled, the scaling)
    "longrope": (
        "phi3",
        {
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 48,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [8.0, 6.0, 4.0, 2.0],
                "original_max_position_embeddings": 48,
            },
        },
        48,
    ),
    "dynamic": (
        "llama",
        {
            "max_position_embeddings": 40,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 8.0},
        },
        40,
    ),
    "dynamic in one type of layer": (
        "gemma3_text",
        {
            "max_position_embeddings": 44,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 8.0},
            },
        },
        44,
    ),
    "dynamic, padded": (
        "llama",
        {
            "max_position_embeddings": 40,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 8.0},
        },
        40,
    ),
}


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of decoders whose rotary frequencies depend on the longest sequence."""
    return {
        name: save_decoder(tmp_path_factory.mktemp(family), family, **values)
        for name, (family, values, _) in SCALED.items()
    }


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(SCALED)), others=st.lists(st.integers(1, 100), min_size=1, max_size=3))
@example(name="longrope", others=[100])
@example(name="dynamic", others=[100])
def test_a_sequence_is_read_as_alone_or_refused_whatever_the_longest_of_its_batch(
    name: str,
    others: list[int],
    scaled: dict[str, str],
    make_clips: MakeClips,
    tokenizer: TextTokenizer,
    mini_recipe: Recipe,
) -> None:
    lalm = build_lalm(scaled[name], 6, mini_recipe.training).eval()
    if name.endswith("padded"):
        lalm.reads_packed = False
        lalm.decoder.set_attn_implementation("eager")
    limit = SCALED[name][2]

    sequences = [
        Utterance(clip=clip, prompt_ids=(5, 6), target_ids=(7, tokenizer.eos_id)) for clip in make_clips([3, *others])
    ]
    longest = max(one.num_positions for one in sequences)
    with torch.no_grad():
        if longest > limit:
            with pytest.raises(
                UsageError, match=rf"needs {longest} positions, .* has {limit} before its rotary scaling"
            ):
                lalm(collate(sequences))
        else:
            alone = sum(lalm(collate([one])) for one in sequences)
            torch.testing.assert_close(lalm(collate(sequences)), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
def test_a_text_may_not_grow_beyond_what_the_rotary_scaling_leaves_alone(
    name: str, scaled: dict[str, str], make_clips: MakeClips, tokenizer: TextTokenizer, mini_recipe: Recipe
) -> None:
    lalm = build_lalm(scaled[name], 6, mini_recipe.training).eval()
    limit = SCALED[name][2]
    recipe = mini_recipe.replace({"max_new_tokens": 10}).generation
    prompts = [tokenizer.prompt(clip, "") for clip in make_clips([3, limit - 10, 20])]

    def said(prompts: list[Utterance]) -> list[str]:
        return generate(
            lalm, prompts, tokenizer=tokenizer, recipe=recipe, device=torch.device("cpu"), progress=Progress()
        )

    assert said(prompts) == [said([prompt])[0] for prompt in prompts]
    with pytest.raises(UsageError, match=rf"needs {limit + 1} positions, .* has {limit} before its rotary scaling"):
        said([tokenizer.prompt(clip, "") for clip in make_clips([3, limit - 9])])


@pytest.mark.parametrize("name", ["longrope", "dynamic", "dynamic in one type of layer"])
def test_the_probe_finds_a_scaling_by_the_longest_sequence_that_it_has_no_word_for(
    name: str, scaled: dict[str, str], mini_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xares_bench.lalm.decoder.position_limit", lambda decoder: None)
    with pytest.raises(
        UsageError, match=r"reads a sequence in another way beside one of \d+ positions; choose another"
    ):
        build_lalm(scaled[name], 6, mini_recipe.training)


@pytest.mark.parametrize(
    "rotary",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ],
)
def test_other_rotary_scalings_have_no_limit_and_are_read_packed(
    rotary: dict[str, Any], make_clips: MakeClips, tokenizer: TextTokenizer, mini_recipe: Recipe, tmp_path: Path
) -> None:
    folder = save_decoder(
        tmp_path, "llama", max_position_embeddings=40, rope_parameters={"rope_theta": 10000.0, **rotary}
    )
    lalm = build_lalm(folder, 6, mini_recipe.training).eval()
    assert lalm.reads_packed
    short, long = (
        Utterance(clip=clip, prompt_ids=(5,), target_ids=(7, tokenizer.eos_id)) for clip in make_clips([3, 200])
    )
    with torch.no_grad():
        alone = lalm(collate([short])) + lalm(collate([long]))
        torch.testing.assert_close(lalm(collate([short, long])), alone, rtol=1e-4, atol=1e-4)


def test_a_decoder_that_somebody_has_patched_is_refused(
    decoder_folder: str, mini_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = build_lalm(decoder_folder, 6, mini_recipe.training).decoder
    monkeypatch.setattr(type(decoder), "forward", lambda *_, **__: None)
    with pytest.raises(UsageError, match=rf"\.forward \({re.escape(__name__)}\); derive a class of your own"):
        build_lalm(decoder_folder, 6, mini_recipe.training)
