"""Settings that the user's code changes are its own: the session never sees them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xares_bench.runtime.process_state import OwnSettings, _settings

CHANGES: dict[str, str] = {
    "grad mode": "torch.set_grad_enabled(False)",
    "default dtype": "torch.set_default_dtype(torch.float64)",
    "default device": "torch.set_default_device('meta')",
    "threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
    "float32 matmul precision": "torch.set_float32_matmul_precision('medium')",
    "torch.backends.cuda.matmul.fp32_precision": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.cuda.matmul.fp32_precision ": "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.fp32_precision": "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.cudnn.conv.fp32_precision": "torch.backends.cudnn.allow_tf32 = False",
    "torch.backends.mkldnn.matmul.fp32_precision": "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction": (
        "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False"
    ),
    "torch.backends.cudnn.enabled": "torch.backends.cudnn.enabled = False",
    "torch.backends.cudnn.benchmark": "torch.backends.cudnn.benchmark = True",
    "torch.backends.cudnn.deterministic": "torch.backends.cudnn.deterministic = True",
    "torch.backends.mkldnn.enabled": "torch.backends.mkldnn.enabled = False",
    "torch.utils.deterministic.fill_uninitialized_memory": (
        "torch.utils.deterministic.fill_uninitialized_memory = False"
    ),
    "deterministic algorithms": "torch.use_deterministic_algorithms(True, warn_only=True)",
    "the attention kernel math": "torch.backends.cuda.enable_math_sdp(False)",
    "autocast on cpu": "torch.set_autocast_enabled('cpu', True)",
    "autocast on cpu ": "torch.autocast('cpu', dtype=torch.float16).__enter__()",
    "anomaly detection": "torch.autograd.set_detect_anomaly(True)",
    "flushing of denormal numbers": "torch.set_flush_denormal(True)",
    "numpy's floating-point errors": "np.seterr(all='raise')",
    "working directory": "os.chdir('/')",
    "environment variables": "os.environ['SET_BY_AN_ENCODER'] = '1'; os.environ['MKL_CBWR'] = 'AUTO'",
    "environment variables ": "os.environ.pop('PATH', None)",
    "the handler of SIGTERM": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "the handler of SIGINT": "signal.signal(signal.SIGINT, lambda *_: None)",
}


def present() -> dict[str, Any]:
    return {setting.name: setting.read() for setting in _settings()}


def enter(mode: Any) -> Any:
    mode.__enter__()
    return mode


def run(code: str) -> None:
    exec(code, {"torch": torch, "np": np, "os": os, "signal": signal})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "code"), CHANGES.items(), ids=CHANGES)
def test_what_it_changes_is_undone_named_and_found_again(name: str, code: str) -> None:
    before, own = present(), OwnSettings()
    with own.in_force():
        run(code)
    assert present() == before
    assert name.strip() in own.values
    assert (name.strip() in str(own)) == (name.strip() != "environment variables")
    with own.in_force():
        assert present()[name.strip()] == own.values[name.strip()] != before[name.strip()]
    assert present() == before
    assert not own.stuck


@pytest.mark.filterwarnings("ignore")
@given(codes=st.lists(st.sampled_from(sorted(CHANGES.values())), max_size=6))
def test_several_changes_are_undone_in_any_order(codes: list[str]) -> None:
    before, own = present(), OwnSettings()
    for code in codes:
        with own.in_force():
            run(code)
        assert present() == before
    assert not own.stuck


def test_variables_that_libraries_of_the_session_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "AUTO")
    own = OwnSettings()
    with own.in_force():
        os.environ["SOMETHING_ELSE"] = "1"
    assert str(own) == ""
    with own.in_force():
        os.environ["NVIDIA_TF32_OVERRIDE"] = "1"
        del os.environ["MKL_CBWR"]
    assert str(own) == "MKL_CBWR (unset), NVIDIA_TF32_OVERRIDE (1)"


def test_what_it_changes_back_is_forgotten() -> None:
    own, threads = OwnSettings(), torch.get_num_threads()
    for number in (threads + 1, threads):
        with own.in_force():
            torch.set_num_threads(number)
    assert own.values == {}
    assert str(own) == ""


def test_it_is_undone_after_an_error() -> None:
    before = present()
    with pytest.raises(ZeroDivisionError), OwnSettings().in_force():
        run("torch.set_grad_enabled(False); 1 / 0")
    assert present() == before


def test_a_change_of_two_encoders_is_each_ones_own() -> None:
    one, two, seen = OwnSettings(), OwnSettings(), []
    for own, dtype in ((one, torch.float64), (two, torch.float16)):
        with own.in_force():
            torch.set_default_dtype(dtype)
    for own in (one, two):
        with own.in_force():
            seen.append(torch.get_default_dtype())
    assert seen == [torch.float64, torch.float16]
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("mode", "is_left"),
    [
        (torch.inference_mode, False),
        (torch.overrides.TorchFunctionMode, True),
        (torch.utils._python_dispatch.TorchDispatchMode, True),
    ],
    ids=["inference mode", "functions", "dispatch"],
)
def test_what_cannot_be_undone_is_named(mode: Callable[[], Any], is_left: bool) -> None:
    """In a thread, to which these belong."""
    own = OwnSettings()

    def change() -> None:
        with own.in_force():
            entered = enter(mode())
        if is_left:
            entered.__exit__(None, None, None)

    thread = threading.Thread(target=change)
    thread.start()
    thread.join()
    assert len(own.stuck) == 1


def test_a_folder_that_is_gone_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    own = OwnSettings()
    with own.in_force():
        os.chdir(tmp_path)
    assert own.values["working directory"] == str(tmp_path)
