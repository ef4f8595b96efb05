from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config

from tests.conftest import MakeClips
from xares_bench.batches import Encoding
from xares_bench.errors import UsageError
from xares_bench.generation import generate
from xares_bench.lalm import LALM, build_lalm
from xares_bench.progress import Progress
from xares_bench.recipe import GenerationRecipe, Recipe

RECIPE = GenerationRecipe(repetition_penalty=1.05, max_new_tokens=12, generation_batch_size=3)


def plain_greedy(lalm: LALM, frames_TD: torch.Tensor, prompt_ids: tuple[int, ...], eos_id: int) -> list[int]:
    """Greedy decoding written out: one clip, no padding, no cache, the whole sequence anew for every token."""
    embed = lalm.decoder.get_input_embeddings()
    said: list[int] = []
    for _ in range(RECIPE.max_new_tokens):
        tokens = torch.tensor((*prompt_ids, *said), dtype=torch.long)
        inputs_LH = torch.cat([lalm.projector(frames_TD), embed(tokens)])
        scores_V = lalm.decoder(inputs_embeds=inputs_LH[None]).logits[0, -1]
        for token in set(said):
            scores_V[token] = scores_V[token] / 1.05 if scores_V[token] > 0 else scores_V[token] * 1.05
        said.append(int(scores_V.argmax()))
        if said[-1] == eos_id:
            return said[:-1]
    return said


def test_texts_equal_plain_greedy_decoding_of_each_clip_alone(
    make_clips: MakeClips, decoder_folder: str, encoding: Encoding, mini_recipe: Recipe
) -> None:
    lalm = build_lalm(decoder_folder, 6, mini_recipe.training).eval()
    clips = make_clips([2, 9, 4, 17, 6, 1, 8])
    with torch.no_grad():
        expected = [
            encoding.text(plain_greedy(lalm, clip.frames(), encoding.prompt(clip, "say").prompt_ids, encoding.eos_id))
            for clip in clips
        ]
    prompts = [encoding.prompt(clip, "say") for clip in clips]
    texts = generate(lalm, prompts, encoding=encoding, recipe=RECIPE, device=torch.device("cpu"), progress=Progress())
    assert texts == expected
    assert len(set(texts)) > 3, "the decoder says the same to everything, which tests nothing"


def test_what_a_decoder_suggests_for_its_own_generation_does_not_count(
    make_clips: MakeClips, decoder_folder: str, encoding: Encoding, mini_recipe: Recipe, tmp_path: Path
) -> None:
    """Only the recipe does: as in a folder that says nothing."""
    folders = [tmp_path / "silent", tmp_path / "chatty"]
    for folder in folders:
        shutil.copytree(decoder_folder, folder)
    config: Any = GenerationConfig
    suggested = config(no_repeat_ngram_size=1, min_new_tokens=12, suppress_tokens=list(range(3, 200)))
    suggested.save_pretrained(folders[1])
    lalm = build_lalm(str(folders[0]), 6, mini_recipe.training)
    lalm.decoder.save_pretrained(folders[0])
    shutil.copy(folders[0] / "model.safetensors", folders[1])
    prompts = [encoding.prompt(clip, "say") for clip in make_clips([2, 9, 4, 17])]
    silent, chatty = (
        generate(
            build_lalm(str(folder), 6, mini_recipe.training).eval(),
            prompts,
            encoding=encoding,
            recipe=RECIPE,
            device=torch.device("cpu"),
            progress=Progress(),
        )
        for folder in folders
    )
    assert chatty == silent


def test_a_text_that_the_table_of_positions_is_too_short_for_is_refused_before_generation(
    make_clips: MakeClips, encoding: Encoding, mini_recipe: Recipe, tmp_path: Path
) -> None:
    config = GPT2Config(vocab_size=384, n_embd=32, n_layer=1, n_head=4, n_positions=40)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    lalm = build_lalm(str(tmp_path), 6, mini_recipe.training).eval()

    def generate_for(num_frames: int) -> list[str]:
        prompts = [encoding.prompt(clip, "say") for clip in make_clips([2, num_frames])]
        device = torch.device("cpu")
        return generate(lalm, prompts, encoding=encoding, recipe=RECIPE, device=device, progress=Progress())

    assert len(generate_for(25)) == 2  # and 3 tokens of prompt and 12 new ones
    with pytest.raises(UsageError, match=r"needs 41 positions, the decoder GPT2LMHeadModel has 40"):
        generate_for(26)


def test_nothing_is_said_to_no_prompts(decoder_folder: str, encoding: Encoding, mini_recipe: Recipe) -> None:
    lalm = build_lalm(decoder_folder, 6, mini_recipe.training).eval()
    device = torch.device("cpu")
    assert generate(lalm, [], encoding=encoding, recipe=RECIPE, device=device, progress=Progress()) == []
