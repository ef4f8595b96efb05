from __future__ import annotations

from pathlib import Path

import pytest

from xares_bench.session.command import pytest_arguments, shown_command

TYPED = ["--preset=mini", "--encoder=my enc.py", "-k", "task1"]


@pytest.mark.parametrize("environment", [{}, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}])
def test_what_was_typed_is_shown(environment: dict[str, str]) -> None:
    arguments = pytest_arguments(TYPED, environment)
    assert Path(arguments[0]).name == "bench"
    assert ("xares_bench.plugin" in arguments) == bool(environment)
    assert shown_command(arguments) == "xares-bench --preset=mini '--encoder=my enc.py' -k task1"


def test_so_is_a_command_of_pytest() -> None:
    assert shown_command(["bench", *TYPED]) == "pytest bench --preset=mini '--encoder=my enc.py' -k task1"
