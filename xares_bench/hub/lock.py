"""The lock file of a data folder: the commits of the hub repositories used there, and what is promised of their files.

A branch moves; results must not move with it. So a revision is resolved to a commit once, written down here beside the
data, and used by every later run there until `--data-revision` says otherwise.
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
from xares_bench.core.parsing import parse_json
from xares_bench.core.store import write_atomically

LOCK_NAME = "xares-bench.lock.json"
# What we keep beside the data for ourselves: locks, unfinished transfers, remembered digests.
CACHE_FOLDER = Path(".cache") / "xares-bench"
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository of the hub.

    Attributes:
        kind: What the hub keeps in it.
        name: Its owner and name, e.g. `mispeech/xares_llm_data`.
    """

    kind: Literal["dataset", "model"] = "dataset"
    name: str

    @property
    def key(self) -> str:
        """What the lock file calls it, e.g. `datasets/mispeech/xares_llm_data`."""
        return f"{self.kind}s/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What the hub says of a file at a commit.

    Attributes:
        size_bytes: Its size; None where only the digest is known, from the records of an earlier download.
        sha256: SHA-256 of its bytes; None for a small file that the hub keeps in Git itself.
        git_sha1: Its Git object id, where there is no SHA-256.
    """

    size_bytes: int | None
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pin:
    """The commit of a repository that this folder holds files of.

    Attributes:
        revision: The branch, tag or commit that was asked for; None where the commit was found beside the files.
        commit: The commit that it was then.
        files: Promises of those of its files that were asked for, by path.
    """

    revision: str | None
    commit: str
    files: Mapping[str, Promise]


def read_pins(folder: Path) -> dict[str, Pin]:
    """The pins of a data folder by `Repository.key`; empty if it has no lock file.

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
def edit_pins(folder: Path, *, keep: bool) -> Iterator[dict[str, Pin]]:
    """The pins of a data folder to change, while no other process does; written when the block ends well.

    Args:
        folder: The data folder.
        keep: False: nothing is written, and so nothing is locked.

    Raises:
        DataError: The lock file cannot be read, or the folder cannot be written to.
    """
    if not keep:
        yield read_pins(folder)
        return
    from filelock import FileLock  # deferred: a run that knows everything locks nothing

    try:
        (folder / CACHE_FOLDER).mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / CACHE_FOLDER / f"{LOCK_NAME}.lock").acquire()
    except OSError as cause:
        raise DataError(f"{folder}: cannot be written to ({cause.strerror}); name another --data-home") from None
    with lock:
        pins = read_pins(folder)
        before = dict(pins)
        yield pins
        if pins != before:
            write_atomically(folder / LOCK_NAME, _to_json(pins))


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which may have to be made itself."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return os.access(existing, os.W_OK | os.X_OK)


def _read_pin(value: Any) -> Pin:
    files = {
        str(path): Promise(size_bytes=file["size"], sha256=file.get("sha256"), git_sha1=file.get("git_sha1"))
        for path, file in value["files"].items()
    }
    return Pin(revision=value["revision"], commit=value["commit"], files=files)


def _to_json(pins: Mapping[str, Pin]) -> str:
    repositories = {}
    for key, pin in sorted(pins.items()):
        files = {}
        for path, promise in sorted(pin.files.items()):
            digests = {"sha256": promise.sha256, "git_sha1": promise.git_sha1}
            files[path] = {"size": promise.size_bytes, **{name: value for name, value in digests.items() if value}}
        repositories[key] = {"revision": pin.revision, "commit": pin.commit, "files": files}
    return json.dumps({"schema": _SCHEMA, "repositories": repositories}, indent=1) + "\n"
