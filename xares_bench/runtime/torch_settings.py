"""The settings of torch that code may change for the whole process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.multiprocessing
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

from xares_bench.runtime.settings import Setting, attribute_reader, attribute_writer

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
    ("backends.cudnn", "benchmark_limit"),
    ("backends.cudnn", "deterministic"),
    ("backends.mkldnn", "enabled"),
    ("backends.mkldnn", "deterministic"),
    ("backends.opt_einsum", "enabled"),
    ("backends.opt_einsum", "strategy"),
    ("backends.quantized", "engine"),
)
# Versions of torch before `fp32_precision` have these in its place.
_OLDER_SWITCHES = (("backends.cuda.matmul", "allow_tf32"), ("backends.cudnn", "allow_tf32"))

# Hooks of torch that act on every module and every optimizer.
_HOOKS: Mapping[str, Any] = {
    f"torch's {name.removeprefix('_').replace('_', ' ')}": value
    for owner in (torch_module, torch_optimizer)
    for name, value in vars(owner).items()
    if name.startswith("_global") and isinstance(value, dict)
}

# Two variables, so that the processor multiplies them and not the compiler.
_DENORMAL, _ONE = 5e-324, 1.0


def torch_settings() -> Iterator[Setting]:
    """Yield the settings of torch; one that others follow comes before them."""
    yield Setting(name="grad mode", read=torch.is_grad_enabled, write=torch.set_grad_enabled)
    yield Setting(name="default dtype", read=torch.get_default_dtype, write=torch.set_default_dtype)
    yield Setting(
        name="default device",
        read=lambda: str(torch.get_default_device()) if has_default_device() else "unset",
        write=lambda device: torch.set_default_device(None if device == "unset" else device),
    )
    yield Setting(name="threads", read=torch.get_num_threads, write=torch.set_num_threads)
    yield Setting(name="float32 matmul precision", read=_matmul_precision, write=torch.set_float32_matmul_precision)
    yield from _switches()
    yield Setting(
        name="deterministic algorithms",
        read=lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        write=lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    )
    for kernel in ("flash", "mem_efficient", "math", "cudnn"):
        yield Setting(
            name=f"the attention kernel {kernel}",
            read=getattr(torch.backends.cuda, f"{kernel}_sdp_enabled"),
            write=getattr(torch.backends.cuda, f"enable_{kernel}_sdp"),
        )
    internal: Any = torch._C
    yield Setting(
        name="the order of attention kernels",
        read=lambda: tuple(map(int, internal._get_sdp_priority_order())),
        write=lambda order: internal._set_sdp_priority_order(list(order)),
    )
    yield Setting(
        name="the fast path of attention",
        read=torch.backends.mha.get_fastpath_enabled,
        write=torch.backends.mha.set_fastpath_enabled,
    )
    yield Setting(name="NNPACK", read=internal._get_nnpack_enabled, write=internal._set_nnpack_enabled)
    for device in ("cpu", "cuda"):
        yield _autocast(device)
    yield Setting(
        name="the cache of autocast", read=torch.is_autocast_cache_enabled, write=torch.set_autocast_cache_enabled
    )
    yield Setting(name="entered blocks of autocast", read=_autocast_nesting, write=_write_autocast_nesting)
    yield Setting(name="anomaly detection", read=torch.is_anomaly_enabled, write=torch.autograd.set_detect_anomaly)
    yield Setting(
        name="threads of autograd",
        read=internal._is_multithreading_enabled,
        write=internal._set_multithreading_enabled,
    )
    yield Setting(name="repeated warnings", read=torch.is_warn_always_enabled, write=torch.set_warn_always)
    yield Setting(
        name="flushing of denormal numbers", read=lambda: _DENORMAL * _ONE == 0, write=torch.set_flush_denormal
    )
    yield Setting(
        name="how torch's processes share tensors",
        read=torch.multiprocessing.get_sharing_strategy,
        write=torch.multiprocessing.set_sharing_strategy,
    )
    yield Setting(
        name="the current GPU",
        read=_current_gpu,
        write=_write_current_gpu,
    )
    for name, hooks in _HOOKS.items():
        yield Setting(name=name, read=hooks.copy, write=_writer_in_place(hooks))
    for name in ("torch._dynamo.config", "torch._inductor.config"):
        yield _compiler_settings(name)


def has_default_device() -> bool:
    """Whether torch has a default device, which is one of its modes that intercept functions."""
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return context is not None


def _switches() -> Iterator[Setting]:
    found = [_switch(*switch) for switch in _SWITCHES]
    if not any(setting is not None and setting.name.endswith("fp32_precision") for setting in found):
        found += [_switch(*switch) for switch in _OLDER_SWITCHES]
    yield from (setting for setting in found if setting is not None)


def _switch(module: str, attribute: str) -> Setting | None:
    owner: Any = torch
    for name in module.split("."):
        owner = getattr(owner, name, None)
    if not hasattr(owner, attribute):
        return None
    return Setting(
        name=f"torch.{module}.{attribute}",
        read=attribute_reader(owner, attribute),
        write=attribute_writer(owner, attribute),
    )


def _writer_in_place(mapping: dict[Any, Any]) -> Callable[[Mapping[Any, Any]], None]:
    def write(value: Mapping[Any, Any]) -> None:
        mapping.clear()
        mapping.update(value)

    return write


def _matmul_precision() -> str | None:
    """Return the precision, or None where `fp32_precision` was set, which torch does not want to be mixed with it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _autocast(device: str) -> Setting:
    def write(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(device, value[0])
        torch.set_autocast_dtype(device, value[1])

    return Setting(
        name=f"autocast on {device}",
        read=lambda: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)),
        write=write,
    )


def _autocast_nesting() -> int:
    """Return how many blocks of autocast are open; cast weights are kept until the outermost one ends."""
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())


def _write_autocast_nesting(depth: int) -> None:
    while _autocast_nesting() < depth:
        torch.autocast_increment_nesting()
    while _autocast_nesting() > depth:
        torch.autocast_decrement_nesting()
    if depth == 0:
        torch.clear_autocast_cache()


def _current_gpu() -> int:
    return torch.cuda.current_device() if _uses_cuda() else 0


def _write_current_gpu(device: int) -> None:
    if _uses_cuda():
        torch.cuda.set_device(device)


def _uses_cuda() -> bool:
    is_initialized: Callable[[], bool] = torch.cuda.is_initialized
    return is_initialized()


def _compiler_settings(name: str) -> Setting:
    """Those of torch's compiler that differ from its defaults; none where it is not loaded, which takes seconds."""

    def read() -> dict[str, Any]:
        config: Any = sys.modules.get(name)
        if config is None:
            return {}
        set_there = [(key, entry.default) for key, entry in config._config.items() if not config._is_default(key)]
        return {key: value for key, default in set_there if (value := getattr(config, key)) != default}

    def write(value: Mapping[str, Any]) -> None:
        config: Any = sys.modules.get(name)
        for key in {*read(), *value}:
            setattr(config, key, value.get(key, config._config[key].default))

    return Setting(name=name, read=read, write=write)
