"""LoRA: trained low-rank additions to the frozen linear layers of a decoder (Hu et al. 2021, arXiv:2106.09685).

A layer computes `base(x) + alpha / rank * dropout(x) A^T B^T`, with A initialised as in peft and B zero. Mathematics
and distributions are peft's, at about half the cost: forward and backward pass of a layer are one autograd function, no
gradient of a frozen weight is computed, and on a CPU dropout draws a few random places instead of a random number per
value.

Shapes: N positions, I inputs and O outputs of a layer, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from xares_bench.config.recipe import TrainingRecipe


class LoRALinear(nn.Module):
    """A frozen linear layer with a trained addition.

    Attributes:
        base: The frozen layer, `nn.Linear` or transformers' `Conv1D` (which holds its weight transposed).
        lora_A: `[R, I]`.
        lora_B: `[O, R]`.
    """

    def __init__(self, base: nn.Linear | Conv1D, *, rank: int, alpha: int, dropout: float) -> None:
        """Add to a layer an addition that is zero at first; A is drawn from torch's global generator."""
        super().__init__()
        num_outputs, num_inputs = _weight(base).shape
        self.base = base
        self.lora_A = nn.Parameter(torch.empty(rank, num_inputs))
        self.lora_B = nn.Parameter(torch.zeros(num_outputs, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self._scale = alpha / rank
        self._dropout = dropout
        # A subclass may compute something else.
        self._can_fuse = type(base) in (nn.Linear, Conv1D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output `[..., O]` for `[..., I]`."""
        dropout = self._dropout if self.training else 0.0
        if self._can_fuse and _is_full_precision(x, self.base.weight) and not _is_traced_or_cast(x.device.type):
            out: torch.Tensor = _AdaptedLinear.apply(  # type: ignore[no-untyped-call]
                x, _weight(self.base), self.base.bias, self.lora_A, self.lora_B, self._scale, dropout
            )
            return out
        addition = functional.linear(functional.dropout(x, dropout), self.lora_A)
        base: torch.Tensor = self.base(x)
        return base + self._scale * functional.linear(addition, self.lora_B)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Add the addition to the frozen layer's weight, in place, and return that layer."""
        addition = self._scale * (self.lora_B @ self.lora_A)
        _weight(self.base).add_(addition)
        return self.base


def add_lora(decoder: PreTrainedModel, recipe: TrainingRecipe) -> None:
    """Freeze a decoder and add LoRA to each of its linear layers except the output layer, in place.

    Raises:
        ValueError: It has no linear layers.
    """
    output_layer: nn.Module = decoder.get_output_embeddings()  # type: ignore[no-untyped-call]
    decoder.requires_grad_(False)
    layers = [layer for layer in _linear_layers(decoder) if layer[2] is not output_layer]
    if not layers:
        raise ValueError("it has no linear layers")
    for parent, name, base in layers:
        adapted = LoRALinear(base, rank=recipe.lora_rank, alpha=recipe.lora_alpha, dropout=recipe.lora_dropout)
        setattr(parent, name, adapted)


def merge_lora(decoder: PreTrainedModel) -> None:
    """Merge all additions into the decoder's own weights, in place: the same function, computed faster."""
    for parent in list(decoder.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LoRALinear):
                setattr(parent, name, child.merged())


def _linear_layers(decoder: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear | Conv1D]]:
    """Yield every linear layer with its parent module and its name there."""
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear | Conv1D):
                yield parent, name, child


def _is_full_precision(*tensors: torch.Tensor) -> bool:
    """Whether all tensors are in float32, or all in float64, which tests use for comparisons."""
    return {tensor.dtype for tensor in tensors} in ({torch.float32}, {torch.float64})


def _is_traced_or_cast(device: str) -> bool:
    """Whether torch.compile traces the operations, or autocast chooses their precision."""
    is_cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.compiler.is_compiling() or is_cast


def _weight(layer: nn.Linear | Conv1D) -> torch.Tensor:
    """Return a layer's weight as `[O, I]`."""
    weight: torch.Tensor = layer.weight
    return weight if isinstance(layer, nn.Linear) else weight.T


class _AdaptedLinear(torch.autograd.Function):
    """`x W^T + b + scale * dropout(x) A^T B^T` in float32, for frozen W and b."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scale: float,
        dropout: float,
    ) -> torch.Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        kept_NI, dropped, factor = _drop(x_NI, dropout) if dropout else (x_NI, None, 1.0)
        ctx.scale, ctx.dropout = scale * factor, dropout
        low_NR = (kept_NI @ a_RI.T).mul_(ctx.scale)
        out_NO = functional.linear(x_NI, weight_OI, bias_O).addmm_(low_NR, b_OR.T)
        ctx.save_for_backward(weight_OI, a_RI, b_OR, kept_NI, low_NR, dropped)
        return out_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight_OI, a_RI, b_OR, kept_NI, low_NR, dropped = ctx.saved_tensors
        grad_NO = grad.reshape(-1, grad.shape[-1])
        grad_low_NR = (grad_NO @ b_OR).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x_NI = grad_low_NR @ a_RI
            if dropped is not None:
                grad_x_NI = _drop_again(grad_x_NI, dropped, ctx.dropout)
            grad_x = grad_x_NI.addmm_(grad_NO, weight_OI).view(*grad.shape[:-1], -1)
        # A CPU is faster at the transposed product, which reads its longer matrix in the order of memory. On a GPU that
        # would cost a copy.
        grad_b_OR = (low_NR.T @ grad_NO).T if grad.device.type == "cpu" else grad_NO.T @ low_NR
        return grad_x, None, None, grad_low_NR.T @ kept_NI, grad_b_OR, None, None


def _draws_places(device: torch.device) -> bool:
    """Whether to draw places to drop. A GPU draws a number per value as fast, and need not wait."""
    return device.type == "cpu"


def _drop(x_NI: torch.Tensor, dropout: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return a copy with values dropped, what was dropped, for `_drop_again`, and a factor that the copy lacks."""
    if not _draws_places(x_NI.device):
        kept_NI, is_kept_NI = torch.native_dropout(x_NI, dropout, True)
        return kept_NI, is_kept_NI, 1.0
    places = _dropped_places(x_NI.numel(), dropout)
    kept_NI = x_NI.clone(memory_format=torch.contiguous_format)
    kept_NI.view(-1).index_fill_(0, places, 0)
    return kept_NI, places, 1 / (1 - dropout)


def _drop_again(grad_NI: torch.Tensor, dropped: torch.Tensor, dropout: float) -> torch.Tensor:
    """Return the gradient of what `_drop` got for the gradient of its copy, with the same factor missing."""
    if dropped.dtype == torch.bool:
        grad_x_NI: torch.Tensor = torch.ops.aten.native_dropout_backward(grad_NI, dropped, 1 / (1 - dropout))
        return grad_x_NI
    grad_NI.view(-1).index_fill_(0, dropped, 0)
    return grad_NI


def _dropped_places(num_places: int, dropout: float) -> torch.Tensor:
    """Draw the places to drop, each with probability `dropout`, independently of the others; some occur repeatedly.

    If the number of hits on each place is a Poisson variable with mean -ln(1 - dropout), a place is not hit with
    probability 1 - dropout. The sum of these variables is a Poisson variable, too: drawing that many places uniformly
    has the same distribution, and needs about `dropout` random numbers per place instead of one.
    """
    num_hits = torch.poisson(torch.tensor(-math.log1p(-dropout) * num_places, dtype=torch.float64))
    return torch.randint(num_places, (int(num_hits),))
