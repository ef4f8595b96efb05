"""What the user's code changes of the process is its own: the session never sees it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xares_bench.runtime import process_state
from xares_bench.runtime.patches import Snapshot, core
from xares_bench.runtime.process_state import OwnSettings, _settings
from xares_bench.runtime.settings import Setting

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
    "the cache of autocast": "torch.set_autocast_cache_enabled(False)",
    "entered blocks of autocast": "torch.autocast('cpu').__enter__()",
    "the order of attention kernels": "torch._C._set_sdp_priority_order([2, 0, 1, 3, 4])",
    "the fast path of attention": "torch.backends.mha.set_fastpath_enabled(False)",
    "NNPACK": "torch.backends.nnpack.set_flags(False)",
    "torch.backends.quantized.engine": "torch.backends.quantized.engine = 'qnnpack'",
    "threads of autograd": "torch.autograd.set_multithreading_enabled(False)",
    "repeated warnings": "torch.set_warn_always(True)",
    "how torch's processes share tensors": "torch.multiprocessing.set_sharing_strategy('file_system')",
    "torch's global forward hooks": "torch.nn.modules.module.register_module_forward_hook(lambda *_: None)",
    "torch's global forward pre hooks": "torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: None)",
    "torch's global module registration hooks": (
        "torch.nn.modules.module.register_module_module_registration_hook(lambda *_: None)"
    ),
    "torch's global optimizer pre hooks": (
        "sys.modules['torch.optim.optimizer'].register_optimizer_step_pre_hook(lambda *_: None)"
    ),
    "anomaly detection": "torch.autograd.set_detect_anomaly(True)",
    "flushing of denormal numbers": "torch.set_flush_denormal(True)",
    "numpy's floating-point errors": "np.seterr(all='raise')",
    "sys.path": "sys.path.insert(0, '/somewhere')",
    "filters of warnings": "warnings.filterwarnings('ignore', message='something')",
    "the recursion limit": "sys.setrecursionlimit(sys.getrecursionlimit() + 100)",
    "garbage collection": "gc.set_threshold(100)",
    "garbage collection ": "gc.disable()",
    "the level of logging": "logging.disable(logging.ERROR)",
    "the locale": "locale.setlocale(locale.LC_NUMERIC, 'C.UTF-8')",
    "the precision of decimals": "decimal.getcontext().prec = 5",
    "the timeout of sockets": "socket.setdefaulttimeout(3)",
    "the stack size of threads": "threading.stack_size(2**20)",
    "how processes are started": "multiprocessing.set_start_method('spawn', force=True)",
    "umask": "os.umask(0o77)",
    "the processors it may use": "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})",
    "the limit CORE": "resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))",
    "blocked signals": "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})",
    "the handler of SIGALRM": "signal.signal(signal.SIGALRM, signal.SIG_IGN)",
    "working directory": "os.chdir('/')",
    "environment variables": "os.environ['SET_BY_AN_ENCODER'] = '1'; os.environ['MKL_CBWR'] = 'AUTO'",
    "environment variables ": "os.environ.pop('PATH', None)",
    "the handler of SIGTERM": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "the handler of SIGINT": "signal.signal(signal.SIGINT, lambda *_: None)",
}


# Found by the encoder only as long as the call lasts.
STREAMS = {
    "sys.stdout": "sys.stdout = open(os.devnull, 'w')",
    "sys.excepthook": "sys.excepthook = print",
    "threading.excepthook": "threading.excepthook = print",
}
PATCHES = {
    "torch.nn.modules.linear.Linear.forward": "torch.nn.Linear.forward = lambda self, x: x",
    "torch.nn.modules.linear.Linear.__call__": "torch.nn.Linear.__call__ = lambda self, x: x",
    "torch.nn.LayerNorm": "torch.nn.LayerNorm = torch.nn.Identity",
    "torch.nn.functional.silu": "torch.nn.functional.silu = torch.nn.functional.gelu",
    "torch.nn.functional.scaled_dot_product_attention": (
        "torch.nn.functional.scaled_dot_product_attention = lambda q, k, v, **_: v"
    ),
    "torch.Tensor.__matmul__": "torch.Tensor.__matmul__ = lambda a, b: a",
    "torch.zeros": "torch.zeros = torch.ones",
}
LATE = {**CHANGES, **STREAMS, **PATCHES}


MODULES = (
    *("decimal", "gc", "locale", "logging", "multiprocessing", "os", "resource", "signal", "socket", "sys"),
    *("threading", "torch.multiprocessing", "warnings"),
)


def present() -> dict[str, Any]:
    return {setting.name: setting.read() for setting in _settings()}


def enter(mode: Any) -> Any:
    mode.__enter__()
    return mode


def run(code: str) -> None:
    exec(f"import {', '.join(MODULES)}", scope := {"np": np})
    exec(code, scope)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "code"), CHANGES.items(), ids=CHANGES)
def test_what_its_file_sets_is_undone_named_and_found_again(name: str, code: str) -> None:
    name = name.strip()
    before, own = present(), OwnSettings()
    with own.being_set():
        run(code)
        set_there = present()[name]
    assert present() == before
    assert (name in str(own)) == (name != "environment variables" and set_there != before[name])
    with own.in_force():
        assert present()[name] == set_there
    assert present() == before
    assert not own.stuck


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "code"), LATE.items(), ids=LATE)
def test_what_a_call_sets_ends_with_the_call_and_is_named(name: str, code: str) -> None:
    name = name.strip()
    before, own, snapshot = present(), OwnSettings(), Snapshot(core())
    with own.in_force():
        run(code)
        is_set = name in PATCHES or present()[name] != before[name]
    assert present() == before
    assert not snapshot.patches()
    assert (name in str(own)) == (name != "environment variables" and is_set)
    with own.in_force():
        assert present() == before
    assert not own.stuck


@pytest.mark.parametrize(("name", "code"), PATCHES.items(), ids=PATCHES)
def test_functions_that_its_file_replaces_are_replaced_while_it_runs(name: str, code: str) -> None:
    own, snapshot = OwnSettings(), Snapshot(core())
    with own.being_set():
        run(code)
    assert str(own) == f"{name} (replaced)"
    assert not snapshot.patches()
    for _ in range(2):
        with own.in_force():
            assert [patch.name for patch in snapshot.patches()] == [name]
        assert not snapshot.patches()


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=30, deadline=None)
@given(codes=st.lists(st.sampled_from(sorted(LATE.values())), max_size=6))
def test_several_changes_are_undone_in_any_order(codes: list[str]) -> None:
    before, own, snapshot = present(), OwnSettings(), Snapshot(core())
    with own.being_set():
        for code in codes[:2]:
            run(code)
    assert present() == before
    with own.in_force():
        set_there = present()
    for code in codes[2:]:
        with own.in_force():
            assert present() == set_there
            run(code)
        assert present() == before
    assert not snapshot.patches()
    assert not own.stuck


@pytest.mark.parametrize("place", ["being_set", "in_force"])
def test_a_forked_process_ends_where_the_users_code_ends(place: str) -> None:
    code = f"""
import os, sys
from xares_bench.runtime.process_state import OwnSettings
own = OwnSettings()
with own.{place}():
    child = os.fork()
if child == 0:
    print("here is a second session")
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == ""
    assert "a process that the encoder has forked came out of its code, and ends" in done.stderr


def test_a_change_that_the_system_does_not_allow_back_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    value, own = [0], OwnSettings()

    def write(new: int) -> None:
        if new < value[0]:
            raise PermissionError(new)
        value[0] = new

    setting = Setting(name="niceness", read=lambda: value[0], write=write)
    monkeypatch.setattr(process_state, "_ALL", [setting])
    with own.in_force():
        value[0] = 5
    assert own.stuck == {"niceness": "0 before, 5 after"}


def test_variables_that_libraries_of_the_session_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "AUTO")
    own = OwnSettings()
    with own.being_set():
        os.environ["SOMETHING_ELSE"] = "1"
    assert str(own) == ""
    with own.in_force():
        assert os.environ["SOMETHING_ELSE"] == "1"
        os.environ["NVIDIA_TF32_OVERRIDE"] = "1"
        del os.environ["MKL_CBWR"]
    assert str(own) == "MKL_CBWR (unset), NVIDIA_TF32_OVERRIDE (1)"


def test_variables_that_the_session_sets_later_reach_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    own = OwnSettings()
    with own.being_set():
        os.environ["SET_BY_AN_ENCODER"] = "1"
    monkeypatch.setenv("SET_BY_THE_SESSION", "2")
    with own.in_force():
        assert (os.environ["SET_BY_AN_ENCODER"], os.environ["SET_BY_THE_SESSION"]) == ("1", "2")
    assert "SET_BY_AN_ENCODER" not in os.environ


def test_it_is_undone_after_an_error() -> None:
    before = present()
    with pytest.raises(ZeroDivisionError), OwnSettings().in_force():
        run("torch.set_grad_enabled(False); 1 / 0")
    assert present() == before


def test_a_change_of_two_encoders_is_each_ones_own() -> None:
    one, two, seen = OwnSettings(), OwnSettings(), []
    for own, dtype in ((one, torch.float64), (two, torch.float16)):
        with own.being_set():
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
    with own.being_set():
        os.chdir(tmp_path)
    assert own.values["working directory"] == str(tmp_path)
