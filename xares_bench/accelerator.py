"""Device and precision: where everything computes, as accelerate finds it.

Apart from the training, because sessions that find everything finished ask for them, too: accelerate is imported in a
tenth of a second, what the training imports besides takes many times that.
"""

from __future__ import annotations

import os

from accelerate import Accelerator

from xares_bench.errors import UsageError

# What `accelerate launch --mixed-precision` may ask for.
_PRECISIONS = ("no", "bf16", "fp16")


def open_accelerator() -> Accelerator:
    """Device and precision, as `accelerate launch` or its configuration asks for them.

    Raises:
        UsageError: This machine has no such precision.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    advice = f"--mixed-precision={asked}: expected one of {', '.join(_PRECISIONS)}"
    if asked not in _PRECISIONS:
        raise UsageError(advice)
    try:
        accelerator = Accelerator()
    except ValueError as error:
        raise UsageError(f"{advice}; {' '.join(str(error).split())}") from error
    # Some versions of accelerate take the word, compute in float32 and let the results say fp16.
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise UsageError(f"{advice}; fp16 needs a GPU, found the device {accelerator.device}")
    return accelerator
