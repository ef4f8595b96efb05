"""Exits of the process from within the user's code: an error there, and never status 0.

`os._exit(0)` in an encoder, or in a library that it calls, would end pytest in the middle of a run with the status of
success. While the user's code runs, such a call raises `SystemExit`, which becomes an error with a place. A thread that
makes it at another time ends the process with a status of failure; once the session has ended, with the session's own.

The functions are replaced when the user's code runs first, and stay replaced, because a thread or an exit handler of
the user may come at any time; from then on ctypes does not give out the C library's either. Child processes that are
forked end as they like. Code in C that ends the process by itself cannot be seen from here.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from xares_bench.runtime.signals import terminal

# pytest's status for an internal error.
_FAILURE = 3

# The module, `posix` or `nt`, that `os` has these functions from.
_SYSTEM = importlib.import_module(os.name)
_exit, _execv, _execve = os._exit, os.execv, os.execve
# The same in C, which ctypes looks up by name.
_IN_C = ("exit", "_exit", "_Exit", "quick_exit", "Py_Exit")
_process: int | None = None
_final_status: int | None = None
_in_users_code = threading.local()


@contextlib.contextmanager
def exits_raise() -> Iterator[None]:
    """Within the block, functions that end or replace the process raise `SystemExit` in this thread."""
    _replace_functions()
    before = getattr(_in_users_code, "is_running", False)
    _in_users_code.is_running = True
    try:
        yield
    finally:
        _in_users_code.is_running = before


def end_in_child(process: int) -> None:
    """End the current process if it was forked from this one in the user's code, and has come out of it."""
    if os.getpid() != process:
        os.write(terminal(), b"xares-bench: a process that the encoder has forked came out of its code, and ends\n")
        _exit(1)


def session_ended(status: int) -> None:
    """Take note of the session's exit status: from now on the process ends with no other."""
    global _final_status
    _final_status = int(status)


def _replace_functions() -> None:
    global _process, _final_status
    _final_status = None
    if _process == os.getpid():
        return
    if _process is None:
        sys.addaudithook(_refuse_lookups)  # for good: Python cannot remove one
    _process = os.getpid()
    modules: tuple[Any, ...] = (os, _SYSTEM)
    for module in modules:
        module._exit = _checked_exit
        module.execv = _checked(_execv, "os.execv")
        module.execve = _checked(_execve, "os.execve")


def _refuse_lookups(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "ctypes.dlsym" and arguments[1] in _IN_C and os.getpid() == _process:
        raise SystemExit(f"{arguments[1]} of the C library")


def _checked_exit(status: int) -> NoReturn:
    if os.getpid() != _process:
        _exit(status)
    if getattr(_in_users_code, "is_running", False):
        raise SystemExit(f"os._exit({status})")
    if _final_status is not None:
        _exit(_final_status)
    os.write(terminal(), f"xares-bench: os._exit({status}) was called before the session has ended\n".encode())
    _exit(int(status) or _FAILURE)


def _checked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def call(path: Any, *arguments: Any) -> Any:
        if os.getpid() == _process and _final_status is None:
            raise SystemExit(f"{name}({path!r})")
        return function(path, *arguments)

    return call
