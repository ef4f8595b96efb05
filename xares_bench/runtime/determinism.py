"""Determinism: random seeds and deterministic algorithms for the length of a block; the state is restored after."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed Python, numpy, and torch on the CPU and the device for the block; afterwards restore their states."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def let_libraries_read_variables(device: torch.device) -> None:
    """Use the libraries of linear algebra once, as they read their environment variables at their first product.

    Before the user's code runs, so that what it writes into them has no effect, and neither has the order in which an
    encoder and a LALM use them.
    """
    _fix_workspaces()
    ones = torch.ones(1, 8, 8, device=device)
    torch.nn.functional.conv1d(ones @ ones, ones)


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
            algorithm it has.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if wanted:
        _fix_workspaces()
    torch.use_deterministic_algorithms(wanted, warn_only=not required)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
