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
    """A training sequence whose audio may not be encoded yet; attributes are those of `Utterance`."""

    clip: Clip | AudioClip
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]

    @property
    def sort_length(self) -> float:
        """Return what sequences are sorted by: seconds of audio plus number of tokens, as in the published recipe."""
        return self.clip.duration_s + len(self.prompt_ids) + len(self.target_ids)


def past_of(recipe: TrainingRecipe, num_batches: int, unusable: Iterable[int]) -> Past:
    """Return the resume position in the draws after a number of batches.

    The position cannot be a count of rows: the shuffle buffer and the window that is being sorted hold rows that were
    drawn before rows already used. So the numbers of the draws go through the same shuffling and sorting windows as the
    draws themselves. Nothing is read for that, and 100,000 steps take a fraction of a second.

    Args:
        recipe: Sizes of buffer, window and batch, and the seed.
        num_batches: Number of batches that have been used.
        unusable: Numbers of the drawn rows whose clips were unusable. They never entered the buffer.
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
    # The next window is needed as a whole: it is sorted, and its audio is encoded, together. It was drawn in any case,
    # because webdataset's `batched` takes the sample behind a batch before it returns the batch.
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
    """Yield endless batches of endless draws, in an order that depends only on the draws and the recipe's seed.

    Draws are shuffled in a buffer and sorted by length within a window, longest first, so that the sequences of a batch
    have similar lengths. Audio is encoded one window at a time. For cached features only their position in a file moves
    through buffer and window, so that these need little memory.

    Args:
        draws: Rows with features or audio; None for rows that only past batches have used.
        clips: Encodes audio.
        tokenizer: Tokenises prompts and targets.
        recipe: Sizes of buffer, window and batch, and the seed.
        num_past: Number of batches that an earlier session has used; they are skipped.
        share: Index of this process and number of processes; each gets its share of every batch.

    Raises:
        EncoderError: The encoder breaks its contract on one of the clips.
    """
    stages: list[object] = [
        lambda: (None if draw is None else example_of(draw, tokenizer) for draw in draws),
        _shuffle(recipe),
        lambda examples: _encode_windows(examples, recipe, clips, num_past * recipe.batch_size),
        webdataset.batched(recipe.batch_size, partial=False, collation_fn=functools.partial(collate, share=share)),
    ]
    yield from webdataset.DataPipeline(*stages)


def example_of(draw: Draw, tokenizer: TextTokenizer) -> Example:
    """Return a draw as a training sequence, tokenised."""
    target_ids = (*tokenizer.tokens(draw.target), tokenizer.eos_id)
    return Example(clip=draw.clip, prompt_ids=tokenizer.tokens(draw.prompt), target_ids=target_ids)


def _shuffle(recipe: TrainingRecipe) -> object:
    return webdataset.shuffle(recipe.shuffle_buffer, initial=recipe.shuffle_buffer, rng=random.Random(recipe.seed))


def _encode_windows(
    examples: Iterator[Example | None], recipe: TrainingRecipe, clips: ClipEncoder, num_past: int
) -> Iterator[Utterance]:
    """Yield examples sorted by length within a window, longest first, and encoded; past ones are skipped."""
    num_past_windows, num_past_of_next = divmod(num_past, recipe.sort_window)
    for number in itertools.count():
        drawn = list(itertools.islice(examples, recipe.sort_window))
        if not drawn:
            return
        if number < num_past_windows:
            continue
        window = [example for example in drawn if example is not None]
        assert len(window) == len(drawn), "a row of this window was taken for past"
        window.sort(key=lambda example: -example.sort_length)
        # Rows of the same clip share its audio: encode it once.
        recordings = {id(example.clip): example.clip for example in window if isinstance(example.clip, AudioClip)}
        encoded: dict[int, Clip] = {}
        if recordings:
            made = clips.encode(list(recordings.values()), f"{recipe.seed} window {number}")
            encoded = dict(zip(recordings, made, strict=True))
        for example in window[num_past_of_next if number == num_past_windows else 0 :]:
            clip = encoded[id(example.clip)] if isinstance(example.clip, AudioClip) else example.clip
            yield Utterance(
                clip=clip.pooled(recipe.frame_pool), prompt_ids=example.prompt_ids, target_ids=example.target_ids
            )
