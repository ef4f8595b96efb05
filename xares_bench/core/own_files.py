"""Folders that come with the package: the suite, the miniature and the examples.

In a wheel they lie inside the package, in a clone beside it; `xares_bench.__path__` has both places.
"""

from __future__ import annotations

from pathlib import Path

import xares_bench
from xares_bench.core.errors import UsageError

# With files that a run may read: what is shown of a run names them without the place of the installation.
_NAMED = ("examples", "fixtures")


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


def shown_path(path: str) -> str:
    """Return a path as results and the header show it: without the place of this installation, and no home folder.

    A path of ours is `fixtures/mini of xares-bench`, one in the current folder is relative to it, and all others stay.
    """
    for name in _NAMED:
        folder = own_folder(name)
        if folder is not None and Path(path).is_relative_to(folder):
            return f"{Path(path).relative_to(folder.parent).as_posix()} of xares-bench"
    try:
        return Path(path).relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path
