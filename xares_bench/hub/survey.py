"""Surveys: which files of the hub are needed, and which of them are present."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from xares_bench.core.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a repository.

    Attributes:
        repository: Owner and name of its repository.
        path: Its path in the repository.
        size_bytes: Its size; None if unknown, e.g. offline.
    """

    repository: str
    path: str
    size_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Which files are needed, and which of them are present.

    Attributes:
        folder: Folder for the files.
        num_files: Number of needed files.
        size_bytes: Their total size, as far as it is known.
        num_present: How many of them are present with the expected size.
        present_bytes: Total size of these.
        unchecked: Present files whose digest has not been compared with the hub's listing yet.
        missing: Files to fetch.
        missing_bytes: Their total size, as far as it is known.
        partial_bytes: Bytes of them that earlier, unfinished transfers left.
        absent: Files that their repositories do not have at the commit in use.
        free_bytes: Free space on the folder's disk.
    """

    folder: Path
    num_files: int
    size_bytes: int
    num_present: int
    present_bytes: int
    unchecked: tuple[HubFile, ...] = ()
    missing: tuple[HubFile, ...] = ()
    missing_bytes: int
    partial_bytes: int = 0
    absent: tuple[HubFile, ...] = ()
    free_bytes: int

    @property
    def summary(self) -> str:
        """One line about the files.

        >>> Survey(folder=Path("data"), num_files=431, size_bytes=12_300_000_000, num_present=430,
        ...        present_bytes=12_270_000_000, missing_bytes=30_000_000, free_bytes=200_000_000_000,
        ...        missing=(HubFile(repository="a/b", path="c", size_bytes=30_000_000),)).summary
        '431 files, 12.3 GB; 430 present, 1 to fetch (30.0 MB); 200.0 GB free'
        """
        from rich.filesize import decimal

        known = all(file.size_bytes is not None for file in self.missing)
        phrases = [f"{self.num_present} present" if self.num_present < self.num_files else "all present"]
        if self.unchecked:
            phrases[0] += f" ({len(self.unchecked)} to check)"
        if self.missing:
            phrases.append(f"{len(self.missing)} to fetch ({decimal(self.missing_bytes) if known else 'size unknown'})")
        if self.absent:
            phrases.append(f"{len(self.absent)} not in the repository")
        files = f"{self.num_files} {'file' if self.num_files == 1 else 'files'}"
        size = f", {decimal(self.size_bytes)}" if known else ""
        return f"{files}{size}; {', '.join(phrases)}; {decimal(self.free_bytes)} free"

    def check_space(self) -> None:
        """Refuse transfers that do not fit on the disk.

        Raises:
            UsageError: There is too little free space for what is missing.
        """
        needed_bytes = self.missing_bytes - self.partial_bytes
        if needed_bytes > self.free_bytes:
            from rich.filesize import decimal

            raise UsageError(
                f"{self.folder}: {decimal(needed_bytes)} to fetch, {decimal(self.free_bytes)} free on its disk; "
                "make room, or choose a folder on another disk"
            )


def free_bytes(folder: Path) -> int:
    """Free space on the disk of a folder that need not exist yet."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def total_bytes(files: Iterable[HubFile]) -> int:
    """The total size of files, as far as it is known."""
    return sum(file.size_bytes or 0 for file in files)


def size_on_disk(path: Path) -> int:
    """Size of a file; 0 if it does not exist."""
    return path.stat().st_size if path.is_file() else 0
