from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from xares_bench.lalm import attention
from xares_bench.lalm.attention import (
    Cache,
    Layout,
    NextPositions,
    Packing,
    pack,
    packed_attention,
    repeats_shared_heads,
)

CPU = torch.device("cpu")
NUM_HEADS, NUM_KEY_HEADS, HEAD_SIZE = 4, 2, 8
LENGTHS = (5, 2, 7)
LAYER = nn.Identity()  # stands for a decoder's layer


def projections(num_positions: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random queries, keys and values, `[N, heads, D]`, in float64: rounding must not decide on any processor."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(num_positions, NUM_HEADS, HEAD_SIZE, generator=generator, dtype=torch.float64),
        torch.randn(num_positions, NUM_KEY_HEADS, HEAD_SIZE, generator=generator, dtype=torch.float64),
        torch.randn(num_positions, NUM_KEY_HEADS, HEAD_SIZE, generator=generator, dtype=torch.float64),
    )


def written_out(
    query_NHD: torch.Tensor, key_NKD: torch.Tensor, value_NKD: torch.Tensor, *, window: int | None
) -> torch.Tensor:
    """Attention of one sequence, position by position and head by head."""
    out = torch.zeros_like(query_NHD)
    for place, head in itertools.product(range(len(query_NHD)), range(NUM_HEADS)):
        first = 0 if window is None else max(0, place + 1 - window)
        shared = head // (NUM_HEADS // NUM_KEY_HEADS)
        scores = key_NKD[first : place + 1, shared] @ query_NHD[place, head] / HEAD_SIZE**0.5
        out[place, head] = scores.softmax(dim=0) @ value_NKD[first : place + 1, shared]
    return out


def split(parts: Sequence[torch.Tensor], lengths: Sequence[int]) -> list[tuple[torch.Tensor, ...]]:
    """Queries, keys and values of every sequence."""
    return list(zip(*(torch.split(part, list(lengths)) for part in parts), strict=True))


def next_positions(cache: Cache, lengths: Sequence[int]) -> NextPositions:
    return NextPositions(
        cache=cache, rows_B=torch.arange(len(lengths)), lengths_B=torch.tensor(lengths), num_positions=max(lengths) + 1
    )


def each_alone(lengths: Sequence[int], parts: Sequence[torch.Tensor], window: int | None) -> torch.Tensor:
    return torch.cat([written_out(*sequence, window=window) for sequence in split(parts, lengths)])


@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("lengths", [LENGTHS, (4, 4), (6,), (1, 1, 1)])
def test_packed_sequences_attend_as_each_does_alone(lengths: tuple[int, ...], window: int | None) -> None:
    parts = projections(sum(lengths))
    attended = pack(lengths, CPU).attend(LAYER, *parts, scale=None, window=window, dropout=0.0)
    torch.testing.assert_close(attended, each_alone(lengths, parts, window))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("lengths", [LENGTHS, (8,), (8, 8)])
def test_nobody_attends_to_the_padding_of_rows(lengths: tuple[int, ...], window: int | None) -> None:
    packing = Packing(
        num_sequences=len(lengths), longest=8, places_N=None, position_ids_N=torch.arange(8).repeat(len(lengths))
    )
    parts = projections(8 * len(lengths))
    attended = packing.attend(LAYER, *parts, scale=None, window=window, dropout=0.0)
    is_position_N = torch.cat([torch.arange(8) < length for length in lengths])
    expected = each_alone(lengths, [part[is_position_N] for part in parts], window)
    torch.testing.assert_close(attended[is_position_N], expected)


def test_gradients_stay_within_their_sequence() -> None:
    parts = projections(sum(LENGTHS))
    for part in parts:
        part.requires_grad_()
    weights = torch.randn(sum(LENGTHS), NUM_HEADS, HEAD_SIZE)
    attended = pack(LENGTHS, CPU).attend(LAYER, *parts, scale=None, window=None, dropout=0.0)
    gradients = torch.autograd.grad((attended * weights).sum(), parts)
    expected = torch.autograd.grad((each_alone(LENGTHS, parts, None) * weights).sum(), parts)
    for own, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(own, reference)
    (of_first,) = torch.autograd.grad(
        pack(LENGTHS, CPU).attend(LAYER, *parts, scale=None, window=None, dropout=0.0)[:5].sum(), parts[1]
    )
    assert of_first[:5].any()
    assert not of_first[5:].any()


@pytest.mark.parametrize("window", [None, 3])
def test_sequences_that_are_continued_attend_as_if_they_were_read_at_once(window: int | None) -> None:
    """Three sequences in rows 1 to 3 of a cache, two more positions each; another one in row 0 goes on as well."""
    num_more = 2
    longer = [length + num_more for length in (3, *LENGTHS)]
    parts = projections(sum(longer))
    sequences = split(parts, longer)
    cache = Cache(num_rows=5, num_positions=10)

    def read(layout: Layout, places: list[slice]) -> torch.Tensor:
        chosen = [
            torch.cat([part[place] for part, place in zip(kind, places, strict=True)])
            for kind in zip(*sequences[-len(places) :], strict=True)
        ]
        return layout.attend(LAYER, *chosen, scale=None, window=window, dropout=0.0)

    first = pack([3], CPU, cache=cache, rows=slice(0, 1))
    first.attend(LAYER, *(part[:3] for part in sequences[0]), scale=None, window=window, dropout=0.0)
    read(pack(LENGTHS, CPU, cache=cache, rows=slice(1, 4)), [slice(0, length) for length in LENGTHS])
    expected = [written_out(*sequence, window=window) for sequence in sequences]
    for more in range(num_more):
        lengths = [length + more for length in (3, *LENGTHS)]
        layout = next_positions(cache, lengths)
        attended = read(layout, [slice(length, length + 1) for length in lengths])
        torch.testing.assert_close(
            attended, torch.stack([rows[length] for rows, length in zip(expected, lengths, strict=True)])
        )


def test_a_moved_sequence_goes_on_in_its_new_row() -> None:
    parts = projections(8)
    cache = Cache(num_rows=2, num_positions=6)
    pack([3, 4], CPU, cache=cache, rows=slice(0, 2)).attend(
        LAYER, *(part[:7] for part in parts), scale=None, window=None, dropout=0.0
    )
    cache.move(1, 0, 4)
    layout = next_positions(cache, [4])
    attended = layout.attend(LAYER, *(part[7:] for part in parts), scale=None, window=None, dropout=0.0)
    torch.testing.assert_close(attended, written_out(*(part[3:] for part in parts), window=None)[-1:])


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ({}, {"softcap": 30.0}),
        ({}, {"s_aux": torch.zeros(4)}),
        ({}, {"attention_mask": torch.zeros(1, 1, 3, 3)}),
        ({"layer_types": ["chunked_attention"]}, {}),
        ({"layer_types": ["sliding_attention"]}, {}),
    ],
)
def test_what_is_not_computed_here_is_refused_and_never_left_out(
    config: dict[str, Any], arguments: dict[str, Any]
) -> None:
    module: Any = SimpleNamespace(config=SimpleNamespace(**config), layer_idx=0)
    parts = [part.transpose(0, 1)[None] for part in projections(3)]
    mask = arguments.pop("attention_mask", None)
    with pytest.raises(NotImplementedError):
        packed_attention(module, parts[0], parts[1], parts[2], mask, layout=pack([3], CPU), **arguments)


@pytest.mark.parametrize(
    ("device", "dtype", "repeats"),
    [
        ("cuda", torch.float32, True),
        ("cuda", torch.bfloat16, False),
        ("cuda", torch.float16, False),
        ("cpu", torch.float32, False),
        ("cpu", torch.bfloat16, False),
        ("mps", torch.float32, False),
    ],
)
def test_shared_heads_are_repeated_where_only_that_avoids_a_quadratic_kernel(
    device: str, dtype: torch.dtype, repeats: bool
) -> None:
    query: Any = SimpleNamespace(device=torch.device(device), dtype=dtype)
    assert repeats_shared_heads(query) is repeats


def test_the_precision_of_autocast_decides_whether_shared_heads_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    query: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    assert not repeats_shared_heads(query)


@pytest.mark.parametrize("window", [None, 3])
def test_repeated_and_shared_heads_give_the_same_output_and_gradients(
    monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    found = []
    for repeats in (False, True):
        monkeypatch.setattr(attention, "repeats_shared_heads", lambda query, repeats=repeats: repeats)
        parts = [part.requires_grad_() for part in projections(sum(LENGTHS))]
        attended = pack(LENGTHS, CPU).attend(LAYER, *parts, scale=None, window=window, dropout=0.0)
        attended.square().sum().backward()  # type: ignore[no-untyped-call]
        found.append([attended.detach(), *(part.grad for part in parts)])
    torch.testing.assert_close(found[0], found[1])
