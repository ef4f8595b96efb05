"""Text from outside, made writable.

JSON keys, names of files and members, command lines and messages of other programs can hold half a character (a lone
surrogate), which no file, no pipe to another process and no terminal takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

ValueT = TypeVar("ValueT")


def writable(value: ValueT) -> ValueT:
    r"""Return text, or a JSON-like value, with half characters as escapes.

    >>> writable("caf\udce9"), writable({"a": ["\ud83d", 1]})
    ('caf\\udce9', {'a': ['\\ud83d', 1]})
    """
    cleaned: object = value
    if isinstance(value, str):
        cleaned = encoded(value).decode("utf-8")
    elif isinstance(value, Mapping):
        cleaned = {writable(key): writable(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        cleaned = type(value)(writable(item) for item in value)
    return cleaned  # type: ignore[return-value]


def encoded(text: str) -> bytes:
    """Return text as UTF-8, as every file of text is written."""
    return text.encode("utf-8", "backslashreplace")
