from __future__ import annotations

import inspect
import re

import pytest

from xares_bench.core import errors
from xares_bench.core.errors import DiskError, EncoderError, UsageError, XaresError

CLASSES = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and kind.__module__ == errors.__name__
}


def test_everything_a_user_can_cause_is_in_one_tree_and_the_rest_are_warnings() -> None:
    assert {name for name, kind in CLASSES.items() if not issubclass(kind, XaresError)} == {
        name for name in CLASSES if name.endswith("Warning")
    }
    assert all(issubclass(CLASSES[name], UserWarning) for name in CLASSES if name.endswith("Warning"))


def test_the_tree_of_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    (│   )?(?:[├└]── )?([A-Z]\w+)(\s|$)", line):
            is_warning = match[2].endswith("Warning")
            drawn[match[2]] = UsageError if match[1] else UserWarning if is_warning else XaresError
    assert drawn.keys() == CLASSES.keys()
    for name, base in drawn.items():
        assert CLASSES[name] is base or CLASSES[name].__bases__[0] is base, name


def test_an_encoder_error_names_its_clause_beside_the_message() -> None:
    error = EncoderError("device", "the features are elsewhere")
    assert (error.clause, str(error)) == ("device", "the features are elsewhere")


def test_a_disk_error_can_be_caught_as_either() -> None:
    for kind in (XaresError, OSError):
        with pytest.raises(kind, match="is full"):
            raise DiskError("the disk is full")
