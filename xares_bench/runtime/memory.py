"""Running out of memory, on the device or the host: retry with smaller batches where results do not change."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from xares_bench.core.errors import OutOfMemory, ShortageWarning
from xares_bench.runtime.variables import num_workers

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# What CUDA itself takes for a process is less, but not known.
_CONTEXT_BYTES = 1 << 30


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, says that memory ran out."""
    if error is None:
        return False
    is_one = isinstance(error, MemoryError) or (isinstance(error, Exception) and should_reduce_batch_size(error))
    return is_one or is_out_of_memory(error.__cause__)


def sharers(device: torch.device) -> str:
    """Say who else takes memory of a device, and what to do, in sentences; empty if nobody is known to."""
    said = ""
    number = num_workers(os.environ)
    if number > 1:
        said += (
            f"The {number} workers of -n {number} share this memory, each with a training of its own: run the same "
            "command with fewer, or without -n. "
        )
    if device.type == "cuda":
        free_bytes, all_bytes = torch.cuda.mem_get_info(device)
        others_bytes = all_bytes - free_bytes - torch.cuda.memory_reserved(device)
        if others_bytes > _CONTEXT_BYTES:
            said += f"Other processes hold {others_bytes / 1e9:.1f} of the GPU's {all_bytes / 1e9:.1f} GB. "
    return said


def split_on_out_of_memory(
    work: Callable[[Sequence[ItemT]], list[ResultT]], items: Sequence[ItemT], description: str
) -> list[ResultT]:
    """Call `work` on all items at once, or on halves, quarters and so on where memory runs out.

    Args:
        work: Returns one result per item; an item's result must not depend on the items beside it.
        items: At least one.
        description: What `work` does, for warnings and errors, e.g. "encoding".

    Returns:
        The results, in the order of the items.

    Raises:
        OutOfMemory: There is too little memory for a single item.
    """
    try:
        return work(items)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(items) == 1:
            raise OutOfMemory(f"{error}: not enough memory for {description} of one clip") from None
    # Only after the handler: as long as the error lives, its traceback holds the tensors of the failed call.
    prepare_smaller_batches(description, len(items))
    half = len(items) // 2
    first = split_on_out_of_memory(work, items[:half], description)
    return first + split_on_out_of_memory(work, items[half:], description)


def prepare_smaller_batches(description: str, num_items: int) -> None:
    """Warn that a batch was too large, and empty the device's cache before the next, smaller one."""
    warnings.warn(
        f"not enough memory for {description} of {num_items} clips at once; retrying with smaller batches; "
        "results do not change",
        ShortageWarning,
        stacklevel=2,
    )
    clear_device_cache()
