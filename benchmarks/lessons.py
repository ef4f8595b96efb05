"""A LALM that has learnt to answer and to stop, since an untrained one does neither."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from accelerate import Accelerator

from benchmarks.ours import published_recipe, token_id_tokenizer
from benchmarks.sizes import Size, user_cache
from benchmarks.sounds import captioned_sounds, endless_sounds, labelled_sounds
from xares_bench.core.digests import code_digest, digest_of
from xares_bench.core.progress import Progress
from xares_bench.encoders.loading import FrozenEncoder
from xares_bench.features.encoding import ClipEncoder
from xares_bench.lalm.batch import TextTokenizer, Utterance, collate
from xares_bench.lalm.model import LALM, build_lalm
from xares_bench.training.loop import train


def learnt_lalm(size: Size, encoder: FrozenEncoder) -> LALM:
    """A LALM that answers and stops, as after a training, and does not stop on white noise; cached in the user's cache.

    It learns labels, captions and the endless answer, in batches of eight at a rate of 0.001.
    """
    recipe = published_recipe(size, learning_rate=1e-3, warmup_steps=10, lora_dropout=0.0).training
    lalm = build_lalm(size.decoder, encoder.output_dim, recipe)
    made_of = [
        dataclasses.asdict(recipe),
        size.num_learning_steps,
        code_digest("benchmarks.lessons", "benchmarks.sounds"),
    ]
    folder = user_cache() / f"learnt-{digest_of(made_of)[:16]}"
    if size.is_real and (folder / "finished").is_file():
        lalm.load(folder)
        return lalm.eval()
    tokenizer = token_id_tokenizer(size)
    batches = (collate(batch) for batch in _lessons(size, encoder, tokenizer))
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
        (folder / "finished").write_text(f"{losses[-1]:.4f}\n")
    return lalm


def _lessons(size: Size, encoder: FrozenEncoder, tokenizer: TextTokenizer) -> Iterator[list[Utterance]]:
    """Batches of five labels, two captions and an endless answer."""
    num = size.num_learning_steps
    sounds = [labelled_sounds(5 * num, seed=1), captioned_sounds(2 * num, seed=2), endless_sounds(num, seed=3)]
    clips = ClipEncoder(encoder=encoder, honours_mask=True)
    kinds = [
        iter(zip(kind, clips.encode([one.recording() for one in kind], "lessons"), strict=True)) for kind in sounds
    ]
    for _ in range(num):
        lesson = [*itertools.islice(kinds[0], 5), *itertools.islice(kinds[1], 2), next(kinds[2])]
        batch: list[Utterance] = []
        for sound, clip in lesson:
            is_endless = len(batch) == len(lesson) - 1
            target_ids = tokenizer.prompt(clip, sound.targets[0]).prompt_ids
            target_ids = target_ids if is_endless else (*target_ids, tokenizer.eos_id)
            prompt_ids = tokenizer.prompt(clip, sound.prompt).prompt_ids
            batch.append(Utterance(clip=clip, prompt_ids=prompt_ids, target_ids=target_ids))
        yield batch
