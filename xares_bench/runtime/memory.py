"""Memory that does not suffice, the device's or the host's: less at a time, where that makes no difference."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from xares_bench.core.errors import OutOfMemory, ShortageWarning

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def is_shortage(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that memory does not suffice."""
    if error is None:
        return False
    is_one = isinstance(error, MemoryError) or (isinstance(error, Exception) and should_reduce_batch_size(error))
    return is_one or is_shortage(error.__cause__)


def in_halves(
    work: Callable[[Sequence[ItemT]], list[ResultT]], items: Sequence[ItemT], description: str
) -> list[ResultT]:
    """The results of work on items: all at once, or half of them at a time where memory does not suffice.

    Raises:
        OutOfMemory: It does not suffice for one.
    """
    try:
        return work(items)
    except Exception as error:
        if not is_shortage(error):
            raise
        if len(items) == 1:
            raise OutOfMemory(f"{error}: not enough memory for {description} of one clip") from None
    # Not within the handler: while the error lives, the memory of what raised it does.
    go_on_with_fewer(description, len(items))
    half = len(items) // 2
    return in_halves(work, items[:half], description) + in_halves(work, items[half:], description)


def go_on_with_fewer(description: str, num_items: int) -> None:
    """Say that so many at once were too many, and give the device's memory back."""
    warnings.warn(
        f"not enough memory for {description} of {num_items} clips at once; it goes on with fewer, to the same results",
        ShortageWarning,
        stacklevel=2,
    )
    clear_device_cache()
