"""How many operations a training step and a generated token start, counted on a CPU: `python -m benchmarks.launches`.

On a GPU each is at least one kernel that the processor starts; `paper_model.py` multiplies them by microseconds. The
decoder has SmolLM2's depth and a small width, which changes no count. It is in bfloat16, because LoRA has a path of its
own for float32 on a CPU; the casts to float32 and back, which come with that, are not counted. Views start nothing, but
they take the processor's time, too, so they are counted apart. What a GPU does within one operation (its attention, the
optimiser over all parameters) counts as one.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_machine import Machine, batch_of, prompts_of
from xares_bench.core.progress import Progress
from xares_bench.lalm.batch import TextTokenizer
from xares_bench.lalm.decoder import load_tokenizer
from xares_bench.lalm.generation import generate
from xares_bench.lalm.model import LALM

_NUM_LAYERS = 30
_NO_KERNEL = ("aten.empty", "aten.new_empty", "aten._unsafe_view", "aten.detach", "aten.alias")
_CAST = "aten._to_copy"


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of a block.

    Attributes:
        num_operations: Those that compute.
        num_views: Those that only look at a tensor in another way, or take memory.
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_operations = self.num_views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation, and carry it out."""
        if func.is_view or str(func).startswith(_NO_KERNEL):
            self.num_views += 1
        elif not str(func).startswith(_CAST):
            self.num_operations += 1
        return func(*args, **(kwargs or {}))


def machine_with(num_layers: int, folder: Path) -> Machine:
    """A small decoder with so many layers, on the CPU."""
    machine = Machine(folder, is_tiny=True)
    config = Path(machine.decoder) / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**values, "num_hidden_layers": num_layers}), encoding="utf-8")
    return machine


def count_step(machine: Machine) -> Count:
    """Count a training step: forward, backward, clipping, optimiser."""
    lalm = machine.lalm().bfloat16().train()
    batch = batch_of((9, 8, 7, 6))
    batch = dataclasses.replace(batch, frames_FD=batch.frames_FD.bfloat16())
    trained = [value for _, value in lalm.trained_parameters()]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    for _ in range(2):  # the first step makes the optimiser's state
        count = Count()
        with count:
            loss = lalm(batch) / batch.num_targets
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return count


def count_token(machine: Machine) -> float:
    """Operations per token of a batch of texts, beyond the first tokens."""
    lalm = machine.lalm()
    lalm.merge_lora()
    lalm.eval()
    few, more = (_count_generation(machine, lalm, num_tokens).num_operations for num_tokens in (4, 8))
    return (more - few) / 4


def _count_generation(machine: Machine, lalm: LALM, num_tokens: int) -> Count:
    count = Count()
    with count:
        generate(
            lalm,
            prompts_of([9] * 32),
            tokenizer=TextTokenizer(load_tokenizer(machine.decoder)),
            recipe=dataclasses.replace(machine.recipe.generation, max_new_tokens=num_tokens),
            device=torch.device("cpu"),
            progress=Progress(quiet=True),
        )
    return count


def main() -> None:
    """Print the counts as a JSON line."""
    with tempfile.TemporaryDirectory() as folder:
        machine = machine_with(_NUM_LAYERS, Path(folder))
        step = count_step(machine)
        counts = {"step": step.num_operations, "views": step.num_views, "token": count_token(machine)}
    print(json.dumps(counts))  # noqa: T201


if __name__ == "__main__":
    main()
