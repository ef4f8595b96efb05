"""Signals: ends that are asked for, interrupts that wait for a step's end, and a deadline for the user's code."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

# The most an encoder is given at once is two minutes of audio.
LIMIT_S = 600.0
# Added for code that does not react to the signal, before the process is ended.
GRACE_S = 60.0

# Signals that ask a process to end, and whose default is to end it at once, without a word; Windows has no SIGHUP.
_ENDS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_INTERRUPTS = (signal.SIGINT, *_ENDS)
_PARENT_POLL_S, _PARENT_GRACE_S = 1.0, 30.0

_stderr: int | None = None
# What the blocks of `defer_interrupts` that are running yielded.
_deferring: list[Callable[[], bool]] = []


def save_stderr() -> None:
    """Remember where stderr goes now, before pytest captures it: stacks of a hanging process are written there."""
    global _stderr
    if _stderr is None:
        _stderr = os.dup(2)


def terminal() -> int:
    """The descriptor of the saved stderr, or else of the present one."""
    return 2 if _stderr is None else _stderr


def interrupt_on_end_signals() -> Callable[[], None]:
    """Let SIGTERM and SIGHUP interrupt like Ctrl-C, so that what is finished is written; return what restores them.

    Signals that are ignored, as with nohup, stay ignored. In threads other than the main one nothing changes.

    Raises:
        KeyboardInterrupt: Later, wherever the signal comes, with its name.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(f"{signal.Signals(number).name}; the same command continues from what is finished")

    before = {number: signal.getsignal(number) for number in _ENDS}
    before = {number: handler for number, handler in before.items() if handler == signal.SIG_DFL}
    for number in before:
        signal.signal(number, interrupt)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


def end_with_parent() -> None:
    """End this process when the one that has started it is gone, such as a launcher that was killed.

    It is asked to end first, as by SIGTERM, which lets a training save a checkpoint.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_S)
        os.write(terminal(), b"xares-bench: the launcher is gone; its processes end, too\n")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_PARENT_GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextlib.contextmanager
def deadline() -> Iterator[None]:
    """Limit the block to ten minutes.

    Python code, sleeping, and waiting for a lock are interrupted by `SIGALRM`. Code that does not return to Python,
    e.g. a deadlock of threads in C, cannot be interrupted: a minute later faulthandler writes the stacks of all threads
    and ends the process with status 1.

    There is no limit in threads other than the main one, on Windows, and where an alarm is already set, e.g. by
    pytest-timeout.

    Raises:
        TimeoutError: The time is up.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not hasattr(signal, "setitimer") or signal.getitimer(signal.ITIMER_REAL)[0] > 0:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no result after {LIMIT_S:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    # Repeatedly: code that catches every exception gets another one.
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S, LIMIT_S)
    # faulthandler's timer is a thread in C, which needs neither the main thread nor the interpreter's lock.
    faulthandler.dump_traceback_later(LIMIT_S + GRACE_S, exit=True, file=terminal())
    try:
        yield
    finally:
        cancel_deadline()
        signal.signal(signal.SIGALRM, before)


def cancel_deadline() -> None:
    """Remove the limit from the running block, e.g. when a debugger opens in it."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()


def interrupt_is_waiting() -> bool:
    """Whether a signal has come within a block of `defer_interrupts`, for work that the block can do without."""
    return any(is_interrupted() for is_interrupted in _deferring)


@contextlib.contextmanager
def defer_interrupts() -> Iterator[Callable[[], bool]]:
    """Within the block, the first SIGINT, SIGTERM or SIGHUP is only recorded; the second acts at once.

    Yields a function that tells whether a signal has come. Signals that were ignored before, as SIGINT is in a shell's
    background jobs, stay ignored. Threads other than the main one get no signals; there the function returns False.
    """
    is_interrupted = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: is_interrupted
        return

    def record(number: int, frame: FrameType | None) -> None:
        nonlocal is_interrupted
        is_interrupted = True
        restore()

    before = {number: signal.getsignal(number) for number in _INTERRUPTS}
    # None stands for a handler that was not installed by Python, which signal.signal cannot restore.
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def asked() -> bool:
        return is_interrupted

    for number in before:
        signal.signal(number, record)
    _deferring.append(asked)
    try:
        yield asked
    finally:
        _deferring.remove(asked)
        restore()
