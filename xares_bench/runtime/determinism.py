"""Determinism: torch's random numbers and algorithms, fixed for a block and left as they were."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of the CPU and of a device from this seed on; afterwards from where they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def deterministic_algorithms(*, wanted: bool, required: bool) -> Iterator[None]:
    """Deterministic algorithms, or explicitly none, for the block.

    Args:
        wanted: Whether to use them.
        required: Whether an operation that has none is an error. If not, torch warns and uses what it has.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if wanted:
        # cuBLAS is deterministic only with a fixed workspace.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted, warn_only=not required)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
