"""Attention over packed sequences: many sequences one behind the other, with attention within each only.

A decoder that uses transformers' attention interface computes everything except attention position by position. So it
can read sequences that are packed into one row, without padding and without a mask. Only attention needs to know where
sequences begin. It learns that from the layout, which is passed to the decoder along with the embeddings.

Shapes: N positions of all sequences together, B sequences, L positions of the longest, H attention heads, K key and
value heads (H is a multiple of K), G = H / K, D size of a head, S rows and C positions of a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface

from xares_bench.lalm.operations import spread, take

IMPLEMENTATION = "xares_packed"


class Layout(Protocol):
    """Where sequences begin, and what their positions attend to."""

    def attend(
        self,
        layer: nn.Module,
        query_NHD: torch.Tensor,
        key_NKD: torch.Tensor,
        value_NKD: torch.Tensor,
        *,
        scale: float | None,
        window: int | None,
        dropout: float,
    ) -> torch.Tensor:
        """Return the attention of every position over its own sequence, up to and including itself.

        Args:
            layer: The attention module of one of the decoder's layers.
            query_NHD: Queries, with rotary positions applied.
            key_NKD: Keys.
            value_NKD: Values.
            scale: Scale of the products of queries and keys; None: one over the root of D.
            window: Attend to the last `window` positions only; None: to all.
            dropout: Dropout of the attention weights.

        Returns:
            `[N, H, D]`.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class Packing:
    """Whole sequences, one behind the other.

    For attention alone, sequences of different lengths are unpacked: padded on the right, where causal attention needs
    no mask, so that torch's fast kernels can be used.

    Attributes:
        num_sequences: B.
        longest: L.
        places_N: Index of each position in the sequences padded to `[B * L]`; None: all sequences have L positions, so
            unpacking is a reshape.
        position_ids_N: Number of each position in its sequence, from 0.
        cache: Stores keys and values of the sequences; None: they are not needed later.
        rows: Rows of the cache for the sequences.
    """

    num_sequences: int
    longest: int
    places_N: torch.Tensor | None
    position_ids_N: torch.Tensor
    cache: Cache | None = None
    rows: slice | None = None

    def attend(
        self,
        layer: nn.Module,
        query_NHD: torch.Tensor,
        key_NKD: torch.Tensor,
        value_NKD: torch.Tensor,
        *,
        scale: float | None,
        window: int | None,
        dropout: float,
    ) -> torch.Tensor:
        """See `Layout.attend`."""
        query_BLHD, key_BLKD, value_BLKD = map(self.unpacked, (query_NHD, key_NKD, value_NKD))
        if self.cache is not None:
            assert self.rows is not None
            self.cache.keep(layer, self.rows, key_BLKD, value_BLKD)
        num_shared = query_NHD.shape[1] // key_NKD.shape[1]
        if num_shared > 1 and repeats_shared_heads(query_NHD):
            key_BLKD, value_BLKD = (part.repeat_interleave(num_shared, dim=2) for part in (key_BLKD, value_BLKD))
            num_shared = 1
        mask_LL = self._window_mask(window)
        attended_BHLD = functional.scaled_dot_product_attention(
            query_BLHD.transpose(1, 2),
            key_BLKD.transpose(1, 2),
            value_BLKD.transpose(1, 2),
            attn_mask=mask_LL,
            is_causal=mask_LL is None,
            dropout_p=dropout,
            scale=scale,
            enable_gqa=num_shared > 1,
        )
        return self.packed(attended_BHLD.transpose(1, 2))

    def unpacked(self, packed: torch.Tensor) -> torch.Tensor:
        """Return `[N, ...]` as `[B, L, ...]`, padded on the right with zeros."""
        if self.places_N is not None:
            packed = spread(packed, self.places_N, self.num_sequences * self.longest)
        return packed.view(self.num_sequences, self.longest, *packed.shape[1:])

    def packed(self, unpacked: torch.Tensor) -> torch.Tensor:
        """Return `[B, L, ...]` as `[N, ...]`, without the padding."""
        unpacked = unpacked.flatten(0, 1)
        return unpacked if self.places_N is None else take(unpacked, self.places_N)

    def _window_mask(self, window: int | None) -> torch.Tensor | None:
        """True where a position attends to another; None if causal attention is enough."""
        if window is None or window >= self.longest:
            return None
        ones_LL = torch.ones(self.longest, self.longest, dtype=torch.bool, device=self.position_ids_N.device)
        return ones_LL.tril().triu(1 - window)


@dataclass(kw_only=True, eq=False)
class Cache:
    """Keys and values of sequences that are being continued, one sequence per row, from the start of the row.

    Attributes:
        num_rows: S.
        num_positions: C.
    """

    num_rows: int
    num_positions: int
    _keys: dict[nn.Module, torch.Tensor] = field(default_factory=dict)
    _values: dict[nn.Module, torch.Tensor] = field(default_factory=dict)

    def keep(self, layer: nn.Module, rows: slice, key_BLKD: torch.Tensor, value_BLKD: torch.Tensor) -> None:
        """Write the beginnings of sequences into rows, over whatever is there."""
        num_kept = key_BLKD.shape[1]
        key_SKCD, value_SKCD = self._layer(layer, key_BLKD)
        key_SKCD[rows, :, :num_kept] = key_BLKD.transpose(1, 2)
        value_SKCD[rows, :, :num_kept] = value_BLKD.transpose(1, 2)

    def append(
        self,
        layer: nn.Module,
        rows_B: torch.Tensor,
        lengths_B: torch.Tensor,
        key_BKD: torch.Tensor,
        value_BKD: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one more position of each sequence in the first rows; return these rows, `[B, K, C, D]`."""
        num_rows = len(rows_B)
        key_SKCD, value_SKCD = self._layer(layer, key_BKD[:, None])
        key_SKCD[rows_B, :, lengths_B] = key_BKD
        value_SKCD[rows_B, :, lengths_B] = value_BKD
        return key_SKCD[:num_rows], value_SKCD[:num_rows]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the sequence of a row into another row."""
        for kept in (*self._keys.values(), *self._values.values()):
            kept[target, :, :length] = kept[source, :, :length]

    def _layer(self, layer: nn.Module, like_BLKD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer not in self._keys:
            _, _, num_heads, head_size = like_BLKD.shape
            shape = (self.num_rows, num_heads, self.num_positions, head_size)
            # Zeros, not uninitialised memory: what is behind a sequence is masked, but NaN times 0 would be NaN.
            self._keys[layer], self._values[layer] = like_BLKD.new_zeros(shape), like_BLKD.new_zeros(shape)
        return self._keys[layer], self._values[layer]


@dataclass(frozen=True, kw_only=True, eq=False)
class NextPositions:
    """One more position of each sequence in the first rows of a cache.

    Attributes:
        cache: Has the positions before.
        rows_B: Numbers of the rows, from 0.
        lengths_B: Number of these positions.
        num_positions: Positions of every row that are attended to, masked behind its sequence; no sequence, with the
            new position, has more.
    """

    cache: Cache
    rows_B: torch.Tensor
    lengths_B: torch.Tensor
    num_positions: int
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def attend(
        self,
        layer: nn.Module,
        query_NHD: torch.Tensor,
        key_NKD: torch.Tensor,
        value_NKD: torch.Tensor,
        *,
        scale: float | None,
        window: int | None,
        dropout: float,
    ) -> torch.Tensor:
        """See `Layout.attend`; N is B."""
        key_BKCD, value_BKCD = self.cache.append(layer, self.rows_B, self.lengths_B, key_NKD, value_NKD)
        # The G query heads that share a key head become G queries of that head, so nothing is repeated.
        attended_BKGD = functional.scaled_dot_product_attention(
            query_NHD.view(len(query_NHD), key_NKD.shape[1], -1, query_NHD.shape[2]),
            key_BKCD[:, :, : self.num_positions],
            value_BKCD[:, :, : self.num_positions],
            attn_mask=self._mask(window),
            dropout_p=dropout,
            scale=scale,
        )
        return attended_BKGD.flatten(1, 2)

    def _mask(self, window: int | None) -> torch.Tensor:
        """True at the positions of a row's sequence, `[B, 1, 1, num_positions]`; computed once for all layers."""
        if window not in self._masks:
            positions = torch.arange(self.num_positions, device=self.lengths_B.device)
            last_B1 = self.lengths_B[:, None]
            mask_BL = positions <= last_B1
            if window is not None:
                mask_BL &= positions > last_B1 - window
            self._masks[window] = mask_BL[:, None, None]
        return self._masks[window]


def repeats_shared_heads(query: torch.Tensor) -> bool:
    """Whether to repeat keys and values that several query heads share, one copy per head, before attention.

    On a GPU, torch has kernels without a matrix of L x L in memory for shared heads in half precision only; in float32
    it falls back to one that keeps that matrix for the backward pass. Four clips of 30 s then took 21 GB at their peak
    and 11 GB with heads repeated (docs/log.md, 2026-11-26). On a CPU sharing is faster.
    """
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    return device == "cuda" and dtype == torch.float32


def pack(
    lengths: Sequence[int],
    device: torch.device,
    *,
    cache: Cache | None = None,
    rows: slice | None = None,
) -> Packing:
    """Return the layout of whole sequences.

    Args:
        lengths: Number of positions of every sequence.
        device: Device of the layout's tensors.
        cache: See `Packing`.
        rows: See `Packing`.
    """
    longest = max(lengths)
    ids_L = torch.arange(longest)
    is_position_BL = ids_L < torch.tensor(lengths)[:, None]
    places_N = None if is_position_BL.all() else is_position_BL.flatten().nonzero().squeeze(1)
    ids_N = ids_L.expand(len(lengths), -1)[is_position_BL]
    return Packing(
        num_sequences=len(lengths),
        longest=longest,
        places_N=None if places_N is None else places_N.to(device),
        position_ids_N=ids_N.to(device),
        cache=cache,
        rows=rows,
    )


def packed_attention(
    module: nn.Module,
    query_1HND: torch.Tensor,
    key_1KND: torch.Tensor,
    value_1KND: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    layout: Layout,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute the attention of one layer, as transformers' attention interface asks for it.

    Returns:
        `[1, N, H, D]`, and None instead of attention weights.

    Raises:
        NotImplementedError: The layer needs something that this function does not support. The probe at loading
            (`model.build_lalm`) catches this, and the decoder gets padded sequences instead.
    """
    config: Any = module.config
    unknown = {name for name in _UNSUPPORTED if kwargs.get(name) is not None}
    if attention_mask is not None or unknown:
        raise NotImplementedError(f"{type(module).__name__} passes a mask, or one of {_UNSUPPORTED}")
    layer_types = getattr(config, "layer_types", None)
    layer_type = layer_types[module.layer_idx] if layer_types else None
    if layer_type not in (None, "full_attention", "sliding_attention"):
        raise NotImplementedError(f"{type(module).__name__} has a layer of type {layer_type}")
    if sliding_window is None and layer_type == "sliding_attention":
        raise NotImplementedError(f"{type(module).__name__} does not pass the size of its sliding window")
    attended_NHD = layout.attend(
        module,
        query_1HND.transpose(1, 2)[0],
        key_1KND.transpose(1, 2)[0],
        value_1KND.transpose(1, 2)[0],
        scale=scaling,
        window=sliding_window,
        dropout=dropout,
    )
    return attended_NHD[None], None


# Arguments that decoders may pass to their attention and that are not supported here.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "head_mask", "cache")


def register() -> None:
    """Register the implementation with transformers, under the name `IMPLEMENTATION`.

    No mask function is registered for it, so decoders build no masks.
    """
    AttentionInterface.register(IMPLEMENTATION, packed_attention)
