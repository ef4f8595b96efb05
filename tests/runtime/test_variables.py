"""Environment variables that libraries read: refused, in every key, or recorded."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState

from xares_bench.core.errors import UsageError
from xares_bench.runtime.device import environment_of, open_accelerator
from xares_bench.runtime.variables import (
    KEYED,
    REFUSED,
    SPINCOUNT,
    is_recorded,
    keyed_variables,
    num_workers,
    recorded_variables,
    refuse_variables,
    shorten_waits,
)


@pytest.mark.parametrize("name", REFUSED)
def test_a_variable_of_another_training_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}.get(name, "true")
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=rf"{name}={value}.* unset it"):
        open_accelerator()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ""),
        ("ACCELERATE_DYNAMO_BACKEND", ""),
        ("ACCELERATE_USE_CPU", "maybe"),
        ("ACCELERATE_TORCH_DEVICE", "nonsense"),
        ("ACCELERATE_TORCH_DEVICE", "meta"),
        *([] if torch.cuda.is_available() else [("ACCELERATE_TORCH_DEVICE", "cuda")]),
        ("LOCAL_RANK", "first"),
    ],
)
def test_a_value_that_accelerate_cannot_read_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(UsageError, match=rf"{name}={value}") as caught:
        open_accelerator()
    assert "mixed-precision" not in str(caught.value)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_what_the_launcher_sets_by_default_is_not_refused() -> None:
    refuse_variables(
        {
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
            "ACCELERATE_DYNAMO_BACKEND": "NO",
            "ACCELERATE_USE_FSDP": "False",
            "ACCELERATE_MIXED_PRECISION": "bf16",
            "ACCELERATE_USE_CPU": "true",
            "ACCELERATE_DOWNCAST_BF16": "no",
        }
    )


@pytest.mark.parametrize("name", KEYED)
def test_arithmetic_by_more_than_rounding_is_another_key(name: str) -> None:
    assert keyed_variables({name: "1", "PATH": "/bin", "OMP_NUM_THREADS": "1"}) == {name: "1"}
    assert keyed_variables({}) == {}


def test_a_run_records_what_was_set_and_no_other_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = environment_of(open_accelerator())["variables"]
    assert found["NVIDIA_TF32_OVERRIDE"] == "0"
    assert found["MKL_CBWR"] == "COMPATIBLE"
    assert all(map(is_recorded, found))
    assert recorded_variables({"HF_TOKEN": "hf_secret"}) == {}


@pytest.mark.parametrize(
    "name",
    [
        *("OMP_DYNAMIC", "OMP_PLACES", "OMP_THREAD_LIMIT", "KMP_DETERMINISTIC_REDUCTION", "MKL_THREADING_LAYER"),
        *("TORCH_COMPILE_BACKEND", "TORCHINDUCTOR_MAX_AUTOTUNE", "HIPBLASLT_ALLOW_TF32", "CUBLAS_WORKSPACE_CONFIG"),
    ],
)
def test_what_can_change_the_last_bits_or_the_speed_is_recorded(name: str) -> None:
    assert recorded_variables({name: "1"}) == {name: "1"}


@pytest.mark.parametrize("name", ["TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "CUDA_PATH", "TORCHELASTIC_RUN_ID", "PATH"])
def test_places_and_names_of_runs_are_not_recorded(name: str) -> None:
    assert recorded_variables({name: "1"}) == {}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, SPINCOUNT),
        ({"OMP_NUM_THREADS": "2"}, SPINCOUNT),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_wait_briefly_unless_the_user_has_said_how(
    environ: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    shorten_waits(environ)
    assert environ.get("GOMP_SPINCOUNT") == expected


def test_nothing_is_set_when_torch_would_not_read_it_any_more() -> None:
    assert torch
    environ: dict[str, str] = {}
    shorten_waits(environ)
    assert environ == {}


def test_the_library_of_torchs_threads_reads_the_variable() -> None:
    """Not only the environment of Python has it: the C library must, too."""
    code = (
        "import ctypes, os, xares_bench.runtime.variables as v; v.shorten_waits(os.environ);"
        "getenv = ctypes.CDLL(None).getenv; getenv.restype = ctypes.c_char_p; print(getenv(b'GOMP_SPINCOUNT').decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PATH": "/bin"}
    )
    assert done.stdout.strip() == SPINCOUNT


@pytest.mark.parametrize(("value", "number"), [(None, 1), ("4", 4), ("", 1), ("many", 1)])
def test_xdists_workers_are_counted(value: str | None, number: int) -> None:
    assert num_workers({} if value is None else {"PYTEST_XDIST_WORKER_COUNT": value}) == number
