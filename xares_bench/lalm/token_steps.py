"""The next token of each of many texts, computed from tensors alone.

A step waits for nothing that a GPU computes. So a GPU can be given the work of several tokens in advance, and all
kernels of a token at once, as a CUDA graph.

Shapes: S rows of a cache, B of them computed, from the first on, T tokens of the longest text that is allowed, V
vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from transformers import RepetitionPenaltyLogitsProcessor

from xares_bench.config.recipe import GenerationRecipe
from xares_bench.lalm.attention import Cache, NextPositions
from xares_bench.lalm.model import LALM
from xares_bench.runtime.recording import Recorded, Recorder

# Each shape is a CUDA graph of its own, so there are few: 1, 4, 16 ... rows, and 128, 256, 512 ... positions.
_ROWS_FACTOR = 4
_FEWEST_POSITIONS, _POSITIONS_FACTOR = 128, 2


class Texts:
    """Texts that are being generated, one in each row of a cache; all that a token depends on is in its tensors."""

    def __init__(self, lalm: LALM, cache: Cache, recipe: GenerationRecipe, device: torch.device) -> None:
        """Have no text in any row."""
        self.cache = cache
        self._lalm = lalm
        self._penalise = RepetitionPenaltyLogitsProcessor(recipe.repetition_penalty)
        self._rows_S = torch.arange(cache.num_rows, device=device)
        # The number of positions that the decoder has read, and the place of the token that it reads next.
        self._lengths_S = torch.zeros_like(self._rows_S)
        self._places_S1 = torch.zeros_like(self._rows_S)[:, None]
        self._tokens_ST = self._rows_S.new_zeros(cache.num_rows, recipe.max_new_tokens)

    def begin(self, rows: slice, logits_BV: torch.Tensor) -> None:
        """Put the most likely token at the beginning of the texts in some rows."""
        # The penalty takes a rectangle. A token that occurs twice is penalised once, so a row is filled up with one of
        # its own.
        self._tokens_ST[rows] = logits_BV.float().argmax(dim=-1, keepdim=True)

    def locate(self, lengths: Sequence[int], num_tokens: Sequence[int]) -> None:
        """Say where the texts of the first rows are; steps count on from there. Rows without a text start over.

        Args:
            lengths: Number of positions that the decoder has read.
            num_tokens: Number of tokens, all of which it has read but the last.
        """
        num_idle = len(self._rows_S) - len(lengths)
        self._lengths_S.copy_(torch.tensor([*lengths, *[0] * num_idle]))
        self._places_S1[:, 0].copy_(torch.tensor([*(number - 1 for number in num_tokens), *[0] * num_idle]))

    def step(self, num_rows: int, num_positions: int) -> None:
        """Add the most likely token to the texts of the first rows; no row may have T tokens.

        Args:
            num_rows: B.
            num_positions: Number of positions in the cache that are attended to: as many as the longest text has, with
                the one that is read now, or more.
        """
        lengths_B, places_B1 = self._lengths_S[:num_rows], self._places_S1[:num_rows]
        rows_B, tokens_BT = self._rows_S[:num_rows], self._tokens_ST[:num_rows]
        last_B = tokens_BT.gather(1, places_B1)[:, 0]
        inputs_BH = self._lalm.decoder.get_input_embeddings()(last_B)
        layout = NextPositions(cache=self.cache, rows_B=rows_B, lengths_B=lengths_B, num_positions=num_positions)
        logits_BV = self._lalm.read(inputs_BH, layout, lengths_B, rows_B)
        next_B1 = self._penalise(tokens_BT, logits_BV.float()).argmax(dim=-1, keepdim=True)
        lengths_B += 1
        places_B1 += 1
        tokens_BT.scatter_(1, places_B1, next_B1)

    def have(self, token_id: int, num_rows: int) -> list[bool]:
        """Return which texts of the first rows have a token."""
        found: list[bool] = (self._tokens_ST[:num_rows] == token_id).any(dim=1).tolist()
        return found

    def tokens(self, row: int, num_tokens: int) -> list[int]:
        """Return the tokens of a row's text."""
        found: list[int] = self._tokens_ST[row, :num_tokens].tolist()
        return found

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a text, of which the decoder has read so many positions, to another row."""
        self.cache.move(source, target, length)
        self._tokens_ST[target] = self._tokens_ST[source]


class TokenSteps:
    """Steps of texts; where there is a recorder, each shape's is recorded when it comes for the second time.

    Then shapes are rounded up, so that few occur. Recordings write to the memory of their texts, and end with them.
    """

    def __init__(self, texts: Texts, recorder: Recorder | None) -> None:
        """Compute exact shapes if there is no recorder."""
        self._texts = texts
        self._recorder = recorder
        self._recorded: dict[tuple[int, int], Recorded] = {}

    def __call__(self, num_rows: int, num_positions: int) -> None:
        """See `Texts.step`."""
        if self._recorder is None:
            self._texts.step(num_rows, num_positions)
            return
        cache = self._texts.cache
        shape = (
            min(_rounded_up(num_rows, 1, _ROWS_FACTOR), cache.num_rows),
            min(_rounded_up(num_positions, _FEWEST_POSITIONS, _POSITIONS_FACTOR), cache.num_positions),
        )
        if shape not in self._recorded:
            self._recorded[shape] = Recorded(functools.partial(self._texts.step, *shape), self._recorder)
        self._recorded[shape]()


def _rounded_up(number: int, least: int, factor: int) -> int:
    """Return the smallest of `least`, `least * factor`, `least * factor^2` ... that a number does not exceed."""
    while least < number:
        least *= factor
    return least
