"""Targets: the texts that the model should predict for a clip, found in its JSON under the keys of its dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from xares_bench.config.catalogue import Split

# A longer target is an error in the data, and would not fit into a sequence of the decoder.
_MAX_TARGET_CHARACTERS = 20_000
# Keys that are tried after a dataset's own, in this order.
FALLBACK_TARGET_KEYS = ("captions", "caption", "text")


def targets_of(fields: Mapping[str, Any], split: Split) -> tuple[str, ...]:
    """The targets of a clip, under the split's own keys or else the usual ones.

    Raises:
        ValueError: There is none.
    """
    return find_targets(fields, tuple(dict.fromkeys((*split.target_keys, *FALLBACK_TARGET_KEYS))))


def find_targets(fields: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, ...]:
    """The targets of a clip, under the first of the keys that is present; a list is several targets.

    >>> find_targets({"num_speakers": 3}, ("label", "num_speakers"))
    ('3',)
    >>> find_targets({"captions": ["a dog", "barking"]}, ("captions",))
    ('a dog', 'barking')

    Raises:
        ValueError: None of the keys is present, or its value is not text, a number or a list of them.
    """
    for key in keys:
        if key in fields:
            values = fields[key] if isinstance(fields[key], list) else [fields[key]]
            if not values or not all(_is_target(value) for value in values):
                raise ValueError(
                    f"key {key!r} holds {str(fields[key])[:40]!r}, expected text, a number or a list of them"
                )
            targets = tuple(str(value) for value in values)
            longest = max(map(len, targets))
            if longest > _MAX_TARGET_CHARACTERS:
                raise ValueError(f"key {key!r} holds {longest} characters, expected at most {_MAX_TARGET_CHARACTERS}")
            if not all(target.strip() for target in targets):
                raise ValueError(f"key {key!r} holds an empty text")
            return targets
    raise ValueError(f"none of the keys {', '.join(keys)} (found {', '.join(sorted(map(str, fields))) or 'no key'})")


def _is_target(value: object) -> bool:
    """Whether a value is text that can be written as UTF-8, or a finite number; a boolean is not."""
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)  # lone surrogates, which JSON can escape
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)
