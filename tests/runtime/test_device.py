from __future__ import annotations

from collections.abc import Callable

import pytest
from accelerate import Accelerator

from xares_bench.core.errors import UsageError
from xares_bench.runtime.device import open_accelerator


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
def test_a_precision_that_cannot_be_had_is_refused(
    precision: str, message: str, mixed_precision: Callable[[str], None]
) -> None:
    mixed_precision(precision)
    with pytest.raises(UsageError, match=message):
        open_accelerator()
