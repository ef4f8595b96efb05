"""The dataloader: drawn rows become batches, shuffled in a buffer and sorted by length within a window."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

import webdataset

from xares_bench.config.recipe import TrainingRecipe
from xares_bench.features.encoding import AudioClip, Clip, ClipEncoder
from xares_bench.lalm.batch import Batch, TextTokenizer, Utterance, collate
from xares_bench.training.sampler import Draw, Past


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A sequence to learn from that may not be encoded yet; attributes are those of `Utterance`."""

    clip: Clip | AudioClip
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]

    @property
    def sort_length(self) -> float:
        """What the recipe sorts by: seconds of audio plus number of tokens."""
        return self.clip.duration_s + len(self.prompt_ids) + len(self.target_ids)


def past_of(recipe: TrainingRecipe, num_batches: int, unusable: Iterable[int]) -> Past:
    """What was drawn for the first batches of a recipe, and what of it the batches behind them are still to be made of.

    Nothing but numbers goes the way of the draws here, so that it takes a moment.

    Args:
        recipe: Sizes of buffer, window and batch, and the seed.
        num_batches: Batches that were used.
        unusable: Numbers of the drawn rows that have come to nothing.
    """
    left_out = frozenset(unusable)
    drawn: set[int] = set()

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            if number not in left_out:
                drawn.add(number)
                yield number

    if num_batches == 0:
        return Past()
    num_windows = num_batches * recipe.batch_size // recipe.sort_window
    shuffled = iter(webdataset.DataPipeline(numbers, _shuffle(recipe)))
    used = set(itertools.islice(shuffled, num_windows * recipe.sort_window))
    # The next window is sorted, and its recordings are encoded, as a whole; begun in any case, for webdataset looks at
    # the sample behind a batch before it gives the batch.
    next(itertools.islice(shuffled, recipe.sort_window - 1, None))
    return Past(num_draws=max(drawn) + 1, still_needed=frozenset(drawn - used))


def training_batches(
    draws: Iterator[Draw | None],
    clips: ClipEncoder,
    tokenizer: TextTokenizer,
    recipe: TrainingRecipe,
    num_past: int = 0,
    share: tuple[int, int] = (0, 1),
) -> Generator[Batch, None, None]:
    """Endless batches of endless draws, in an order that depends on the draws and the recipe's seed alone.

    Draws are shuffled in a buffer and sorted by length within a window, longest first; an incomplete batch is dropped.
    Recordings are encoded a window at a time; of clips whose features are kept only their places move through this.

    Args:
        draws: Rows with clips or recordings; None for those that only past batches need.
        clips: Encodes the recordings.
        tokenizer: Makes tokens of prompts and targets.
        recipe: Sizes of buffer, window and batch, and the seed.
        num_past: Batches that were used in an earlier session, to be left out.
        share: `(index, number)` of the process, which gets its share of every batch.

    Raises:
        EncoderError: The encoder breaks its contract on one of the recordings.
    """
    stages: list[object] = [
        lambda: (None if draw is None else example_of(draw, tokenizer) for draw in draws),
        _shuffle(recipe),
        lambda examples: _encode_windows(examples, recipe, clips, num_past * recipe.batch_size),
        webdataset.batched(recipe.batch_size, partial=False, collation_fn=functools.partial(collate, share=share)),
    ]
    yield from webdataset.DataPipeline(*stages)


def example_of(draw: Draw, tokenizer: TextTokenizer) -> Example:
    """A draw as a sequence to learn from."""
    target_ids = (*tokenizer.tokens(draw.target), tokenizer.eos_id)
    return Example(clip=draw.clip, prompt_ids=tokenizer.tokens(draw.prompt), target_ids=target_ids)


def _shuffle(recipe: TrainingRecipe) -> object:
    return webdataset.shuffle(recipe.shuffle_buffer, initial=recipe.shuffle_buffer, rng=random.Random(recipe.seed))


def _encode_windows(
    examples: Iterator[Example | None], recipe: TrainingRecipe, clips: ClipEncoder, num_past: int
) -> Iterator[Utterance]:
    """Examples sorted by length within a window, longest first, their recordings encoded; none of the past ones."""
    num_past_windows, num_past_of_next = divmod(num_past, recipe.sort_window)
    for number in itertools.count():
        drawn = list(itertools.islice(examples, recipe.sort_window))
        if not drawn:
            return
        if number < num_past_windows:
            continue
        window = [example for example in drawn if example is not None]
        assert len(window) == len(drawn), "something of the past is still needed"
        window.sort(key=lambda example: -example.sort_length)
        # Rows of one clip share its recording.
        recordings = {id(example.clip): example.clip for example in window if isinstance(example.clip, AudioClip)}
        encoded: dict[int, Clip] = {}
        if recordings:
            made = clips.encode(list(recordings.values()), f"{recipe.seed} window {number}")
            encoded = dict(zip(recordings, made, strict=True))
        for example in window[num_past_of_next if number == num_past_windows else 0 :]:
            clip = encoded[id(example.clip)] if isinstance(example.clip, AudioClip) else example.clip
            yield Utterance(clip=clip, prompt_ids=example.prompt_ids, target_ids=example.target_ids)
