"""The settings of a process, as far as they can be read and written: those of Python, numpy and the operating system.

A setting whose value is None has no value that could be written, for example because a library is not loaded or because
this platform does not have it.
"""

from __future__ import annotations

import decimal
import gc
import locale
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

try:
    import resource
except ImportError:  # on Windows
    _LIMITS: tuple[str, ...] = ()
else:
    _LIMITS = tuple(name for name in dir(resource) if name.startswith("RLIMIT_"))

ENVIRONMENT = "environment variables"

_SIGNALS = (
    *("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGCHLD"),
    *("SIGPIPE", "SIGABRT", "SIGFPE", "SIGTSTP", "SIGCONT", "SIGTTIN", "SIGTTOU", "SIGWINCH", "SIGXCPU", "SIGXFSZ"),
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of the process.

    Attributes:
        name: Its name, in messages.
        read: Returns its value, or None where it has none that could be written.
        write: Sets a value; raises where the system does not allow it.
        is_found_again: Whether an encoder that sets it finds it again in its next call. A stream or a handler of errors
            may belong to a block that has ended by then.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    is_found_again: bool = True


def python_settings() -> Iterator[Setting]:
    """Yield the settings of Python and numpy."""
    yield Setting(name="sys.path", read=lambda: list(sys.path), write=_write_import_path)
    yield Setting(name="filters of warnings", read=lambda: list(warnings.filters), write=_write_warning_filters)
    yield Setting(name="the recursion limit", read=sys.getrecursionlimit, write=sys.setrecursionlimit)
    yield Setting(
        name="garbage collection",
        read=lambda: (gc.isenabled(), gc.get_threshold()),
        write=_write_garbage_collection,
    )
    yield Setting(
        name="the level of logging",
        read=lambda: (logging.root.manager.disable, logging.root.level),
        write=_write_logging,
    )
    yield Setting(
        name="the locale",
        read=lambda: locale.setlocale(locale.LC_ALL),
        write=lambda value: locale.setlocale(locale.LC_ALL, value),
    )
    yield Setting(
        name="the precision of decimals",
        read=_decimal_context,
        write=lambda value: decimal.setcontext(decimal.Context(**value, flags=[])),
    )
    yield Setting(name="the timeout of sockets", read=_socket_timeout, write=_write_socket_timeout)
    yield Setting(name="the stack size of threads", read=_stack_size, write=threading.stack_size)
    yield Setting(
        name="how processes are started",
        read=lambda: multiprocessing.get_start_method(allow_none=True) or "unset",
        write=lambda method: multiprocessing.set_start_method(None if method == "unset" else method, force=True),
    )
    yield Setting(name="numpy's floating-point errors", read=np.geterr, write=lambda value: np.seterr(**value))
    for module, attribute in (
        (sys, "excepthook"),
        (sys, "unraisablehook"),
        (threading, "excepthook"),
        (sys, "stdout"),
        (sys, "stderr"),
        (sys, "stdin"),
    ):
        yield Setting(
            name=f"{module.__name__}.{attribute}",
            read=attribute_reader(module, attribute),
            write=attribute_writer(module, attribute),
            is_found_again=False,
        )


def system_settings() -> Iterator[Setting]:
    """Yield the settings that the operating system keeps of a process."""
    yield Setting(name="working directory", read=_working_directory, write=os.chdir)
    yield Setting(name=ENVIRONMENT, read=lambda: dict(os.environ), write=_write_environment)
    yield Setting(name="umask", read=_umask, write=os.umask)
    if hasattr(os, "sched_getaffinity"):
        yield Setting(
            name="the processors it may use",
            read=lambda: os.sched_getaffinity(0),
            write=lambda processors: os.sched_setaffinity(0, processors),
        )
    if hasattr(os, "getpriority"):
        yield Setting(
            name="priority",
            read=lambda: os.getpriority(os.PRIO_PROCESS, 0),
            write=lambda value: os.setpriority(os.PRIO_PROCESS, 0, value),
        )
    for name in _LIMITS:
        yield _limit(name)


def signal_settings() -> Iterator[Setting]:
    """Yield the settings of signals, which belong to the main thread."""
    for name in _SIGNALS:
        if hasattr(signal, name):
            yield _handler(getattr(signal, name), name)
    if hasattr(signal, "pthread_sigmask"):
        yield Setting(
            name="blocked signals",
            read=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            write=lambda signals: signal.pthread_sigmask(signal.SIG_SETMASK, signals),
        )


def attribute_reader(owner: Any, attribute: str) -> Callable[[], Any]:
    """Return a function that returns the attribute."""
    return lambda: getattr(owner, attribute)


def attribute_writer(owner: Any, attribute: str) -> Callable[[Any], None]:
    """Return a function that sets the attribute."""
    return lambda value: setattr(owner, attribute, value)


def _write_import_path(value: list[str]) -> None:
    sys.path[:] = value


def _write_warning_filters(value: list[Any]) -> None:
    warnings.filters[:] = value  # type: ignore[index]
    with warnings.catch_warnings():  # tells the interpreter that the filters have changed
        pass


def _write_garbage_collection(value: tuple[bool, tuple[int, int, int]]) -> None:
    (gc.enable if value[0] else gc.disable)()
    gc.set_threshold(*value[1])


def _write_logging(value: tuple[int, int]) -> None:
    logging.disable(value[0])
    logging.root.setLevel(value[1])


def _decimal_context() -> dict[str, Any]:
    """Return the context without its flags, which every computation sets."""
    context = decimal.getcontext()
    kept = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")
    traps = [trap for trap, is_set in context.traps.items() if is_set]
    return {**{name: getattr(context, name) for name in kept}, "traps": traps}


def _stack_size() -> int:
    """Return the stack size; Python's function resets what it returns."""
    value = threading.stack_size()
    threading.stack_size(value)
    return value


def _socket_timeout() -> float | str:
    value = socket.getdefaulttimeout()
    return "unset" if value is None else value


def _write_socket_timeout(value: float | str) -> None:
    socket.setdefaulttimeout(None if isinstance(value, str) else value)


def _working_directory() -> str | None:
    try:
        return str(Path.cwd())
    except FileNotFoundError:  # somebody has deleted it
        return None


def _write_environment(value: Mapping[str, str]) -> None:
    for name in os.environ.keys() - value.keys():
        del os.environ[name]
    os.environ.update({name: text for name, text in value.items() if os.environ.get(name) != text})


def _umask() -> int | None:
    """Return the umask as Linux shows it: Python's own function can only read it by setting it for all threads."""
    try:
        status = Path("/proc/self/status").read_bytes()
    except OSError:
        return None
    _, found, rest = status.partition(b"Umask:")
    return int(rest.split(maxsplit=1)[0], 8) if found else None


def _limit(name: str) -> Setting:
    number = getattr(resource, name)
    return Setting(
        name=f"the limit {name.removeprefix('RLIMIT_')}",
        read=lambda: resource.getrlimit(number),
        write=lambda value: resource.setrlimit(number, value),
    )


def _handler(number: int, name: str) -> Setting:
    return Setting(
        name=f"the handler of {name}",
        read=lambda: signal.getsignal(number),
        write=lambda handler: signal.signal(number, handler),
    )
