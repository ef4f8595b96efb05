"""The command `xares-bench`: the suite from any folder, whatever pytest's settings there are."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from xares_bench.core.own_files import required_folder

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
