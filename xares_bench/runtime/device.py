"""Device and precision: where everything computes, as accelerate finds it.

Apart from the training, because sessions that find everything finished ask for them, too: accelerate is imported in a
tenth of a second, what the training imports besides takes many times that.
"""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from xares_bench.core.digests import SCORING_LIBRARIES, TRAINING_LIBRARIES, library_versions
from xares_bench.core.errors import UsageError

# What `accelerate launch --mixed-precision` may ask for.
_PRECISIONS = ("no", "bf16", "fp16")


# What losses and scores can be sent to, and the packages that each takes, one of which is enough.
TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}


def open_accelerator(tracker: str | None = None) -> Accelerator:
    """Device and precision, as `accelerate launch` or its configuration asks for them.

    Args:
        tracker: One of `TRACKERS`, to be started by `start_tracker`.

    Raises:
        UsageError: This machine has no such precision, or not the tracker's package.
    """
    if tracker is not None and not any(map(importlib.util.find_spec, TRACKERS[tracker])):
        raise UsageError(f"--track={tracker} needs a package that is not there: pip install {TRACKERS[tracker][0]}")
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    advice = f"--mixed-precision={asked}: expected one of {', '.join(_PRECISIONS)}"
    if asked not in _PRECISIONS:
        raise UsageError(advice)
    try:
        accelerator = Accelerator(log_with=tracker, project_dir=None if tracker is None else ".")
    except ValueError as error:
        raise UsageError(f"{advice}; {' '.join(str(error).split())}") from error
    # Some versions of accelerate take the word, compute in float32 and let the results say fp16.
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise UsageError(f"{advice}; fp16 needs a GPU, found the device {accelerator.device}")
    return accelerator


def start_tracker(accelerator: Accelerator, folder: Path, name: str, values: Mapping[str, Any]) -> None:
    """Let what is logged from here on reach the tracker of the accelerator.

    Args:
        accelerator: Was opened with a tracker.
        folder: Where a tracker that writes files puts them.
        name: Of the run.
        values: What the run is made of; what is no number and no text is shown as text.
    """
    accelerator.project_configuration.logging_dir = str(folder)
    plain = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in values.items()}
    own = {"wandb": {"name": name}, "trackio": {"name": name}}
    accelerator.init_trackers("xares-bench", config=plain, init_kwargs=own)


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
