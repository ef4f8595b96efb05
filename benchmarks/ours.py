"""The other side of every comparison: the package's public functions on the sounds that the control gets."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from benchmarks.workload import Size, Sound, captioned_sounds, endless_sounds, labelled_sounds, user_cache
from tests.plain_lalm import TokenEncoding
from xares_bench.batches import Encoding, Utterance, collate, training_batches
from xares_bench.catalogue import load_catalogue
from xares_bench.clips import ClipEncoder
from xares_bench.digests import code_digest, digest_of
from xares_bench.draws import Draw
from xares_bench.encoders import FrozenEncoder
from xares_bench.generation import generate
from xares_bench.lalm import LALM, build_lalm, load_tokenizer
from xares_bench.progress import Progress
from xares_bench.recipe import GenerationRecipe, Recipe, TrainingRecipe
from xares_bench.training import train


def published_recipe(size: Size, **changes: object) -> Recipe:
    """The `full` preset's recipe, unshuffled, so that the control can make the same batches."""
    fixed = {"shuffle_buffer": 1, "max_new_tokens": size.max_new_tokens}
    return load_catalogue("full").preset.recipe.replace({**fixed, **changes})


def train_ours(
    lalm: LALM,
    draws: Iterable[Draw],
    *,
    encoder: FrozenEncoder,
    encoding: Encoding,
    num_steps: int,
    recipe: TrainingRecipe,
) -> list[float]:
    """Fit a LALM, in place; the loss of every step, in nats per token."""
    clips = ClipEncoder(encoder=encoder, honours_mask=True)
    return train(
        lalm,
        training_batches(iter(draws), clips, encoding, recipe),
        num_steps=num_steps,
        recipe=recipe,
        accelerator=Accelerator(cpu=True),
        progress=Progress(),
    )


def evaluate_ours(
    lalm: LALM, sounds: Sequence[Sound], *, encoder: FrozenEncoder, encoding: Encoding, recipe: GenerationRecipe
) -> list[str]:
    """What the LALM says, a text for every row, from waveforms on and with LoRA still to be merged."""
    lalm.merge_lora()
    clips = ClipEncoder(encoder=encoder, honours_mask=True).encode([sound.recording() for sound in sounds], "evaluation")
    prompts = [encoding.prompt(clip, sound.prompt) for clip, sound in zip(clips, sounds, strict=True)]
    texts = generate(
        lalm, prompts, encoding=encoding, recipe=recipe, device=torch.device("cpu"), progress=Progress()
    )
    return [text for text, sound in zip(texts, sounds, strict=True) for _ in sound.targets]


def bare_lalm(size: Size, output_dim: int, recipe: TrainingRecipe) -> LALM:
    """A LALM whose decoder is frozen and without adapters: what is left of a step is the least there can be."""
    lalm = build_lalm(size.decoder, output_dim, dataclasses.replace(recipe, adaptation="full"))
    lalm.decoder.requires_grad_(False)
    return lalm


def token_encoding(size: Size) -> TokenEncoding:
    """The decoder's tokens; texts are written as token numbers."""
    return TokenEncoding(load_tokenizer(size.decoder))


def learnt_lalm(size: Size, encoder: FrozenEncoder) -> LALM:
    """A LALM that answers and stops, as after a training, and does not stop on white noise; kept in the user's cache.

    It learns labels, captions and the endless answer, in batches of eight at a rate of 0.001.
    """
    recipe = published_recipe(size, learning_rate=1e-3, warmup_steps=10, lora_dropout=0.0).training
    lalm = build_lalm(size.decoder, encoder.output_dim, recipe)
    made_of = [dataclasses.asdict(size), code_digest("benchmarks.ours", "benchmarks.workload"), encoder.fingerprint]
    folder = user_cache() / f"learnt-{digest_of(made_of)[:16]}"
    if size.is_real and (folder / "finished").is_file():
        lalm.load(folder)
        return lalm.eval()
    encoding = token_encoding(size)
    batches = (collate(batch) for batch in _lessons(size, encoder, encoding))
    losses = train(
        lalm,
        batches,
        num_steps=size.num_learning_steps,
        recipe=recipe,
        accelerator=Accelerator(cpu=True),
        progress=Progress(),
        description="learning",
    )
    if size.is_real:
        folder.mkdir(parents=True, exist_ok=True)
        lalm.save(folder)
        Path(folder / "finished").write_text(f"{losses[-1]:.4f}\n")
    return lalm


def _lessons(size: Size, encoder: FrozenEncoder, encoding: Encoding) -> Iterable[list[Utterance]]:
    """Batches of five labels, two captions and an endless answer."""
    num = size.num_learning_steps
    sounds = [labelled_sounds(5 * num, seed=1), captioned_sounds(2 * num, seed=2), endless_sounds(num, seed=3)]
    clips = ClipEncoder(encoder=encoder, honours_mask=True)
    kinds = [iter(zip(kind, clips.encode([one.recording() for one in kind], "lessons"), strict=True)) for kind in sounds]
    for _ in range(num):
        lesson = [*itertools.islice(kinds[0], 5), *itertools.islice(kinds[1], 2), next(kinds[2])]
        batch = []
        for sound, clip in lesson:
            is_endless = len(batch) == len(lesson) - 1
            target_ids = encoding.prompt(clip, sound.targets[0]).prompt_ids
            target_ids = target_ids if is_endless else (*target_ids, encoding.eos_id)
            prompt_ids = encoding.prompt(clip, sound.prompt).prompt_ids
            batch.append(Utterance(clip=clip, prompt_ids=prompt_ids, target_ids=target_ids))
        yield batch
