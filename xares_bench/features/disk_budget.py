"""The budget of cached features: how much disk they may take, and which are evicted for new ones.

The least recently used go first, but none that this or another living process has used: a training that reads its
features for days must not lose them. Every process has a lease: a file that lists the keys it uses, and a lock beside
it that it holds as long as it lives. The operating system releases the lock of a process that was killed, so a lease
never outlives its process, and needs no clock, heartbeat or cleaning up at exit.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout

from xares_bench.core.locks import acquire
from xares_bench.core.store import MANIFEST, Entry, Store

KIND = "features"

# Other processes cache features, too: the disk is measured again after this time.
_MEASURE_AGAIN_S = 60.0

# The default budget, as a share of the disk that is free or taken by cached features already.
DEFAULT_SHARE = 0.5


class FeatureBudget:
    """Reserves disk for the features of a store, and evicts unused ones."""

    def __init__(self, store: Store, max_bytes: int | None) -> None:
        """Nothing is read or created yet.

        Args:
            store: Holds the features.
            max_bytes: How much they may take; None: a share of the disk.
        """
        self._store = store
        self._max_bytes: int | None = max_bytes
        self._writing_bytes = 0
        # What may be reserved without measuring the disk again.
        self._known_room_bytes = 0
        self._measured_s = 0.0
        self._own_lease: _Lease | None = None
        self._has_swept = False

    @property
    def max_bytes(self) -> int:
        """How much features may take."""
        if self._max_bytes is None:
            free_bytes = shutil.disk_usage(_existing(self._store.root)).free
            self._max_bytes = round(DEFAULT_SHARE * (free_bytes + self.cached_bytes))
        return self._max_bytes

    @property
    def cached_bytes(self) -> int:
        """How much finished features take."""
        return sum(entry.size_bytes for entry in self._store.entries(KIND))

    def use(self, key: str) -> Entry | None:
        """The cached features of a key, or None; they are not evicted while this process lives."""
        if not (self._store.root / KIND / key / MANIFEST).is_file():
            return None
        # Found and leased under one lock: between the two, another process could evict the entry.
        with self._locked():
            entry = self._store.use(KIND, key)
            if entry is not None:
                self._leased.add(key)
                os.utime(entry.folder / MANIFEST)  # the time of the last use, which decides what is evicted first
        return entry

    def lease(self, key: str) -> None:
        """Protect features that are being written: once finished, they are not evicted while this process lives.

        Otherwise the first pass over a dataset larger than the budget would write all of it, and end with only the last
        shards cached, which the next pass evicts in turn before it reaches them.
        """
        with self._locked():
            self._leased.add(key)

    def reserve(self, size_bytes: int) -> bool:
        """Whether there is room for this many more bytes, after evicting what may be evicted."""
        is_known = size_bytes <= self._known_room_bytes and time.monotonic() - self._measured_s < _MEASURE_AGAIN_S
        if not is_known and not self._make_room(size_bytes):
            return False
        self._known_room_bytes -= size_bytes
        self._writing_bytes += size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        """Give up a reservation: its bytes belong to a finished entry by now, or were abandoned."""
        self._writing_bytes -= size_bytes
        self._known_room_bytes = 0

    def _make_room(self, size_bytes: int) -> bool:
        if self._writing_bytes + size_bytes > self.max_bytes:
            return False
        with self._locked():
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
                    return False  # before anything is evicted: evicting without gaining the room would help nobody
                for entry in sorted(unused, key=lambda entry: (entry.folder / MANIFEST).stat().st_mtime_ns):
                    self._store.remove(KIND, entry.folder.name)
                    excess_bytes -= entry.size_bytes
                    if excess_bytes <= 0:
                        break
        self._known_room_bytes = size_bytes - excess_bytes
        self._measured_s = time.monotonic()
        return True

    def _locked(self) -> AbstractContextManager[object]:
        """Hold the lock under which processes look up, lease and evict entries, one at a time."""
        folder = self._store.root / KIND
        folder.mkdir(parents=True, exist_ok=True)
        return acquire(FileLock(folder / "budget.lock"), "makes room for features")

    @property
    def _leased(self) -> _Lease:
        """This process's lease; made under `_locked`, so that nobody removes it before its lock is held."""
        if self._own_lease is None:
            self._own_lease = _Lease(self._store.root / KIND / "leases")
        return self._own_lease


class _Lease:
    """The keys that this process uses, in a file that other processes read."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.keys: set[str] = set()
        # The process id is for people; ids are used again, so a random part tells leases apart.
        self._file = folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.keys"
        self._lock = FileLock(self._file.with_suffix(".lock"))
        self._lock.acquire()

    def add(self, key: str) -> None:
        """Add a key to the lease."""
        if key not in self.keys:
            self.keys.add(key)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(key + "\n")

    def of_others(self) -> set[str]:
        """The keys that other living processes use; leases of dead processes are removed."""
        used: set[str] = set()
        for lock_file in self._file.parent.glob("*.lock"):
            keys_file = lock_file.with_suffix(".keys")
            if keys_file == self._file:
                continue
            lock = FileLock(lock_file)
            try:
                lock.acquire(timeout=0)
            except Timeout:  # its process lives
                used.update(keys_file.read_text(encoding="utf-8").split() if keys_file.is_file() else ())
                continue
            keys_file.unlink(missing_ok=True)
            lock_file.unlink(missing_ok=True)
            lock.release()
        return used


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return path if path.exists() else _existing(path.parent)
