"""Values of a recipe: which changes are taken, and what a wrong one says."""

from __future__ import annotations

from typing import Any

import pytest

from xares_bench.config.catalogue import load_catalogue
from xares_bench.config.recipe import Recipe
from xares_bench.core.errors import CatalogueError


@pytest.fixture
def recipe() -> Recipe:
    return load_catalogue("full").preset.recipe


def test_recipe_replace_changes_only_what_is_named(recipe: Recipe) -> None:
    changed_recipe = recipe.replace({"learning_rate": 3, "steps": 10, "adaptation": "full", "deterministic": False})
    changed = {key: value for key, value in changed_recipe.values().items() if value != recipe.values()[key]}
    assert changed == {"learning_rate": 3.0, "steps": 10, "adaptation": "full", "deterministic": False}
    assert changed_recipe.training.steps == 10
    assert recipe.replace({}) == recipe
    assert recipe.training.steps is None, "the preset's own recipe has changed"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lr", 1, "unknown key; expected one of seed, steps, batch_size, learning_rate"),
        ("seed", -1, "found -1, expected a whole number of at least 0"),
        ("seed", 1.0, "found 1.0, expected a whole number"),
        ("steps", 0, "found 0, expected a whole number of at least 1"),
        ("steps", "many", "found 'many'"),
        ("batch_size", None, "found nothing, expected a whole number"),
        ("batch_size", True, "found True"),
        ("warmup_steps", -1, "at least 0"),
        ("learning_rate", 0, "expected a finite number above 0"),
        ("learning_rate", float("inf"), "found inf, expected a finite number"),
        ("learning_rate", float("nan"), "found nan"),
        ("learning_rate", False, "found False"),
        ("weight_decay", -0.1, "expected 0 or more"),
        ("weight_decay", -2, "expected a finite number"),
        ("lora_dropout", 1, "expected 0 or more and below 1"),
        ("adam_beta2", 1.0, "expected 0 or more and below 1"),
        ("max_dropped_share", -0.5, "expected 0 or more"),
        ("deterministic", "yes", "found 'yes', expected true or false"),
        ("adaptation", "none", "found 'none', expected one of lora, full"),
        ("adaptation", ["lora"], "expected one of lora, full"),
        ("repetition_penalty", 0, "above 0"),
        ("max_new_tokens", 0, "at least 1"),
        ("max_audio_s", -1, "above 0"),
    ],
)
def test_recipe_replace_refuses(recipe: Recipe, key: str, value: Any, said: str) -> None:
    with pytest.raises(CatalogueError) as caught:
        recipe.replace({key: value})
    message = str(caught.value)
    assert message.startswith(f"--set: {key}: ")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value"),
    [("warmup_steps", 0), ("weight_decay", 0), ("lora_dropout", 0), ("adam_beta1", 0.0), ("seed", 0), ("steps", None)],
)
def test_recipe_replace_takes_the_smallest_values(recipe: Recipe, key: str, value: Any) -> None:
    assert recipe.replace({key: value}).values()[key] == value
