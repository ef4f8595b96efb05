"""The other side of every comparison: the package's public functions on the sounds that the control gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch
from accelerate import Accelerator

from benchmarks.sizes import Size
from benchmarks.sounds import Sound
from tests.plain_lalm import TokenIdTokenizer
from xares_bench.config.catalogue import load_catalogue
from xares_bench.config.recipe import GenerationRecipe, Recipe, TrainingRecipe
from xares_bench.core.progress import Progress
from xares_bench.encoders.loading import FrozenEncoder
from xares_bench.features.encoding import Clip, ClipEncoder
from xares_bench.lalm.batch import TextTokenizer, Utterance, collate
from xares_bench.lalm.decoder import load_tokenizer
from xares_bench.lalm.generation import generate
from xares_bench.lalm.model import LALM, build_lalm
from xares_bench.training.checkpoints import Checkpoint
from xares_bench.training.dataloader import training_batches
from xares_bench.training.loop import train
from xares_bench.training.sampler import Draw


def published_recipe(size: Size, **changes: object) -> Recipe:
    """The `full` preset's recipe, unshuffled, so that the control can make the same batches."""
    fixed = {"shuffle_buffer": 1, "max_new_tokens": size.max_new_tokens}
    return load_catalogue("full").preset.recipe.replace({**fixed, **changes})


def train_ours(
    lalm: LALM,
    draws: Iterable[Draw],
    *,
    encoder: FrozenEncoder,
    tokenizer: TextTokenizer,
    num_steps: int,
    recipe: TrainingRecipe,
    keep: Callable[[Checkpoint], None] | None = None,
) -> list[float]:
    """Fit a LALM, in place; the loss of every step, in nats per token. `keep` gets the state after each."""
    clips = ClipEncoder(encoder=encoder, honours_mask=True)
    return train(
        lalm,
        training_batches(iter(draws), clips, tokenizer, recipe),
        num_steps=num_steps,
        recipe=recipe,
        accelerator=Accelerator(cpu=True),
        progress=Progress(),
        keep=keep,
        keep_every=1,
    )


@torch.no_grad()
def loss_ours(lalm: LALM, pairs: Sequence[tuple[Sound, Clip]], tokenizer: TextTokenizer) -> float:
    """Mean loss of one batch of sounds with their features, without dropout, in nats per token."""
    utterances = []
    for sound, clip in pairs:
        prompt_ids, target_ids = (tokenizer.prompt(clip, text).prompt_ids for text in (sound.prompt, sound.targets[0]))
        target_ids = (*target_ids, tokenizer.eos_id)
        utterances.append(Utterance(clip=clip, prompt_ids=prompt_ids, target_ids=target_ids))
    batch = collate(utterances)
    return float(lalm.eval()(batch) / batch.num_targets)


def evaluate_ours(
    lalm: LALM, sounds: Sequence[Sound], *, encoder: FrozenEncoder, tokenizer: TextTokenizer, recipe: GenerationRecipe
) -> list[str]:
    """What the LALM says, a text for every row, from waveforms on and with LoRA still to be merged."""
    lalm.merge_lora()
    clips = ClipEncoder(encoder=encoder, honours_mask=True).encode(
        [sound.recording() for sound in sounds], "evaluation"
    )
    prompts = [tokenizer.prompt(clip, sound.prompt) for clip, sound in zip(clips, sounds, strict=True)]
    texts = generate(lalm, prompts, tokenizer=tokenizer, recipe=recipe, device=torch.device("cpu"), progress=Progress())
    return [text for text, sound in zip(texts, sounds, strict=True) for _ in sound.targets]


def bare_lalm(size: Size, output_dim: int, recipe: TrainingRecipe) -> LALM:
    """A LALM whose decoder is frozen and without adapters: what is left of a step is the least there can be."""
    lalm = build_lalm(size.decoder, output_dim, dataclasses.replace(recipe, adaptation="full"))
    lalm.decoder.requires_grad_(False)
    return lalm


def token_id_tokenizer(size: Size) -> TokenIdTokenizer:
    """The decoder's tokens; texts are written as token numbers."""
    return TokenIdTokenizer(load_tokenizer(size.decoder))
