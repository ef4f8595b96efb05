"""Generation: greedy decoding of many clips, each once, whatever the number of its targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from xares_bench.batches import Encoding, Utterance, collate
from xares_bench.lalm import LALM
from xares_bench.progress import Progress
from xares_bench.recipe import GenerationRecipe


def generate(
    lalm: LALM,
    prompts: Sequence[Utterance],
    *,
    encoding: Encoding,
    recipe: GenerationRecipe,
    device: torch.device,
    progress: Progress,
    description: str = "generating",
) -> list[str]:
    """What the LALM says to every prompt, in the order given.

    Clips of like length share a batch, padded on the left; positions are counted from the first audio frame, as in
    training.
    """
    order = sorted(range(len(prompts)), key=lambda index: (-prompts[index].num_positions, index))
    texts = [""] * len(prompts)
    with torch.inference_mode(), progress.bar(description, len(prompts)) as advance:
        for start in range(0, len(order), recipe.generation_batch_size):
            indices = order[start : start + recipe.generation_batch_size]
            token_ids = _generate_batch(lalm, [prompts[index] for index in indices], encoding, recipe, device)
            for index, row in zip(indices, token_ids, strict=True):
                texts[index] = encoding.text(row)
            advance(len(indices))
    return texts


def _generate_batch(
    lalm: LALM, prompts: Sequence[Utterance], encoding: Encoding, recipe: GenerationRecipe, device: torch.device
) -> list[list[int]]:
    """Generated tokens of every prompt; after EOS there is padding."""
    batch = collate(prompts, pad_id=encoding.pad_id, padding="left").to(device)
    decoder: Any = lalm.decoder
    token_ids: torch.Tensor = decoder.generate(
        inputs_embeds=lalm.embed(batch),
        attention_mask=batch.attention_mask_BL,
        max_new_tokens=recipe.max_new_tokens,
        # Not by the argument `repetition_penalty`: with embeddings as input, transformers then leaves as many generated
        # tokens unpenalised as there is padding on the left, so that a text depends on its batch.
        logits_processor=LogitsProcessorList([RepetitionPenaltyLogitsProcessor(recipe.repetition_penalty)]),
        repetition_penalty=1.0,
        do_sample=False,
        num_beams=1,
        eos_token_id=encoding.eos_id,
        pad_token_id=encoding.pad_id,
    )
    return [_until(row, encoding.eos_id) for row in token_ids.tolist()]


def _until(token_ids: list[int], eos_id: int) -> list[int]:
    return token_ids[: token_ids.index(eos_id)] if eos_id in token_ids else token_ids
