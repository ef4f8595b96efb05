"""Text from outside is writable everywhere, whatever it holds."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from xares_bench.core.errors import DataError, DiskError, EncoderError, XaresError
from xares_bench.core.text import encoded, writable

ANY_TEXT = st.text(st.characters(codec=None, categories=None))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(ANY_TEXT)
def test_any_text_can_be_written_and_ordinary_text_is_as_it_was(text: str) -> None:
    assert writable(text).encode("utf-8") == encoded(text)
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert writable(text) == text


@given(JSON)
def test_values_keep_their_form(value: Any) -> None:
    text = json.dumps(writable(value), ensure_ascii=False)
    assert json.loads(text.encode("utf-8")) == writable(value)
    assert writable(writable(value)) == writable(value)


@given(ANY_TEXT)
def test_every_error_can_be_printed(text: str) -> None:
    for error in (XaresError(text), DataError(text), DiskError(text), EncoderError("loads", text)):
        assert str(error).encode("utf-8") == encoded(text)


def test_tuples_stay_tuples() -> None:
    assert writable((1, ("a\udc80",))) == (1, ("a\\udc80",))
