"""What metrics share: normalisation, row checks and common sums."""

from __future__ import annotations

import doctest
import random

import numpy as np
import pytest

from xares_bench.core.errors import UsageError
from xares_bench.metrics import parts
from xares_bench.metrics.parts import (
    check_rows,
    mean_of_rows,
    mean_of_sums,
    normalise,
    ratio,
    result_of_sums,
    undefined,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", "hello world"),
        ("  a\t\nb\u00a0\u3000c ", "a b c"),
        ("well-known", "well known"),
        ("\uff37\uff45\uff4c\uff4c\uff0d\uff11\uff12", "well 12"),  # full-width "Well-12"
        ("don't", "dont"),
        ("snake_case", "snakecase"),
        ("ÉCOLE e\u0301cole", "école école"),
        ("ﬁne", "fine"),
        ("你好\uff0c世界\uff01", "你好世界"),  # full-width comma and exclamation mark become ASCII and go
        ("你好\u3002", "你好\u3002"),  # the ideographic full stop has no ASCII form and stays
        ("مرحبا، بالعالم!", "مرحبا، بالعالم"),  # the Arabic comma is not ASCII either
        ("\u2013", "\u2013"),  # an en dash is not "-"
        ("-1", "1"),
        ("!?.", ""),
        ("", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_normalise_keeps_punctuation_for_label_sets() -> None:
    assert normalise("Hi-Hat; Dog's\uff1bCAT", keep_punctuation=True) == "hi hat; dog's;cat"


def test_a_string_in_place_of_a_sequence_is_an_error() -> None:
    with pytest.raises(TypeError, match="one per row"):
        check_rows("abc", ["a", "b", "c"])
    check_rows(["abc"], ("abc",))


def test_the_mean_of_rows_is_exact_in_any_order_and_agrees_with_its_sums() -> None:
    values = [random.Random(seed).uniform(-1, 1) for seed in range(500)]
    result = mean_of_rows(values)
    assert mean_of_rows(sorted(values)).score == result.score  # to the last bit
    assert mean_of_sums(result.row_parts.sum(axis=0, keepdims=True)) == pytest.approx([result.score], abs=1e-12)
    assert result.row_values == tuple(values)


def test_a_ratio_over_zero_is_nan_without_a_warning() -> None:
    assert ratio(np.array([1.0, 0.0, 3.0]), np.array([0.0, 0.0, 2.0])).tolist() == pytest.approx(
        [np.nan, np.nan, 1.5], nan_ok=True
    )


def test_a_result_of_sums_divides_after_summing_and_passes_the_arguments_on() -> None:
    row_parts = np.array([[1.0, 1.0], [0.0, 3.0]])
    result = result_of_sums(
        lambda sums_BP, scale: scale * mean_of_sums(sums_BP), row_values=[1.0, 0.0], row_parts=row_parts, scale=2
    )
    assert (result.score, type(result.score), result.row_values) == (0.5, float, (1.0, 0.0))
    assert result.row_parts is row_parts


def test_an_undefined_metric_is_an_error_that_names_what_is_missing() -> None:
    assert str(undefined("iWER", 3, "word")) == (
        "none of the 3 references contains a word, so iWER is undefined; check the target key"
    )
    assert isinstance(undefined("iWER", 3, "word"), UsageError)


def test_examples_in_docstrings() -> None:
    outcome = doctest.testmod(parts)
    assert outcome.attempted > 0
    assert outcome.failed == 0
