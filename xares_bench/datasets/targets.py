"""Targets: the texts that the model should predict for a clip, found in its JSON under the keys of its dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xares_bench.config.catalogue import Split

# A longer target is an error in the data, and would not fit into a sequence of the decoder.
_MAX_TARGET_CHARACTERS = 20_000
# Keys that are tried after a dataset's own, in this order.
FALLBACK_TARGET_KEYS = ("captions", "caption", "text")


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The targets of a clip.

    Attributes:
        texts: Those to train on and to compare with.
        corrupt: Those that are left out; see `is_corrupt`.
        fallback_key: The key that they were found under, if it is none of the dataset's own.
    """

    texts: tuple[str, ...] = ()
    corrupt: tuple[str, ...] = ()
    fallback_key: str | None = None


NO_TARGETS = Targets()


def targets_of(fields: Mapping[str, Any], split: Split) -> Targets:
    """The targets of a clip, under the split's own keys or else the usual ones.

    Raises:
        ValueError: There is none.
    """
    key, texts = find_targets(fields, tuple(dict.fromkeys((*split.target_keys, *FALLBACK_TARGET_KEYS))))
    return Targets(
        texts=tuple(text for text in texts if not is_corrupt(text)),
        corrupt=tuple(text for text in texts if is_corrupt(text)),
        fallback_key=None if key in split.target_keys else key,
    )


def is_corrupt(text: str) -> bool:
    """Whether a target is left out of training and evaluation, by the rule of XARES-LLM.

    It has more than 3 combining marks (U+0301 to U+036F); or more than half of its characters are neither letters nor
    digits; or it is longer than 10 characters and made of fewer than 4 different ones. An empty text is not corrupt.

    >>> [is_corrupt(text) for text in ("", "-1", "?!", "aaaaaaaaaaa", "a dog barks")]
    [False, False, True, True, False]
    """
    num_marks = sum("\u0301" <= letter <= "\u036f" for letter in text)
    num_others = sum(not letter.isalnum() for letter in text)
    return num_marks > 3 or 2 * num_others > len(text) or (len(text) > 10 and len(set(text)) < 4)


def find_targets(fields: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The first of the keys that counts, and the targets that it holds, corrupt ones included.

    A key counts if it holds a text, also an empty one, a number, true or false, or a list with something in it: several
    targets. A key with null, an empty list or an object is passed over, and so is NaN, which tables write where they
    have no value.

    >>> find_targets({"num_speakers": 0}, ("label", "num_speakers"))
    ('num_speakers', ('0',))
    >>> find_targets({"label": None, "labels": True}, ("label", "labels"))
    ('labels', ('True',))
    >>> find_targets({"captions": ["a dog", "barking"]}, ("captions",))
    ('captions', ('a dog', 'barking'))

    Raises:
        ValueError: None of the keys counts, or the first that does holds something that cannot be a target.
    """
    for key in keys:
        value = fields.get(key)
        if _counts(value):
            values = value if isinstance(value, list) else [value]
            if not all(_is_target(value) for value in values):
                raise ValueError(f"key {key!r} holds {str(value)[:40]!r}, expected text, a number or a list of them")
            targets = tuple(str(value) for value in values)
            longest = max(map(len, targets))
            if longest > _MAX_TARGET_CHARACTERS:
                raise ValueError(f"key {key!r} holds {longest} characters, expected at most {_MAX_TARGET_CHARACTERS}")
            return key, targets
    found = ", ".join(f"{key} with {str(fields[key])[:40]}" for key in keys if key in fields)
    found = found or ", ".join(sorted(map(str, fields))) or "no key"
    raise ValueError(f"none of the keys {', '.join(keys)} holds a text, a number or a list of them (found {found})")


def _counts(value: object) -> bool:
    """Whether a value is text, a number, true or false, or a list with something in it."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int) or (isinstance(value, list) and bool(value))


def _is_target(value: object) -> bool:
    """Whether a value can be a target: text that can be written as UTF-8, or a finite number, true or false."""
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)  # lone surrogates, which JSON can escape
    return not isinstance(value, list) and _counts(value)
