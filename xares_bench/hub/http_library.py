"""The HTTP library of the installed huggingface_hub: `httpx` up to 1.x, `httpx2` from 2.0 on.

Both have the same names. Failures of requests are caught by their class, so the classes must come from the library that
sends the requests, even where the other one is installed, too.
"""

from __future__ import annotations

import importlib
from types import ModuleType


def http_library() -> ModuleType:
    """The module that huggingface_hub sends its requests with, found by the class that its own errors derive from."""
    from huggingface_hub.errors import HfHubHTTPError

    base = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    return importlib.import_module(base.__module__.partition(".")[0])
