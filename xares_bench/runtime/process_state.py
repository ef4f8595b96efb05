"""Settings of the process that the user's code may change, kept apart from the session's.

Grad mode, default dtype, threads, the precision of products, the working directory and their like belong to the
process, and so to whatever runs next in it. An encoder that sets one, in its file or in `forward`, finds it set
whenever it runs; between its calls the session has its own values. So an encoder works as its author has tested it, and
the LALM is trained as if no encoder had run, whether features are cached or not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xares_bench.runtime.exits import exits_raise
from xares_bench.runtime.variables import KEYED, RECORDED, REFUSED

_ENVIRONMENT = "environment variables"
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")

# Switches of torch: attributes of modules, some of which older versions lack. One that others follow comes before them.
_SWITCHES = (
    ("utils.deterministic", "fill_uninitialized_memory"),
    ("backends", "fp32_precision"),
    ("backends.cudnn", "fp32_precision"),
    ("backends.mkldnn", "fp32_precision"),
    ("backends.cuda.matmul", "fp32_precision"),
    ("backends.cudnn.conv", "fp32_precision"),
    ("backends.cudnn.rnn", "fp32_precision"),
    ("backends.mkldnn.matmul", "fp32_precision"),
    ("backends.mkldnn.conv", "fp32_precision"),
    ("backends.mkldnn.rnn", "fp32_precision"),
    ("backends.cuda.matmul", "allow_fp16_reduced_precision_reduction"),
    ("backends.cuda.matmul", "allow_bf16_reduced_precision_reduction"),
    ("backends.cuda.matmul", "allow_fp16_accumulation"),
    ("backends.cudnn", "enabled"),
    ("backends.cudnn", "benchmark"),
    ("backends.cudnn", "deterministic"),
    ("backends.mkldnn", "enabled"),
    ("backends.mkldnn", "deterministic"),
    ("backends.opt_einsum", "enabled"),
    ("backends.opt_einsum", "strategy"),
)
# Versions of torch before `fp32_precision` have these in its place.
_OLDER_SWITCHES = (("backends.cuda.matmul", "allow_tf32"), ("backends.cudnn", "allow_tf32"))


# Two variables, so that the processor multiplies them and not the compiler.
_DENORMAL, _ONE = 5e-324, 1.0


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """One setting of the process; `read` returns None where it has no value that could be set."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


@dataclass(kw_only=True, eq=False)
class OwnSettings:
    """The settings of one encoder, empty before it has run.

    Attributes:
        values: What it has set, by name; it finds these values again.
        stuck: What it has changed that cannot be changed back, in words, by name.
    """

    values: dict[str, Any] = field(default_factory=dict)
    stuck: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Run the block with the encoder's settings, and the rest of the session with those of before."""
        settings = _settings()
        before = {setting.name: setting.read() for setting in settings}
        fixed_before = {name: read() for name, read in _FIXED.items()}
        for setting in settings:
            if setting.name in self.values:
                setting.write(self.values[setting.name])
        try:
            with exits_raise():
                yield
        finally:
            # All are read before the first is written: some follow others.
            after = {setting.name: setting.read() for setting in settings}
            self.values = {name: value for name, value in after.items() if value is not None and value != before[name]}
            if after != before:
                _restore(settings, before)
            for name, read in _FIXED.items():
                if read() != fixed_before[name]:
                    self.stuck[name] = f"{fixed_before[name]} before, {read()} after"

    def __str__(self) -> str:
        """Names and values of what it has set, in one line.

        Of environment variables only those that libraries of a session read, as many libraries set some for themselves.
        """
        shown = [f"{name} ({_shown(value)})" for name, value in self.values.items() if name != _ENVIRONMENT]
        variables = self.values.get(_ENVIRONMENT, {})
        shown += [
            f"{name} ({variables.get(name, 'unset')})"
            for name in sorted({*REFUSED, *KEYED, *RECORDED})
            if _ENVIRONMENT in self.values and variables.get(name) != os.environ.get(name)
        ]
        return ", ".join(shown)


def _restore(settings: Iterable[_Setting], before: Mapping[str, Any]) -> None:
    for setting in settings:
        value = before[setting.name]
        if value is not None and setting.read() != value:  # not restored yet with one that it follows
            setting.write(value)


def _shown(value: object) -> str:
    """A value in a few characters, or that it has changed."""
    text = str(value).removeprefix("torch.")
    return text if len(text) <= 60 else "changed"


# What no program can change back: torch sets it once, or only the code that has begun it can end it.
_FIXED: Mapping[str, Callable[[], int]] = {
    "inter-op threads": torch.get_num_interop_threads,
    "inference mode": torch.is_inference_mode_enabled,
    "modes that intercept torch functions": lambda: torch._C._len_torch_function_stack() - _has_default_device(),
    "modes that intercept dispatch": torch._C._len_torch_dispatch_stack,
}


def _settings() -> list[_Setting]:
    return _ALL if threading.current_thread() is threading.main_thread() else _IN_ANY_THREAD


def _switch(module: str, attribute: str) -> _Setting | None:
    owner: Any = torch
    for name in module.split("."):
        owner = getattr(owner, name, None)
    if not hasattr(owner, attribute):
        return None
    return _Setting(
        name=f"torch.{module}.{attribute}",
        read=lambda: getattr(owner, attribute),
        write=lambda value: setattr(owner, attribute, value),
    )


def _switches() -> Iterator[_Setting]:
    found = [_switch(*switch) for switch in _SWITCHES]
    if not any(setting is not None and setting.name.endswith("fp32_precision") for setting in found):
        found += [_switch(*switch) for switch in _OLDER_SWITCHES]
    yield from (setting for setting in found if setting is not None)


def _matmul_precision() -> str | None:
    """Return the precision, or None where `fp32_precision` was set, which torch does not want to be mixed with it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _has_default_device() -> bool:
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return context is not None


def _default_device() -> str | None:
    """Return the default device, or "unset"."""
    return str(torch.get_default_device()) if _has_default_device() else "unset"


def _attention_kernel(name: str) -> _Setting:
    kernels: Any = torch.backends.cuda
    read, write = getattr(kernels, f"{name}_sdp_enabled"), getattr(kernels, f"enable_{name}_sdp")
    return _Setting(name=f"the attention kernel {name}", read=read, write=write)


def _autocast(device: str) -> _Setting:
    def write(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(device, value[0])
        torch.set_autocast_dtype(device, value[1])

    return _Setting(
        name=f"autocast on {device}",
        read=lambda: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)),
        write=write,
    )


def _working_directory() -> str | None:
    try:
        return str(Path.cwd())
    except FileNotFoundError:  # somebody has deleted it
        return None


def _write_environment(value: Mapping[str, str]) -> None:
    for name in os.environ.keys() - value.keys():
        del os.environ[name]
    os.environ.update({name: text for name, text in value.items() if os.environ.get(name) != text})


def _signal_setting(name: str) -> _Setting:
    number = getattr(signal, name)
    return _Setting(
        name=f"the handler of {name}",
        read=lambda: signal.getsignal(number),
        write=lambda handler: signal.signal(number, handler),
    )


_IN_ANY_THREAD = [
    _Setting(name="grad mode", read=torch.is_grad_enabled, write=torch.set_grad_enabled),
    _Setting(name="default dtype", read=torch.get_default_dtype, write=torch.set_default_dtype),
    _Setting(
        name="default device",
        read=_default_device,
        write=lambda device: torch.set_default_device(None if device == "unset" else device),
    ),
    _Setting(name="threads", read=torch.get_num_threads, write=torch.set_num_threads),
    _Setting(name="float32 matmul precision", read=_matmul_precision, write=torch.set_float32_matmul_precision),
    *_switches(),
    _Setting(
        name="deterministic algorithms",
        read=lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        write=lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
    *(_attention_kernel(name) for name in ("flash", "mem_efficient", "math", "cudnn")),
    *(_autocast(device) for device in ("cpu", "cuda")),
    _Setting(name="anomaly detection", read=torch.is_anomaly_enabled, write=torch.autograd.set_detect_anomaly),
    _Setting(
        name="flushing of denormal numbers",
        read=lambda: _DENORMAL * _ONE == 0,
        write=torch.set_flush_denormal,
    ),
    _Setting(name="numpy's floating-point errors", read=np.geterr, write=lambda value: np.seterr(**value)),
    _Setting(name="working directory", read=_working_directory, write=os.chdir),
    _Setting(name=_ENVIRONMENT, read=lambda: dict(os.environ), write=_write_environment),
]
_ALL = [*_IN_ANY_THREAD, *(_signal_setting(name) for name in _SIGNALS if hasattr(signal, name))]
