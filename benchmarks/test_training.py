"""Training: the same losses as the control's, then the time of a step.

pytest benchmarks/test_training.py
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from benchmarks.comparison import Comparison, Report, threads
from benchmarks.control import Control, drawn_batches, train_control
from benchmarks.ours import bare_lalm, published_recipe, train_ours
from benchmarks.sizes import Size
from benchmarks.sounds import captioned_sounds, labelled_sounds
from xares_bench.encoders.loading import FrozenEncoder
from xares_bench.lalm.batch import TextTokenizer
from xares_bench.lalm.model import LALM, build_lalm

# Relative; the losses are some nats per token.
LOSS_TOLERANCE = 1e-5


def test_losses_of_every_step(
    report: Report, size: Size, encoder: FrozenEncoder, tokenizer: TextTokenizer, learnt: LALM
) -> None:
    """Every step's loss is the control's, with the published recipe but for dropout, which draws other random numbers.

    The LALM knows captions and now learns others. From an untrained one on, at losses of 7 to 13, differences grow with
    the steps: relatively at most 1e-5 for the first 33, and 7e-4 at the 49th.
    """
    recipe = published_recipe(size, lora_dropout=0.0).training
    num_steps = size.num_compared_steps
    known = captioned_sounds(num_steps * recipe.batch_size, seed=5)
    sounds = [dataclasses.replace(sound, targets=sound.targets[1:]) for sound in known]
    lalm = build_lalm(size.decoder, encoder.output_dim, recipe)
    lalm.load_state_dict(learnt.state_dict())
    control = Control(size.decoder, encoder, recipe)
    control.take_values(lalm)
    batches = drawn_batches(control, sounds, recipe)
    expected = train_control(control, batches, num_steps=num_steps, recipe=recipe)
    draws = [sound.draw() for sound in sounds]
    losses = train_ours(lalm, draws, encoder=encoder, tokenizer=tokenizer, num_steps=num_steps, recipe=recipe)
    worst = max(abs(ours / theirs - 1) for ours, theirs in zip(losses, expected, strict=True))
    report(f"{num_steps} losses from {losses[0]:.3f} to {losses[-1]:.3f}, at most {worst:.1e} apart, relatively")
    assert not size.is_real or losses[-1] < losses[0] - 1, "nothing was learnt that could differ"
    assert losses == pytest.approx(expected, rel=LOSS_TOLERANCE, abs=0)


def test_training_step(comparison: Comparison, size: Size, encoder: FrozenEncoder, tokenizer: TextTokenizer) -> None:
    """A step of four clips of 1 to 4 s as published, beside the control and beside the bare decoder."""
    recipe = published_recipe(size).training
    sounds = labelled_sounds(size.num_steps * recipe.batch_size, seed=6)
    draws = [sound.draw() for sound in sounds]
    lalm = build_lalm(size.decoder, encoder.output_dim, recipe)
    bare = bare_lalm(size, encoder.output_dim, recipe)
    control = Control(size.decoder, encoder, recipe)
    batches = drawn_batches(control, sounds, recipe)
    arguments: dict[str, Any] = {
        "encoder": encoder,
        "tokenizer": tokenizer,
        "num_steps": size.num_steps,
        "recipe": recipe,
    }

    def train_on_one_thread() -> None:
        with threads(1):
            train_control(control, batches, num_steps=size.num_steps, recipe=recipe)

    # The first steps of a process are slower.
    train_ours(lalm, draws, **{**arguments, "num_steps": 2})
    train_control(control, batches, num_steps=2, recipe=recipe)
    comparison.measure(
        lambda: train_ours(lalm, draws, **arguments),
        {
            "control": lambda: train_control(control, batches, num_steps=size.num_steps, recipe=recipe),
            "control on one thread": train_on_one_thread,
            "bare decoder": lambda: train_ours(bare, draws, **arguments),
        },
        per=size.num_steps,
    )
