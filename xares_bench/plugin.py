"""The pytest plugin: where the benchmark is named on the command line, it adds the options and opens the session.

pytest loads this module in every run of the environment that it is installed in. In all other runs it does nothing and
imports nothing.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path

import pytest

# How the suite is named where it is installed: `pytest --pyargs xares_bench.bench`.
SUITE = "xares_bench.bench"
_SUITE_FILES = ("conftest.py", "test_encoder.py", "test_task1.py", "test_task2.py")
_MARKERS = (
    "encoder: the encoder's contract",
    "task1: classification, 15 datasets",
    "task2: understanding, 5 datasets",
)
_IS_NAMED = pytest.StashKey[bool]()
_HOW_TO_NAME = "pytest --pyargs xares_bench.bench, pytest bench in a clone, or the command xares-bench"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, None, None]:
    """Add the options if the benchmark is named: after those of other plugins, before those of conftest files."""
    early_config.stash[_IS_NAMED] = _is_named(early_config)
    if not early_config.stash[_IS_NAMED]:
        result = yield
        _refuse_options_alone(parser, args)
        return result
    from xares_bench.session.arguments import add_options

    try:
        add_options(parser)
        # Read again: without the options, their values were taken for paths.
        namespace = copy.copy(early_config.option)
        early_config.known_args_namespace = parser.parse_known_args(args, namespace=namespace)
        return (yield)
    except argparse.ArgumentError as error:
        raise pytest.UsageError(_shared_option(error, early_config.pluginmanager)) from None


def pytest_configure(config: pytest.Config) -> None:
    """Open the session of the benchmark if it is named."""
    if not config.stash.get(_IS_NAMED, False):
        return
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    if not any(map(config.pluginmanager.has_plugin, ("benchmark", "pytest_benchmark.plugin"))):
        raise pytest.UsageError(
            "xares-bench needs the plugin pytest-benchmark; leave out -p no:benchmark, or load it with "
            "-p pytest_benchmark.plugin"
        )
    from xares_bench.session.hooks import open_session

    open_session(config)


def is_open(config: pytest.Config) -> bool:
    """Whether the benchmark was named, so that its tests can run."""
    return config.stash.get(_IS_NAMED, False)


def _is_named(config: pytest.Config) -> bool:
    """Whether the command line names the suite, or a file of it, by its path or as a module."""
    folder = config.invocation_params.dir
    named: Sequence[str] = config.known_args_namespace.file_or_dir
    if not named and folder == config.rootpath:
        named = config.getini("testpaths")
    return any(_names_suite(folder, str(name).partition("::")[0].partition("[")[0]) for name in named or ["."])


def _names_suite(folder: Path, name: str) -> bool:
    if name == SUITE or name.startswith(f"{SUITE}."):
        return True
    path = folder / name
    if path.is_file():
        path = path.parent
    return all((path / file).is_file() for file in _SUITE_FILES)


def _refuse_options_alone(parser: pytest.Parser, args: Iterable[str]) -> None:
    """Refuse a run of other tests with --encoder, which could pass for a benchmark.

    Raises:
        pytest.UsageError: There is the option, and no plugin of the run has one of that name.
    """
    if not any(argument.partition("=")[0] == "--encoder" for argument in args):
        return
    _, unknown = parser.parse_known_and_unknown_args(list(args), namespace=argparse.Namespace())
    if any(argument.partition("=")[0] == "--encoder" for argument in unknown):
        raise pytest.UsageError(f"--encoder is an option of xares-bench, which is not named here; type {_HOW_TO_NAME}")


def _shared_option(error: argparse.ArgumentError, manager: pytest.PytestPluginManager) -> str:
    """Say whose option has a name that is ours, too."""
    name = str(error.argument_name)
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    # Either they have added theirs last, and are on the way to the error, or they have it already.
    owners = [str(path) for path in frames if path.name == "conftest.py"] or [
        hook.plugin_name
        for hook in manager.hook.pytest_addoption.get_hookimpls()
        if f'"{name}"' in _source(hook.function).replace("'", '"')
    ]
    return (
        f"{name} is an option of xares-bench and of {owners[0] if owners else 'another plugin'}; leave that one out "
        "(-p no:NAME for a plugin), or use the command xares-bench, which reads no conftest.py of yours"
    )


def _source(function: Callable[..., object]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""
