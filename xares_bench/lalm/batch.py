"""Batches: sequences of features and tokens, packed one behind the other.

A sequence is `[audio frames][prompt tokens][target tokens][EOS]`.

Shapes, over all sequences of a batch: F audio frames, M tokens of text, T of them targets; D `output_dim`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from xares_bench.features.encoding import Clip


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
        frame_places_F: Places of the features.
        text_ids_M: Tokens of prompts and targets of all sequences.
        text_places_M: Places of the tokens.
        target_ids_T: The tokens to predict: targets and EOS.
        predicting_places_T: The places that predict them, each one before its token.
        num_targets: Number of tokens that the loss is averaged over; for one process's share, those of the whole batch.
        row_length: Every sequence is padded on the right to so many positions; None: there is no padding.
    """

    lengths: tuple[int, ...]
    frames_FD: torch.Tensor
    frame_places_F: torch.Tensor
    text_ids_M: torch.Tensor
    text_places_M: torch.Tensor
    target_ids_T: torch.Tensor
    predicting_places_T: torch.Tensor
    num_targets: int
    row_length: int | None = None

    @property
    def num_positions(self) -> int:
        """Number of positions of all sequences, with padding."""
        return sum(self.lengths) if self.row_length is None else len(self.lengths) * self.row_length

    def padded(self, multiple: int) -> Batch:
        """Return the same sequences padded to one length, a multiple of a number, so that few shapes occur."""
        assert self.row_length is None
        row_length = -(-max(self.lengths) // multiple) * multiple
        ends = torch.tensor(self.lengths).cumsum(0)
        # By how much the positions of a sequence move.
        moves = torch.arange(len(ends)) * row_length - torch.cat([ends.new_zeros(1), ends[:-1]])

        def moved(places: torch.Tensor) -> torch.Tensor:
            return places + moves[torch.bucketize(places, ends, right=True)]

        return dataclasses.replace(
            self,
            frame_places_F=moved(self.frame_places_F),
            text_places_M=moved(self.text_places_M),
            predicting_places_T=moved(self.predicting_places_T),
            row_length=row_length,
        )

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return dataclasses.replace(self, **moved)


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
