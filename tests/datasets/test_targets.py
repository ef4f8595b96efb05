from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from xares_bench.config.catalogue import Split
from xares_bench.datasets.targets import FALLBACK_TARGET_KEYS, Targets, find_targets, is_corrupt, targets_of

SPLIT = Split(shards=(), target_keys=("label",))


@pytest.mark.parametrize(
    ("fields", "keys", "expected"),
    [
        ({"label": "dog"}, ("label",), ("dog",)),
        ({"label": "狗 叫"}, ("label",), ("狗 叫",)),
        ({"n": 3}, ("n",), ("3",)),
        ({"n": 0}, ("n",), ("0",)),
        ({"n": -1}, ("n",), ("-1",)),
        ({"n": 2.5}, ("n",), ("2.5",)),
        ({"n": 10**400}, ("n",), (str(10**400),)),
        ({"captions": ["a dog", "barking"]}, ("captions",), ("a dog", "barking")),
        ({"captions": ["a", 2]}, ("captions",), ("a", "2")),
        ({"captions": ["same", "same"]}, ("captions",), ("same", "same")),
        ({"labels": "a;b"}, ("labels",), ("a;b",)),
        ({"a": "1", "b": "2"}, ("b", "a"), ("2",)),
        ({"a": "1"}, ("b", "a"), ("1",)),
        ({"text": "t", "caption": "c"}, ("label", "captions", "caption", "text"), ("c",)),
    ],
)
def test_targets(fields: dict[str, Any], keys: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert find_targets(json.loads(json.dumps(fields)), keys)[1] == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "none of the keys label, text holds a text, a number or a list of them (found no key)"),
        (
            {"lable": "dog", "id": 3},
            "none of the keys label, text holds a text, a number or a list of them (found id, l",
        ),
        (
            {"label": None},
            "none of the keys label, text holds a text, a number or a list of them (found label with None)",
        ),
        (
            {"label": {"name": "dog"}},
            "none of the keys label, text holds a text, a number or a list of them (found label",
        ),
        ({"label": []}, "none of the keys label, text holds a text, a number or a list of them (found label with [])"),
        ({"label": float("nan")}, "none of the keys label, text holds a text, a number or a list of them (found label"),
        ({"label": ["a", None]}, "key 'label' holds "),
        ({"label": [["a"]]}, "key 'label' holds "),
        ({"label": [1.0, float("inf")]}, "key 'label' holds "),
        ({"label": "\ud800"}, r"key 'label' holds '\ud800', expected"),
    ],
)
def test_unusable_targets(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=r"^(key|none)") as caught:
        find_targets(fields, ("label", "text"))
    message = str(caught.value)
    assert message.startswith(expected)
    assert len(message) < 200
    message.encode()


def test_fallback_keys_are_the_published_ones() -> None:
    assert FALLBACK_TARGET_KEYS == ("captions", "caption", "text")
    assert targets_of({"text": "x", "caption": "y"}, SPLIT) == Targets(texts=("y",), fallback_key="caption")
    assert targets_of({"text": "x", "label": "z"}, SPLIT) == Targets(texts=("z",))


# The rules of XARES-LLM, stated once more in another way: by the JSON text, regular expressions and means.

VALUES = [None, {}, {"a": 1}, [], "", "dog", " ", 0, 3, -1.5, True, False, ["a"], ["a", 2, True], ["a", "b", "c"]]


def first_that_counts(fields: dict[str, Any], keys: Sequence[str]) -> tuple[str, ...] | None:
    """By its JSON text: null, {} and [] begin with n and {, or are []."""
    for key in keys:
        text = json.dumps(fields[key]) if key in fields else "null"
        if text != "null" and text != "[]" and not text.startswith("{"):
            return tuple(str(value) for value in json.loads(text if text.startswith("[") else f"[{text}]"))
    return None


def test_200_random_samples_have_the_targets_of_the_rule() -> None:
    rng = random.Random(0)
    keys = ("label", "labels", "captions", "text")
    num_found = 0
    for _ in range(200):
        fields = {key: rng.choice(VALUES) for key in keys if rng.random() < 0.7}
        wanted = tuple(rng.sample(keys, rng.randint(1, 4)))
        expected = first_that_counts(fields, wanted)
        if expected is None:
            with pytest.raises(ValueError, match="none of the keys"):
                find_targets(fields, wanted)
        else:
            assert find_targets(fields, wanted)[1] == expected
            num_found += 1
    assert 50 < num_found < 200, "both outcomes are tried"


def text_of_json(literal: str) -> str:
    """By its digits: a whole number as it stands, any other with the decimals that it needs, and at least one."""
    if literal in ("true", "false"):
        return literal.title()
    if literal.lstrip("-").isdecimal():
        return literal
    whole, _, decimals = f"{Decimal(literal):f}".partition(".")
    return f"{whole}.{decimals.rstrip('0') or '0'}"


def test_200_random_numbers_and_truths_have_the_text_of_their_json() -> None:
    rng = random.Random(3)

    def literal() -> str:
        sign, whole = rng.choice(["", "-"]), str(rng.randint(1, 10 ** rng.randint(1, 7)))
        decimals = str(rng.randrange(10**6)).zfill(6)[: rng.randint(1, 6)]
        return rng.choice(
            [
                rng.choice(["true", "false", "0"]),
                f"{sign}{whole * rng.randint(1, 9)}",
                f"{sign}{whole}.{decimals}",
                f"{sign}0.{rng.randint(1, 9)}{decimals}",
                f"{sign}{whole}.{decimals}{rng.choice('eE')}{rng.randint(-4, 7)}",
            ]
        )

    for _ in range(200):
        literals = [literal() for _ in range(rng.randint(1, 3))]
        expected = tuple(map(text_of_json, literals))
        assert find_targets(json.loads(f'{{"n": [{", ".join(literals)}]}}'), ("n",))[1] == expected
        assert find_targets(json.loads(f'{{"n": {literals[0]}}}'), ("n",))[1] == expected[:1]


def test_200_random_samples_have_the_targets_of_the_usual_keys_where_their_own_do_not_count() -> None:
    rng = random.Random(4)
    usual = ("captions", "caption", "text")
    corrupt = {" ", "?!"}
    values = [*VALUES, "?!", ["?!", "a dog", ""]]
    num_usual = 0
    for _ in range(200):
        own = tuple(rng.sample(["label", "labels", *usual], rng.randint(1, 3)))
        fields = {
            key: rng.choice([None, {}, []] if key in own and rng.random() < 0.7 else values)
            for key in rng.sample(["label", "labels", *usual], rng.randint(0, 5))
        }
        split = Split(shards=(), target_keys=own)
        key = next((key for key in (*own, *usual) if first_that_counts(fields, [key]) is not None), None)
        if key is None:
            with pytest.raises(ValueError, match="none of the keys"):
                targets_of(fields, split)
            continue
        texts = first_that_counts(fields, [key]) or ()
        assert targets_of(fields, split) == Targets(
            texts=tuple(text for text in texts if text not in corrupt),
            corrupt=tuple(text for text in texts if text in corrupt),
            fallback_key=key if key not in own else None,
        )
        num_usual += key not in own
    assert 60 < num_usual < 180


def test_200_random_texts_are_corrupt_by_the_rule() -> None:
    rng = random.Random(1)
    num_corrupt = 0
    for _ in range(200):
        letters = rng.choice(["abcdefg 12", "ab", "?!. ,-", "a\u0301e\u0301b", "\u72d7\u53eb ", "ab?!"])
        text = "".join(rng.choice(letters) for _ in range(rng.choice([0, 1, 2, 5, 11, 30])))
        marks = len(re.findall("[\u0301-\u036f]", text))
        others = np.mean([not letter.isalnum() for letter in text]) if text else 0.0
        expected = marks > 3 or others > 0.5 or (len(text) >= 11 and len({*text}) <= 3)
        assert is_corrupt(text) == expected, text
        num_corrupt += int(expected)
    assert 30 < num_corrupt < 170


def test_corrupt_targets_are_left_out_and_told() -> None:
    found = targets_of({"label": ["a dog", "?!?!", "", "aaaaaaaaaaaaaaa"]}, SPLIT)
    assert found == Targets(texts=("a dog", ""), corrupt=("?!?!", "aaaaaaaaaaaaaaa"))
