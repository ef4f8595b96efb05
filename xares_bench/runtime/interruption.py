"""Interruption: SIGINT and SIGTERM, put off until work can be left so that it can be taken up again."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

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
