"""How many kernels a step and a token start on a GPU, counted without one; each costs some microseconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu_machine import Machine
from benchmarks.launches import META, count_step, count_token, machine_with, saved_bytes
from tests.tape import WAITING


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """With as many layers as SmolLM2-135M has."""
    return machine_with(30, tmp_path_factory.mktemp("machine"))


def test_a_training_step_starts_at_most_3600_kernels_and_waits_for_none(machine: Machine) -> None:
    launches = count_step(machine)
    assert launches.number <= 3600, launches
    assert not launches.by_name.keys() & WAITING


def test_a_token_starts_at_most_700_kernels_and_waits_for_none(machine: Machine) -> None:
    launches = count_token(machine)
    assert launches.number <= 700, launches
    assert not launches.by_name.keys() & WAITING


def test_what_a_step_keeps_for_its_backward_pass_grows_with_the_length_and_not_with_its_square(
    tmp_path: Path,
) -> None:
    """SmolLM2-135M with LoRA, four clips, float32; 22.6 GB at 30 s when attention kept a matrix of L x L per head."""
    machine = Machine(tmp_path, is_tiny=False, device=META)
    at_10_s, at_30_s = (saved_bytes(machine, [length] * 4) for length in (500, 1500))
    assert at_10_s < 3.7e9
    assert at_30_s < 9.6e9
    assert at_30_s < 3 * at_10_s


def test_they_grow_with_the_layers(tmp_path: Path) -> None:
    machines = [machine_with(num_layers, tmp_path / str(num_layers)) for num_layers in (1, 2, 3)]
    for count in (count_step, count_token):
        one, two, three = (count(machine).number for machine in machines)
        assert three - two == two - one > 10
