"""The store: content-addressed folders, each finished or to be made anew.

An entry is a folder named by the digest of what makes it. Its `manifest.json` is written last, so a folder without
one is unfinished work and is never read. A lock beside the folder lets one process make an entry while others wait
for it and then read it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that it is there whole or not at all (temporary name, fsync, rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A finished folder of the store.

    Attributes:
        folder: Where its files are.
        manifest: What was written when it was finished.
        reused: Whether it was there already when it was asked for.
    """

    folder: Path
    manifest: dict[str, Any]
    reused: bool


@dataclass(frozen=True, kw_only=True)
class Store:
    """Finished results under one root, as `ROOT/KIND/KEY/`."""

    root: Path

    def find(self, kind: str, key: str) -> Entry | None:
        """The finished entry of that key, or None."""
        folder = self.root / kind / key
        manifest = _read_manifest(folder, key)
        return None if manifest is None else Entry(folder=folder, manifest=manifest, reused=True)

    def obtain(self, kind: str, key: str, make: Callable[[Path], dict[str, Any]]) -> Entry:
        """The finished entry of that key, made now if need be.

        Args:
            kind: What it is, e.g. `"features"`.
            key: Digest of everything that it depends on.
            make: Fills the empty folder it is given and returns what to write into the manifest. If it raises,
                nothing of it is kept.
        """
        entry = self.find(kind, key)
        if entry is not None:
            return entry
        from filelock import FileLock  # deferred: a run that finds everything finished locks nothing

        folder = self.root / kind / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            entry = self.find(kind, key)
            if entry is not None:
                return entry
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                manifest = make(folder)
                _sync_files(folder)
                write_atomically(
                    folder / MANIFEST, json.dumps({"key": key, **manifest}, indent=1, sort_keys=True) + "\n"
                )
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            finished = _read_manifest(folder, key)
            assert finished is not None
        return Entry(folder=folder, manifest=finished, reused=False)


def _read_manifest(folder: Path, key: str) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("key") == key else None


def _sync_files(folder: Path) -> None:
    """Bring every file's bytes to the disk before the manifest says that they are there."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
