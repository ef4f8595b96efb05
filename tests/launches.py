"""Counts the kernels that a GPU would start, without one: tensors on the meta device have shapes and no values.

Every operation that makes or changes a tensor counts as one kernel; views do not. Two operations are stood in for,
because torch has one kernel for each on a GPU, and takes them apart everywhere else.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from xares_bench.lalm import attention

META = torch.device("meta")
# Neither computes nor fills anything.
_FREE = {
    "aten.detach.default",
    "aten.empty.memory_format",
    "aten.empty_like.default",
    "aten.new_empty.default",
    "aten.new_empty_strided.default",
    "aten._unsafe_view.default",
}


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts within a `with` block, by name of the operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_name: collections.Counter[str] = collections.Counter()

    @property
    def number(self) -> int:
        return self.by_name.total()

    def __repr__(self) -> str:
        return f"{self.number} launches: {dict(self.by_name.most_common())}"

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not (function.is_view or str(function) in _FREE):
            self.by_name[str(function)] += 1
        return function(*args, **(kwargs or {}))


def pretend_kernels_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attention and RMSNorm be one operation each, forward and backward, as in float32 on a GPU."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **arguments: Any) -> torch.Tensor:
        assert not arguments.get("enable_gqa"), "in float32 the kernel without a quadratic matrix takes no shared heads"
        return cast(torch.Tensor, _Attention.apply(query, key, value))  # type: ignore[no-untyped-call]

    def norm(x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        return cast(torch.Tensor, _Norm.apply(x, weight))  # type: ignore[no-untyped-call]

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(functional, "rms_norm", norm)
    monkeypatch.setattr(attention, "repeats_shared_heads", lambda query: True)


class _Attention(torch.autograd.Function):
    """Like torch's kernels, it lays its results out as `[B, L, H, D]`."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        return _laid_out(query)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value = ctx.saved_tensors
        return _laid_out(query), *_empty(key, value)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(grad), None


def _laid_out(part_BHLD: torch.Tensor) -> torch.Tensor:
    """Something of one operation, counted, in the kernel's layout."""
    return torch.zeros_like(part_BHLD.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _empty(*parts_BHLD: torch.Tensor) -> list[torch.Tensor]:
    """Further results of the same kernel, which do not count."""
    laid_out = (torch.empty_like(part.transpose(1, 2), memory_format=torch.contiguous_format) for part in parts_BHLD)
    return [part.transpose(1, 2) for part in laid_out]
