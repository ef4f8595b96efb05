"""Hooks: when pytest calls what. Each hook is a few lines; the work is done by the modules beside this one."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pytest

from xares_bench.core.errors import UsageError, XaresError, usage_errors_of_paths
from xares_bench.runtime.exits import session_ended
from xares_bench.runtime.signals import (
    cancel_deadline,
    defer_interrupts,
    end_with_parent,
    interrupt_on_end_signals,
    save_stderr,
)
from xares_bench.runtime.variables import END_WITH_PARENT, shorten_waits
from xares_bench.session.command import shown_command
from xares_bench.session.ending import Ending, end_session
from xares_bench.session.options import check_given_once, read_options
from xares_bench.session.selection import remember_datasets, remembered_datasets, runs_what_failed
from xares_bench.session.session import BenchSession
from xares_bench.session.workers import (
    carry,
    is_first_worker,
    is_helper,
    is_launched,
    is_worker,
    leave_reports_to_the_first,
    num_processes,
    rank,
    say_at_once,
    share_shown_lines,
)

SESSION = pytest.StashKey[BenchSession]()


def open_session(config: pytest.Config) -> None:
    """Start the session of the bench tests and register its hooks.

    Raises:
        pytest.UsageError: An option, or a file that it names, is wrong.
    """
    shorten_waits(os.environ)
    try:
        check_given_once(map(str, config.invocation_params.args))
        with usage_errors_of_paths():
            options = read_options(config.option)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    manager = config.pluginmanager.getplugin("capturemanager")
    uncaptured = manager.global_and_fixture_disabled if manager else nullcontext

    def say(line: str) -> None:
        with uncaptured():
            say_at_once(config, line)

    session = BenchSession(options, shown_command([*map(str, config.invocation_params.args)]), uncaptured, say)
    config.pluginmanager.register(BenchHooks(config, session), "xares_bench_session")
    save_stderr()
    if is_launched():
        # Its processes end together, and at once: one that writes its results would keep the others waiting.
        end_with_parent()
    elif not is_worker(config):
        config.add_cleanup(interrupt_on_end_signals())
        if os.environ.get(END_WITH_PARENT):
            end_with_parent()
    if rank() > 0:
        leave_reports_to_the_first(config, session.plan.runs_folder / f"process-{rank()}.log")
    # Statistics over one round say nothing, and our own table has the seconds. Whoever gives an option of
    # pytest-benchmark wants to see its table, or its warning that xdist allows no benchmarks.
    if not any(argument.startswith("--benchmark-") for argument in _all_arguments(config)):
        config.option.benchmark_quiet = True
        config.option.benchmark_disable = config.getoption("dist", "no") != "no" or "PYTEST_XDIST_WORKER" in os.environ
    # It makes its folder for saved runs, .benchmarks, when a session begins. Where none is saved or read, it is given
    # the current folder, which is there.
    option = config.option
    if not (option.benchmark_save or option.benchmark_autosave or option.benchmark_compare):
        option.benchmark_storage = f"file://{os.curdir}"
    config.stash[SESSION] = session


class BenchHooks:
    """pytest's hooks for the bench tests, in the order in which pytest calls them."""

    def __init__(self, config: pytest.Config, session: BenchSession) -> None:
        """Take the session that the hooks serve."""
        self._config = config
        self._session = session
        self._ending: Ending | None = None
        self._is_interrupted = False  # while the files were written
        self._status: Callable[[], int] = lambda: pytest.ExitCode.USAGE_ERROR

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Prepare one of xdist's workers."""
        share_shown_lines(self._config, node.workerinput)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Refuse what cannot run, before anything is collected."""
        if not _only_shows(self._config):
            _check_startable(self._config, self._session)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Deselect the tests of datasets, and of tasks, that the mix of --train does not train for.

        Corrupted clips are scored last: clean scores, which can fail, are there sooner.
        """
        covers = self._session.plan.covers
        uncovered = [item for item in items if not all(map(covers, _datasets_of(item, self._session)))]
        if uncovered:
            config.hook.pytest_deselected(items=uncovered)
            items[:] = [item for item in items if item not in uncovered]
        items.sort(key=lambda item: "corruption" in parameters_of(item))

    @pytest.hookimpl(tryfirst=True)  # before the terminal asks for the header
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Take note of what is selected, and refuse what cannot work before anything is fetched or trained."""
        # With --benchmark-skip no dataset is to be scored.
        to_score = () if self._config.option.benchmark_skip else session.items
        parameters = [parameters_of(item) for item in to_score]
        self._session.select(
            {found["dataset"] for found in parameters if "dataset" in found},
            {found["task"] for found in parameters if "task" in found},
            remembered_datasets(self._config) if runs_what_failed(self._config) else (),
        )
        self._session.corrupted = tuple(
            (found["dataset"], found["corruption"]) for found in parameters if "corruption" in found
        )
        if _only_shows(self._config) or not session.items:
            return
        try:
            self._session.check()
        except XaresError as error:
            if isinstance(error, UsageError) and not is_worker(self._config):
                self._session.select(set(), set())  # nothing runs, so no score is missing
                raise pytest.UsageError(str(error)) from None
            self._session.not_ready = error
        if is_first_worker(self._config):  # the process that shows the tests has no suite
            self._session.show_header()

    def pytest_report_collectionfinish(self, config: pytest.Config, items: Sequence[pytest.Item]) -> list[str]:
        """Show the header: encoder, decoder, data, what is reused, where results go."""
        if _only_shows(config) or is_worker(config) or not items:
            return []
        from xares_bench.session.header import header_lines

        return header_lines(self._session)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Show an error that users can fix as one line instead of a traceback, and put the score on the report."""
        report = yield
        if call.excinfo is not None and isinstance(call.excinfo.value, XaresError):
            report.longrepr = str(call.excinfo.value)
        carry(item, report)
        return report

    def pytest_enter_pdb(self) -> None:
        """Give somebody who debugs an encoder all the time they need."""
        cancel_deadline()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect scores and failures, in the process that writes the results."""
        if not is_helper(self._config):
            self._session.outcomes.enter(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the run's files; fail the run for what no test has failed for."""
        self._session.close()
        self._status = lambda: session.exitstatus  # still open: other plugins may change it
        if is_helper(self._config) or _only_shows(self._config):
            return
        with defer_interrupts() as is_interrupted:  # an interruption must not cost the files
            self._ending = end_session(self._session)
        self._session.problems = self._ending.problems
        if not runs_what_failed(self._config):
            remember_datasets(self._config, self._session.run_datasets or self._session.outcomes.datasets)
        if self._ending.problems and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self._is_interrupted = is_interrupted()
        if self._is_interrupted:
            session.exitstatus = pytest.ExitCode.INTERRUPTED

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Let nothing that the user's code has left behind end the process with another status."""
        session_ended(self._status())

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the table, where the files are, and why the run fails; for a listing, the mixes and metrics."""
        from xares_bench.session.summary import listing_lines, summary_lines

        if self._config.option.collectonly:
            for line in listing_lines(self._session.plan):
                terminalreporter.write_line(line)
        if self._ending is None:
            return
        if self._ending.results is not None:
            terminalreporter.section("xares-bench")
            for line in summary_lines(self._session, self._ending.results):
                terminalreporter.write_line(line)
        for note in self._ending.notes:
            terminalreporter.write_line(f"xares-bench: {note}", yellow=True)
        for problem in self._ending.problems:
            terminalreporter.write_line(f"xares-bench: {problem}", red=True)
        if self._is_interrupted:
            terminalreporter.write_line(
                "xares-bench: interrupted while the files were written; they are complete", red=True
            )
        from xares_bench.reports.github import error_lines

        for line in error_lines(os.environ, self._ending.failures):
            terminalreporter.write_line(line)


def _check_startable(config: pytest.Config, session: BenchSession) -> None:
    """Raise pytest.UsageError where the bench tests cannot run with this command line."""
    if session.plan.encoder is None:
        raise pytest.UsageError(
            "the bench tests need an encoder:\n"
            "  pytest bench --preset=mini --encoder=examples/logmel_encoder.py\n"
            "  pytest bench --preset=mini --encoder=my/enc.py::MyEncoder --encoder-args='{\"layer\": 6}' -k task1\n"
            "  pytest bench --collect-only -q      lists the tests; it needs no encoder"
        )
    if num_processes() > 1 and getattr(config.option, "numprocesses", None):
        raise pytest.UsageError(
            f"-n cannot be combined with a launcher, which has started {num_processes()} processes: use a launcher to "
            "train on several GPUs, or -n to evaluate several datasets at once"
        )


def parameters_of(item: pytest.Item) -> Mapping[str, Any]:
    """Parameters of a bench test, all of which use the fixture `bench` in the end; nothing for other tests."""
    callspec = getattr(item, "callspec", None)
    return callspec.params if callspec is not None and "bench" in getattr(item, "fixturenames", ()) else {}


def _datasets_of(item: pytest.Item, session: BenchSession) -> Iterable[str]:
    """The datasets that a bench test needs: its own, or all of its task."""
    parameters = parameters_of(item)
    if "dataset" in parameters:
        return (parameters["dataset"],)
    return session.plan.catalogue.tasks[parameters["task"]] if "task" in parameters else ()


def _only_shows(config: pytest.Config) -> bool:
    """Whether an option asks for tests, fixtures or a plan to be shown, and no test runs."""
    option = config.option
    return bool(option.collectonly or option.showfixtures or option.show_fixtures_per_test or option.setupplan)


def _all_arguments(config: pytest.Config) -> Iterable[str]:
    """The command line, with what a file and the environment add to it."""
    added = shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))
    return (*added, *config.getini("addopts"), *map(str, config.invocation_params.args))
