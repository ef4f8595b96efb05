"""What a baseline and a run must have in common is said where they do not."""

from __future__ import annotations

import dataclasses
import doctest

import pytest

from tests.reports.test_report import results
from xares_bench.scores import comparability
from xares_bench.scores.comparability import differences, facts_of, untold

DATA = {
    "repositories": {"owner/data": "c" * 40, "owner/unknown": None},
    "mixes": {"esc-50": "1a", "gtzan": "1a"},
    "test_data": {"esc-50": "2b", "gtzan": "3c"},
}
RUN = dataclasses.replace(
    results().run,
    decoder={"name": "tiny", "fingerprint": "d" * 64},
    recipe={"steps": 600, "learning_rate": 0.001, "seed": 42, "generation_batch_size": 8, "generation_positions": None},
    data=DATA,
    environment={"xares-bench": "0.1.0", "precision": "no"},
)
MIXES = {"esc-50": "task1", "gtzan": "task1"}
FACTS = facts_of(RUN, MIXES)


def test_the_same_run_with_another_seed_or_batch_of_generation_has_no_difference() -> None:
    recipe = {**RUN.recipe, "seed": 7, "generation_batch_size": 1}
    assert differences(FACTS, facts_of(dataclasses.replace(RUN, recipe=recipe), MIXES)) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"recipe": {**RUN.recipe, "steps": 300}}, "steps 600, this run 300"),
        ({"decoder": {"fingerprint": "e" * 64}}, f"decoder {'d' * 12}, this run {'e' * 12}"),
        (
            {"data": {**DATA, "repositories": {"owner/data": "f" * 40}}},
            f"data of owner/data {'c' * 12}, this run {'f' * 12}",
        ),
        ({"data": {**DATA, "mixes": {"esc-50": "1a", "gtzan": "4d"}}}, "mix task1 1a, this run task1 4d, for gtzan"),
        ({"data": {**DATA, "test_data": {"esc-50": "5e", "gtzan": "3c"}}}, "other test data for esc-50"),
        ({"environment": {**RUN.environment, "xares-bench": "0.2.0"}}, "version 0.1.0, this run 0.2.0"),
        ({"environment": {**RUN.environment, "precision": "bf16"}}, "precision no, this run bf16"),
    ],
)
def test_every_difference_is_named(change: dict[str, object], found: str) -> None:
    run = dataclasses.replace(RUN, **change)  # type: ignore[arg-type]
    assert differences(FACTS, facts_of(run, MIXES)) == [found]


def test_each_dataset_must_have_the_mix_that_it_has_in_the_baseline() -> None:
    assert differences(FACTS, facts_of(RUN, {"gtzan": "task1"})) == [], "fewer datasets"
    assert differences(FACTS, facts_of(RUN, {**MIXES, "gtzan": "all"})) == ["mix task1 1a, this run all 1a, for gtzan"]
    swapped = {"mix of a": "one", "mix of b": "two"}
    assert differences(swapped, {"mix of a": "two"}) == ["mix one, this run two, for a"]


def test_many_datasets_are_counted() -> None:
    names = [f"set{place}" for place in range(20)]
    there = {f"{what} of {name}": "1" for what in ("mix", "test data") for name in names}
    here = dict.fromkeys(there, "2")
    assert differences(there, here) == [
        "mix 1, this run 2, for set0, set1, set2 and 17 more",
        "other test data for set0, set1, set2 and 17 more",
    ]


def test_what_one_of_them_does_not_tell_is_no_difference_but_untold() -> None:
    assert differences({}, FACTS) == differences(FACTS, {}) == []
    assert untold({}, FACTS) == f"version, precision, decoder and {len(FACTS) - 3} more"
    assert untold(FACTS, {"steps": "600"}) == untold(FACTS, FACTS) == ""
    for name in FACTS:
        assert untold({key: value for key, value in FACTS.items() if key != name}, FACTS) == name


def test_the_examples_hold() -> None:
    assert doctest.testmod(comparability).failed == 0
