"""Determinism: random seeds and deterministic algorithms for the length of a block; the state is restored after."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xares_bench.core.errors import UsageError


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed Python, numpy, and torch on the CPU and the device for the block; afterwards restore their states."""
    python_state, numpy_state, torch_states = random.getstate(), np.random.get_state(), random_states(device)
    torch.manual_seed(seed)  # also those of all devices
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        restore_random_states(torch_states, device)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's generators, by type of device: of the CPU, and of this device if it is another."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(*_number(device))
    return states


def restore_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore what `random_states` returned for the same device."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[device.type], *_number(device))


def _number(device: torch.device) -> tuple[torch.device, ...]:
    """The argument that tells a device from others of its type; there is one MPS, whose functions take none."""
    return () if device.type == "mps" else (device,)


def let_libraries_read_variables(device: torch.device) -> None:
    """Use the libraries of linear algebra once, as they read their environment variables at their first product.

    Before the user's code runs, so that what it writes into them has no effect, and neither has the order in which an
    encoder and a LALM use them.
    """
    _fix_workspaces()
    ones = torch.ones(1, 8, 8, device=device)
    torch.nn.functional.conv1d(ones @ ones, ones)


def refuse_late_workspaces(device: torch.device) -> None:
    """Refuse a process in which cuBLAS was used before it had workspaces of fixed size, as in a notebook.

    Raises:
        UsageError: So it is, and no deterministic training is possible in this process.
    """
    if device.type != "cuda":
        return
    ones = torch.ones(8, 8, device=device)
    try:
        with deterministic_algorithms(wanted=True, required=True):
            ones @ ones
    except RuntimeError as cause:
        raise UsageError(
            "the GPU was used in this process before CUBLAS_WORKSPACE_CONFIG was set, which cuBLAS reads once; start "
            "the process (in a notebook the kernel) again and set os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8' "
            "first, or give up identical scores from run to run with --set deterministic=false "
            f"(torch says: {' '.join(str(cause).split())[:200]})"
        ) from cause


def _fix_workspaces() -> None:
    """Let cuBLAS have workspaces of fixed size, without which it is not reproducible, unless the user has said how.

    It stays set: cuBLAS reads the variable once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextlib.contextmanager
def deterministic_algorithms(*, wanted: bool, required: bool) -> Iterator[None]:
    """Turn deterministic algorithms on or off for the block.

    Args:
        wanted: Whether to use them.
        required: Whether an operation without a deterministic algorithm is an error. If not, torch warns and uses the
            algorithm it has, and fills fresh memory, for operations that read it before they write to it.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled_before = memory.fill_uninitialized_memory
    if wanted:
        _fix_workspaces()
    torch.use_deterministic_algorithms(wanted, warn_only=not required)
    memory.fill_uninitialized_memory = not required
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled_before
