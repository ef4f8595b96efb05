from __future__ import annotations

import torch

from tests.conftest import MakeClips
from xares_bench.batches import Encoding
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
