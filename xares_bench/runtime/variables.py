"""Environment variables that libraries read, and that change what is computed: refused, or in every key, or recorded.

The variables that `accelerate launch` sets from its command line and its configuration file are among them. The lists
are of accelerate 1.15, transformers 5.23, torch 2.13, oneDNN 3 and libgomp 15; docs/run.md shows them to users.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping
from types import MappingProxyType

from xares_bench.core.errors import UsageError

_OFF = ("", "0", "false", "no", "off", "n", "f")

# Variables that make the training another one, the values that do not, and what to do instead.
REFUSED: Mapping[str, tuple[tuple[str, ...], str]] = MappingProxyType(
    {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
            ("1",),
            "accumulation would divide every gradient; the size of a batch is --set batch_size=N",
        ),
        "ACCELERATE_DYNAMO_BACKEND": (("no",), "to compile the decoder's layers, use --set compile=true"),
        "ACCELERATE_USE_DEEPSPEED": (_OFF, "DeepSpeed is not supported"),
        "ACCELERATE_USE_FSDP": (_OFF, "FSDP is not supported"),
        "ACCELERATE_USE_MEGATRON_LM": (_OFF, "Megatron-LM is not supported"),
        "ACCELERATE_USE_PARALLELISM_CONFIG": (_OFF, "only data parallelism is supported"),
        "ACCELERATE_USE_SAGEMAKER": (_OFF, "SageMaker's own launcher is not supported"),
        "ACCELERATE_DOWNCAST_BF16": (_OFF, "use --mixed-precision=bf16"),
        "XLA_USE_BF16": (_OFF, "use --mixed-precision=bf16"),
        "XLA_DOWNCAST_BF16": (_OFF, "use --mixed-precision=bf16"),
    }
)
# Variables that change arithmetic by more than rounding of float32: a part of every key.
KEYED = (
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "PYTORCH_MPS_FAST_MATH",
)
# Variables that change the last bits, or the speed, by how they begin: recorded with the results, except for places.
_RECORDED = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "DNNL_", "ONEDNN_", "ATEN_"),
    *("CUDA_", "CUBLAS_", "CUBLASLT_", "CUDNN_", "NCCL_", "HIP_", "HIPBLASLT_", "ROCBLAS_", "MIOPEN_", "XLA_"),
    *("PYTORCH_", "TORCH_", "TORCHDYNAMO_", "TORCHINDUCTOR_", "TRITON_", "FLASH_ATTENTION_"),
    *("ACCELERATE_CPU_AFFINITY", "TRANSFORMERS_SDPA_FORCE_GQA", "USE_HUB_KERNELS"),
)
_PLACES = ("_DIR", "_HOME", "_PATH", "_ROOT", "_CACHE", "_FILE", "_TRACE", "_OUT")

# How often a thread of OpenMP looks for work before it sleeps. torch's default, 300,000 times, is a millisecond, for
# which a busy machine waits at each of a step's thousand loops; see docs/performance.md for what was measured.
SPINCOUNT = "10000"
_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def refuse_variables(environ: Mapping[str, str]) -> None:
    """Refuse a variable that would make the training another one.

    Raises:
        UsageError: One is set; the message names it.
    """
    for name, (harmless, advice) in REFUSED.items():
        value = environ.get(name)
        if value is not None and value.strip().lower() not in harmless:
            raise UsageError(
                f"the environment variable {name}={value} (`accelerate launch` sets it from its command line or its "
                f"configuration file) changes the training: {advice}; unset it"
            )


def keyed_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that belong into every key, with their values."""
    return {name: environ[name] for name in KEYED if environ.get(name)}


def recorded_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return all variables that a run records, with their values."""
    return {name: environ[name] for name in sorted(environ) if is_recorded(name)}


def is_recorded(name: str) -> bool:
    """Whether a run records this variable, because it can change results or speed."""
    return name in KEYED or (name.startswith(_RECORDED) and not name.endswith(_PLACES))


def shorten_waits(environ: MutableMapping[str, str]) -> None:
    """Let torch's threads sleep soon while they wait, unless the user has said how they wait.

    To be called before torch is imported, which is when its threads read the variable. No result depends on it.
    """
    if "torch" not in sys.modules and not any(name in environ for name in _WAITING):
        environ["GOMP_SPINCOUNT"] = SPINCOUNT


# A process that finds this variable set ends when the one that has started it is gone.
END_WITH_PARENT = "XARES_BENCH_END_WITH_PARENT"


def num_workers(variables: Mapping[str, str]) -> int:
    """How many workers of xdist there are, if this process is one of them; else 1."""
    text = variables.get("PYTEST_XDIST_WORKER_COUNT", "")
    return int(text) if text.isdecimal() else 1
