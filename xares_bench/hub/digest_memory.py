"""Digests of large files, remembered for as long as the files stay as they are.

The full benchmark is 129 GB; reading it all at every start would take minutes. A digest is remembered together with
the file's size, inode and times of change, and a file that differs in any of these is read again.
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
from xares_bench.hub.lock import CACHE_FOLDER, Promise

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class DigestMemory:
    """Remembers digests of the files below a folder, in a small file for each.

    Attributes:
        folder: Where the files are.
        keep: Whether to remember what is computed; False for a folder that cannot be written to.
        cache: Where the small files go; None: into the folder's own cache.
    """

    folder: Path
    keep: bool
    cache: Path | None = None

    def sha256(self, path: str) -> str:
        """SHA-256 of a file, read only if it is not remembered.

        Raises:
            OSError: The file cannot be read.
        """
        return self._digest(path, "sha256", file_digest)

    def keeps(self, path: str, promise: Promise) -> bool | None:
        """Whether a file is what was promised; None if that takes reading it."""
        known = self._recall(path)
        if promise.size_bytes is not None and (self.folder / path).stat().st_size != promise.size_bytes:
            return False
        for name, digest in (("sha256", promise.sha256), ("git_sha1", promise.git_sha1)):
            if digest is not None:
                return known[name] == digest if name in known else None
        return True

    def check(self, path: str, promise: Promise) -> bool:
        """Whether a file is what was promised, read only if it is not remembered.

        Raises:
            OSError: The file cannot be read.
        """
        kept = self.keeps(path, promise)
        if kept is None and promise.sha256 is not None:
            return self.sha256(path) == promise.sha256
        if kept is None:
            return self._digest(path, "git_sha1", git_digest) == promise.git_sha1
        return kept

    def remember(self, path: str, promise: Promise) -> None:
        """Take a file for what was promised, because its bytes have just been compared."""
        digests = {"sha256": promise.sha256, "git_sha1": promise.git_sha1}
        known = {name: digest for name, digest in digests.items() if digest is not None}
        if self.keep:
            self._write(path, {**_identity(self.folder / path), **known})

    def _digest(self, path: str, name: str, compute: Callable[[Path], str]) -> str:
        known = self._recall(path)
        if name in known:
            return known[name]
        before = _identity(self.folder / path)
        digest = compute(self.folder / path)
        if self.keep and _identity(self.folder / path) == before:  # else it was written to while it was read
            self._write(path, {**before, **known, name: digest})
        return digest

    def _recall(self, path: str) -> dict[str, str]:
        """Remembered digests of the file as it is now, by name."""
        identity = _identity(self.folder / path)
        try:
            known = parse_json(self._file(path).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(known, dict) or any(known.get(key) != value for key, value in identity.items()):
            return {}
        return {name: known[name] for name in ("sha256", "git_sha1") if isinstance(known.get(name), str)}

    def _write(self, path: str, content: dict[str, int | str]) -> None:
        # Forgetting costs time, never truth: on a full disk the file is read again next time.
        with contextlib.suppress(OSError):
            write_atomically(self._file(path), json.dumps(content) + "\n")

    def _file(self, path: str) -> Path:
        return (self.cache or self.folder / CACHE_FOLDER) / f"{path}.json"


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
