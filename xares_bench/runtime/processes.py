"""Processes: what several processes of a launcher do together, and how none of them waits for one that failed.

Each runs the same tests on the same data. They train one LALM, each on its share of every batch; only the first writes
it. With one process nothing here does anything.
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

_BEGUN, _FINISHED = "begun", "finished"


def obtain_together(
    accelerator: Accelerator, store: Store, kind: str, key: str, make: Callable[[Path], dict[str, Any]]
) -> Entry:
    """`Store.obtain` in every process, where `make` needs all of them and only the first one's fills the folder.

    Raises:
        XaresError: It could not be made; every process says so.
    """
    if accelerator.num_processes == 1:
        return store.obtain(kind, key, make)
    if accelerator.is_main_process:

        def make_with_the_others(folder: Path) -> dict[str, Any]:
            _tell(accelerator, _BEGUN)
            return make(folder)

        try:
            entry = store.obtain(kind, key, make_with_the_others)
        except XaresError as error:
            _tell(accelerator, str(error))
            raise
        _tell(accelerator, _FINISHED)
        return entry
    told = _hear(accelerator)
    begun = told == _BEGUN
    if begun:
        with contextlib.suppress(XaresError):  # the first process has it, too, and tells
            make(store.root / kind / key)
        told = _hear(accelerator)
    if told != _FINISHED:
        raise XaresError(told)
    found = store.use(kind, key)
    assert found is not None, (kind, key)
    return dataclasses.replace(found, reused=not begun)


def _tell(accelerator: Accelerator, word: str) -> None:
    from_main(accelerator, lambda: word)


def _hear(accelerator: Accelerator) -> str:
    return from_main(accelerator, str)


def from_main(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """What the first process makes, in every process."""
    if accelerator.num_processes == 1:
        return make()
    made = [make() if accelerator.is_main_process else None]
    broadcast_object_list(made, from_process=0)
    found: Any = made[0]
    return found  # type: ignore[no-any-return]


def in_step(accelerator: Accelerator, items: Iterator[T]) -> Generator[T, None, None]:
    """Items that each process makes for itself, given when all have made theirs.

    Raises:
        XaresError: Making one failed, here or in another process.
    """
    if accelerator.num_processes == 1:
        yield from items
        return
    while True:
        try:
            item, error = next(items), None
        except Exception as cause:
            item, error = None, cause
        (num_failed,) = summed(accelerator, [float(error is not None)])
        if num_failed:
            own = None if error is None else f"{type(error).__name__}: {error}"
            others = gather_object([own])
            if error is not None:
                raise error
            raise XaresError("; ".join(f"process {number}: {text}" for number, text in enumerate(others) if text))
        assert item is not None
        yield item


def summed(accelerator: Accelerator, values: list[float]) -> list[float]:
    """Sums over all processes."""
    if accelerator.num_processes == 1:
        return values
    sums = accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=accelerator.device), "sum")
    return [float(value) for value in sums]


@contextlib.contextmanager
def all_or_none(accelerator: Accelerator) -> Iterator[None]:
    """An error in the block ends the session of this process where there are others: they wait for its part.

    When it ends, their connection to it does, and theirs end as well.

    Raises:
        KeyboardInterrupt: In place of the error; nothing but that ends a session of pytest from within a test.
    """
    try:
        yield
    except Exception as error:
        if accelerator.num_processes == 1:
            raise
        name = f"process {accelerator.process_index} of {accelerator.num_processes}"
        raise KeyboardInterrupt(f"{name} cannot go on: {type(error).__name__}: {error}") from error
