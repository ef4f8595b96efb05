from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xares_bench.core.errors import UsageError
from xares_bench.session.command import option_arguments, pytest_arguments, shown_command

TYPED = ["--preset=mini", "--encoder=my enc.py", "-k", "task1"]


@pytest.mark.parametrize("environment", [{}, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}])
def test_what_was_typed_is_shown(environment: dict[str, str]) -> None:
    arguments = pytest_arguments(TYPED, environment)
    assert Path(arguments[0]).name == "bench"
    assert ("xares_bench.plugin" in arguments) == bool(environment)
    assert shown_command(arguments) == "xares-bench --preset=mini '--encoder=my enc.py' -k task1"


def test_so_is_a_command_of_pytest() -> None:
    assert shown_command(["bench", *TYPED]) == "pytest bench --preset=mini '--encoder=my enc.py' -k task1"


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"seeds": 3, "baseline": None}, ["--seeds=3"]),
        ({"runs_dir": Path("a b")}, ["--runs-dir=a b"]),
        ({"tolerance": 0.02, "preset": "mini"}, ["--tolerance=0.02", "--preset=mini"]),
        ({"allow_cpu": True, "force": False}, ["--allow-cpu"]),
        ({"set": {"learning_rate": 1e-3, "steps": None, "compile": True}},
         ["--set=learning_rate=0.001", "--set=steps=null", "--set=compile=true"]),
        ({"set": {"adaptation": "lora"}}, ["--set=adaptation=lora"]),
        ({"set": "steps=3", "data_revision": ["a/b@v1", "main"]},
         ["--set=steps=3", "--data-revision=a/b@v1", "--data-revision=main"]),
        ({"encoder_args": {"layer": 6, "name": "a"}}, ['--encoder-args={"layer": 6, "name": "a"}']),
        ({"encoder_args": '{"layer": 6}'}, ['--encoder-args={"layer": 6}']),
    ],
)  # fmt: skip
def test_options_become_arguments(options: dict[str, Any], arguments: list[str]) -> None:
    assert option_arguments(options) == arguments


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": True}, "limit=True: expected a text, a number or a path"),
        ({"train": ["task1"]}, r"train=\['task1'\]: expected a text, a number or a path"),
        ({"allow_cpu": "yes"}, "allow_cpu='yes': expected True or False"),
        ({"set": 3}, "set=3: expected a mapping, or texts of the form KEY=VALUE"),
        ({"set": [1, 2]}, r"set=\[1, 2\]: expected a mapping"),
    ],
)
def test_values_of_another_kind_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        option_arguments(options)
