"""How cost grows: with the number of clips, with their length, with the decoder.

    pytest benchmarks/test_growth.py

Memory over the number of shards is measured by `test_memory.py`.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.comparison import Comparison
from benchmarks.control import Control, drawn_batches, evaluate_control, train_control
from benchmarks.ours import evaluate_ours, published_recipe, train_ours
from benchmarks.sizes import Size
from benchmarks.sounds import labelled_sounds
from xares_bench.encoders.loading import FrozenEncoder
from xares_bench.lalm.batch import TextTokenizer
from xares_bench.lalm.model import LALM, build_lalm

# By the width of SmolLM2-135M (576): half of it, itself, and SmolLM2-360M.
WIDTHS = (288, 576, 960)
_HEAD_SIZE, _SMALL_WIDTHS = 32, (96, 192, 288)


@pytest.mark.parametrize("factor", [1, 4, 16])
def test_evaluation_by_number_of_clips(
    factor: int, comparison: Comparison, size: Size, encoder: FrozenEncoder, tokenizer: TextTokenizer, learnt: LALM
) -> None:
    """Labels of 16, 64 and 256 clips; times are those of a clip."""
    sounds = labelled_sounds(factor * size.num_clips // 12, seed=31)
    recipe = published_recipe(size)
    control = Control(size.decoder, encoder, recipe.training).eval()
    control.take_values(learnt)
    ours = build_lalm(size.decoder, encoder.output_dim, recipe.training)
    ours.load_state_dict(learnt.state_dict())
    ours.eval().merge_lora()
    generation = recipe.generation
    comparison.measure(
        lambda: evaluate_ours(ours, sounds, encoder=encoder, tokenizer=tokenizer, recipe=generation),
        {"control in batches of 4": lambda: evaluate_control(control, sounds, batch_size=4, recipe=generation)},
        per=len(sounds),
    )


@pytest.mark.parametrize("duration_s", [1.0, 4.0, 16.0])
def test_step_by_seconds_of_a_clip(
    duration_s: float, comparison: Comparison, size: Size, encoder: FrozenEncoder, tokenizer: TextTokenizer
) -> None:
    """Steps of four clips of equal length, where nothing is padding."""
    _measure_step(comparison, size, encoder, tokenizer, duration_s=duration_s)


@pytest.fixture(params=[0, 1, 2], ids=["half as wide", "as it is", "360M"])
def decoder(request: pytest.FixtureRequest, size: Size, tmp_path: Path) -> Iterator[Size]:
    """Decoders of one family and of three widths, with random weights."""
    width = (WIDTHS if size.is_real else _SMALL_WIDTHS)[request.param]
    config: Any = AutoConfig.from_pretrained(size.decoder)
    heads = width // (64 if size.is_real and width != WIDTHS[0] else _HEAD_SIZE)
    config.update(
        {
            "hidden_size": width,
            "intermediate_size": width * 8 // 3,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 3,
            "head_dim": width // heads,
        }
    )
    folder = tmp_path / "decoder"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    AutoTokenizer.from_pretrained(size.decoder).save_pretrained(folder)
    yield dataclasses.replace(size, decoder=str(folder))
    shutil.rmtree(folder)


def test_step_by_width_of_the_decoder(
    comparison: Comparison, decoder: Size, encoder: FrozenEncoder, tokenizer: TextTokenizer
) -> None:
    """Steps of four clips of 1 to 4 s."""
    _measure_step(comparison, decoder, encoder, tokenizer, duration_s=None)


def _measure_step(
    comparison: Comparison, size: Size, encoder: FrozenEncoder, tokenizer: TextTokenizer, *, duration_s: float | None
) -> None:
    recipe = published_recipe(size).training
    num_steps = max(2, size.num_steps // 4)
    durations_s = (1.0, 4.0) if duration_s is None else (duration_s, duration_s)
    sounds = labelled_sounds(num_steps * recipe.batch_size, seed=32, durations_s=durations_s)
    draws = [sound.draw() for sound in sounds]
    lalm = build_lalm(size.decoder, encoder.output_dim, recipe)
    control = Control(size.decoder, encoder, recipe)
    batches = drawn_batches(control, sounds, recipe)
    num_values = sum(value.numel() for value in control.decoder.parameters())
    comparison.note(num_decoder_values=num_values)
    comparison.measure(
        lambda: train_ours(lalm, draws, encoder=encoder, tokenizer=tokenizer, num_steps=num_steps, recipe=recipe),
        {"control": lambda: train_control(control, batches, num_steps=num_steps, recipe=recipe)},
        per=num_steps,
    )
