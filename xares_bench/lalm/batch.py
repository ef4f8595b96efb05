"""Batches: sequences of features and tokens, packed one behind the other.

A sequence is `[audio frames][prompt tokens][target tokens][EOS]`.

Shapes, over all sequences of a batch: N positions, F audio frames, M tokens of text, T of them targets; D `output_dim`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from xares_bench.features.encoding import Clip

# What torch's cross-entropy leaves out.
_NO_TARGET = -100


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One sequence outside of a batch: its clip and its tokens.

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


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences one behind the other. A place is an index into their concatenation.

    Attributes:
        lengths: Number of positions of every sequence, without padding.
        frames_FD: Audio features of all sequences.
        text_ids_M: Tokens of prompts and targets of all sequences.
        sources_N: What is at each place: a row of the features, or of the tokens, which are counted on behind them.
        position_ids_N: Number of each position in its sequence, from 0.
        target_ids_T: The tokens to predict: targets and EOS.
        predicting_places_T: The places that predict them, each one before its token.
        num_targets: Number of tokens that the loss is averaged over, as a tensor `[]`; for one process's share, those
            of the whole batch.
        row_length: Every sequence is padded on the right to so many positions; None: there is no padding.
    """

    lengths: tuple[int, ...]
    frames_FD: torch.Tensor
    text_ids_M: torch.Tensor
    sources_N: torch.Tensor
    position_ids_N: torch.Tensor
    target_ids_T: torch.Tensor
    predicting_places_T: torch.Tensor
    num_targets: torch.Tensor
    row_length: int | None = None

    @property
    def num_positions(self) -> int:
        """Number of positions of all sequences, with padding."""
        return len(self.sources_N)

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """The shapes of all tensors."""
        return tuple(value.shape for value in self.tensors().values())

    def tensors(self) -> dict[str, torch.Tensor]:
        """The attributes that are tensors."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    def padded(self, multiple: int) -> Batch:
        """Return the same sequences padded so that few shapes occur.

        Every sequence has the same number of positions, a multiple of a number. Features and tokens are filled up to as
        many rows as there are positions, and targets to a multiple, with targets that cross-entropy leaves out.
        """
        assert self.row_length is None
        num_rows = len(self.lengths)
        row_length = _rounded_up(max(self.lengths), multiple)
        is_position_BL = torch.arange(row_length) < torch.tensor(self.lengths)[:, None]
        # Of every place of this batch, its place with padding.
        moved_N = is_position_BL.flatten().nonzero().squeeze(1)
        num_places = num_rows * row_length
        is_text_N = self.sources_N >= len(self.frames_FD)
        # Each place of the padding has a token of its own.
        sources_P = torch.cumsum(~is_position_BL.flatten(), 0) - 1 + num_places + len(self.text_ids_M)
        sources_P[moved_N] = self.sources_N + is_text_N * (num_places - len(self.frames_FD))
        # The last position's number, not the next ones: a decoder may have a table of positions that ends early.
        ids_BL = torch.arange(row_length).clamp(max=max(self.lengths) - 1).expand(num_rows, -1)
        predicting_T = moved_N[self.predicting_places_T]
        is_free_P = torch.ones(num_places, dtype=torch.bool)
        is_free_P[predicting_T] = False
        num_filled = min(_rounded_up(len(predicting_T), multiple), num_places) - len(predicting_T)
        return dataclasses.replace(
            self,
            frames_FD=_filled(self.frames_FD, num_places - len(self.frames_FD), 0),
            text_ids_M=_filled(self.text_ids_M, num_places - len(self.text_ids_M), 0),
            sources_N=sources_P,
            position_ids_N=ids_BL.flatten(),
            target_ids_T=_filled(self.target_ids_T, num_filled, _NO_TARGET),
            predicting_places_T=torch.cat([predicting_T, is_free_P.nonzero().squeeze(1)[:num_filled]]),
            row_length=row_length,
        )

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on a device. A GPU copies it meanwhile."""
        if device.type == "cuda":
            moved = {name: value.pin_memory().to(device, non_blocking=True) for name, value in self.tensors().items()}
        else:
            moved = {name: value.to(device) for name, value in self.tensors().items()}
        return dataclasses.replace(self, **moved)  # type: ignore[arg-type]

    def copy_(self, other: Batch) -> None:
        """Copy a batch with tensors of the same shapes into the memory of this one."""
        for name, value in other.tensors().items():
            getattr(self, name).copy_(value, non_blocking=True)


class TextTokenizer:
    """Tokenises prompts and targets, each on its own, without special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the decoder's tokeniser.

        Raises:
            ValueError: The tokeniser has no EOS token.
        """
        if tokenizer.eos_token_id is None:
            raise ValueError("the decoder's tokeniser has no EOS token")
        self._tokenizer = tokenizer
        # Prompts and labels repeat.
        self.tokens: Callable[[str], tuple[int, ...]] = functools.lru_cache(maxsize=8192)(self._tokenise)
        self.eos_id = int(tokenizer.eos_token_id)
        self.pad_id = self.eos_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    def prompt(self, clip: Clip, prompt: str) -> Utterance:
        """Return a sequence for the decoder to continue."""
        return Utterance(clip=clip, prompt_ids=self.tokens(prompt), target_ids=())

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of generated tokens, without special tokens."""
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text.strip()

    def _tokenise(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def collate(sequences: Sequence[Utterance], share: tuple[int, int] = (0, 1)) -> Batch:
    """Pack sequences, at least one.

    Args:
        sequences: All sequences of a batch.
        share: `(index, number)`: take every `number`-th sequence, from `index` on.
    """
    num_targets = sum(len(sequence.target_ids) for sequence in sequences)
    sequences = sequences[share[0] :: share[1]]
    frames = [sequence.clip.frames() for sequence in sequences]
    num_frames = sum(map(len, frames))
    first_frame, first_text = 0, num_frames
    text_ids: list[int] = []
    sources: list[int] = []
    position_ids: list[int] = []
    target_ids: list[int] = []
    predicting_places: list[int] = []
    for features_TD, sequence in zip(frames, sequences, strict=True):
        own_ids = (*sequence.prompt_ids, *sequence.target_ids)
        text_ids.extend(own_ids)
        sources.extend(range(first_frame, first_frame + len(features_TD)))
        sources.extend(range(first_text, first_text + len(own_ids)))
        position_ids.extend(range(sequence.num_positions))
        target_ids.extend(sequence.target_ids)
        end = len(sources)
        predicting_places.extend(range(end - len(sequence.target_ids) - 1, end - 1))
        first_frame, first_text = first_frame + len(features_TD), first_text + len(own_ids)
    return Batch(
        lengths=tuple(sequence.num_positions for sequence in sequences),
        frames_FD=torch.cat(frames),
        text_ids_M=torch.tensor(text_ids, dtype=torch.long),
        sources_N=torch.tensor(sources),
        position_ids_N=torch.tensor(position_ids),
        target_ids_T=torch.tensor(target_ids, dtype=torch.long),
        predicting_places_T=torch.tensor(predicting_places, dtype=torch.long),
        num_targets=torch.tensor(float(num_targets)),
    )


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _filled(values: torch.Tensor, number: int, value: int) -> torch.Tensor:
    """Return values with a number of rows of one value behind them."""
    return torch.cat([values, values.new_full((number, *values.shape[1:]), value)])
