"""A deadline for the user's code: what hangs ends, and says where it hung."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

# For two minutes of audio, the most that an encoder is given at once.
LIMIT_S = 600.0
# What code that no signal reaches has on top of it.
GRACE_S = 60.0

_stderr: int | None = None


def keep_stderr() -> None:
    """Let stacks be written to where stderr goes now; later on it may be captured."""
    global _stderr
    if _stderr is None:
        _stderr = os.dup(2)


@contextlib.contextmanager
def deadline() -> Iterator[None]:
    """The block has ten minutes. Python code, sleeping, and waiting for a lock are interrupted.

    Code that does not return to Python, e.g. a deadlock of threads in C, cannot be: a minute later the stacks of all
    threads are written and the process ends with status 1.

    It is without effect in any thread but the main one, on Windows, and where somebody else has set an alarm, as
    pytest-timeout does.

    Raises:
        TimeoutError: The time is over.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not hasattr(signal, "setitimer") or signal.getitimer(signal.ITIMER_REAL)[0] > 0:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no result after {LIMIT_S:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again: code that swallows any exception gets another one.
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S, LIMIT_S)
    faulthandler.dump_traceback_later(LIMIT_S + GRACE_S, exit=True, file=2 if _stderr is None else _stderr)
    try:
        yield
    finally:
        lift()
        signal.signal(signal.SIGALRM, before)


def lift() -> None:
    """Give the block that runs all the time it wants; somebody is looking at it in a debugger."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def put_off() -> Iterator[Callable[[], bool]]:
    """Within the block the first SIGINT or SIGTERM only makes what is given answer True; the next acts at once.

    What was ignored before, as SIGINT is in the background of a shell, stays ignored. In threads other than the main
    one, which no signal reaches, the answer is always False.
    """
    is_asked = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: is_asked
        return

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal is_asked
        is_asked = True
        restore()

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: is_asked
    finally:
        restore()
