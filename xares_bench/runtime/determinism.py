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
        # cuBLAS is reproducible only with a workspace of fixed size. It reads the variable once, at its first use, so
        # it stays set after the block. A value that the user has set is left alone.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted, warn_only=not required)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
