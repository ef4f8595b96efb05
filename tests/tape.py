"""A recorder without a GPU: operations on the CPU are noted, and repeated on the same tensors, as a CUDA graph does.

What was decided in Python while recording stays decided, numbers that came from Python stay as they were, and an
operation that hands a value to Python is an error: work that depends on anything but tensors is found out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xares_bench.runtime.recording import Recorder

# Operations that wait until a GPU has computed a value or a shape; some are seen under another name in inference mode.
WAITING = {
    "aten._local_scalar_dense.default",
    "aten.item.default",
    "aten.is_nonzero.default",
    "aten.equal.default",
    "aten.nonzero.default",
    "aten.masked_select.default",
}


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operations, without doing anything about what they change."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.notes: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if str(function) in WAITING:
            raise RuntimeError(f"{function} cannot be recorded: it waits for a value")
        found = function(*args, **(kwargs or {}))
        self.notes.append((function, args, kwargs or {}, found))
        return found


class TapeRecorder(Recorder):
    """Stands in for a recorder on a CUDA device.

    Attributes:
        num_recorded: Pieces of work that were recorded.
        num_repeated: How often they were repeated.
    """

    def __init__(self) -> None:
        self.problem = None
        self.num_recorded = self.num_repeated = 0

    def run(self, work: Callable[[], object]) -> None:
        work()

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        tape = _Tape()
        # Recording does the work, as a CUDA graph's does not. So what it changes is put back.
        changed = _Before()
        with changed, tape, patch.object(torch.Tensor, "tolist", _refuse_list):
            work()
        changed.put_back()
        self.num_recorded += 1

        def repeat() -> None:
            self.num_repeated += 1
            with torch.no_grad():
                for function, args, kwargs, found in tape.notes:
                    again = function(*args, **kwargs)
                    for target, value in zip(_tensors(found), _tensors(again), strict=True):
                        # The results of a recording stay in the same memory. A view is there already.
                        if target.untyped_storage()._cdata != value.untyped_storage()._cdata:
                            target.copy_(value)

        return repeat


def _refuse_list(tensor: torch.Tensor) -> None:
    """In place of a function that is no operation."""
    raise RuntimeError("tolist cannot be recorded: it waits for a value")


def _tensors(found: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(found) if isinstance(value, torch.Tensor)]


class _Before(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps a copy of every tensor that is there before the work, and the states of the random generators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._random = torch.get_rng_state()
        self._made: set[int] = set()
        self._copies: dict[int, tuple[torch.Tensor, torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for value in _tensors((args, kwargs)):
            storage = value.untyped_storage()
            if storage._cdata not in self._made and storage._cdata not in self._copies:
                self._copies[storage._cdata] = (value, storage.clone())  # type: ignore[no-untyped-call]
        found = function(*args, **(kwargs or {}))
        self._made.update({value.untyped_storage()._cdata for value in _tensors(found)} - self._copies.keys())
        return found

    def put_back(self) -> None:
        """Give all tensors their earlier values."""
        for value, copy in self._copies.values():
            value.untyped_storage().copy_(copy)
        torch.set_rng_state(self._random)
