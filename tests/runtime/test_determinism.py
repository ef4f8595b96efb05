from __future__ import annotations

from typing import Any

import pytest
import torch

from xares_bench.core.errors import UsageError
from xares_bench.runtime.determinism import deterministic_algorithms, random_states, refuse_late_workspaces, seeded

CPU = torch.device("cpu")


def test_the_same_seed_gives_the_same_numbers_and_the_generators_state_is_restored() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    with seeded(1, CPU):
        first = torch.rand(3)
    with seeded(1, CPU):
        second = torch.rand(3)
    assert torch.equal(first, second)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    ("device", "arguments"),
    [
        (torch.device("cuda", 1), (torch.device("cuda", 1),)),
        (torch.device("xpu", 0), (torch.device("xpu", 0),)),
        (torch.device("mps"), ()),
    ],
    ids=["cuda", "xpu", "mps"],
)
def test_the_state_of_a_device_of_any_type_is_restored(
    device: torch.device, arguments: tuple[torch.device, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a generator that stands in for the device's, and is called as torch's modules of devices are."""
    state, calls = [torch.tensor([1], dtype=torch.uint8)], []

    class Module:
        def get_rng_state(self, *given: torch.device) -> torch.Tensor:
            calls.append(given)
            return state[0]

        def set_rng_state(self, value: torch.Tensor, *given: torch.device) -> None:
            calls.append(given)
            state[0] = value

    monkeypatch.setattr(torch, "get_device_module", {device: Module()}.__getitem__)
    with seeded(1, device):
        state[0] = torch.tensor([2], dtype=torch.uint8)
        assert random_states(device).keys() == {"cpu", device.type}
    assert state[0].tolist() == [1]
    assert set(calls) == {arguments}


def without_algorithm() -> None:
    """An operation of which torch has no deterministic form on a CPU."""
    indices = torch.zeros(2, dtype=torch.long)
    torch.zeros(3).put_(indices, torch.ones(2), accumulate=False)


def test_an_operation_without_a_deterministic_algorithm_is_an_error_or_a_warning() -> None:
    without_algorithm()
    with deterministic_algorithms(wanted=True, required=True), pytest.raises(RuntimeError, match="deterministic"):
        without_algorithm()
    with deterministic_algorithms(wanted=True, required=False), pytest.warns(UserWarning, match="deterministic"):
        without_algorithm()


@pytest.mark.parametrize("outside", [True, False])
def test_blocks_nest_and_leave_everything_as_it_was(outside: bool) -> None:
    def state() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    before = state()
    with deterministic_algorithms(wanted=outside, required=True):
        with deterministic_algorithms(wanted=True, required=False):
            assert state() == (True, True)
        assert state() == (outside, False)
        with pytest.raises(ValueError, match="x"), deterministic_algorithms(wanted=not outside, required=False):
            raise ValueError("x")
        assert state() == (outside, False)
    assert state() == before


@pytest.mark.parametrize("required", [True, False])
def test_fresh_memory_is_filled_only_for_programs_that_may_read_it(required: bool) -> None:
    settings: Any = torch.utils.deterministic
    before = settings.fill_uninitialized_memory
    with deterministic_algorithms(wanted=True, required=required):
        assert settings.fill_uninitialized_memory == (not required)
        if not required:
            assert torch.empty(1000).isnan().all()
    assert settings.fill_uninitialized_memory == before


def test_a_gpu_that_was_used_too_early_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With tensors that stand in for a GPU's, whose products fail as torch's do."""

    class Ones:
        is_refused = False

        def __matmul__(self, other: object) -> None:
            assert torch.are_deterministic_algorithms_enabled()
            if self.is_refused:
                raise RuntimeError("Deterministic behavior was enabled with ..., but ... uses\n CuBLAS")

    monkeypatch.setattr(torch, "ones", lambda *shape, device: Ones())
    refuse_late_workspaces(torch.device("cuda"))
    Ones.is_refused = True
    refuse_late_workspaces(CPU)
    with pytest.raises(
        UsageError, match=r"before CUBLAS_WORKSPACE_CONFIG was set.*--set deterministic=false.*uses CuBLAS"
    ):
        refuse_late_workspaces(torch.device("cuda"))
    assert not torch.are_deterministic_algorithms_enabled()
