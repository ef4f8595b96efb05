"""The shortest clip that an encoder takes, found by trying.

Below the width of its first window, an encoder raises or returns no frame. A clip that short is an unusable sample, as
one that cannot be read is; a dataset with one such clip among thousands can be scored.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from xares_bench.core.errors import EncoderError
from xares_bench.encoders.loading import FrozenEncoder


def shortest_clip(encoder: FrozenEncoder, clip_S: Tensor, *, padded: bool) -> int:
    """Number of samples of the shortest clip that an encoder takes: it takes this many, but not one less.

    Args:
        encoder: The encoder.
        clip_S: A clip that it takes, `[S]`; its beginnings are tried, about log2(S) of them.
        padded: Whether a clip must also be taken beside a longer one, padded and with a mask.
    """

    def is_taken(num_samples: int, *, padded: bool) -> bool:
        audio_BS, mask_BS = clip_S[None, :num_samples], None
        if padded:
            lengths = torch.tensor([len(clip_S), num_samples])
            mask_BS = (torch.arange(len(clip_S)) < lengths[:, None]).long()
            audio_BS = clip_S * mask_BS
        try:
            encoder(audio_BS, mask_BS)
        except EncoderError:
            return False
        return True

    # The clips are silly on purpose: libraries may warn of them, and a warning must not count as a refusal.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shortest = _bisected(1, len(clip_S), lambda num_samples: is_taken(num_samples, padded=False))
        if padded:
            shortest = _bisected(shortest, len(clip_S), lambda num_samples: is_taken(num_samples, padded=True))
    return shortest


def _bisected(low: int, high: int, is_taken: Callable[[int], bool]) -> int:
    """The smallest number from `low` to `high` that is taken; `high` is, and whatever is above a number that is."""
    if is_taken(low):
        return low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_taken(middle) else (middle, high)
    return high
