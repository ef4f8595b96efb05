"""The environment: what numbers can depend on that no option says, for results and their comparison."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from xares_bench.core.digests import SCORING_LIBRARIES, TRAINING_LIBRARIES, library_versions

_LIBRARIES = sorted({"pytest", "soundfile", "soxr", "xares-bench", *TRAINING_LIBRARIES, *SCORING_LIBRARIES})


def environment_of(accelerator: Accelerator) -> dict[str, Any]:
    """Device, precision, processes, threads, processor with the instructions that torch uses of it, and versions."""
    device = accelerator.device
    return {
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **library_versions(_LIBRARIES),
    }


def _processor() -> str:
    """What it calls itself; Python knows only its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
