from __future__ import annotations

import json
from typing import Any

import pytest

from xares_bench.config.catalogue import Split
from xares_bench.datasets.targets import FALLBACK_TARGET_KEYS, find_targets, targets_of

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
    assert find_targets(json.loads(json.dumps(fields)), keys) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "none of the keys label, text (found no key)"),
        ({"lable": "dog", "id": 3}, "none of the keys label, text (found id, lable)"),
        ({"label": True}, "key 'label' holds 'True', expected text, a number or a list of them"),
        ({"label": None}, "key 'label' holds 'None', expected text"),
        ({"label": None, "text": "dog"}, "key 'label' holds 'None', expected text"),
        ({"label": {"name": "dog"}}, "key 'label' holds "),
        ({"label": []}, "key 'label' holds '[]', expected text"),
        ({"label": ["a", None]}, "key 'label' holds "),
        ({"label": [["a"]]}, "key 'label' holds "),
        ({"label": ["a", False]}, "key 'label' holds "),
        ({"label": float("nan")}, "key 'label' holds 'nan', expected"),
        ({"label": [1.0, float("inf")]}, "key 'label' holds "),
        ({"label": "\ud800"}, r"key 'label' holds '\ud800', expected"),
        ({"label": ""}, "key 'label' holds an empty text"),
        ({"label": " \n"}, "key 'label' holds an empty text"),
        ({"label": ["a", ""]}, "key 'label' holds an empty text"),
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
    assert targets_of({"text": "x", "caption": "y"}, SPLIT) == ("y",)
    assert targets_of({"text": "x", "label": "z"}, SPLIT) == ("z",)
