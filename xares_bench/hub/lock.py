"""The lock file of a data folder: commits of the hub's repositories, with sizes and digests of their files.

A branch moves; results must not move with it. So a revision is resolved to a commit once, written to the lock file
beside the data, and used by every later run with this folder, unless `--data-revision` requests another.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from xares_bench.core.errors import DataError
from xares_bench.core.locks import acquire
from xares_bench.core.parsing import parse_json
from xares_bench.core.store import write_atomically

LOCK_NAME = "xares-bench.lock.json"
# Our own files in a data folder: locks, unfinished transfers, cached digests.
CACHE_FOLDER = Path(".cache") / "xares-bench"
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository of the hub.

    Attributes:
        kind: Its kind of repository on the hub.
        name: Its owner and name, e.g. `mispeech/xares_llm_data`.
    """

    kind: Literal["dataset", "model"] = "dataset"
    name: str

    @property
    def key(self) -> str:
        """Its key in the lock file, e.g. `datasets/mispeech/xares_llm_data`."""
        return f"{self.kind}s/{self.name}"


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """Size and digest of a file at a commit, as the hub lists them.

    Attributes:
        size_bytes: Its size; None if only the digest is known, from the metadata of an earlier `hf download`.
        sha256: SHA-256 of its bytes; None for a small file that the hub stores in Git itself.
        git_sha1: Its Git object id; None if the SHA-256 is known.
    """

    size_bytes: int | None
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pin:
    """The commit of a repository that a data folder uses.

    Attributes:
        revision: The requested branch, tag or commit; None if the commit was found in the metadata of `hf download`.
        commit: The commit that the revision was resolved to.
        files: Size and digest of every file that was needed so far, by path.
    """

    revision: str | None
    commit: str
    files: Mapping[str, FileInfo]


def read_pins(folder: Path) -> dict[str, Pin]:
    """The pins of a data folder, by `Repository.key`; empty if it has no lock file.

    Raises:
        DataError: The lock file cannot be read.
    """
    path = folder / LOCK_NAME
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        if content["schema"] != _SCHEMA:
            raise ValueError(f"schema {content['schema']!r}, expected {_SCHEMA}")
        return {key: _read_pin(value) for key, value in content["repositories"].items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise DataError(f"{path}: not a lock file of xares-bench ({cause!r}); restore it, or delete it") from None


@contextlib.contextmanager
def edit_pins(folder: Path, *, write: bool) -> Iterator[dict[str, Pin]]:
    """The pins of a data folder, to be changed in the block; written at its end unless it raises.

    No other process can change them meanwhile. They are read again under the lock: another process may have added pins
    since this one last looked.

    Args:
        folder: The data folder.
        write: Whether to write changes; if not, nothing is locked either.

    Raises:
        DataError: The lock file cannot be read, or the folder cannot be written to.
    """
    if not write:
        yield read_pins(folder)
        return
    from filelock import FileLock  # deferred: not needed if every pin is known

    try:
        (folder / CACHE_FOLDER).mkdir(parents=True, exist_ok=True)
        lock = acquire(FileLock(folder / CACHE_FOLDER / f"{LOCK_NAME}.lock"), f"writes {folder / LOCK_NAME}")
    except OSError as cause:
        raise DataError(f"{folder}: cannot be written to ({cause.strerror}); choose another --data-home") from None
    with lock:
        pins = read_pins(folder)
        before = dict(pins)
        yield pins
        if pins != before:
            write_atomically(folder / LOCK_NAME, _to_json(pins))


def is_writable(folder: Path) -> bool:
    """Whether files can be created in a folder, which need not exist yet."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return os.access(existing, os.W_OK | os.X_OK)


def _read_pin(value: Any) -> Pin:
    files = {
        str(path): FileInfo(size_bytes=file["size"], sha256=file.get("sha256"), git_sha1=file.get("git_sha1"))
        for path, file in value["files"].items()
    }
    return Pin(revision=value["revision"], commit=value["commit"], files=files)


def _to_json(pins: Mapping[str, Pin]) -> str:
    repositories = {}
    for key, pin in sorted(pins.items()):
        files = {}
        for path, info in sorted(pin.files.items()):
            digests = {"sha256": info.sha256, "git_sha1": info.git_sha1}
            files[path] = {"size": info.size_bytes, **{name: value for name, value in digests.items() if value}}
        repositories[key] = {"revision": pin.revision, "commit": pin.commit, "files": files}
    return json.dumps({"schema": _SCHEMA, "repositories": repositories}, indent=1) + "\n"
