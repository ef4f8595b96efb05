"""Generation by transformers, for decoders that cannot read packed sequences, in batches padded on the left."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from xares_bench.config.recipe import GenerationRecipe
from xares_bench.lalm.attention import pack
from xares_bench.lalm.batch import TextTokenizer, Utterance, collate
from xares_bench.lalm.model import LALM
from xares_bench.runtime.memory import split_on_out_of_memory


def generate_padded(
    lalm: LALM,
    prompts: Sequence[Utterance],
    *,
    tokenizer: TextTokenizer,
    recipe: GenerationRecipe,
    device: torch.device,
) -> Iterator[tuple[int, list[int]]]:
    """Yield index and generated tokens of every prompt, in the given order, which should be one of length.

    Positions are counted from the first audio frame. If padding on the left changes a decoder's output, only clips of
    equal length share a batch.
    """
    group_by_length = bool(prompts) and not _ignores_padding(lalm, tokenizer, device)

    def generate_batch(batch: Sequence[Utterance]) -> list[list[int]]:
        return _generate_batch(lalm, batch, tokenizer, recipe, device)

    for indices in _batches(prompts, recipe.generation_batch_size, group_by_length):
        token_ids = split_on_out_of_memory(generate_batch, [prompts[index] for index in indices], "generation")
        yield from zip(indices, token_ids, strict=True)


def _batches(prompts: Sequence[Utterance], batch_size: int, group_by_length: bool) -> Iterator[Sequence[int]]:
    """Yield the indices of prompts that share a batch."""
    groups: list[list[int]] = [list(range(len(prompts)))]
    if group_by_length:
        by_length = itertools.groupby(groups[0], lambda index: prompts[index].num_positions)
        groups = [list(group) for _, group in by_length]
    for group in groups:
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _ignores_padding(lalm: LALM, tokenizer: TextTokenizer, device: torch.device) -> bool:
    """Whether the decoder's output for a sequence with padding on the left equals that for the sequence alone.

    For most decoders it does. Some count positions, or carry their state, from the padding on.
    """
    decoder: Any = lalm.decoder
    embeddings: torch.Tensor = decoder.get_input_embeddings().weight
    num_padding, num_positions = 3, 4
    inputs_BLH = embeddings[torch.linspace(0, len(embeddings) - 1, num_padding + num_positions).long().to(device)][None]
    mask_BL = torch.ones(1, num_padding + num_positions, dtype=torch.long, device=device)
    mask_BL[:, :num_padding] = 0
    arguments = {
        "max_new_tokens": 2,
        "do_sample": False,
        "pad_token_id": tokenizer.pad_id,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    padded = decoder.generate(inputs_embeds=inputs_BLH, attention_mask=mask_BL, **arguments)
    alone = decoder.generate(
        inputs_embeds=inputs_BLH[:, num_padding:], attention_mask=mask_BL[:, num_padding:], **arguments
    )
    padded_V, alone_V = torch.cat(padded.logits, dim=1), torch.cat(alone.logits, dim=1)
    return bool((padded_V - alone_V).norm() <= 1e-3 * alone_V.norm())


def _generate_batch(
    lalm: LALM, prompts: Sequence[Utterance], tokenizer: TextTokenizer, recipe: GenerationRecipe, device: torch.device
) -> list[list[int]]:
    """Return the generated tokens of every prompt, up to EOS."""
    batch = collate(prompts).to(device)
    # `unpacked` pads on the right, so the sequences are reversed before and after.
    packing = pack(batch.lengths[::-1], device)
    inputs_BLH = packing.unpacked(lalm.embed(batch).flip(0)).flip(0, 1)
    mask_BL = packing.unpacked(torch.ones_like(packing.position_ids_N)).flip(0, 1)
    decoder: Any = lalm.decoder
    token_ids: torch.Tensor = decoder.generate(
        inputs_embeds=inputs_BLH,
        attention_mask=mask_BL,
        max_new_tokens=recipe.max_new_tokens,
        # Not as the argument `repetition_penalty`: with embeddings as input, transformers then skips as many generated
        # tokens as there is padding on the left, so a text would depend on its batch.
        logits_processor=LogitsProcessorList([RepetitionPenaltyLogitsProcessor(recipe.repetition_penalty)]),
        repetition_penalty=1.0,
        do_sample=False,
        num_beams=1,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    return [until(row, tokenizer.eos_id) for row in token_ids.tolist()]


def until(token_ids: list[int], eos_id: int) -> list[int]:
    """Return the tokens before EOS; all, if it is not among them."""
    return token_ids[: token_ids.index(eos_id)] if eos_id in token_ids else token_ids
