"""Differentiable operations of a decoder, with fewer and cheaper steps than autograd would take; the numbers are equal.

On a CPU, values and gradients have the bits of the formulas that they replace.

Shapes: N positions, H hidden size, D size of a head.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.nn import functional


def take(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return `values[places]`, for places that are all different.

    The gradient is written to these places; that of indexing would be added up.
    """
    return cast(torch.Tensor, _Take.apply(values, places))  # type: ignore[no-untyped-call]


def spread(values: torch.Tensor, places: torch.Tensor, num_places: int) -> torch.Tensor:
    """Return zeros of length `num_places`, with values at places that are all different: the inverse of `take`."""
    return cast(torch.Tensor, _Spread.apply(values, places, num_places))  # type: ignore[no-untyped-call]


def rms_norm(x: torch.Tensor, weight_H: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `x`, for the residual connection, and `x / sqrt(mean(x^2) + epsilon) * weight`, the mean over H.

    The formula is of Zhang and Sennrich 2019 (arXiv:1910.07467). On other devices than a CPU torch's own function
    computes it, which is one kernel there.
    """
    if x.device.type != "cpu":
        return x, functional.rms_norm(x, weight_H.shape, weight_H, epsilon)
    return cast(
        tuple[torch.Tensor, torch.Tensor],
        _RMSNorm.apply(x, weight_H, epsilon),  # type: ignore[no-untyped-call]
    )


def rotate(x: torch.Tensor, cos_ND: torch.Tensor, signed_sin_ND: torch.Tensor) -> torch.Tensor:
    """Apply rotary positions (Su et al. 2021, arXiv:2104.09864) to queries or keys `[N, heads, D]`.

    A head's first and second half are the two coordinates of its pairs.

    Args:
        x: Queries or keys.
        cos_ND: Cosines of the angles, the same in both halves.
        signed_sin_ND: Sines of the angles, in the first half with the other sign.
    """
    cos_N1D, signed_sin_N1D = cos_ND[:, None], signed_sin_ND[:, None]
    return cast(torch.Tensor, _Rotate.apply(x, cos_N1D, signed_sin_N1D))  # type: ignore[no-untyped-call]


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.num_places = len(values)
        return values.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (places,) = ctx.saved_tensors
        return _copied_to(grad, places, ctx.num_places), None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, places: torch.Tensor, num_places: int) -> torch.Tensor:
        ctx.save_for_backward(places)
        return _copied_to(values, places, num_places)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None


def _copied_to(values: torch.Tensor, places: torch.Tensor, num_places: int) -> torch.Tensor:
    return values.new_zeros(num_places, *values.shape[1:]).index_copy_(0, places, values)


class _RMSNorm(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x^2) + epsilon) and y = x r w: dx = g w r - x r^3 / H sum(g w x), dw = sum of g x r.

    The gradient of the residual connection is added first, as autograd does.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_H: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
        scale = x.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight_H, scale)
        ctx.set_materialize_grads(False)
        return x, (x * scale).mul_(weight_H)

    @staticmethod
    def backward(
        ctx: Any, grad_residual: torch.Tensor | None, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        x, weight_H, scale = ctx.saved_tensors
        grad_x = grad_weight_H = None
        if ctx.needs_input_grad[1]:
            grad_weight_H = (x * scale).mul_(grad).flatten(0, -2).sum(0)
        if ctx.needs_input_grad[0]:
            grad_x = grad * weight_H
            product = grad_x * x
            of_mean = product.sum(-1, keepdim=True).mul_(-0.5).mul_(scale.pow(3)).div_(x.shape[-1]).mul_(2)
            grad_x.mul_(scale)
            if grad_residual is not None:
                grad_x.add_(grad_residual)
            grad_x.add_(torch.mul(x, of_mean, out=product))
        return grad_x, grad_weight_H, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, signed_sin)
        return _rotated(x, cos, signed_sin)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, signed_sin = ctx.saved_tensors
        return _rotated(grad, cos, signed_sin, back=True), None, None


def _rotated(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor, *, back: bool = False) -> torch.Tensor:
    x = x.to(cos.dtype)  # which autocast may have made a half
    swapped = x.roll(x.shape[-1] // 2, -1)
    sign = -1 if back else 1
    if x.device.type != "cpu":
        return (x * cos).addcmul_(swapped, signed_sin, value=sign)
    # `addcmul` rounds once less than the formula does.
    return (x * cos).add_(swapped.mul_(signed_sin), alpha=sign)
