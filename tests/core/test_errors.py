from __future__ import annotations

import errno
import inspect
import re

import pytest

from xares_bench.core import errors
from xares_bench.core.errors import DiskError, EncoderError, UsageError, XaresError, usage_errors_of_paths

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


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.EACCES, errno.ENOTDIR, errno.ELOOP, errno.ENOENT])
@pytest.mark.parametrize("name", ["there", None])
def test_what_is_wrong_with_a_path_is_wrong_usage(number: int, name: str | None) -> None:
    with pytest.raises(UsageError, match="check the path"), usage_errors_of_paths():
        raise OSError(number, "what the system says", name)


def test_other_errors_of_files_name_the_file_and_of_other_things_are_left_alone() -> None:
    with pytest.raises(DiskError, match=r"^there: no space$"), usage_errors_of_paths():
        raise OSError(errno.ENOSPC, "no space", "there")
    for error in (BrokenPipeError(errno.EPIPE, "a pipe"), ConnectionResetError(errno.ECONNRESET, "a socket")):
        with pytest.raises(type(error)) as caught, usage_errors_of_paths():
            raise error
        assert caught.value is error


def test_a_disk_error_can_be_caught_as_either() -> None:
    for kind in (XaresError, OSError):
        with pytest.raises(kind, match="is full"):
            raise DiskError("the disk is full")
