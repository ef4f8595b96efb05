"""The call: the suite as a function, for notebooks and programs.

It is the command `xares-bench` in this process: options become its arguments, and what comes back is the finished run.
An encoder that is an object does not go through the command line, but to the session of that one run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from xares_bench.config.encoder_spec import EncoderSpec, spec_of_instance
from xares_bench.core.errors import EncoderError, UsageError, XaresError
from xares_bench.core.parsing import did_you_mean
from xares_bench.reports.runs import Run, read_run
from xares_bench.runtime.exits import process_goes_on
from xares_bench.session.command import option_arguments, pytest_arguments
from xares_bench.session.hooks import SESSION, parameters_of
from xares_bench.session.session import BenchSession
from xares_bench.session.workers import num_processes

if TYPE_CHECKING:
    from torch import nn

# A library that draws bars says in every notebook that it could draw better ones; ours are lines there.
_QUIET = ("-W", "ignore:IProgress not found")


def run(
    encoder: nn.Module | str | os.PathLike[str],
    *,
    preset: str = "full",
    tasks: str | Iterable[str] | None = None,
    pytest_options: Sequence[str] = (),
    **options: Any,
) -> Run:
    """Train LALMs on an encoder, score it, and return the finished run, as the command `xares-bench` does.

    Everything is cached in `runs/store`: the same call again takes seconds. Progress and the table of scores are
    printed.

    >>> run(MyEncoder(), preset="mini", tasks="task1", seeds=3, set={"learning_rate": 1e-3})  # doctest: +SKIP

    Args:
        encoder: A `torch.nn.Module`, or what `--encoder` takes. Of a module a copy is used: yours stays on its device,
            in its mode and trainable. Its fingerprint covers weights, code and behaviour.
        preset: `full` or `mini`.
        tasks: Names of tasks and datasets to score, e.g. `"task1"` or `["esc-50", "gtzan"]`; None: all.
        pytest_options: Further arguments for pytest, e.g. `["-q", "-x"]`.
        options: The options of the suite by their names, e.g. `baseline="logmel-mini"`, `encoder_args={"layer": 6}`,
            `runs_dir="results"`, `allow_cpu=True`. None stands for an option that is not given.

    Returns:
        The run. `failures` says what is below the baseline or has no score, and under `xares-bench` what else went
            wrong, such as a baseline that could not be saved; it is empty if the run passes.

    Raises:
        UsageError: An argument, or a file that it names, is wrong.
        EncoderError: The encoder breaks its contract, so nothing was scored.
        XaresError: Something else is the reason why no dataset has a score; the message says what.
        KeyboardInterrupt: The run was interrupted; the same call continues it.
    """
    if num_processes() > 1:
        raise UsageError("run() works in one process; for several, start pytest or xares-bench with the launcher")
    given = {"preset": preset, **options}
    spec = None
    if isinstance(encoder, str | os.PathLike):
        given["encoder"] = os.fspath(encoder)
    elif isinstance(encoder, type):
        raise UsageError(f"found the class {encoder.__name__}, expected an object: run({encoder.__name__}(), ...)")
    else:
        spec = spec_of_instance(encoder)
    call = _Call(spec, (tasks,) if isinstance(tasks, str) else tasks, _shown(encoder, tasks, given))
    arguments = pytest_arguments([*option_arguments(given), *_QUIET, *pytest_options], os.environ)
    try:
        status = pytest.main(arguments, plugins=[call])
    finally:
        process_goes_on()
        _forget_suite(arguments[0])
    return call.finished(int(status))


class _Call:
    """A plugin of one run: hands it the encoder, selects its tests, and notes how it ends."""

    def __init__(self, encoder: EncoderSpec | None, tasks: Iterable[str] | None, command: str) -> None:
        self._encoder = encoder
        self._tasks = None if tasks is None else tuple(tasks)
        self._command = command
        self._session: BenchSession | None = None
        self._error: pytest.UsageError | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_cmdline_parse(self) -> Generator[None, pytest.Config, pytest.Config]:
        """Put the encoder where the option would be."""
        try:
            config = yield
            if getattr(config.option, "numprocesses", None):
                raise pytest.UsageError("run() works in this process, without -n; use the command xares-bench for -n")
        except pytest.UsageError as error:
            self._error = error
            raise
        if self._encoder is not None:
            config.option.xares_encoder = self._encoder
        return config

    @pytest.hookimpl(wrapper=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> Generator[None, int, int]:
        """Note why the run could not start, which then becomes an exception."""
        try:
            return (yield)
        except pytest.UsageError as error:
            self._error = error
            return pytest.ExitCode.USAGE_ERROR
        finally:
            self._session = config.stash.get(SESSION, None)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> None:
        """Tell the session what was called, and refuse names that it does not know."""
        bench = session.config.stash[SESSION]
        bench.command = self._command
        known = [*bench.plan.tasks, *(name for members in bench.plan.tasks.values() for name in members)]
        for name in self._tasks or ():
            if name not in known:
                raise pytest.UsageError(
                    f"tasks={name!r}: no such task or dataset; expected some of {', '.join(known)}"
                    f"{did_you_mean(name, known)}"
                )

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Deselect the tests of other datasets and tasks."""
        if self._tasks is None:
            return
        tasks = config.stash[SESSION].plan.tasks
        chosen = {name for task in self._tasks for name in (task, *tasks.get(task, ()))}
        kept = [item for item in items if chosen & {*parameters_of(item).values()}]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    def finished(self, status: int) -> Run:
        """Return the run that has ended with this exit status of pytest.

        Raises:
            XaresError: It has no score, or could not start.
            KeyboardInterrupt: It was interrupted.
        """
        if self._error is not None or self._session is None:
            reason = "" if self._error is None else _without_usage(str(self._error))
            raise UsageError(reason or f"pytest has ended with status {status}")
        if status == pytest.ExitCode.INTERRUPTED:
            raise KeyboardInterrupt("the run was interrupted; the same call continues it")
        session, results = self._session, self._session.results()
        if results is not None:
            run = read_run(session.plan.runs_folder / results.run.name)
            own = {"xares-bench": "; ".join(session.problems)} if session.problems else {}
            return replace(run, failures={**(run.failures or {}), **own})
        if session.not_ready is not None:
            raise session.not_ready
        if session.contract_failure is not None:
            raise EncoderError(*session.contract_failure)
        reasons = dict.fromkeys(session.outcomes.failures.values())
        raise XaresError(f"no dataset has a score: {'; '.join(reasons) or f'pytest has ended with status {status}'}")


def _forget_suite(folder: str) -> None:
    """Forget the modules of the suite, as a process of its own would; pytest imports them again for the next run."""
    for name, module in tuple(sys.modules.items()):
        if str(getattr(module, "__file__", "") or "").startswith(f"{folder}{os.sep}"):
            del sys.modules[name]


def _without_usage(message: str) -> str:
    """Return an error of the command line without argparse's usage before it and pytest's settings behind it."""
    if not message.startswith("usage: "):
        return message
    return message.partition("error: ")[2].partition("\n  inifile")[0]


def _shown(encoder: object, tasks: object, options: Mapping[str, Any]) -> str:
    """Return the call in words, for the report."""
    given = {"tasks": tasks, **options}
    first = repr(given.pop("encoder")) if "encoder" in given else f"{type(encoder).__name__}(...)"
    rest = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    return f"xares_bench.run({', '.join([first, *rest])})"
