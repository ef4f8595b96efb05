"""Settings of Python and the operating system whose reading or writing has a trap."""

from __future__ import annotations

import decimal
import os
import threading
import warnings
from typing import Any

import pytest

from xares_bench.runtime.settings import Setting, python_settings, signal_settings, system_settings

SETTINGS = {setting.name: setting for setting in (*python_settings(), *system_settings(), *signal_settings())}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_writing_what_was_read_changes_nothing(setting: Setting) -> None:
    before: Any = setting.read()
    assert setting.read() == before
    if before is not None:
        setting.write(before)
    assert setting.read() == before


def test_the_stack_size_is_not_reset_by_reading_it() -> None:
    before = threading.stack_size(2**20)
    try:
        assert [SETTINGS["the stack size of threads"].read() for _ in range(2)] == [2**20] * 2
    finally:
        threading.stack_size(before)


def test_computing_with_decimals_sets_nothing() -> None:
    before = SETTINGS["the precision of decimals"].read()
    with decimal.localcontext():
        decimal.Decimal(1) / decimal.Decimal(3)
        assert SETTINGS["the precision of decimals"].read() == before


def test_filters_of_warnings_act_at_once() -> None:
    def warn() -> int:
        with warnings.catch_warnings(record=True) as caught:
            SETTINGS["filters of warnings"].write(filters)
            warnings.warn("again", UserWarning, stacklevel=1)
        return len(caught)

    found = []
    for action in ("always", "ignore", "always"):
        filters = [(action, None, UserWarning, None, 0)]
        found.append(warn())
    assert found == [1, 0, 1]


def test_the_environment_is_written_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "1")
    environment = SETTINGS["environment variables"]
    before = environment.read()
    monkeypatch.setenv("TWO", "2")
    monkeypatch.delenv("ONE")
    environment.write(before)
    assert dict(os.environ) == before


def test_the_umask_is_read_without_being_set() -> None:
    before = os.umask(0o27)
    try:
        assert SETTINGS["umask"].read() == 0o27
    finally:
        os.umask(before)
