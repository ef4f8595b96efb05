"""LoRA: trained low-rank additions to the frozen linear layers of a decoder (Hu et al. 2021, arXiv:2106.09685).

A layer gives `base(x) + alpha / rank * dropout(x) A^T B^T`, with A drawn as peft draws it and B zero. Mathematics and
distributions are peft's; the work is less: what belongs to one layer is one step of the backward pass, no gradient of a
frozen weight exists, and dropout costs a few random places instead of a random number per value.

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
    """A frozen linear layer and its trained addition.

    Attributes:
        base: The frozen layer, `nn.Linear` or transformers' `Conv1D` (which holds its weight transposed).
        lora_A: `[R, I]`.
        lora_B: `[O, R]`.
    """

    def __init__(self, base: nn.Linear | Conv1D, *, rank: int, alpha: int, dropout: float) -> None:
        """Put a fresh addition, which adds nothing yet, beside a layer; A is drawn from torch's global generator."""
        super().__init__()
        num_outputs, num_inputs = _weight(base).shape
        self.base = base
        self.lora_A = nn.Parameter(torch.empty(rank, num_inputs))
        self.lora_B = nn.Parameter(torch.zeros(num_outputs, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self._scale = alpha / rank
        self._dropout = dropout
        # A layer of another class may compute something else.
        self._can_fuse = type(base) in (nn.Linear, Conv1D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, `[..., O]`, for `[..., I]`."""
        dropout = self._dropout if self.training else 0.0
        if self._can_fuse and _is_full_precision(x, self.base.weight) and not _is_traced_or_cast():
            out: torch.Tensor = _AdaptedLinear.apply(  # type: ignore[no-untyped-call]
                x, _weight(self.base), self.base.bias, self.lora_A, self.lora_B, self._scale, dropout
            )
            return out
        addition = functional.linear(functional.dropout(x, dropout), self.lora_A)
        base: torch.Tensor = self.base(x)
        return base + self._scale * functional.linear(addition, self.lora_B)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The frozen layer with the addition inside its weight, in place."""
        addition = self._scale * (self.lora_B @ self.lora_A)
        _weight(self.base).add_(addition)
        return self.base


def add_lora(decoder: PreTrainedModel, recipe: TrainingRecipe) -> None:
    """Freeze a decoder and put LoRA on each of its linear layers but the output layer, in place.

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
    """Put what was trained into the decoder's own weights, in place: the same function, without the additions."""
    for parent in list(decoder.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LoRALinear):
                setattr(parent, name, child.merged())


def _linear_layers(decoder: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear | Conv1D]]:
    """Every linear layer with the module and the name that hold it."""
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear | Conv1D):
                yield parent, name, child


def _is_full_precision(*tensors: torch.Tensor) -> bool:
    """Whether tensors are on the CPU in float32, or all in float64, in which tests compare."""
    return {(tensor.device.type, tensor.dtype) for tensor in tensors} in _FUSED


_FUSED = ({("cpu", torch.float32)}, {("cpu", torch.float64)})


def _is_traced_or_cast() -> bool:
    """Whether torch.compile, or autocast, has the say over the operations."""
    return torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")


def _weight(layer: nn.Linear | Conv1D) -> torch.Tensor:
    """A layer's weight as `[O, I]`."""
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
        kept_NI, dropped = x_NI, None
        if dropout:
            dropped = _dropped_places(x_NI.numel(), dropout)
            kept_NI = x_NI.clone(memory_format=torch.contiguous_format)
            kept_NI.view(-1).index_fill_(0, dropped, 0)
        ctx.scale = scale / (1 - dropout)
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
                grad_x_NI.view(-1).index_fill_(0, dropped, 0)
            grad_x = grad_x_NI.addmm_(grad_NO, weight_OI).view(*grad.shape[:-1], -1)
        # The transposed product has the long side where it is read in order.
        return grad_x, None, None, grad_low_NR.T @ kept_NI, (low_NR.T @ grad_NO).T, None, None


def _dropped_places(num_places: int, dropout: float) -> torch.Tensor:
    """Places that dropout hits, each with probability `dropout` and independently of the others; some occur repeatedly.

    If as many hits fall on a place as a Poisson variable of mean -ln(1 - dropout) says, none falls on it with
    probability 1 - dropout. Throwing as many hits as the sum of those variables, each on a place drawn uniformly, gives
    just that, for some `dropout` random numbers a place.
    """
    num_hits = torch.poisson(torch.tensor(-math.log1p(-dropout) * num_places, dtype=torch.float64))
    return torch.randint(num_places, (int(num_hits),))
