"""The store: a cache of folders on disk, each either finished or ignored.

An entry is a folder whose name is the key: the digest of everything that its content depends on. Three rules make it
safe to kill a process at any moment:

- The manifest is written last, after every other file has been flushed to the disk (`fsync`). A folder without one is
  unfinished and is never read. In the other order, a power failure could leave a manifest beside empty files.
- The manifest contains size and digest of every file, so that damage is found, and the entry recomputed.
- A lock beside the folder (not in it: the folder is deleted and made again) lets one process fill an entry, while
  others wait for it and then use it.
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
from xares_bench.core.errors import CacheWarning, DiskError
from xares_bench.core.locks import acquire
from xares_bench.core.parsing import parse_json
from xares_bench.core.text import encoded

if TYPE_CHECKING:
    from filelock import FileLock

MANIFEST = "manifest.json"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into an error that names the path.

    Raises:
        DiskError: The block cannot write.
    """
    try:
        yield
    except DiskError:
        raise
    except OSError as cause:
        error = DiskError(
            f"{path} cannot be written: {cause.strerror or cause}; make room or choose another folder, and run the "
            "same command again (finished results are cached)"
        )
        error.errno = cause.errno
        raise error from cause


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file completely or not at all (temporary name, fsync, rename).

    Raises:
        DiskError: It cannot be written; an earlier version is unchanged.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes | str]) -> None:
    """Write files that belong together, like `write_atomically`: all are on the disk before the first is renamed.

    Raises:
        DiskError: One of them cannot be written; earlier versions are unchanged.
    """
    temporaries: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            data = encoded(content) if isinstance(content, str) else content
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                # In the same folder, since a rename is atomic only within a file system.
                temporaries[path] = path.with_name(f".{path.name}.{os.getpid()}.part")
                with temporaries[path].open("wb") as file:
                    file.write(data)
                    file.flush()
                    # Before the rename: file systems may write the new name to the disk before the bytes it names.
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
        folder: Contains its files.
        manifest: The content of its manifest.
        reused: Whether it was found in the store, not made by this call.
    """

    folder: Path
    manifest: dict[str, Any]
    reused: bool

    @property
    def size_bytes(self) -> int:
        """Size of its files without the manifest."""
        return sum(described["size_bytes"] for described in self.manifest["files"].values())


class Unfinished:
    """A folder that is being filled by the one process that holds its lock."""

    def __init__(self, folder: Path, lock: FileLock) -> None:
        """Empty the folder; the lock is held already."""
        self.folder = folder
        self._lock = lock
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    def finish(self, manifest: Mapping[str, Any]) -> Entry:
        """Flush its files to the disk, write the manifest, and release the lock."""
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

    def fill(self, make: Callable[[Path], dict[str, Any]]) -> Entry:
        """Let `make` fill the folder, and finish it with the fields that it returns; abandoned if it raises."""
        try:
            manifest = make(self.folder)
        except BaseException:
            self.abandon()
            raise
        return self.finish(manifest)

    def abandon(self) -> None:
        """Remove the folder, unless it was finished or abandoned before."""
        if not self._lock.is_locked:
            return  # without the lock, the folder may belong to another process by now
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()


@dataclass(frozen=True, kw_only=True)
class Store:
    """Finished entries below one root, as `ROOT/KIND/KEY/`."""

    root: Path
    _intact: set[Path] = field(default_factory=set, init=False, repr=False, compare=False)

    def find(self, kind: str, key: str) -> Entry | None:
        """The finished entry of a key, or None. Sizes of its files are checked; their content is not read."""
        folder = self.root / kind / key
        manifest = _read_manifest(folder)
        return None if manifest is None else Entry(folder=folder, manifest=manifest, reused=True)

    def use(self, kind: str, key: str) -> Entry | None:
        """The finished entry of a key, or None. Digests of its files are checked once per `Store` object.

        A damaged entry is removed with a warning, so that it is recomputed.
        """
        entry = self.find(kind, key)
        folder = self.root / kind / key
        if entry is not None and folder in self._intact:
            return entry
        damaged = _damaged_file(folder)
        if damaged is not None:
            warnings.warn(f"{damaged} is damaged; it is recomputed", CacheWarning, stacklevel=2)
            self._remove_damaged(kind, key)
            return None
        if entry is not None:
            self._intact.add(folder)
        return entry

    def begin(self, kind: str, key: str, *, wait: bool) -> Unfinished | None:
        """Start an entry.

        Args:
            kind: Kind of entry, e.g. `"features"`.
            key: Digest of everything that its content depends on.
            wait: Whether to wait for another process that is filling the entry; if not, None is returned.

        Returns:
            An empty folder to fill; None: another process has finished the entry meanwhile, or is filling it.

        Raises:
            DiskError: The folder cannot be created.
        """
        from filelock import FileLock, Timeout  # deferred: not needed if everything is cached

        folder = self.root / kind / key
        lock = FileLock(folder.with_suffix(".lock"))
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            if wait:
                acquire(lock, f"computes {kind}/{key[:12]}")
            else:
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    return None
            # Looked up again under the lock: another process may have finished the entry while this one waited for it.
            if self.find(kind, key) is not None:
                lock.release()
                return None
            return Unfinished(folder, lock)

    def obtain(self, kind: str, key: str, make: Callable[[Path], dict[str, Any]]) -> Entry:
        """The finished entry of a key, made now if it is not cached.

        Args:
            kind: Kind of entry, e.g. `"lalms"`.
            key: Digest of everything that its content depends on.
            make: Fills the empty folder that it is given, and returns additional fields of the manifest. If it raises,
                the folder is removed.

        Raises:
            DiskError: It cannot be written.
        """
        while True:
            entry = self.use(kind, key)
            if entry is not None:
                return entry
            unfinished = self.begin(kind, key, wait=True)
            if unfinished is not None:  # no other process has finished it meanwhile
                return unfinished.fill(make)

    def entries(self, kind: str) -> list[Entry]:
        """All finished entries of a kind."""
        folder = self.root / kind
        keys = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
        return [entry for entry in (self.find(kind, key) for key in sorted(keys)) if entry is not None]

    def _remove_damaged(self, kind: str, key: str) -> None:
        """Remove a damaged entry, unless another process is recomputing it, or has done so meanwhile."""
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
        """Remove an entry: its manifest first, so that a half-removed one is never used."""
        folder = self.root / kind / key
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        self._intact.discard(folder)

    def remove_leftovers(self, kind: str) -> None:
        """Remove folders that killed processes left unfinished; a folder that is being filled is locked, and stays."""
        from filelock import FileLock, Timeout

        # Every folder that was ever started has a lock file beside it.
        for lock_file in sorted((self.root / kind).glob("*.lock")):
            folder = lock_file.with_suffix("")
            if not folder.is_dir() or (folder / MANIFEST).exists():
                continue
            try:
                with FileLock(lock_file, timeout=0):
                    if not (folder / MANIFEST).exists():  # not finished meanwhile
                        shutil.rmtree(folder, ignore_errors=True)
            except Timeout:
                continue


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished folder, if all files are there with the right sizes; else None."""
    try:
        manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
        is_whole = manifest["key"] == folder.name and all(
            (folder / name).stat().st_size == described["size_bytes"] for name, described in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if is_whole else None


def _damaged_file(folder: Path) -> Path | None:
    """The first file that differs from the manifest; None: no file does, or the folder is unfinished."""
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
    """Flush a file to the disk; its size and digest."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"size_bytes": path.stat().st_size, "sha256": file_digest(path)}
