"""Inventories: what a shard holds, found by walking it before a training needs it.

A walk reads the whole archive: headers, names, JSON and targets of every sample. Reading all audio would take too long:
clips of each suffix are read until one can be, and those that do not begin like audio. A shard whose digest is not
known is walked while its bytes are digested, in one pass over the file. Inventories are cached by the shard's digest,
so that a shard is walked once, whatever its name and place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from xares_bench.config.catalogue import Split
from xares_bench.core.digests import code_digest, digest_of, file_digest, library_versions
from xares_bench.core.errors import DataError, DiskError
from xares_bench.core.locks import acquire
from xares_bench.core.parsing import parse_json
from xares_bench.core.progress import Advance
from xares_bench.core.store import write_atomically
from xares_bench.datasets.audio import missing_extra
from xares_bench.datasets.shards import Sample, Shard, read_audio_of, read_samples, unreadable
from xares_bench.datasets.targets import targets_of

# Modules whose code an inventory depends on. A test compares the list with what these modules import
# (`tests/suite/test_keys.py`).
INVENTORY_MODULES = (
    "core.parsing",
    "datasets.audio",
    "datasets.containers",
    "datasets.inventory",
    "datasets.mpeg",
    "datasets.ogg",
    "datasets.part",
    "datasets.shards",
    "datasets.targets",
)

_CHUNK_BYTES = 1 << 20
_AUDIO_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"ID3", b"\x30\x26\xb2\x75")
_MAX_NAMED = 3
_MAX_REASON_CHARACTERS = 300
# Far above the labels of any classification, and the texts of most shards.
_MAX_TARGET_CHARACTERS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What a shard holds for a split with certain target keys.

    Attributes:
        num_samples: Its samples, the unusable ones included.
        unusable: Indices of samples that are known to be unusable.
        named: Key and reason of the first of them.
        without_target: Indices of the others whose targets are all corrupt.
        suffixes: Suffixes of the audio of those that are not unusable.
        targets: Their different targets; None: too much text to keep.
        damage: Why the archive cannot be read to its end; None: it can.
    """

    num_samples: int = 0
    unusable: tuple[int, ...] = ()
    named: tuple[tuple[str, str], ...] = ()
    without_target: tuple[int, ...] = ()
    suffixes: tuple[str, ...] = ()
    targets: tuple[str, ...] | None = ()
    damage: str | None = None


class Stopped(Exception):
    """A walk was stopped, because the session is interrupted."""


class Inventories:
    """Walks shards, and remembers what they hold: in memory, and on disk by the digests of their bytes."""

    def __init__(self, folder: Path, splits: Mapping[Path, Iterable[Split]]) -> None:
        """Nothing is read yet.

        Args:
            folder: Caches inventories, in one small file each.
            splits: The splits that need the shard at a path; `digest` walks it for these.
        """
        self.stop = threading.Event()
        self._folder = folder
        self._splits = splits
        self._known: dict[str, Inventory] = {}
        self._advance: Advance | None = None
        self._reading_audio = threading.Lock()

    @contextlib.contextmanager
    def shown(self, advance: Advance) -> Iterator[None]:
        """Report bytes that are read during the block; may be called from any thread."""
        self._advance = advance
        try:
            yield
        finally:
            self._advance = None

    def digest(self, path: Path) -> str:
        """SHA-256 of a file; if splits need it, it is walked in the same pass.

        Raises:
            OSError: The file cannot be read.
        """
        splits = {split.target_keys: split for split in self._splits.get(path, ())}
        if not splits:
            return file_digest(path)
        with path.open("rb") as opened:
            digest, found = self._walk(Shard(path=path, name=path.name, digest=""), opened, splits.values())
        for split, inventory in zip(splits.values(), found, strict=True):
            self._keep(_key(digest, split), inventory)
        return digest

    def of(self, shard: Shard, split: Split) -> Inventory:
        """The inventory of a shard for a split: known, or found now.

        Raises:
            DataError: The shard changed since it was digested, or cannot be read.
        """
        key = _key(shard.digest, split)
        found = self._find(key)
        if found is not None:
            return found
        with self._lock(key):  # another process may be walking it
            found = self._find(key)
            if found is None:
                try:
                    with shard.path.open("rb") as opened:
                        _, (found,) = self._walk(dataclasses.replace(shard, status=None), opened, [split])
                        shard.check_status(opened)
                except OSError as cause:
                    raise unreadable(shard.path, cause) from None
                self._keep(key, found)
        return found

    def is_known(self, shard: Shard, split: Split) -> bool:
        """Whether a shard need not be walked any more."""
        return self._find(_key(shard.digest, split)) is not None

    def _walk(self, shard: Shard, opened: BinaryIO, splits: Iterable[Split]) -> tuple[str, list[Inventory]]:
        """Digest of a file that is read once, and what it holds for each split.

        Raises:
            OSError: The file cannot be read.
        """
        file = _DigestedFile(opened, self._count_bytes)
        counts = [_Count(split, functools.partial(self._audio_problem, shard)) for split in splits]
        damage: str | None = None
        try:
            for sample in read_samples(shard, cast(BinaryIO, file)):
                for count in counts:
                    count.add(sample)
        except DataError as error:
            if file.failure is not None:  # a bad disk, not a bad archive
                raise file.failure from None
            damage = str(error).removeprefix(f"{shard.path}: ")  # the same content may lie elsewhere, too
        return file.digest(), [count.inventory(damage) for count in counts]

    def _audio_problem(self, shard: Shard, sample: Sample) -> str | None:
        """Why the audio of a sample cannot be read; None: it can.

        Raises:
            OutOfMemory: There is too little memory to read it.
        """
        with self._reading_audio:  # one at a time: a clip may take a gigabyte
            try:
                read_audio_of(sample, shard.name)
            except ValueError as cause:
                return str(cause)
        return None

    def _count_bytes(self, num_bytes: int) -> None:
        """Report bytes that were read.

        Raises:
            Stopped: `stop` is set.
        """
        if self.stop.is_set():
            raise Stopped
        if self._advance is not None:
            self._advance(num_bytes)

    def _find(self, key: str) -> Inventory | None:
        if key not in self._known:
            try:
                self._known[key] = _from_json(parse_json((self._folder / f"{key}.json").read_bytes()))
            except (OSError, ValueError, KeyError, TypeError):
                return None
        return self._known[key]

    def _keep(self, key: str, inventory: Inventory) -> None:
        self._known[key] = inventory
        # What cannot be written costs only time: the next session walks the shard again.
        with contextlib.suppress(DiskError):
            write_atomically(self._folder / f"{key}.json", json.dumps(dataclasses.asdict(inventory)) + "\n")

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        """Keep other processes from walking the same shard at the same time."""
        from filelock import FileLock

        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # nowhere to write to
                self._folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(acquire(FileLock(self._folder / f"{key}.lock"), "walks the same shard"))
            yield


class _Count:
    """What was found in a shard so far, for one split."""

    def __init__(self, split: Split, audio_problem: Callable[[Sample], str | None]) -> None:
        self._split = split
        self._audio_problem = audio_problem
        self._num_samples = 0
        self._unusable: list[int] = []
        self._named: list[tuple[str, str]] = []
        self._without_target: list[int] = []
        self._suffixes: set[str] = set()
        self._read: set[str] = set()
        self._targets: dict[str, None] = {}
        self._num_characters = 0

    def add(self, sample: Sample) -> None:
        """Count one more sample."""
        problem = sample.problem
        targets: tuple[str, ...] = ()
        if problem is None:
            try:
                # Corrupt ones are left out, which does not make a sample unusable.
                targets = targets_of(sample.fields, self._split).texts
            except ValueError as cause:
                problem = str(cause)
        is_tried = sample.suffix not in self._read or not _begins_like_audio(sample.audio or b"")
        if problem is None and is_tried and missing_extra(sample.suffix) is None:
            problem = self._audio_problem(sample)
            if problem is None:
                self._read.add(sample.suffix)
        if problem is None:
            self._suffixes.add(sample.suffix)
            self._keep(targets)
            if not targets:
                self._without_target.append(self._num_samples)
        else:
            self._unusable.append(self._num_samples)
            if len(self._named) < _MAX_NAMED:
                self._named.append((sample.key, problem[:_MAX_REASON_CHARACTERS]))
        self._num_samples += 1

    def _keep(self, targets: Iterable[str]) -> None:
        for target in targets:
            if target not in self._targets and self._num_characters <= _MAX_TARGET_CHARACTERS:
                self._targets[target] = None
                self._num_characters += len(target)

    def inventory(self, damage: str | None) -> Inventory:
        """What was found."""
        return Inventory(
            num_samples=self._num_samples,
            unusable=tuple(self._unusable),
            named=tuple(self._named),
            without_target=tuple(self._without_target),
            suffixes=tuple(sorted(self._suffixes)),
            targets=tuple(self._targets) if self._num_characters <= _MAX_TARGET_CHARACTERS else None,
            damage=damage,
        )


class _DigestedFile:
    """A file whose bytes are digested while they are read, each once and in order, also those that are skipped.

    Attributes:
        failure: The error that ended the reading, if the system raised one.
    """

    def __init__(self, file: BinaryIO, count_bytes: Callable[[int], None]) -> None:
        self.failure: OSError | None = None
        self._file = file
        self._count_bytes = count_bytes
        self._sha256 = hashlib.sha256()
        self._num_digested = 0
        self.tell, self.fileno = file.tell, file.fileno

    def read(self, size: int = -1) -> bytes:
        """Read like a file."""
        try:
            data = self._file.read(size)
        except OSError as cause:
            self.failure = cause
            raise
        num_new = self._file.tell() - self._num_digested
        if num_new > 0:  # else it was read before: the first bytes tell whether the file is compressed
            self._sha256.update(memoryview(data)[-num_new:])
            self._num_digested += num_new
            self._count_bytes(num_new)
        return data

    def seek(self, offset: int) -> int:
        """Go to a place; what is skipped on the way is read."""
        self._read_to(offset)
        return self._file.seek(offset)

    def digest(self) -> str:
        """SHA-256 of the whole file, whose rest is read now."""
        self._read_to(None)
        return self._sha256.hexdigest()

    def _read_to(self, offset: int | None) -> None:
        """Digest the bytes before an offset, or all of them."""
        if offset is not None and offset <= self._num_digested:
            return
        self._file.seek(self._num_digested)
        while offset is None or self._num_digested < offset:
            left = _CHUNK_BYTES if offset is None else min(_CHUNK_BYTES, offset - self._num_digested)
            if not self.read(left):
                return


def _begins_like_audio(data: bytes) -> bool:
    """Whether the first bytes are those of a usual audio file; others may be audio, too."""
    is_mpeg = data[:1] == b"\xff" and data[1:2] >= b"\xe0"
    return is_mpeg or data.startswith(_AUDIO_MAGIC) or data[4:8] == b"ftyp"


def _key(digest: str, split: Split) -> str:
    """Digest of everything that an inventory depends on."""
    return digest_of(
        {
            "shard": digest,
            "target_keys": list(split.target_keys),
            "code": code_digest(*(f"xares_bench.{name}" for name in INVENTORY_MODULES)),
            "libraries": library_versions(("av", "numpy", "soundfile", "soxr")),
        }
    )


def _from_json(value: dict[str, Any]) -> Inventory:
    return Inventory(
        num_samples=int(value["num_samples"]),
        unusable=tuple(map(int, value["unusable"])),
        named=tuple((str(key), str(reason)) for key, reason in value["named"]),
        without_target=tuple(map(int, value["without_target"])),
        suffixes=tuple(map(str, value["suffixes"])),
        targets=None if value["targets"] is None else tuple(map(str, value["targets"])),
        damage=None if value["damage"] is None else str(value["damage"]),
    )
