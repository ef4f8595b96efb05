"""The cost of saving a checkpoint, and of resuming from it.

pytest benchmarks/test_resume.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison
from benchmarks.ours import published_recipe, train_ours
from benchmarks.sizes import Size
from benchmarks.sounds import labelled_sounds
from xares_bench.config.catalogue import load_catalogue
from xares_bench.core.store import Store
from xares_bench.encoders.loading import FrozenEncoder
from xares_bench.lalm.batch import TextTokenizer
from xares_bench.lalm.model import build_lalm
from xares_bench.training.checkpoints import Checkpoints
from xares_bench.training.dataloader import past_of

NUM_PUBLISHED_STEPS = 100_000


def test_keeping_the_state(
    comparison: Comparison, size: Size, encoder: FrozenEncoder, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    """A step of the published recipe with a checkpoint after it, beside one without."""
    recipe = published_recipe(size).training
    draws = [sound.draw() for sound in labelled_sounds(size.num_steps * recipe.batch_size, seed=7)]
    lalm = build_lalm(size.decoder, encoder.output_dim, recipe)
    arguments: dict[str, Any] = {
        "encoder": encoder,
        "tokenizer": tokenizer,
        "num_steps": size.num_steps,
        "recipe": recipe,
    }
    store = Store(root=tmp_path)
    train_ours(lalm, draws, **{**arguments, "num_steps": 2})  # the first steps of a process are slower

    def train_and_keep() -> None:
        checkpoints = Checkpoints(store, "lalm", {})
        train_ours(lalm, draws, **arguments, keep=checkpoints.save)
        sizes.append(sum(path.stat().st_size for path in tmp_path.rglob("step-*/*")) / 2)  # the last two are kept
        checkpoints.remove()

    sizes: list[float] = []
    medians = comparison.measure(
        lambda: train_ours(lalm, draws, **arguments),
        {"checkpoint after every step": train_and_keep},
        per=size.num_steps,
    )
    cost_s = medians["checkpoint after every step"] - medians["ours"]
    comparison.note(bytes_of_a_state=sizes[0])
    comparison.say(f"a state: {sizes[0] / 1e6:.1f} MB, {cost_s * 1e3:.0f} ms")


def test_finding_the_place(comparison: Comparison) -> None:
    """Which draws the last of 100,000 steps still needs: shuffling is gone through again, as numbers."""
    recipe = load_catalogue("full").preset.recipe.training
    comparison.measure(lambda: past_of(recipe, NUM_PUBLISHED_STEPS - 1, ()), {})
