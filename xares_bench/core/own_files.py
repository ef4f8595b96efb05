"""Folders that come with the package: the suite, the miniature and the examples.

In a wheel they lie inside the package, in a clone beside it; `xares_bench.__path__` has both places.
"""

from __future__ import annotations

from pathlib import Path

import xares_bench
from xares_bench.core.errors import UsageError


def own_folder(name: str) -> Path | None:
    """Return a folder such as `fixtures/mini`; None if this installation lacks it."""
    for place in xares_bench.__path__:
        folder = Path(place) / name
        if folder.is_dir():
            return folder
    return None


def required_folder(name: str, wanted_by: str) -> Path:
    """Return such a folder.

    Raises:
        UsageError: This installation lacks it; begins with `wanted_by`.
    """
    folder = own_folder(name)
    if folder is None:
        place = Path(xares_bench.__path__[0])
        if not place.is_dir():
            raise UsageError(
                f"{wanted_by}: {place} is inside an archive, from which pytest can collect no tests; install the "
                "archive: pip install FILE.whl"
            )
        raise UsageError(
            f"{wanted_by}: {name}, which comes with xares-bench, is not in this installation "
            f"({place}); install xares-bench again, or run it from a clone"
        )
    return folder
