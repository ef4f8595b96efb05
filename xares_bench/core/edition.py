"""The edition of xares-bench itself: its version, and the commit that it was taken from."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
from pathlib import Path

import xares_bench

_PACKAGE = Path(xares_bench.__file__).resolve().parent
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_IS_OURS = re.compile(r'^name *= *"xares-bench"', re.MULTILINE)


@functools.cache
def own_commit() -> str | None:
    """Return the git commit of this code, as far as it is known: that of a clone, or of an installation from git.

    Changes that are not committed are not seen. Nothing is cached under it, and nothing fails without it.
    """
    try:
        return commit_of_clone(_PACKAGE.parent) or _installed_commit()
    except (OSError, ValueError, AttributeError, TypeError):
        return None  # a damaged repository or record: the commit is not known


def commit_of_clone(folder: Path) -> str | None:
    """Return the commit that a clone of xares-bench has checked out; None for any other folder.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is not text.
    """
    repository, project = folder / ".git", folder / "pyproject.toml"
    # A copy of the package in somebody's own repository would have that repository's commit.
    if not repository.exists() or not project.is_file() or not _IS_OURS.search(project.read_text(encoding="utf-8")):
        return None
    if repository.is_file():  # of a worktree or a submodule: it names the folder
        repository = folder / repository.read_text(encoding="utf-8").partition("gitdir:")[2].strip()
    head = _line(repository / "HEAD")
    if not head.startswith("ref:"):
        return _commit(head)
    name = head.partition(":")[2].strip()
    common = repository / "commondir"
    for place in (repository, repository / _line(common) if common.is_file() else repository):
        if (place / name).is_file():
            return _commit(_line(place / name))
        packed = place / "packed-refs"
        for line in packed.read_text(encoding="utf-8").splitlines() if packed.is_file() else ():
            if line.endswith(f" {name}"):
                return _commit(line.partition(" ")[0])
    return None


def _installed_commit() -> str | None:
    """Return the commit that pip or uv wrote down, if this code is what they installed from git."""
    try:
        distribution = importlib.metadata.distribution("xares-bench")
    except importlib.metadata.PackageNotFoundError:
        return None
    if Path(str(distribution.locate_file("xares_bench"))).resolve() != _PACKAGE:
        return None
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    return _commit(str(origin.get("vcs_info", {}).get("commit_id", "")))


def _line(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip()


def _commit(text: str) -> str | None:
    return text if _COMMIT.fullmatch(text) else None
