"""Device and precision from accelerate, experiment trackers, and the environment that a run records.

A module apart from training: sessions that find everything cached need it, too. accelerate imports in a tenth of a
second; training's other imports take many times that.
"""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from xares_bench.core.digests import SCORING_LIBRARIES, TRAINING_LIBRARIES, library_versions
from xares_bench.core.errors import UsageError
from xares_bench.runtime.variables import recorded_variables, refuse_variables

# Values of `accelerate launch --mixed-precision` that are supported.
_PRECISIONS = ("no", "bf16", "fp16")

# Variables by which a launcher tells its processes apart, beside its own `ACCELERATE_...`.
_LAUNCHER = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")

# Trackers that losses and scores can be sent to, and the packages that provide each; one is enough.
TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}


def open_accelerator(tracker: str | None = None) -> Accelerator:
    """Open accelerate with the device and precision of `accelerate launch` or its configuration file.

    Args:
        tracker: One of `TRACKERS`; `start_tracker` starts it.

    Raises:
        UsageError: This machine does not support the precision, the tracker's package is not installed, or an
            environment variable would make the training another one, or is not one that accelerate can read.
    """
    refuse_variables(os.environ)
    if tracker is not None and not any(map(importlib.util.find_spec, TRACKERS[tracker])):
        raise UsageError(f"--track={tracker} needs a package that is not installed: pip install {TRACKERS[tracker][0]}")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    advice = f"--mixed-precision={precision}: expected one of {', '.join(_PRECISIONS)}"
    if precision not in _PRECISIONS:
        raise UsageError(advice)
    try:
        accelerator = Accelerator(log_with=tracker, project_dir=None if tracker is None else ".")
        torch.ones(1, device=accelerator.device).item()
    except Exception as error:
        # Whatever it raises for a variable that it cannot read, and torch for a device that it does not have.
        message = " ".join(str(error).split())
        if f"{precision} mixed precision" in message:
            raise UsageError(f"{advice}; {message}") from error
        variables = _variables_of_launchers()
        raise UsageError(
            f"accelerate cannot start ({message})" + (f"; it reads {variables}" if variables else "")
        ) from error
    # Some versions of accelerate accept fp16 without a GPU, compute in float32 and still report fp16.
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise UsageError(f"{advice}; fp16 needs a GPU, found the device {accelerator.device}")
    return accelerator


def _variables_of_launchers() -> str:
    """What accelerate reads of the environment, in one line; empty if nothing is there."""
    names = [name for name in sorted(os.environ) if name.startswith("ACCELERATE_") or name in _LAUNCHER]
    return ", ".join(f"{name}={os.environ[name]}" for name in names)


def refuse_cpu(device: torch.device, preset: str) -> None:
    """Refuse a preset that is made for a GPU where there is none.

    Raises:
        UsageError: There is none; the message says why.
    """
    if device.type == "cpu":
        raise UsageError(
            f"--preset={preset} needs a GPU and none was found: {_why_no_gpu()}. Use --preset=mini, or force it with "
            "--allow-cpu (its number of training steps takes weeks on a CPU)"
        )


def _why_no_gpu() -> str:
    """Return the reason why torch has found no GPU, and what to do, for a message."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"this build of torch ({torch.__version__}) is for CPUs only; install one for your GPU"
    initialize: Callable[[], None] = torch.cuda.init
    try:
        initialize()
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return reason if visible is None else f"{reason} (CUDA_VISIBLE_DEVICES={visible})"
    return "accelerate was told to use the CPU"


def start_tracker(accelerator: Accelerator, folder: Path, name: str, values: Mapping[str, Any]) -> None:
    """Start the accelerator's tracker; values logged from now on reach it.

    Args:
        accelerator: Opened with a tracker.
        folder: For trackers that write files.
        name: Name of the run.
        values: Settings of the run to show; everything but numbers is shown as text.
    """
    accelerator.project_configuration.logging_dir = str(folder)
    plain = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in values.items()}
    own = {"wandb": {"name": name}, "trackio": {"name": name}}
    accelerator.init_trackers("xares-bench", config=plain, init_kwargs=own)


_LIBRARIES = sorted({"pytest", "soundfile", "soxr", "xares-bench", *TRAINING_LIBRARIES, *SCORING_LIBRARIES})


def environment_of(accelerator: Accelerator) -> dict[str, Any]:
    """What can affect results: device, precision, processes, threads, processor, environment variables, versions."""
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
        "variables": recorded_variables(os.environ),
        **library_versions(_LIBRARIES),
    }


def _processor() -> str:
    """The processor's model name; `platform` knows only its architecture on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
