"""Training: the loop that fits projector and decoder to a mix, on accelerate."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from xares_bench.config.recipe import TrainingRecipe
from xares_bench.core.errors import OutOfMemory, TrainingError
from xares_bench.core.progress import Progress
from xares_bench.lalm.batch import Batch
from xares_bench.lalm.model import LALM
from xares_bench.runtime.determinism import deterministic_algorithms, random_states, restore_random_states, seeded
from xares_bench.runtime.memory import is_out_of_memory, sharers
from xares_bench.runtime.processes import end_session_on_error, sum_over_processes
from xares_bench.runtime.recording import Recorder
from xares_bench.runtime.signals import defer_interrupts
from xares_bench.training.checkpoints import Checkpoint
from xares_bench.training.losses import LossReader
from xares_bench.training.steps import Steps, recorder_for

# Distance between the seeds of two processes.
_SEEDS_APART = 1_000_003

# Parameters with such names have no weight decay.
_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(^|\.|_)norm(\.|$)", re.IGNORECASE)


def train(
    lalm: LALM,
    batches: Iterable[Batch],
    *,
    num_steps: int,
    recipe: TrainingRecipe,
    accelerator: Accelerator,
    progress: Progress,
    description: str = "training",
    start: Checkpoint | None = None,
    keep: Callable[[Checkpoint], None] | None = None,
    keep_every: int = 1000,
    recorder: Recorder | None = None,
) -> list[float]:
    """Train a LALM in place, and leave it on the accelerator's device in eval mode.

    Args:
        lalm: The LALM.
        batches: At least as many batches as there are steps left.
        num_steps: Number of optimiser steps, including those before `start`.
        recipe: Hyper-parameters. The loss is averaged over the target tokens of a batch.
        accelerator: Device and precision.
        progress: Shows steps and the loss.
        description: Title of the progress bar.
        start: Checkpoint to resume from, or None.
        keep: Saves a checkpoint; called every `keep_every` steps, and on SIGINT and SIGTERM.
        keep_every: Number of steps between two checkpoints.
        recorder: Records steps; None: as `recorder_for` decides.

    Returns:
        The loss of every step, in nats per token.

    Raises:
        TrainingError: The loss is no longer a finite number.
        OutOfMemory: Memory does not suffice for a step.
        KeyboardInterrupt: SIGINT or SIGTERM was received; the current step is finished and its checkpoint saved.
    """
    optimizer = _optimizer(lalm, recipe)
    losses: list[float] = [] if start is None else list(start.values["losses"])
    first = len(losses)
    num_clips, started = 0, time.perf_counter()
    with (
        _prepared(lalm, accelerator) as model,
        lalm.compiled(accelerator.device) if recipe.compile else contextlib.nullcontext(),
        # Seeds the dropout, which each process draws for its own share of a batch.
        seeded(recipe.seed + _SEEDS_APART * accelerator.process_index, accelerator.device),
        deterministic_algorithms(wanted=recipe.deterministic, required=True),
        progress.bar(description, num_steps, num_before=first) as advance,
        defer_interrupts() as is_interrupted,
    ):
        optimizer = accelerator.prepare(optimizer)
        steps = Steps(
            lalm,
            model,
            optimizer,
            recipe=recipe,
            num_steps=num_steps,
            accelerator=accelerator,
            recorder=recorder or recorder_for(lalm, recipe, accelerator),
        )
        state = _State(lalm=lalm, optimizer=optimizer, steps=steps, accelerator=accelerator)
        if start is not None:
            state.restore(start)
        reader = LossReader(accelerator.device)
        for step, batch in zip(range(first, num_steps), batches, strict=False):
            with (
                end_session_on_error(accelerator),
                _explain_out_of_memory(description, step + 1, batch, accelerator.device),
            ):
                loss = steps(batch)
                num_interrupted = float(is_interrupted())
                if accelerator.num_processes > 1:
                    # Together, so that all processes end after the same step, whichever of them a signal has reached.
                    of_all, num_interrupted = sum_over_processes(accelerator, [float(loss), num_interrupted])
                    loss = torch.tensor(of_all, dtype=torch.float64)
            reader.send(loss)
            is_due = num_interrupted > 0 or (step + 1) % keep_every == 0
            for value in reader.received(all_of_them=is_due or step + 1 == num_steps):
                losses.append(value)
                accelerator.log({f"loss/{description.replace(' ', '_')}": value}, step=len(losses))
                if not value < float("inf"):
                    raise TrainingError(
                        f"{description}: the loss is {value} at step {len(losses)} of {num_steps}; "
                        "lower the learning rate (--set learning_rate=...) or check the encoder's features"
                    )
            num_clips += len(batch.lengths)
            clips_per_s = num_clips / (time.perf_counter() - started)
            advance(note=f"loss {losses[-1]:.3f}, {clips_per_s:.0f} clips/s" if losses else "")
            if keep is not None and is_due and step + 1 < num_steps:
                keep(state.checkpoint(losses))
            if num_interrupted:
                raise KeyboardInterrupt(f"{description} was interrupted after step {step + 1} of {num_steps}")
    assert len(losses) == num_steps, "the batches ended early"
    return losses


def _optimizer(lalm: LALM, recipe: TrainingRecipe) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        _parameter_groups(lalm, recipe.weight_decay),
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
        fused=True,
    )


@dataclass(frozen=True, kw_only=True)
class _State:
    """Everything that a step changes and the next step depends on."""

    lalm: LALM
    optimizer: Any
    steps: Steps
    accelerator: Accelerator

    def checkpoint(self, losses: Sequence[float]) -> Checkpoint:
        """Return a copy of the state as a checkpoint."""
        optimizer = self.optimizer.state_dict()
        tensors = {f"parameter.{name}": value.detach() for name, value in self.lalm.trained_parameters()}
        for number, moments in optimizer["state"].items():
            tensors.update({f"optimizer.{number}.{name}": value for name, value in moments.items()})
        for process, states in enumerate(gather_object([random_states(self.accelerator.device)])):
            tensors.update({f"random.{process}.{name}": value for name, value in states.items()})
        scaler = self.accelerator.scaler
        return Checkpoint(
            num_steps=len(losses),
            tensors={name: value.to("cpu", copy=True).contiguous() for name, value in tensors.items()},
            values={
                "losses": list(losses),
                "groups": [
                    {**group, "lr": float(group["lr"]), "capturable": False} for group in optimizer["param_groups"]
                ],
                "num_updates": self.steps.num_updates,
                "scaler": None if scaler is None else scaler.state_dict(),
            },
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state from a checkpoint."""
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in checkpoint.tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                number, _, moment = rest.partition(".")
                moments.setdefault(int(number), {})[moment] = value
        with torch.no_grad():
            for name, parameter in self.lalm.trained_parameters():
                parameter.copy_(checkpoint.tensors[f"parameter.{name}"])
        self.optimizer.load_state_dict({"state": moments, "param_groups": checkpoint.values["groups"]})
        self.steps.num_updates = checkpoint.values["num_updates"]
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.values["scaler"])
        device, random = self.accelerator.device, f"random.{self.accelerator.process_index}"
        restore_random_states({kind: checkpoint.tensors[f"{random}.{kind}"] for kind in {"cpu", device.type}}, device)


@contextlib.contextmanager
def _explain_out_of_memory(description: str, step: int, batch: Batch, device: torch.device) -> Iterator[None]:
    """Explain a lack of memory. No smaller batch is tried: sums in another order would give another LALM.

    Raises:
        OutOfMemory: Memory does not suffice.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"{description}: {type(error).__name__} at step {step}, with {len(batch.lengths)} clips of "
            f"{sum(batch.lengths)} positions in the batch: {error}. {sharers(device)}Free memory, or train with "
            "several processes, which share a batch, or in bf16 (docs/gpus.md). The same command resumes from the last "
            "checkpoint"
        ) from None


@contextlib.contextmanager
def _prepared(lalm: LALM, accelerator: Accelerator) -> Iterator[Any]:
    """Put a LALM into train mode on the accelerator's device; then into eval mode, without accelerate's changes."""
    own = set(vars(lalm))
    model = accelerator.prepare(lalm)
    model.train()
    try:
        yield model
    finally:
        # accelerate sets attributes, such as a `forward` that casts, which would hide the one of the class.
        for name in set(vars(lalm)) - own:
            delattr(lalm, name)
        accelerator.free_memory()
        lalm.zero_grad()
        lalm.eval()


def _parameter_groups(lalm: LALM, weight_decay: float) -> list[dict[str, object]]:
    """Return trained parameters in two groups: biases and norms have no weight decay, as in transformers' Trainer."""
    in_layer_norms = {
        f"{name}.{parameter}"
        for name, module in lalm.named_modules()
        if isinstance(module, nn.LayerNorm)
        for parameter, _ in module.named_parameters(recurse=False)
    }
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, value in lalm.trained_parameters():
        group = undecayed if name in in_layer_norms or _UNDECAYED.search(name) else decayed
        group.append(value)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
