"""YAML without words that mean something else than they look."""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any

import pytest
from hypothesis import assume, given
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


@pytest.mark.parametrize(
    "text",
    ["{no: 1, off: 2}", "outer: {inner: [{on: 1}]}", "a: &a {x: {yes: 1}}\nb: *a", "base: &b {no: 1}\nc: {<<: *b}"],
)
def test_a_key_is_refused_wherever_it_is(text: str) -> None:
    with pytest.raises(MisreadWord, match="which is true or false to YAML"):
        load_yaml(text)


@pytest.mark.parametrize("text", ["a: 1\n'a': 2", "a: 1\n!!str a: 2", "'no': 1\n\"no\": 2", "=: 1\n=: 2"])
def test_a_key_is_the_same_in_quotes_or_not(text: str) -> None:
    with pytest.raises(ValueError, match=r"is repeated: line 1, column 1 and line 2, column 1$"):
        load_yaml(text)


@pytest.mark.parametrize("word", ["y", "N", "08", "0o17", "1e", "_1", "=", "<<", "!!str no", "!!str 010"])
def test_words_that_only_look_odd_are_text(word: str) -> None:
    assert load_yaml(f"x: {word}") == {"x": word.removeprefix("!!str ")}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("!!bool x", "found a value that is not of the type that its tag names"),
        ("!!int ''", "found a value that is not of the type that its tag names"),
        ("!!timestamp x", "found a value that is not of the type that its tag names"),
        ("!!int x", "invalid literal for int"),
        ("!!float x", "could not convert string to float"),
        ("0x_", "invalid literal for int"),
    ],
)
def test_a_value_that_is_not_of_its_type_is_an_error(value: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_yaml(f"x: {value}")


# Letters of which YAML makes numbers, dates, true, false and null, and words that it knows.
PLAIN_WORDS = st.text("0123456789abeEfnoxyNOX_.:+-~", min_size=1, max_size=8) | st.sampled_from(
    [
        variant
        for word in ("yes", "no", "on", "off", "true", "false", "null")
        for variant in (word, word.title(), word.upper())
    ]
)


@given(PLAIN_WORDS)
def test_a_plain_word_as_a_key_is_itself_or_refused(word: str) -> None:
    assume(not re.search(r"^[-?:](\s|$)|:$|^---|^\.\.\.$", word))  # not a word, but a sign of YAML's
    assert load_yaml(f'"{word}": 1\n') == {word: 1}
    with contextlib.suppress(MisreadWord):
        assert load_yaml(f"{word}: 1\n") == {word: 1}


@given(PLAIN_WORDS)
def test_a_plain_word_as_a_value_is_itself_or_what_python_reads(word: str) -> None:
    """True, false, null and dates aside, which the readers of values name where they expect text."""
    assume(not re.search(r"^[-?:](\s|$)|:$|^---|^\.\.\.$", word))
    try:
        found = load_yaml(f"x: {word}\n")["x"]
    except ValueError:
        assert re.match(r"[-+.0-9]", word), "numbers and dates alone can be misread"
        return
    if isinstance(found, str):
        assert found == word
    elif isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found):
        plain = word.replace("_", "")
        assert found == (int(plain, 0) if re.match(r"[-+]?0[xb]", plain) else float(plain))


@given(st.text(), st.text())
def test_any_text_is_written_so_that_it_is_read_back(key: str, value: str) -> None:
    assert load_yaml(dump_yaml({key: value})) == {key: value}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats(allow_nan=False) | st.sampled_from(sorted(WORDS)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(WORDS)), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES)
def test_what_is_written_is_read_back(value: Any) -> None:
    """Words as keys and values, and numbers that look like text."""
    assert load_yaml(dump_yaml({"x": value})) == {"x": value}
