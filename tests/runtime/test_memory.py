from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Sequence

import pytest
import torch

from xares_bench.core.errors import OutOfMemory, ShortageWarning
from xares_bench.runtime.memory import is_out_of_memory, sharers, split_on_out_of_memory


class Worker:
    """Doubles numbers, at most so many at once."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error = most, error
        self.calls: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.calls.append(list(items))
        if len(items) > self.most:
            raise self.error
        return [2 * item for item in items]


def chained(cause: Exception) -> Exception:
    try:
        raise ValueError("a batch failed") from cause
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        chained(MemoryError()),
    ],
    ids=["host", "GPU", "torch on a CPU", "as the cause"],
)
def test_memory_that_runs_out_is_told_from_other_errors(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(None)
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(chained(RuntimeError("shapes differ")))


def test_halves_are_tried_until_they_fit_and_results_keep_their_order() -> None:
    work = Worker(2, MemoryError())
    with pytest.warns(ShortageWarning) as warned:
        assert split_on_out_of_memory(work, range(7), "encoding") == [0, 2, 4, 6, 8, 10, 12]
    assert work.calls == [[*range(7)], [0, 1, 2], [0], [1, 2], [3, 4, 5, 6], [3, 4], [5, 6]]
    assert str(warned[0].message) == (
        "not enough memory for encoding of 7 clips at once; retrying with smaller batches; results do not change"
    )


def test_what_fits_is_done_at_once_without_a_word() -> None:
    work = Worker(7, MemoryError())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert split_on_out_of_memory(work, range(7), "encoding") == [2 * item for item in range(7)]
    assert len(work.calls) == 1


def test_other_errors_are_not_retried() -> None:
    work = Worker(2, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        split_on_out_of_memory(work, range(7), "encoding")
    assert len(work.calls) == 1


def test_too_little_memory_for_a_single_item_is_an_error_of_its_own() -> None:
    with pytest.warns(ShortageWarning), pytest.raises(OutOfMemory, match="not enough memory for encoding of one clip"):
        split_on_out_of_memory(Worker(0, MemoryError("full")), range(2), "encoding")


def test_the_tensors_of_a_failed_call_are_gone_before_the_next() -> None:
    tensors: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def work(items: Sequence[int]) -> list[int]:
        alive.append(sum(tensor() is not None for tensor in tensors))
        held = torch.zeros(3)
        tensors.append(weakref.ref(held))
        if len(items) > 1:
            raise MemoryError
        return list(items)

    gc.disable()  # not even a cycle may hold them
    try:
        with pytest.warns(ShortageWarning):
            split_on_out_of_memory(work, range(4), "encoding")
    finally:
        gc.enable()
    assert set(alive) == {0}


def test_nobody_shares_the_memory_of_a_process_alone() -> None:
    assert sharers(torch.device("cpu")) == ""


def test_trainings_beside_this_one_are_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    assert sharers(torch.device("cpu")) == (
        "The 3 workers of -n 3 share this memory, each with a training of its own: run the same command with fewer, or "
        "without -n. "
    )


@pytest.mark.parametrize(
    ("free_gb", "said"), [(45, ""), (15, "Other processes hold 30.0 of the GPU's 80.0 GB. ")], ids=["few", "many"]
)
def test_other_processes_on_a_gpu_are_named_with_their_size(
    free_gb: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins for what CUDA reports."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (free_gb * 10**9, 80 * 10**9))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda _: 35 * 10**9)
    assert sharers(torch.device("cuda")) == said
