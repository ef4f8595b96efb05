from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xares_bench.runtime import signals
from xares_bench.runtime.signals import (
    cancel_deadline,
    deadline,
    defer_interrupts,
    interrupt_is_waiting,
    interrupt_on_end_signals,
)

ROOT = str(Path(signals.__file__).parents[2])

# What a deadline leads to in whole sessions is in tests/test_faults.py; what an interrupt does to a training, in
# tests/training/test_resume.py.


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A deadline of a twentieth of a second; faulthandler's timer, which would end the tests, is far away."""
    monkeypatch.setattr(signals, "LIMIT_S", 0.05)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0, "another alarm is set: there would be no deadline"
    yield
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def in_another_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.mark.usefixtures("short")
def test_a_block_that_takes_too_long_is_interrupted_and_leaves_no_alarm() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError, match=r"no result after 0\.05 s"), deadline():
        time.sleep(60)
    assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.usefixtures("short")
def test_code_that_catches_every_exception_gets_another_one() -> None:
    def stubborn() -> None:
        with contextlib.suppress(TimeoutError):
            time.sleep(60)
        time.sleep(60)

    with pytest.raises(TimeoutError), deadline():
        stubborn()


@pytest.mark.usefixtures("short")
def test_a_deadline_can_be_cancelled_from_within() -> None:
    with deadline():
        cancel_deadline()
        time.sleep(0.1)


@pytest.mark.usefixtures("short")
def test_in_another_thread_there_is_no_deadline() -> None:
    finished = []

    def work() -> None:
        with deadline():
            time.sleep(0.1)
        finished.append(True)

    in_another_thread(work)
    assert finished == [True]


def test_an_alarm_that_is_set_already_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: pytest.fail("a second deadline"))
    signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        with deadline():
            pass
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 90
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_recorded_and_the_second_acts_at_once(number: signal.Signals) -> None:
    with defer_interrupts() as is_interrupted:
        assert not is_interrupted()
        assert not interrupt_is_waiting()
        os.kill(os.getpid(), number)
        assert is_interrupted()
        assert interrupt_is_waiting()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not interrupt_is_waiting()


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with defer_interrupts() as is_interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            assert not is_interrupted()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_interrupts_are_not_deferred() -> None:
    answers = []

    def work() -> None:
        with defer_interrupts() as is_interrupted:
            answers.append(is_interrupted())

    in_another_thread(work)
    assert answers == [False]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_interrupts_with_its_name(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        restore = interrupt_on_end_signals()
        with pytest.raises(KeyboardInterrupt, match=rf"{number.name}; the same command continues"):
            signal.raise_signal(number)
        restore()
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        restore = interrupt_on_end_signals()
        signal.raise_signal(signal.SIGHUP)
        restore()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_signals_are_as_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM)
    in_another_thread(lambda: interrupt_on_end_signals()())
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_process_ends_when_the_one_that_started_it_is_killed(tmp_path: Path) -> None:
    """Whatever it does: here it ignores SIGTERM, as a process that hangs does."""
    child = (
        "import os, pathlib, signal, time; from xares_bench.runtime import signals;"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); signals._PARENT_POLL_S = signals._PARENT_GRACE_S = 0.2;"
        "signals.end_with_parent(); pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(120)"
    )
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", launcher], cwd=tmp_path, env={**os.environ, "PYTHONPATH": ROOT})
    pid_file = tmp_path / "pid"
    wait_until(lambda: pid_file.exists() and pid_file.read_text() != "")
    process.kill()
    process.wait()
    pid = int(pid_file.read_text())
    wait_until(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool]) -> None:
    start_s = time.monotonic()
    while not condition():
        assert time.monotonic() - start_s < 60
        time.sleep(0.05)
