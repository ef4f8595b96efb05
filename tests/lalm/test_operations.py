"""A decoder's operations: the bits of the formulas that they replace, on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from xares_bench.lalm.operations import rms_norm, rotate, spread, take


@pytest.mark.parametrize("weight_is_trained", [True, False])
def test_rms_norm_has_the_bits_of_transformers(weight_is_trained: bool) -> None:
    torch.manual_seed(0)
    norm: Any = LlamaRMSNorm(24, eps=1e-5)
    norm.weight = nn.Parameter(torch.randn(24), requires_grad=weight_is_trained)
    x = torch.randn(9, 24, requires_grad=True)
    inputs = [x, norm.weight] if weight_is_trained else [x]
    results = []
    for residual, normed in ((x, norm(x)), rms_norm(x, norm.weight, 1e-5)):
        # As in a layer: what is added to is the residual connection.
        total = (residual + normed.sin()).square().sum()
        results.append([normed, *torch.autograd.grad(total, inputs)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_rotation_has_the_bits_of_transformers() -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 3, 8, requires_grad=True)
    angles = torch.randn(9, 4)
    cos, sin = torch.cat([angles, angles], 1).cos(), torch.cat([angles, angles], 1).sin()
    signed_sin = torch.cat([-sin[:, :4], sin[:, 4:]], 1)
    theirs, _ = apply_rotary_pos_emb(x, x, cos, sin)
    results = []
    for rotated in (theirs, rotate(x, cos, signed_sin)):
        (gradient,) = torch.autograd.grad(rotated.sin().sum(), x)
        results.append((rotated, gradient))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_rotation_has_the_dtype_of_the_angles(dtype: torch.dtype) -> None:
    x = torch.randn(9, 3, 8).to(dtype).requires_grad_()
    ones = torch.ones(9, 8)
    rotated = rotate(x, ones, torch.zeros(9, 8))
    assert torch.equal(rotated, x.float())
    rotated.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_taking_and_spreading_are_inverse_and_so_are_their_gradients() -> None:
    torch.manual_seed(0)
    places = torch.tensor([4, 0, 3])
    wide, narrow = torch.randn(5, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    taken = take(wide, places)
    assert torch.equal(taken, wide[places])
    assert torch.equal(torch.autograd.grad(taken, wide, narrow)[0], spread(narrow, places, 5))
    there = spread(narrow, places, 5)
    assert torch.equal(there[places], narrow)
    assert not there[[1, 2]].any()
    assert torch.equal(torch.autograd.grad(there, narrow, wide)[0], take(wide, places))
