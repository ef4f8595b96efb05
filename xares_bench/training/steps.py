"""Optimiser steps: what one batch does to a LALM.

On a GPU a step is recorded once for each shape of batch, as one CUDA graph, and repeated for the next batches of that
shape. Starting its thousands of kernels one by one takes longer than computing them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from xares_bench.config.recipe import TrainingRecipe
from xares_bench.lalm.batch import Batch
from xares_bench.lalm.model import LALM
from xares_bench.runtime.determinism import random_states, restore_random_states
from xares_bench.runtime.memory import is_out_of_memory
from xares_bench.runtime.recording import Recorded, Recorder


def recorder_for(lalm: LALM, recipe: TrainingRecipe, accelerator: Accelerator) -> Recorder | None:
    """Return a recorder for the steps of a training; None if they are not to be recorded, or cannot be.

    Several processes wait for each other's gradients, fp16 waits for overflows, and compiled layers have graphs of
    their own.
    """
    is_wanted = recipe.cuda_graphs and not recipe.compile and accelerator.device.type == "cuda"
    if not is_wanted or accelerator.num_processes > 1 or accelerator.scaler is not None or not lalm.reads_packed:
        return None
    return Recorder(accelerator.device)


class Steps:
    """The steps of a training, one after the other.

    Attributes:
        num_updates: Steps that changed the weights. In fp16, one whose gradients overflow does not.
    """

    def __init__(
        self,
        lalm: LALM,
        model: Any,
        optimizer: Any,
        *,
        recipe: TrainingRecipe,
        num_steps: int,
        accelerator: Accelerator,
        recorder: Recorder | None,
    ) -> None:
        """Take a LALM and its optimizer, as accelerate has prepared them.

        Args:
            lalm: The LALM.
            model: The LALM as accelerate has prepared it.
            optimizer: Prepared as well.
            recipe: Learning rate and limit of the gradients' norm.
            num_steps: Steps of the whole training, for the schedule.
            accelerator: Device and precision.
            recorder: Records steps; None: they are made one kernel after the other.
        """
        self.num_updates = 0
        self._lalm = lalm
        self._model = model
        self._optimizer = optimizer
        self._recipe = recipe
        self._num_steps = num_steps
        self._accelerator = accelerator
        self._recorder = recorder
        self._recordings: dict[tuple[torch.Size, ...], _RecordedStep] = {}

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Make a step; return this process's part of the batch's mean loss, as a scalar on the device."""
        self._set_rate()
        scale = _loss_scale(self._accelerator)
        loss = self._step(batch) if self._recorder is None else self._recorded_step(batch, self._recorder)
        # In fp16 a step whose gradients overflow is skipped, and the scale lowered. The learning rate then stays, too.
        if _loss_scale(self._accelerator) >= scale:
            self.num_updates += 1
        return loss

    def _step(self, batch: Batch) -> torch.Tensor:
        return self._update(self._lalm.place(batch, self._accelerator.device))

    def _recorded_step(self, batch: Batch, recorder: Recorder) -> torch.Tensor:
        random = random_states(self._accelerator.device)
        batch = self._lalm.padded(batch)
        try:
            if batch.shapes not in self._recordings:
                self._recordings[batch.shapes] = self._new_recording(batch, recorder)
            recording = self._recordings[batch.shapes]
            recording.batch.copy_(batch)
            recording.step()
            return recording.loss
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler, because the exception holds references to the tensors of the frames that it left.
        warnings.warn(
            "too little memory for training steps as CUDA graphs; from here on their kernels are started one by one, "
            "which is slower",
            RuntimeWarning,
            stacklevel=2,
        )
        self._recordings.clear()
        self._recorder = None
        self._optimizer.zero_grad()
        restore_random_states(random, self._accelerator.device)
        return self._update(batch.to(self._accelerator.device))

    def _new_recording(self, batch: Batch, recorder: Recorder) -> _RecordedStep:
        """Return a step that will be recorded, for batches of these shapes."""
        own = batch.to(self._accelerator.device)
        loss = torch.zeros((), device=self._accelerator.device, dtype=self._lalm.projector.weight.dtype)
        for group in self._optimizer.param_groups:
            group["capturable"] = self._accelerator.device.type == "cuda"  # what torch asks of a recorded optimizer
        return _RecordedStep(batch=own, loss=loss, step=Recorded(lambda: loss.copy_(self._update(own)), recorder))

    def _update(self, batch: Batch) -> torch.Tensor:
        """Change the weights by a batch on the device; return the loss."""
        with self._accelerator.autocast():
            loss: torch.Tensor = self._model(batch) / batch.num_targets
        # `num_targets` counts the targets of the whole batch, so the losses of the processes add up to the batch's
        # loss. But accelerate averages gradients over the processes.
        self._accelerator.backward(loss * self._accelerator.num_processes)
        # Also unscales gradients in fp16, which must happen before their norm is limited.
        self._accelerator.clip_grad_norm_(self._model.parameters(), self._recipe.max_grad_norm)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
            self._optimizer.step()
        # A recording adds to gradients that stay where they are.
        self._optimizer.zero_grad(set_to_none=self._recorder is None)
        return loss.detach()

    def _set_rate(self) -> None:
        """Set the learning rate of the next step."""
        recipe = self._recipe
        rate = recipe.learning_rate * _rate_share(self.num_updates, recipe.warmup_steps, self._num_steps)
        for group in self._optimizer.param_groups:
            if self._recorder is None:
                group["lr"] = rate
            elif isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:  # a recording would repeat a number
                group["lr"] = torch.tensor(rate, device=self._accelerator.device)


@dataclass(frozen=True, kw_only=True, eq=False)
class _RecordedStep:
    """A step and the memory that it reads and writes."""

    batch: Batch
    loss: torch.Tensor
    step: Recorded


def _loss_scale(accelerator: Accelerator) -> float:
    """Return the factor of the loss in fp16, or else 1.

    accelerate's `optimizer_step_was_skipped` does not see the steps that a fused optimizer itself leaves out.
    """
    return 1.0 if accelerator.scaler is None else float(accelerator.scaler.get_scale())


def _rate_share(step: int, num_warmup: int, num_steps: int) -> float:
    """Return the factor of the learning rate at a step, from 0: linear warm-up, then linear decay to 0."""
    if step < num_warmup:
        return step / num_warmup
    return max(0.0, (num_steps - step) / max(1, num_steps - num_warmup))
