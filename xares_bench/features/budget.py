"""The features' budget: how much disk they may take, and which are given up for new ones.

What was used longest ago goes first, but nothing that this process or another living one has used: whoever trains on
features for days must not lose them. Each process has a lease, a file that lists the keys it uses, beside a lock that
it holds while it lives.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from pathlib import Path

from filelock import FileLock, Timeout

from xares_bench.core.store import MANIFEST, Entry, Store

KIND = "features"

# Other processes keep features, too: after so long, what there is is looked at again.
_LOOK_AGAIN_S = 60.0

# Of the disk that is free or taken by features already, when no budget is given.
DEFAULT_SHARE = 0.5


class FeatureBudget:
    """Gives the features of a store room, and takes it from others."""

    def __init__(self, store: Store, max_bytes: int | None) -> None:
        """Nothing is looked at or created yet.

        Args:
            store: Holds the features.
            max_bytes: What they may take; None: a share of the disk.
        """
        self._store = store
        self._asked_bytes = max_bytes
        self._max_bytes: int | None = max_bytes
        self._writing_bytes = 0
        # What is free to be taken without looking again at what there is.
        self._known_room_bytes = 0
        self._looked_s = 0.0
        self._lease: _Lease | None = None
        self._has_swept = False

    @property
    def max_bytes(self) -> int:
        """What features may take."""
        if self._max_bytes is None:
            free_bytes = shutil.disk_usage(_existing(self._store.root)).free
            self._max_bytes = round(DEFAULT_SHARE * (free_bytes + self.kept_bytes))
        return self._max_bytes

    @property
    def kept_bytes(self) -> int:
        """What finished features take."""
        return sum(entry.size_bytes for entry in self._store.entries(KIND))

    def use(self, key: str) -> Entry | None:
        """The features of that key, which from now on are not given up while this process lives; or None."""
        if not (self._store.root / KIND / key / MANIFEST).is_file():
            return None
        with self._alone():
            entry = self._store.use(KIND, key)
            if entry is not None:
                self._leased.add(key)
                os.utime(entry.folder / MANIFEST)
        return entry

    def hold(self, key: str) -> None:
        """Features that are being written are not given up either, once they are finished, while this process lives.

        Else a first pass over more data than there is room for would write all of it, and keep the end of it only.
        """
        with self._alone():
            self._leased.add(key)

    def reserve(self, size_bytes: int) -> bool:
        """Whether there is room for so much more, after giving up what may be given up."""
        is_known = size_bytes <= self._known_room_bytes and time.monotonic() - self._looked_s < _LOOK_AGAIN_S
        if not is_known and not self._make_room(size_bytes):
            return False
        self._known_room_bytes -= size_bytes
        self._writing_bytes += size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        """What was reserved is given back, or is a finished entry by now."""
        self._writing_bytes -= size_bytes
        self._known_room_bytes = 0

    def _make_room(self, size_bytes: int) -> bool:
        if self._writing_bytes + size_bytes > self.max_bytes:
            return False
        with self._alone():
            if not self._has_swept:
                self._store.remove_leftovers(KIND)
                self._has_swept = True
            entries = self._store.entries(KIND)
            excess_bytes = (
                sum(entry.size_bytes for entry in entries) + self._writing_bytes + size_bytes - self.max_bytes
            )
            if excess_bytes > 0:
                used = self._leased.keys | self._leased.of_others()
                unused = [entry for entry in entries if entry.folder.name not in used]
                if sum(entry.size_bytes for entry in unused) < excess_bytes:
                    return False
                for entry in sorted(unused, key=lambda entry: (entry.folder / MANIFEST).stat().st_mtime_ns):
                    self._store.remove(KIND, entry.folder.name)
                    excess_bytes -= entry.size_bytes
                    if excess_bytes <= 0:
                        break
        self._known_room_bytes = size_bytes - excess_bytes
        self._looked_s = time.monotonic()
        return True

    def _alone(self) -> FileLock:
        folder = self._store.root / KIND
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / "budget.lock")

    @property
    def _leased(self) -> _Lease:
        if self._lease is None:
            self._lease = _Lease(self._store.root / KIND / "leases")
        return self._lease


class _Lease:
    """The keys that this process uses, for others to read."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.keys: set[str] = set()
        self._file = folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.keys"
        self._lock = FileLock(self._file.with_suffix(".lock"))
        self._lock.acquire()

    def add(self, key: str) -> None:
        """Use a key from now on."""
        if key not in self.keys:
            self.keys.add(key)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(key + "\n")

    def of_others(self) -> set[str]:
        """The keys that other living processes use; what dead ones have left is cleaned up."""
        used: set[str] = set()
        for lock_file in self._file.parent.glob("*.lock"):
            keys_file = lock_file.with_suffix(".keys")
            if keys_file == self._file:
                continue
            lock = FileLock(lock_file)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                used.update(keys_file.read_text(encoding="utf-8").split() if keys_file.is_file() else ())
                continue
            keys_file.unlink(missing_ok=True)
            lock_file.unlink(missing_ok=True)
            lock.release()
        return used


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return path if path.exists() else _existing(path.parent)
