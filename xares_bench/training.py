"""Training: the loop that fits projector and decoder to a mix, on accelerate."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from transformers import get_linear_schedule_with_warmup

from xares_bench.batches import Batch
from xares_bench.errors import TrainingError
from xares_bench.lalm import LALM
from xares_bench.progress import Progress
from xares_bench.recipe import TrainingRecipe

linear_schedule: Any = get_linear_schedule_with_warmup  # untyped in transformers


def train(
    lalm: LALM,
    batches: Iterable[Batch],
    *,
    num_steps: int,
    recipe: TrainingRecipe,
    accelerator: Accelerator,
    progress: Progress,
    description: str = "training",
) -> list[float]:
    """Fit a LALM, in place, and leave it on the accelerator's device in eval mode.

    Args:
        lalm: What to train.
        batches: At least `num_steps` of them.
        num_steps: Optimiser steps.
        recipe: Hyper-parameters; the loss is averaged over the targets of a batch.
        accelerator: Device and precision.
        progress: Shows steps and the loss.
        description: Title of the progress bar.

    Returns:
        The loss of every step, in nats per token.

    Raises:
        TrainingError: The loss is no longer a finite number.
    """
    optimizer = torch.optim.AdamW(
        _parameter_groups(lalm, recipe.weight_decay),
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
        fused=True,
    )
    schedule = linear_schedule(optimizer, recipe.warmup_steps, num_steps)
    model, optimizer = accelerator.prepare(lalm, optimizer)
    model.train()
    losses: list[float] = []
    num_clips, started = 0, time.perf_counter()
    with _deterministic(recipe), progress.bar(description, num_steps) as advance:
        for step, batch in zip(range(num_steps), batches, strict=False):
            batch = batch.to(accelerator.device)
            with accelerator.autocast():
                loss = model(batch) / batch.num_targets
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            if not losses[-1] < float("inf"):
                raise TrainingError(
                    f"{description}: the loss is {losses[-1]} at step {step + 1} of {num_steps}; "
                    "lower the learning rate (--set learning_rate=...) or look at the encoder's features"
                )
            num_clips += len(batch.token_ids_BL)
            clips_per_s = num_clips / (time.perf_counter() - started)
            advance(note=f"loss {losses[-1]:.3f}, {clips_per_s:.0f} clips/s")
    assert len(losses) == num_steps, "the batches ended early"
    accelerator.free_memory()
    lalm.eval()
    return losses


def _parameter_groups(lalm: LALM, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; biases and norm weights, which are vectors, do not."""
    parameters = [value for _, value in lalm.trained_parameters()]
    return [
        {"params": [value for value in parameters if value.ndim >= 2], "weight_decay": weight_decay},
        {"params": [value for value in parameters if value.ndim < 2], "weight_decay": 0.0},
    ]


@contextlib.contextmanager
def _deterministic(recipe: TrainingRecipe) -> Iterator[None]:
    """Seed dropout and switch deterministic algorithms on for the block; leave everything as it was."""
    before = torch.are_deterministic_algorithms_enabled()
    if recipe.deterministic:
        # cuBLAS is deterministic only with a fixed workspace.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        torch.use_deterministic_algorithms(recipe.deterministic)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
