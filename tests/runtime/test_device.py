from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator

from xares_bench.core.errors import UsageError
from xares_bench.runtime import device
from xares_bench.runtime.device import _why_no_gpu, environment_of, open_accelerator


def test_device_and_precision_are_those_that_accelerate_finds(mixed_precision: Callable[[str], None]) -> None:
    mixed_precision("bf16")
    found, expected = open_accelerator(), Accelerator(mixed_precision="bf16")
    assert (found.device, found.mixed_precision) == (expected.device, "bf16")


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("fp16", r"--mixed-precision=fp16: expected one of no, bf16, fp16; fp16 needs a GPU, found the device cpu"),
        ("half", r"--mixed-precision=half: expected one of no, bf16, fp16"),
    ],
)
def test_an_unsupported_precision_is_refused(
    precision: str, message: str, mixed_precision: Callable[[str], None]
) -> None:
    mixed_precision(precision)
    with pytest.raises(UsageError, match=message):
        open_accelerator()


def test_a_tracker_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(device.TRACKERS, "notes", ("no_such_package",))
    with pytest.raises(UsageError, match="--track=notes needs a package that is not installed: pip install no_such_p"):
        open_accelerator("notes")


@pytest.mark.parametrize(
    ("build", "error", "expected"),
    [
        (None, None, r"this build of torch \(.*\) is for CPUs only; install one for your GPU"),
        ("13.0", "Found no NVIDIA driver on your system. Please check", "Found no NVIDIA driver on your system"),
        (
            "13.0",
            "The NVIDIA driver on your system is too old (found version 11040). Please update",
            r"The NVIDIA driver on your system is too old \(found version 11040\)",
        ),
        ("13.0", "No CUDA GPUs are available", r"No CUDA GPUs are available"),
        ("13.0", None, "accelerate was told to use the CPU"),
    ],
    ids=["build", "no driver", "old driver", "no device", "asked for"],
)
def test_why_there_is_no_gpu_is_said(
    build: str | None, error: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init() -> None:
        if error is not None:
            raise RuntimeError(error)

    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert re.fullmatch(expected, _why_no_gpu())
    if error is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
        assert re.fullmatch(rf"{expected} \(CUDA_VISIBLE_DEVICES=7\)", _why_no_gpu())


def test_the_environment_has_what_can_affect_results_as_plain_json(mixed_precision: Callable[[str], None]) -> None:
    mixed_precision("bf16")
    environment = environment_of(open_accelerator())
    assert json.loads(json.dumps(environment)) == environment
    assert (environment["precision"], environment["processes"]) == ("bf16", 1)
    assert environment["threads"] == torch.get_num_threads()
    assert environment["torch"] == torch.__version__
    assert environment["processor"]
    assert {"device", "gpu", "instructions", "platform", "python", "transformers", "xares-bench"} <= environment.keys()
