"""Locks between processes: whoever waits for one says what for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import FileLock

# A wait is said after so many seconds, and again after so many more.
_SAID_AFTER_S, _SAID_AGAIN_AFTER_S = 3.0, 60.0
_POLL_S = 0.2


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


_say: Callable[[str], None] = _to_stderr


def announce_waits(say: Callable[[str], None] | None) -> None:
    """Send the lines on waits to a function from now on, e.g. one that writes past pytest's capturing; None: stderr."""
    global _say
    _say = say or _to_stderr


def acquire(lock: FileLock, what: str, check: Callable[[], None] = lambda: None) -> AbstractContextManager[object]:
    """Acquire a lock, however long another process holds it; a line says so after three seconds.

    Args:
        lock: The lock.
        what: What the other process does, as in "another process {what}".
        check: Called five times a second meanwhile; what it raises ends the wait.

    Returns:
        A context that releases the lock at its end.
    """
    from filelock import Timeout  # deferred: not needed if everything is cached

    start_s = time.monotonic()
    said_at_s = start_s + _SAID_AFTER_S
    while True:
        check()
        try:
            return lock.acquire(timeout=_POLL_S)
        except Timeout:
            now_s = time.monotonic()
            if now_s >= said_at_s:
                _say(
                    f"xares-bench: has waited {now_s - start_s:.0f} s for another process, which {what} "
                    f"(it holds {lock.lock_file})"
                )
                said_at_s = now_s + _SAID_AGAIN_AFTER_S
