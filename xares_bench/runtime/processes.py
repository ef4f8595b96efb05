"""Processes of a launcher: what they do together, and how none waits forever for one that failed.

Every process runs the same tests on the same data. Together they train one LALM, each on its share of every batch; only
the main process writes it. With a single process, the functions here do nothing extra.

Collective operations (broadcast, sum, gather) must be called by all processes in the same order: a process that skips
one leaves the others waiting in theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from xares_bench.core.errors import XaresError
from xares_bench.core.store import Entry, Store

T = TypeVar("T")

_STARTED, _FINISHED = "started", "finished"


def obtain_in_all_processes(
    accelerator: Accelerator, store: Store, kind: str, key: str, make: Callable[[Path], dict[str, Any]]
) -> Entry:
    """`Store.obtain` where `make` needs all processes, but only the main one fills the folder.

    If each process obtained the entry by itself, one would get its lock and wait in `make` for the others, which wait
    for the lock. So only the main process obtains it, and sends the others one or two messages: `_STARTED` when it
    calls `make`, so that they call it as well; then `_FINISHED`, or the text of its error.

    Raises:
        XaresError: `make` failed; raised in every process.
    """
    if accelerator.num_processes == 1:
        return store.obtain(kind, key, make)
    if accelerator.is_main_process:

        def make_with_the_others(folder: Path) -> dict[str, Any]:
            _send(accelerator, _STARTED)
            return make(folder)

        try:
            entry = store.obtain(kind, key, make_with_the_others)
        except XaresError as error:
            _send(accelerator, str(error))
            raise
        _send(accelerator, _FINISHED)
        return entry
    # If the entry is cached, the first message is already `_FINISHED`.
    message = _receive(accelerator)
    started = message == _STARTED
    if started:
        with contextlib.suppress(XaresError):  # the main process fails as well, and its error is the next message
            make(store.root / kind / key)
        message = _receive(accelerator)
    if message != _FINISHED:
        raise XaresError(message)
    found = store.use(kind, key)
    assert found is not None, (kind, key)
    return dataclasses.replace(found, reused=not started)


def _send(accelerator: Accelerator, message: str) -> None:
    broadcast_from_main(accelerator, lambda: message)


def _receive(accelerator: Accelerator) -> str:
    return broadcast_from_main(accelerator, str)


def broadcast_from_main(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """Call `make` in the main process and return its result in every process."""
    if accelerator.num_processes == 1:
        return make()
    made = [make() if accelerator.is_main_process else None]
    broadcast_object_list(made, from_process=0)
    found: Any = made[0]
    return found  # type: ignore[no-any-return]


def in_lockstep(accelerator: Accelerator, items: Iterator[T]) -> Generator[T, None, None]:
    """Yield each item once every process has made its own.

    Before each item the processes agree that none failed. Without that, a process whose batch cannot be read would end,
    and the others would wait for its gradients until torch's timeout, half an hour with gloo.

    Raises:
        XaresError: Another process could not make its item; its own error, if this process could not.
    """
    if accelerator.num_processes == 1:
        yield from items
        return
    while True:
        try:
            item, error = next(items), None
        except Exception as cause:
            item, error = None, cause
        (num_failed,) = sum_over_processes(accelerator, [float(error is not None)])
        if num_failed:
            own = None if error is None else f"{type(error).__name__}: {error}"
            # Gathered before anything is raised: all processes must take part.
            others = gather_object([own])
            if error is not None:
                raise error
            raise XaresError("; ".join(f"process {number}: {text}" for number, text in enumerate(others) if text))
        assert item is not None
        yield item


def sum_over_processes(accelerator: Accelerator, values: list[float]) -> list[float]:
    """Sum each value over all processes."""
    if accelerator.num_processes == 1:
        return values
    sums = accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=accelerator.device), "sum")
    return [float(value) for value in sums]


@contextlib.contextmanager
def end_session_on_error(accelerator: Accelerator) -> Iterator[None]:
    """With several processes, let an error in the block end this process's session.

    The other processes are waiting for this one in a collective operation. A failed test would keep the session, and so
    the connection, alive; when the session ends, the connection closes and theirs end with an error as well.

    Raises:
        KeyboardInterrupt: In place of the error: only this ends a pytest session from within a test.
    """
    try:
        yield
    except Exception as error:
        if accelerator.num_processes == 1:
            raise
        name = f"process {accelerator.process_index} of {accelerator.num_processes}"
        raise KeyboardInterrupt(f"{name} failed: {type(error).__name__}: {error}") from error
