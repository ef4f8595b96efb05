"""Folders that come with the package: the suite, the miniature and the examples.

In a wheel they lie inside the package, in a clone beside it; `xares_bench.__path__` has both places.
"""

from __future__ import annotations

from pathlib import Path

import xares_bench


def own_folder(name: str) -> Path | None:
    """Return a folder such as `fixtures/mini`; None if this installation lacks it."""
    for place in xares_bench.__path__:
        folder = Path(place) / name
        if folder.is_dir():
            return folder
    return None
