"""Batches: features and text become padded tensors, without holes between audio and text.

A sequence is `[audio frames][prompt tokens][target tokens][EOS]`; padding stands outside it, on the right in training
and on the left in generation, so that positions count the same in both.

Shapes: B sequences, L positions, N audio frames of all sequences together, D `output_dim`.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import webdataset
from transformers import PreTrainedTokenizerBase

from xares_bench.clips import Clip, ClipEncoder, Recording
from xares_bench.draws import Draw
from xares_bench.recipe import TrainingRecipe

# What the loss passes over.
IGNORED_LABEL = -100


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One sequence before it is padded: its clip and its tokens.

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
    draws: Iterator[Draw], clips: ClipEncoder, encoding: Encoding, recipe: TrainingRecipe
) -> Generator[Batch, None, None]:
    """Endless batches of endless draws, in an order that depends on the draws and the recipe's seed alone.

    Draws are shuffled in a buffer and sorted by length within a window, longest first; an incomplete batch is dropped.
    Recordings are encoded a window at a time; of clips whose features are kept only their places move through this.

    Args:
        draws: Rows with clips or recordings.
        clips: Encodes the recordings.
        encoding: Makes tokens of prompts and targets.
        recipe: Sizes of buffer, window and batch, and the seed.

    Raises:
        EncoderError: The encoder breaks its contract on one of the recordings.
    """
    stages: list[object] = [
        lambda: map(encoding.example, draws),
        webdataset.shuffle(recipe.shuffle_buffer, initial=recipe.shuffle_buffer, rng=random.Random(recipe.seed)),
        lambda examples: _encode_windows(examples, recipe, clips),
        webdataset.batched(recipe.batch_size, partial=False, collation_fn=_collation(encoding.pad_id)),
    ]
    yield from webdataset.DataPipeline(*stages)


def _collation(pad_id: int) -> Callable[[list[Utterance]], Batch]:
    return lambda sequences: collate(sequences, pad_id=pad_id, padding="right")


def _encode_windows(examples: Iterator[Example], recipe: TrainingRecipe, clips: ClipEncoder) -> Iterator[Utterance]:
    """Examples sorted by length within a window, longest first, with their recordings encoded."""
    for number in itertools.count():
        window = list(itertools.islice(examples, recipe.sort_window))
        if not window:
            return
        window.sort(key=lambda example: -example.sort_length)
        # Rows of one clip share its recording.
        recordings = {id(example.clip): example.clip for example in window if isinstance(example.clip, Recording)}
        encoded: dict[int, Clip] = {}
        if recordings:
            made = clips.encode(list(recordings.values()), f"{recipe.seed} window {number}")
            encoded = dict(zip(recordings, made, strict=True))
        for example in window:
            clip = encoded[id(example.clip)] if isinstance(example.clip, Recording) else example.clip
            yield Utterance(clip=clip, prompt_ids=example.prompt_ids, target_ids=example.target_ids)
