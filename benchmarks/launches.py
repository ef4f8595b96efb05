"""Counts the kernels that a GPU would start for a training step and a token, and the memory that a step keeps.

    python -m benchmarks.launches

Without a GPU: tensors on the meta device have shapes and no values. Every operation that makes or changes a tensor
counts as one kernel; views do not. Two operations are stood in for, because torch has one kernel for each on a GPU, and
takes them apart everywhere else. Clipping and the optimizer are not counted: torch has a few dozen kernels for them.
The decoder has SmolLM2-135M's layers and heads and a small width, which changes no count.
"""

from __future__ import annotations

import collections
import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_machine import Machine, batch_of
from xares_bench.lalm import attention
from xares_bench.lalm.attention import Cache
from xares_bench.lalm.token_steps import Texts

_NUM_LAYERS = 30
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
    """Counts within a `with` block.

    Attributes:
        by_name: Kernels by the name of their operation.
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_name: collections.Counter[str] = collections.Counter()

    @property
    def number(self) -> int:
        """All kernels together."""
        return self.by_name.total()

    def __repr__(self) -> str:
        """The number, and what it is made of."""
        return f"{self.number} launches: {dict(self.by_name.most_common())}"

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count an operation, and carry it out."""
        if not (function.is_view or str(function) in _FREE):
            self.by_name[str(function)] += 1
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def kernels_of_a_gpu() -> Iterator[None]:
    """Let attention and RMSNorm be one operation each, forward and backward, as in float32 on a GPU."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **arguments: Any) -> torch.Tensor:
        assert not arguments.get("enable_gqa"), "in float32 the kernel without a quadratic matrix takes no shared heads"
        return cast(torch.Tensor, _Attention.apply(query, key, value))  # type: ignore[no-untyped-call]

    def norm(x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        return cast(torch.Tensor, _Norm.apply(x, weight))  # type: ignore[no-untyped-call]

    with (
        patch.object(functional, "scaled_dot_product_attention", attend),
        patch.object(functional, "rms_norm", norm),
        patch.object(attention, "repeats_shared_heads", lambda query: True),
    ):
        yield


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


def machine_with(num_layers: int, folder: Path) -> Machine:
    """A narrow decoder with so many layers, on the CPU."""
    machine = Machine(folder, is_tiny=True)
    config = Path(machine.decoder) / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**values, "num_hidden_layers": num_layers}), encoding="utf-8")
    return machine


def count_step(machine: Machine) -> Launches:
    """Count a training step with LoRA on clips of different lengths, forward and backward."""
    lalm = machine.lalm().to(META).train()
    batch = lalm.place(batch_of((9, 8, 7, 6)), META)
    launches = Launches()
    with kernels_of_a_gpu(), launches:
        loss = lalm(batch) / batch.num_targets
        loss.backward()
    return launches


def saved_bytes(machine: Machine, frames: Sequence[int]) -> int:
    """Return what a training step keeps for its backward pass, without the weights, for clips of so many frames."""
    lalm = machine.lalm().to(META).train()
    batch = lalm.place(batch_of(frames), META)
    weights = {value.untyped_storage()._cdata for value in lalm.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def note(value: torch.Tensor) -> torch.Tensor:
        if value.untyped_storage()._cdata not in weights:
            saved[value.untyped_storage()._cdata] = value
        return value

    with kernels_of_a_gpu(), torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        lalm(batch)
    return sum(value.untyped_storage().nbytes() for value in saved.values())


def count_token(machine: Machine) -> Launches:
    """Count all that the next token of three texts takes: reading the last, the repetition penalty, and the choice."""
    lalm = machine.lalm()
    lalm.merge_lora()
    lalm.to(META).eval()
    texts = Texts(lalm, Cache(num_rows=4, num_positions=20), machine.recipe.generation, META)
    launches = Launches()
    with kernels_of_a_gpu(), torch.inference_mode():
        texts.step(3, 6)  # makes the cache
        with launches:
            texts.step(3, 6)
    return launches


def main() -> None:
    """Print the counts as a JSON line."""
    with tempfile.TemporaryDirectory() as folder:
        machine = machine_with(_NUM_LAYERS, Path(folder))
        counts = {"step": count_step(machine).number, "token": count_token(machine).number}
        whole = Machine(Path(folder) / "whole", is_tiny=False, device=META)
        saved = {name: round(saved_bytes(whole, frames) / 1e9, 2) for name, frames in whole.lengths.items()}
        print(json.dumps({**counts, "GB kept for the backward pass": saved}))  # noqa: T201


if __name__ == "__main__":
    main()
