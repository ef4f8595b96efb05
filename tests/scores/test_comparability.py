"""What a baseline and a run must have in common is said where they do not."""

from __future__ import annotations

import dataclasses

import pytest

from tests.reports.test_report import results
from xares_bench.scores.comparability import differences, facts_of

RUN = dataclasses.replace(
    results().run,
    decoder={"name": "tiny", "fingerprint": "d" * 64},
    recipe={"steps": 600, "learning_rate": 0.001, "seed": 42, "generation_batch_size": 8, "generation_positions": None},
    data={"repositories": {"owner/data": "c" * 40, "owner/unknown": None}},
    environment={"xares-bench": "0.1.0"},
)
FACTS = facts_of(RUN, ["task2", "task1", "task1"])


def test_the_same_run_with_another_seed_or_batch_of_generation_has_no_difference() -> None:
    recipe = {**RUN.recipe, "seed": 7, "generation_batch_size": 1}
    assert differences(FACTS, facts_of(dataclasses.replace(RUN, recipe=recipe), ["task1", "task2"])) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"recipe": {**RUN.recipe, "steps": 300}}, "steps 600, this run 300"),
        ({"decoder": {"fingerprint": "e" * 64}}, f"decoder {'d' * 12}, this run {'e' * 12}"),
        ({"data": {"repositories": {"owner/data": "f" * 40}}}, f"data of owner/data {'c' * 12}, this run {'f' * 12}"),
        ({"environment": {"xares-bench": "0.2.0"}}, "version 0.1.0, this run 0.2.0"),
    ],
)
def test_every_difference_is_named(change: dict[str, object], found: str) -> None:
    assert differences(FACTS, facts_of(dataclasses.replace(RUN, **change), ["task1"])) == [found]  # type: ignore[arg-type]


def test_a_mix_that_the_baseline_does_not_have_is_a_difference() -> None:
    assert differences(FACTS, {"mixes": "task2"}) == []
    assert differences(FACTS, {"mixes": "all"}) == ["mixes task1, task2, this run all"]


def test_what_one_of_them_does_not_tell_is_no_difference() -> None:
    assert differences({}, FACTS) == differences(FACTS, {}) == []
