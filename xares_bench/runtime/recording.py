"""Recorded work: a GPU starts all kernels of a piece of work at once, as one CUDA graph, instead of one by one.

A recording repeats the same kernels on the same memory. So the work reads and writes tensors that stay where they are,
has the same shapes every time, and waits for nothing that the GPU computes.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch


class Recorder:
    """Records pieces of work that run one after the other, and share the memory of their intermediate results.

    Attributes:
        problem: Why nothing is recorded any more; None: nothing has gone wrong.
    """

    def __init__(self, device: torch.device) -> None:
        """Record what runs on a CUDA device."""
        self.problem: str | None = None
        self._stream = _stream(device)
        self._pool: Any = None

    def run(self, work: Callable[[], object]) -> None:
        """Do the work as it is, on the stream that records it: it is warmed up there, as recording needs it to be."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        """Return what repeats the work; it is not done here."""
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream(self._stream.device)
        try:
            # Threads that read audio may go on: only this thread's calls are checked.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except BaseException:
            _leave_recording(before)
            raise
        self._pool = graph.pool()
        return graph.replay


class Recorded:
    """A piece of work: done as it is the first time, recorded the second, and repeated from then on."""

    def __init__(self, work: Callable[[], object], recorder: Recorder) -> None:
        """Take work that depends on nothing but the contents of tensors."""
        self._work = work
        self._recorder = recorder
        self._is_warm = False
        self._repeat: Callable[[], None] | None = None

    def __call__(self) -> None:
        """Do the work. If it cannot be recorded, a warning says why, and it is done as it is, now and later."""
        if self._is_warm and self._repeat is None and self._recorder.problem is None:
            try:
                self._repeat = self._recorder.record(self._work)
            except Exception as error:
                cause = _first_cause(error)
                self._recorder.problem = f"{type(cause).__name__}: {cause}"
                warnings.warn(
                    f"kernels are started one by one, which is slower: they cannot be recorded as a CUDA graph "
                    f"({self._recorder.problem})",
                    RuntimeWarning,
                    stacklevel=2,
                )
        # After a problem nothing is repeated: earlier recordings would draw the random numbers that others draw.
        if self._repeat is not None and self._recorder.problem is None:
            self._repeat()
            return
        self._recorder.run(self._work)
        self._is_warm = True


def _leave_recording(stream: torch.cuda.Stream) -> None:
    """Undo what torch leaves behind if a recording fails: its stream, and a generator that still counts for it."""
    torch.cuda.set_stream(stream)
    generator = torch.cuda.default_generators[stream.device_index]
    generator.graphsafe_set_state(generator.clone_state())


def _first_cause(error: BaseException) -> BaseException:
    """Return the error that came first: the end of a recording that failed fails, too."""
    return error if error.__context__ is None else _first_cause(error.__context__)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return one stream for all recorders of a device: cuBLAS keeps memory for every stream that ever used it."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
