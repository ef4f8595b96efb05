"""Cached digests of large files, valid while the files do not change.

The full benchmark is 129 GB; reading it all at every start would take minutes. A digest is cached together with the
file's size, inode and times of change, and a file that differs in any of these is read again. The time of the inode's
change (ctime) is among them because a program can set the modification time back, but not this one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xares_bench.core.digests import file_digest
from xares_bench.core.parsing import parse_json
from xares_bench.core.store import write_atomically
from xares_bench.hub.lock import CACHE_FOLDER, FileInfo

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class DigestCache:
    """Caches the digests of the files below a folder, in one small file per file.

    One file each, not one for all: threads and processes that verify files at once need no lock.

    Attributes:
        folder: Contains the files.
        write: Whether to cache computed digests; False for a folder that cannot be written to.
        cache_folder: Contains the small files; None: the folder's own cache.
        compute: Computes the SHA-256 of a file.
    """

    folder: Path
    write: bool
    cache_folder: Path | None = None
    compute: Callable[[Path], str] = file_digest

    def sha256(self, path: str) -> str:
        """SHA-256 of a file; the file is read only if its digest is not cached.

        Raises:
            OSError: The file cannot be read.
        """
        return self._digest(path, "sha256", self.compute)

    def knows(self, path: str) -> bool:
        """Whether the SHA-256 of a file is cached."""
        return "sha256" in self._cached(path)

    def matches(self, path: str, info: FileInfo) -> bool | None:
        """Whether a file has the expected size and digest; None: the file would have to be read to tell."""
        cached = self._cached(path)
        if info.size_bytes is not None and (self.folder / path).stat().st_size != info.size_bytes:
            return False
        for name, digest in (("sha256", info.sha256), ("git_sha1", info.git_sha1)):
            if digest is not None:
                return cached[name] == digest if name in cached else None
        return True

    def check(self, path: str, info: FileInfo) -> bool:
        """Whether a file has the expected size and digest; it is read only if its digest is not cached.

        Raises:
            OSError: The file cannot be read.
        """
        matches = self.matches(path, info)
        if matches is None and info.sha256 is not None:
            return self.sha256(path) == info.sha256
        if matches is None:
            return self._digest(path, "git_sha1", git_digest) == info.git_sha1
        return matches

    def add(self, path: str, info: FileInfo) -> None:
        """Cache the digests of a file whose bytes have just been compared with them."""
        digests = {"sha256": info.sha256, "git_sha1": info.git_sha1}
        known = {name: digest for name, digest in digests.items() if digest is not None}
        if self.write:
            self._write(path, {**_identity(self.folder / path), **known})

    def _digest(self, path: str, name: str, compute: Callable[[Path], str]) -> str:
        cached = self._cached(path)
        if name in cached:
            return cached[name]
        before = _identity(self.folder / path)
        digest = compute(self.folder / path)
        if self.write and _identity(self.folder / path) == before:  # otherwise it changed while it was read
            self._write(path, {**before, **cached, name: digest})
        return digest

    def _cached(self, path: str) -> dict[str, str]:
        """Cached digests of the file in its present state, by algorithm."""
        identity = _identity(self.folder / path)
        try:
            known = parse_json(self._file(path).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(known, dict) or any(known.get(key) != value for key, value in identity.items()):
            return {}
        return {name: known[name] for name in ("sha256", "git_sha1") if isinstance(known.get(name), str)}

    def _write(self, path: str, content: dict[str, int | str]) -> None:
        # A digest that cannot be written costs only time: on a full disk the file is read again at the next start.
        with contextlib.suppress(OSError):
            write_atomically(self._file(path), json.dumps(content) + "\n")

    def _file(self, path: str) -> Path:
        return (self.cache_folder or self.folder / CACHE_FOLDER) / f"{path}.json"


def git_digest(path: Path) -> str:
    """Git's object id of a file: SHA-1 of `blob SIZE`, a zero byte and its bytes."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _identity(path: Path) -> dict[str, int]:
    status: os.stat_result = path.stat()
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
    }
