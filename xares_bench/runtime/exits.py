"""Exits of the process from within the user's code: an error there, and never status 0.

`os._exit(0)` in an encoder, or in a library that it calls, would end pytest in the middle of a run with the status of
success. While the user's code runs, such a call raises `SystemExit`, which becomes an error with a place. A thread that
makes it at another time ends the process with a status of failure; once the session has ended, with the session's own.

The functions are replaced when the user's code runs first, and stay replaced, because a thread or an exit handler of
the user may come at any time; from then on ctypes does not give out the C library's either. Code in C that calls `exit`
or `quick_exit` meets a handler that ends the process with a status of failure, unless Python has come to its own end.
A process that the user's code forks may end as it likes, and ends where that code ends. Code in C that calls `_exit`
cannot be seen from here.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import os
import signal
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
_is_hooked = False
_in_users_code = threading.local()
# A signal that nobody sends: see `_answer_exits_in_c`.
_SIGNAL_OF_EXIT = getattr(signal, "SIGRTMAX", getattr(signal, "SIGSYS", None))


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


def process_goes_on() -> None:
    """Let the process end as it likes: the session was a call of a program, which goes on after it."""
    global _process
    _process = None


def _replace_functions() -> None:
    global _process, _final_status, _is_hooked
    _final_status = None
    if _process == os.getpid():
        return
    if not _is_hooked:
        # Both for good: neither Python nor the C library can remove such a hook.
        sys.addaudithook(_refuse_lookups)
        if os.name == "posix":
            _answer_exits_in_c()
        _is_hooked = True
    _process = os.getpid()
    modules: tuple[Any, ...] = (os, _SYSTEM)
    for module in modules:
        module._exit = _checked_exit
        module.execv = _checked(_execv, "os.execv")
        module.execve = _checked(_execve, "os.execve")


def _answer_exits_in_c() -> None:
    """Have the C library call `_exit_in_c` when something other than Python's own end calls `exit` or `quick_exit`.

    A function of Python must not be called when Python has ended. What the C library calls is therefore its own
    `raise`, whose signal has `_exit_in_c` as its handler until Python ends, and is ignored from then on.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    library.signal(_SIGNAL_OF_EXIT, ctypes.cast(_handler_of_exit, ctypes.c_void_p))
    library.__cxa_atexit(library["raise"], _SIGNAL_OF_EXIT, None)
    if hasattr(library, "__cxa_at_quick_exit"):  # of Linux
        library.__cxa_at_quick_exit(_handler_of_exit, None)

    def python_ends() -> None:
        if getattr(_in_users_code, "is_running", False):  # by Py_FinalizeEx
            _exit_in_c()
        library.signal(_SIGNAL_OF_EXIT, signal.SIG_IGN.value)

    atexit.register(python_ends)


def _exit_in_c() -> None:
    if os.getpid() != _process:
        return
    if _final_status is not None:
        _exit(_final_status)
    os.write(terminal(), b"xares-bench: code in C has ended the process before the session has ended\n")
    _exit(_FAILURE)


_handler_of_exit = ctypes.CFUNCTYPE(None)(_exit_in_c)


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
