"""YAML without words that mean something else than they look."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xares_bench.core.yaml_text import MisreadWord, dump_yaml, load_yaml

WORDS = {
    "no": "true or false",
    "off": "true or false",
    "Yes": "true or false",
    "on": "true or false",
    "TRUE": "true or false",
    "null": "null",
    "~": "null",
    "": "null",
    "2024-01-31": "a date",
    "3": "a number",
    "0x1f": "a number",
    "1:30": "a number",
    "010": "a number",
    "1e-1": "a number",
    "2.5": "a number",
    ".inf": "a number",
}


@pytest.mark.parametrize(("word", "kind"), WORDS.items())
def test_a_key_that_yaml_does_not_take_for_text_is_refused(word: str, kind: str) -> None:
    with pytest.raises(
        MisreadWord, match=rf"line 2, column .: found the key .*, which is {kind} to YAML, .* in quotes"
    ):
        load_yaml(f"outer:\n  ? {word}\n  : 1\n" if word == "" else f"outer:\n    {word}: 1\n")


@pytest.mark.parametrize("word", [word for word in WORDS if word])
def test_in_quotes_it_is_text(word: str) -> None:
    assert load_yaml(f"'{word}': 1\n") == {word: 1}
    assert load_yaml(f"- '{word}'\n") == [word]


@pytest.mark.parametrize(
    ("word", "value"),
    [("1e-1", 0.1), ("1e3", 1000.0), ("-2E+5", -2e5), (".5e1", 5.0), ("1.0e-4", 1e-4), ("0", 0), ("3", 3), ("-7", -7)],
)
def test_numbers_are_read_as_python_reads_them(word: str, value: float) -> None:
    found = load_yaml(f"x: {word}")["x"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("word", "kind"), [("010", "octal"), ("-07", "octal"), ("1:30", "base 60"), ("1:30.5", "base 60")]
)
def test_numbers_that_are_not_decimal_are_refused(word: str, kind: str) -> None:
    with pytest.raises(MisreadWord, match=rf"line 1, column 4: found '{word}', which is a number in {kind} to YAML"):
        load_yaml(f"x: {word}")


def test_a_repeated_key_names_both_places() -> None:
    with pytest.raises(ValueError, match=r"the key 'a' is repeated: line 1, column 1 and line 3, column 1"):
        load_yaml("a: 1\nb: 2\na: 3\n")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats(allow_nan=False) | st.sampled_from(sorted(WORDS)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(WORDS)), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES)
def test_what_is_written_is_read_back(value: Any) -> None:
    """Words as keys and values, and numbers that look like text."""
    assert load_yaml(dump_yaml({"x": value})) == {"x": value}
