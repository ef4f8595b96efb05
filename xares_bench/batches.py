"""Batches: features and text become tensors, sequences behind each other, without padding and without holes.

A sequence is `[audio frames][prompt tokens][target tokens][EOS]`.

Shapes, over all sequences of a batch: F audio frames, M tokens of text, T of them targets; D `output_dim`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import webdataset
from transformers import PreTrainedTokenizerBase

from xares_bench.clips import Clip, ClipEncoder, Recording
from xares_bench.draws import Draw, Past
from xares_bench.recipe import TrainingRecipe


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One sequence before it is in a batch: its clip and its tokens.

    Attributes:
        clip: The clip that the sequence starts with.
        prompt_ids: Tokens of the prompt.
        target_ids: Tokens of the target and EOS; empty in generation.
    """

    clip: Clip
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]

    @property
    def num_positions(self) -> int:
        """Length of the sequence."""
        return self.clip.num_frames + len(self.prompt_ids) + len(self.target_ids)


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A sequence to learn from that may not be encoded yet; attributes are those of `Utterance`."""

    clip: Clip | Recording
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]

    @property
    def sort_length(self) -> float:
        """What the recipe sorts by: seconds of audio plus number of tokens."""
        return self.clip.duration_s + len(self.prompt_ids) + len(self.target_ids)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences one behind the other, without padding; places are counted over all of them.

    Attributes:
        lengths: Positions of every sequence.
        frames_FD: Audio features of all sequences.
        frame_places_F: Where they go.
        text_ids_M: Tokens of prompts and targets of all sequences.
        text_places_M: Where they go.
        target_ids_T: Those of them that are to be predicted: targets and EOS.
        predicting_places_T: The places before them, where they are predicted from.
        num_targets: Tokens that the loss is averaged over: of a share of a batch, those of the whole batch.
    """

    lengths: tuple[int, ...]
    frames_FD: torch.Tensor
    frame_places_F: torch.Tensor
    text_ids_M: torch.Tensor
    text_places_M: torch.Tensor
    target_ids_T: torch.Tensor
    predicting_places_T: torch.Tensor
    num_targets: int

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return dataclasses.replace(self, **moved)


class Encoding:
    """Turns prompts and targets into tokens, each on its own and without special tokens between them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Keep the tokeniser and its EOS.

        Raises:
            ValueError: The tokeniser has no EOS token.
        """
        if tokenizer.eos_token_id is None:
            raise ValueError("the decoder's tokeniser has no EOS token")
        self._tokenizer = tokenizer
        # Prompts and labels come again and again.
        self._tokens = functools.lru_cache(maxsize=8192)(self._tokenise)
        self.eos_id = int(tokenizer.eos_token_id)
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    def prompt(self, clip: Clip, prompt: str) -> Utterance:
        """A sequence to continue."""
        return Utterance(clip=clip, prompt_ids=self._tokens(prompt), target_ids=())

    def example(self, draw: Draw) -> Example:
        """A sequence to learn from."""
        target_ids = (*self._tokens(draw.target), self.eos_id)
        return Example(clip=draw.clip, prompt_ids=self._tokens(draw.prompt), target_ids=target_ids)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of generated tokens, special tokens left out."""
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text.strip()

    def _tokenise(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def collate(sequences: Sequence[Utterance], share: tuple[int, int] = (0, 1)) -> Batch:
    """Put sequences, at least one, behind each other.

    Args:
        sequences: All of a batch.
        share: `(index, number)`: every so many sequences from that one on are taken.
    """
    num_targets = sum(len(sequence.target_ids) for sequence in sequences)
    sequences = sequences[share[0] :: share[1]]
    frames = [sequence.clip.frames() for sequence in sequences]
    frame_places: list[int] = []
    text_ids: list[int] = []
    text_places: list[int] = []
    target_ids: list[int] = []
    predicting_places: list[int] = []
    start = 0
    for features_TD, sequence in zip(frames, sequences, strict=True):
        text = start + len(features_TD)
        target = text + len(sequence.prompt_ids)
        end = target + len(sequence.target_ids)
        frame_places.extend(range(start, text))
        text_ids.extend((*sequence.prompt_ids, *sequence.target_ids))
        text_places.extend(range(text, end))
        target_ids.extend(sequence.target_ids)
        predicting_places.extend(range(target - 1, end - 1))
        start = end
    return Batch(
        lengths=tuple(sequence.num_positions for sequence in sequences),
        frames_FD=torch.cat(frames),
        frame_places_F=torch.tensor(frame_places),
        text_ids_M=torch.tensor(text_ids, dtype=torch.long),
        text_places_M=torch.tensor(text_places, dtype=torch.long),
        target_ids_T=torch.tensor(target_ids, dtype=torch.long),
        predicting_places_T=torch.tensor(predicting_places, dtype=torch.long),
        num_targets=num_targets,
    )


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
    encoding: Encoding,
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
        encoding: Makes tokens of prompts and targets.
        recipe: Sizes of buffer, window and batch, and the seed.
        num_past: Batches that were used in an earlier session, to be left out.
        share: `(index, number)` of the process, which gets its share of every batch.

    Raises:
        EncoderError: The encoder breaks its contract on one of the recordings.
    """
    stages: list[object] = [
        lambda: (None if draw is None else encoding.example(draw) for draw in draws),
        _shuffle(recipe),
        lambda examples: _encode_windows(examples, recipe, clips, num_past * recipe.batch_size),
        webdataset.batched(recipe.batch_size, partial=False, collation_fn=functools.partial(collate, share=share)),
    ]
    yield from webdataset.DataPipeline(*stages)


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
        recordings = {id(example.clip): example.clip for example in window if isinstance(example.clip, Recording)}
        encoded: dict[int, Clip] = {}
        if recordings:
            made = clips.encode(list(recordings.values()), f"{recipe.seed} window {number}")
            encoded = dict(zip(recordings, made, strict=True))
        for example in window[num_past_of_next if number == num_past_windows else 0 :]:
            clip = encoded[id(example.clip)] if isinstance(example.clip, Recording) else example.clip
            yield Utterance(clip=clip, prompt_ids=example.prompt_ids, target_ids=example.target_ids)
