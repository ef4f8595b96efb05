"""The store: content-addressed folders, each finished or to be made anew.

An entry is a folder named by the digest of what makes it. Its `manifest.json` is written last, so a folder without
one is unfinished work and is never read. The manifest holds size and digest of every file, so that a damaged entry is
found and made anew. A lock beside the folder lets one process make an entry while others wait for it and then read it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xares_bench.core.digests import file_digest
from xares_bench.core.errors import DamageWarning, DiskError
from xares_bench.core.parsing import parse_json

if TYPE_CHECKING:
    from filelock import FileLock

MANIFEST = "manifest.json"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says what the block was writing, where the disk refuses it.

    Raises:
        DiskError: It does.
    """
    try:
        yield
    except DiskError:
        raise
    except OSError as cause:
        error = DiskError(
            f"{path} cannot be written: {cause.strerror or cause}; make room or name another folder, and give the same "
            "command again (what is finished is kept)"
        )
        error.errno = cause.errno
        raise error from cause


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that it is there whole or not at all (temporary name, fsync, rename).

    Raises:
        DiskError: It cannot be written; what was there before still is.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes | str]) -> None:
    """Write files that belong together, as `write_atomically` does: none of them before all are on the disk.

    Raises:
        DiskError: One of them cannot be written; what was there before still is.
    """
    temporaries: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            data = content.encode("utf-8") if isinstance(content, str) else content
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                temporaries[path] = path.with_name(f".{path.name}.{os.getpid()}.part")
                with temporaries[path].open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            with writing(path):
                temporary.replace(path)
    finally:
        for temporary in temporaries.values():
            with contextlib.suppress(OSError):
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

    @property
    def size_bytes(self) -> int:
        """Size of its files, the manifest left out."""
        return sum(described["size_bytes"] for described in self.manifest["files"].values())


class Unfinished:
    """A folder that is being filled, by the one process that holds its lock."""

    def __init__(self, folder: Path, lock: FileLock) -> None:
        """Empty the folder; the lock is held already."""
        self.folder = folder
        self._lock = lock
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    def finish(self, manifest: Mapping[str, Any]) -> Entry:
        """Bring its files to the disk, write the manifest, and let others in."""
        try:
            with writing(self.folder):
                files = {path.name: _describe(path) for path in sorted(self.folder.iterdir())}
            content = {"key": self.folder.name, "files": files, **manifest}
            write_atomically(self.folder / MANIFEST, json.dumps(content, indent=1, sort_keys=True) + "\n")
        except BaseException:
            self.abandon()
            raise
        self._lock.release()
        finished = _read_manifest(self.folder)
        assert finished is not None, self.folder
        return Entry(folder=self.folder, manifest=finished, reused=False)

    def abandon(self) -> None:
        """Leave nothing of it; what is finished or abandoned already stays as it is, for it may be another's by now."""
        if not self._lock.is_locked:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()


@dataclass(frozen=True, kw_only=True)
class Store:
    """Finished results under one root, as `ROOT/KIND/KEY/`."""

    root: Path
    _intact: set[Path] = field(default_factory=set, init=False, repr=False, compare=False)

    def find(self, kind: str, key: str) -> Entry | None:
        """The finished entry of that key, or None; its files are there in their sizes, and not read."""
        folder = self.root / kind / key
        manifest = _read_manifest(folder)
        return None if manifest is None else Entry(folder=folder, manifest=manifest, reused=True)

    def use(self, kind: str, key: str) -> Entry | None:
        """The finished entry of that key, or None; its files are read once in the life of this object.

        Where one is not what was written, the entry is removed, with a warning, so that it is made anew.
        """
        entry = self.find(kind, key)
        folder = self.root / kind / key
        if entry is not None and folder in self._intact:
            return entry
        damaged = _damaged_file(folder)
        if damaged is not None:
            warnings.warn(f"{damaged} is damaged; it is made anew", DamageWarning, stacklevel=2)
            self._remove_damaged(kind, key)
            return None
        if entry is not None:
            self._intact.add(folder)
        return entry

    def begin(self, kind: str, key: str, *, wait: bool) -> Unfinished | None:
        """An empty folder to fill.

        Args:
            kind: What it is, e.g. `"features"`.
            key: Digest of everything that it depends on.
            wait: If another process fills it just now, whether to wait for it, or to return None.

        Returns:
            None where there is nothing to fill: the entry is there by now, or another process is at it.

        Raises:
            DiskError: There cannot be one.
        """
        from filelock import FileLock, Timeout  # deferred: a run that finds everything finished locks nothing

        folder = self.root / kind / key
        lock = FileLock(folder.with_suffix(".lock"))
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=-1 if wait else 0)
            except Timeout:
                return None
            if self.find(kind, key) is not None:
                lock.release()
                return None
            return Unfinished(folder, lock)

    def obtain(self, kind: str, key: str, make: Callable[[Path], dict[str, Any]]) -> Entry:
        """The finished entry of that key, made now if need be.

        Args:
            kind: What it is, e.g. `"lalms"`.
            key: Digest of everything that it depends on.
            make: Fills the empty folder it is given and returns what to write into the manifest. If it raises,
                nothing of it is kept.

        Raises:
            DiskError: It cannot be written.
        """
        while True:
            entry = self.use(kind, key)
            if entry is not None:
                return entry
            unfinished = self.begin(kind, key, wait=True)
            if unfinished is None:
                continue  # another process has finished it meanwhile
            try:
                manifest = make(unfinished.folder)
            except BaseException:
                unfinished.abandon()
                raise
            return unfinished.finish(manifest)

    def entries(self, kind: str) -> list[Entry]:
        """All finished entries of a kind."""
        folder = self.root / kind
        keys = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
        return [entry for entry in (self.find(kind, key) for key in sorted(keys)) if entry is not None]

    def _remove_damaged(self, kind: str, key: str) -> None:
        """Take an entry away, unless another process makes it anew, or has done so by now."""
        from filelock import FileLock, Timeout

        folder = self.root / kind / key
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return
        if _damaged_file(folder) is not None:
            self.remove(kind, key)
        lock.release()

    def remove(self, kind: str, key: str) -> None:
        """Take an entry away; first its manifest, so that what is left of it is never trusted."""
        folder = self.root / kind / key
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        self._intact.discard(folder)

    def remove_leftovers(self, kind: str) -> None:
        """Take away what killed processes have left unfinished; what somebody is filling is locked, and stays."""
        from filelock import FileLock, Timeout

        # The lock's file is beside every folder that was ever begun.
        for lock_file in sorted((self.root / kind).glob("*.lock")):
            folder = lock_file.with_suffix("")
            if not folder.is_dir() or (folder / MANIFEST).exists():
                continue
            try:
                with FileLock(lock_file, timeout=0):
                    if not (folder / MANIFEST).exists():  # nobody has finished it meanwhile
                        shutil.rmtree(folder, ignore_errors=True)
            except Timeout:
                continue


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished folder whose files are all there, in their sizes."""
    try:
        manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
        is_whole = manifest["key"] == folder.name and all(
            (folder / name).stat().st_size == described["size_bytes"] for name, described in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if is_whole else None


def _damaged_file(folder: Path) -> Path | None:
    """The first file that is not what was written when the folder was finished; None: none, or it never was."""
    try:
        manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, str] = {name: described["sha256"] for name, described in manifest["files"].items()}
        if manifest["key"] != folder.name:
            return folder / MANIFEST
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return folder / MANIFEST
    for name, digest in files.items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            return folder / name
    return None


def _describe(path: Path) -> dict[str, Any]:
    """Size and digest of a file whose bytes have been brought to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"size_bytes": path.stat().st_size, "sha256": file_digest(path)}
