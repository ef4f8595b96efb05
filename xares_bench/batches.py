"""Batches: features and text become padded tensors, without holes between audio and text.

A sequence is `[audio frames][prompt tokens][target tokens][EOS]`; padding stands outside it, on the right in training
and on the left in generation, so that positions count the same in both.

Shapes: B sequences, L positions, N audio frames of all sequences together, D `output_dim`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import webdataset
from transformers import PreTrainedTokenizerBase

from xares_bench.catalogue import Dataset, Mix
from xares_bench.features import Clip
from xares_bench.recipe import TrainingRecipe
from xares_bench.rows import Row

# What the loss passes over.
IGNORED_LABEL = -100


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One sequence before it is padded: where its audio features are, and its tokens.

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

    @property
    def sort_length(self) -> float:
        """What the recipe sorts by: seconds of audio plus number of tokens."""
        return self.clip.duration_s + len(self.prompt_ids) + len(self.target_ids)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Padded sequences.

    Attributes:
        frames_ND: Audio features of all sequences, one after the other.
        token_ids_BL: Token ids; anything where there is audio or padding.
        is_audio_BL: Where the audio frames go; True exactly N times, in the order of `frames_ND`.
        attention_mask_BL: 1 at positions of a sequence, 0 at padding.
        labels_BL: Token ids to predict at target and EOS, `IGNORED_LABEL` elsewhere.
    """

    frames_ND: torch.Tensor
    token_ids_BL: torch.Tensor
    is_audio_BL: torch.Tensor
    attention_mask_BL: torch.Tensor
    labels_BL: torch.Tensor

    @property
    def num_targets(self) -> int:
        """Positions that the loss is summed over."""
        return int((self.labels_BL != IGNORED_LABEL).sum())

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


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
        self.eos_id = int(tokenizer.eos_token_id)
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    def prompt(self, clip: Clip, prompt: str) -> Utterance:
        """A sequence to continue."""
        return Utterance(clip=clip, prompt_ids=self._tokens(prompt), target_ids=())

    def example(self, row: Row, prompt: str) -> Utterance:
        """A sequence to learn from."""
        target_ids = (*self._tokens(row.target), self.eos_id)
        return Utterance(clip=row.clip, prompt_ids=self._tokens(prompt), target_ids=target_ids)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of generated tokens, special tokens left out."""
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text.strip()

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def collate(sequences: Sequence[Utterance], *, pad_id: int, padding: Literal["left", "right"]) -> Batch:
    """Pad sequences to the longest of them.

    Args:
        sequences: At least one.
        pad_id: Token id at padding.
        padding: Side of the padding: `right` in training, `left` in generation.
    """
    frames = [sequence.clip.frames() for sequence in sequences]
    lengths = [sequence.num_positions for sequence in sequences]
    shape = (len(sequences), max(lengths))
    token_ids_BL = torch.full(shape, pad_id)
    labels_BL = torch.full(shape, IGNORED_LABEL)
    is_audio_BL = torch.zeros(shape, dtype=torch.bool)
    attention_mask_BL = torch.zeros(shape, dtype=torch.long)
    for row, (features_TD, sequence) in enumerate(zip(frames, sequences, strict=True)):
        start = 0 if padding == "right" else shape[1] - lengths[row]
        text = start + len(features_TD)
        target = text + len(sequence.prompt_ids)
        end = target + len(sequence.target_ids)
        is_audio_BL[row, start:text] = True
        token_ids_BL[row, text:end] = torch.tensor((*sequence.prompt_ids, *sequence.target_ids), dtype=torch.long)
        labels_BL[row, target:end] = token_ids_BL[row, target:end]
        attention_mask_BL[row, start:end] = 1
    return Batch(
        frames_ND=torch.cat(frames),
        token_ids_BL=token_ids_BL,
        is_audio_BL=is_audio_BL,
        attention_mask_BL=attention_mask_BL,
        labels_BL=labels_BL,
    )


def training_batches(
    mix: Mix, rows: Mapping[str, Sequence[Row]], encoding: Encoding, recipe: TrainingRecipe
) -> Iterator[Batch]:
    """Endless batches of a mix, in an order that depends on the recipe's seed alone.

    Each draw picks a dataset by its weight, then that dataset's next row (all rows in a new order at every pass).
    Draws are shuffled in a buffer and sorted by length within a window, longest first; an incomplete batch is dropped.
    Only places of clips move through this, features are read when a batch is put together.
    """
    tokens: dict[tuple[str, str, str], Utterance] = {}

    def tokenise(draws: Iterable[tuple[Dataset, Row]]) -> Iterator[Utterance]:
        for dataset, row in draws:
            key = (dataset.name, row.clip.key, row.target)
            if key not in tokens:
                tokens[key] = encoding.example(row, dataset.prompt)
            yield tokens[key]

    stages: list[object] = [
        lambda: _draw(mix, rows, random.Random(f"{recipe.seed} draw")),
        tokenise,
        webdataset.shuffle(recipe.shuffle_buffer, initial=recipe.shuffle_buffer, rng=random.Random(recipe.seed)),
        lambda sequences: _sort_by_length(sequences, recipe.sort_window),
        webdataset.batched(recipe.batch_size, partial=False, collation_fn=_collation(encoding.pad_id)),
    ]
    yield from webdataset.DataPipeline(*stages)


def _collation(pad_id: int) -> Callable[[list[Utterance]], Batch]:
    return lambda sequences: collate(sequences, pad_id=pad_id, padding="right")


def _draw(mix: Mix, rows: Mapping[str, Sequence[Row]], rng: random.Random) -> Iterator[tuple[Dataset, Row]]:
    next_rows = {dataset.name: _passes(rows[dataset.name], rng) for dataset in mix.datasets}
    while True:
        dataset = rng.choices(mix.datasets, mix.weights)[0]
        yield dataset, next(next_rows[dataset.name])


def _passes(rows: Sequence[Row], rng: random.Random) -> Iterator[Row]:
    """Every row once, in a new order, for ever."""
    while True:
        yield from rng.sample(rows, len(rows))


def _sort_by_length(sequences: Iterator[Utterance], window: int) -> Iterator[Utterance]:
    while group := list(itertools.islice(sequences, window)):
        yield from sorted(group, key=lambda sequence: -sequence.sort_length)
