"""JSON that somebody else may have written."""

from __future__ import annotations

import json
from typing import Any


def parse(text: str | bytes, **arguments: Any) -> Any:
    """What a JSON text says; arguments are those of `json.loads`.

    Raises:
        ValueError: It is no JSON, or nested deeper than Python's stack.
    """
    try:
        return json.loads(text, **arguments)
    except RecursionError as cause:
        raise ValueError("nested too deeply") from cause
