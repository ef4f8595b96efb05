"""What a run had selected is remembered for the options that continue it."""

from __future__ import annotations

from pathlib import Path

import pytest

from xares_bench.session.selection import remember_datasets, remembered_datasets, runs_what_failed


def test_it_is_remembered_in_pytests_cache(pytester: pytest.Pytester) -> None:
    config = pytester.parseconfigure()
    assert remembered_datasets(config) == ()
    remember_datasets(config, ("esc-50", "gtzan"))
    remember_datasets(config, ())
    assert remembered_datasets(pytester.parseconfigure()) == ("esc-50", "gtzan")


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[1, null]"])
def test_a_damaged_cache_is_none(pytester: pytest.Pytester, text: str) -> None:
    config = pytester.parseconfigure()
    remember_datasets(config, ("esc-50",))
    (file,) = Path(pytester.path).glob(".pytest_cache/v/xares_bench/datasets")
    file.write_text(text)
    assert remembered_datasets(config) == ()


def test_without_a_cache_nothing_is_remembered(pytester: pytest.Pytester) -> None:
    config = pytester.parseconfigure("-p", "no:cacheprovider")
    remember_datasets(config, ("esc-50",))
    assert remembered_datasets(config) == ()
    assert not runs_what_failed(config)


@pytest.mark.parametrize(
    ("options", "expected"), [((), False), (("--lf",), True), (("--sw",), True), (("--ff",), False), (("-x",), False)]
)
def test_which_options_leave_out_what_passed(
    pytester: pytest.Pytester, options: tuple[str, ...], expected: bool
) -> None:
    assert runs_what_failed(pytester.parseconfigure(*options)) == expected
