"""What is wanted from the hub, and what of it is there."""

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
        size_bytes: Its size; None where nobody could be asked.
    """

    repository: str
    path: str
    size_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What is wanted, and what of it is there.

    Attributes:
        folder: Where the files belong.
        num_files: Files that are wanted.
        size_bytes: Their sizes, as far as they are known.
        num_present: Those of them that are there with the right size.
        present_bytes: Their sizes.
        unchecked: Those of them whose digest has yet to be compared with what the hub promises.
        missing: Files to fetch.
        missing_bytes: Their sizes, as far as they are known.
        partial_bytes: What earlier, unfinished transfers have left of them.
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
        """One line for people.

        >>> Survey(folder=Path("data"), num_files=431, size_bytes=12_300_000_000, num_present=430,
        ...        present_bytes=12_270_000_000, missing_bytes=30_000_000, free_bytes=200_000_000_000,
        ...        missing=(HubFile(repository="a/b", path="c", size_bytes=30_000_000),)).summary
        '431 files, 12.3 GB; 430 there, 1 to fetch (30.0 MB); 200.0 GB free'
        """
        from rich.filesize import decimal

        known = all(file.size_bytes is not None for file in self.missing)
        parts = [f"{self.num_present} there" if self.num_present < self.num_files else "all there"]
        if self.unchecked:
            parts[0] += f" ({len(self.unchecked)} to check)"
        if self.missing:
            parts.append(f"{len(self.missing)} to fetch ({decimal(self.missing_bytes) if known else 'size unknown'})")
        if self.absent:
            parts.append(f"{len(self.absent)} not in the repository")
        files = f"{self.num_files} {'file' if self.num_files == 1 else 'files'}"
        size = f", {decimal(self.size_bytes)}" if known else ""
        return f"{files}{size}; {', '.join(parts)}; {decimal(self.free_bytes)} free"

    def check_space(self) -> None:
        """Refuse a transfer that the disk cannot hold.

        Raises:
            UsageError: There is too little free space for what is missing.
        """
        needed_bytes = self.missing_bytes - self.partial_bytes
        if needed_bytes > self.free_bytes:
            from rich.filesize import decimal

            raise UsageError(
                f"{self.folder}: {decimal(needed_bytes)} to fetch, {decimal(self.free_bytes)} free on its disk; "
                "make room, or name a folder on another disk"
            )


def free_bytes(folder: Path) -> int:
    """Free space on the disk of a folder that may not be there yet."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def total_bytes(files: Iterable[HubFile]) -> int:
    """The sizes of files, as far as they are known."""
    return sum(file.size_bytes or 0 for file in files)


def size_on_disk(path: Path) -> int:
    """Size of a file; 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0
