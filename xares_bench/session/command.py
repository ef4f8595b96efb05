"""The command `xares-bench`: the suite from any folder, whatever pytest's settings there are."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xares_bench.core.errors import UsageError
from xares_bench.core.own_files import required_folder
from xares_bench.core.parsing import did_you_mean
from xares_bench.session.arguments import option_actions

# No file of the current folder changes the run: neither its conftest.py, nor its settings, nor its imports.
_ISOLATED = (
    *("-c", os.devnull, "--import-mode=importlib", "-p", "no:randomly"),
    # The command has imported the package before pytest could.
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)
_PLUGINS = ("-p", "xares_bench.plugin", "-p", "pytest_benchmark.plugin")


def pytest_arguments(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return the arguments for pytest that stand for those of `xares-bench`.

    Raises:
        UsageError: The suite is not in this installation.
    """
    suite = required_folder("bench", "the suite")
    plugins = _PLUGINS if environment.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD") else ()
    return [str(suite), f"--rootdir={Path.cwd()}", *_ISOLATED, *plugins, *arguments]


def shown_command(arguments: Sequence[str]) -> str:
    """Return what was typed, for arguments of pytest."""
    for start in range(len(arguments)):
        if tuple(arguments[start : start + len(_ISOLATED)]) == _ISOLATED:
            rest = arguments[start + len(_ISOLATED) :]
            own = rest[len(_PLUGINS) :] if tuple(rest[: len(_PLUGINS)]) == _PLUGINS else rest
            return shlex.join(["xares-bench", *own])
    return shlex.join(["pytest", *arguments])


def option_arguments(options: Mapping[str, Any]) -> list[str]:
    """Return options with their values as arguments of the command line.

    Raises:
        UsageError: There is no such option, or its value is of another kind.
    """
    actions = option_actions()
    arguments: list[str] = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if option not in actions:
            known = [known.removeprefix("--").replace("-", "_") for known in actions]
            raise UsageError(f"{name}: no such option; expected some of {', '.join(known)}{did_you_mean(name, known)}")
        if value is None:
            continue
        if actions[option] == "store_true":
            if not isinstance(value, bool):
                raise UsageError(f"{name}={value!r}: expected True or False")
            arguments += [option] if value else []
        elif actions[option] == "append":
            arguments += [f"{option}={text}" for text in _texts(name, value)]
        else:
            text = json.dumps(value) if name == "encoder_args" and not isinstance(value, str) else value
            if isinstance(text, bool) or not isinstance(text, str | int | float | os.PathLike):
                raise UsageError(f"{name}={value!r}: expected a text, a number or a path")
            arguments.append(f"{option}={os.fspath(text) if isinstance(text, os.PathLike) else text}")
    return arguments


def _texts(name: str, value: object) -> list[str]:
    """Return the values of an option that can be repeated: one text, several, or a mapping."""
    if isinstance(value, Mapping):
        return [f"{key}={item if isinstance(item, str) else json.dumps(item)}" for key, item in value.items()]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Iterable) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{name}={value!r}: expected a mapping, or texts of the form KEY=VALUE")
    return [*texts]
