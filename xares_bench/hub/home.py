"""A data folder with files of the hub: surveys what is present and what is missing, downloads and verifies it.

A file has the same path as in its repository, so a folder filled by `hf download` works without changes. A file under
its final name always has the size and SHA-256 that the hub lists: bytes gather in a `.part` file in the folder's cache,
which is renamed only after it was verified and flushed to the disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from xares_bench.core.digests import file_digest
from xares_bench.core.errors import DataError, UsageError
from xares_bench.core.file_kinds import path_problem, what_instead
from xares_bench.core.locks import acquire
from xares_bench.core.progress import Advance, Progress
from xares_bench.hub import client
from xares_bench.hub.digest_cache import DigestCache
from xares_bench.hub.lock import CACHE_FOLDER, FileInfo, Repository, is_writable
from xares_bench.hub.pins import DataPins
from xares_bench.hub.survey import HubFile, Survey, free_bytes, size_on_disk, total_bytes

_NUM_THREADS = 8
# After this many files in a row without a byte from the hub, the others are not tried.
_MAX_UNREACHABLE = 8


class DataHome:
    """A folder with files of the hub's dataset repositories, under their paths in the repository."""

    def __init__(
        self,
        folder: Path,
        revisions: Mapping[str | None, str] | None = None,
        *,
        write: bool = True,
        digest: Callable[[Path], str] = file_digest,
    ) -> None:
        """Nothing is read, created or requested before it is needed.

        Args:
            folder: Contains the files, or will.
            revisions: Branch, tag or commit to use from now on, per repository; under None for all others.
            write: Whether to write the lock file and cached digests.
            digest: Computes the SHA-256 of a file of the folder.
        """
        self.folder = folder.absolute()
        write = write and is_writable(self.folder)
        self._pins = DataPins(self.folder, revisions or {}, write=write)
        self._digests = DigestCache(folder=self.folder, write=write, compute=digest)
        self._failures: dict[tuple[str, str], str] = {}

    def survey(self, needed: Mapping[str, Sequence[str]]) -> Survey:
        """Which of the needed files are present.

        The hub is asked only for what is neither in the lock file nor in the metadata of `hf download`, and never if
        HF_HUB_OFFLINE is set. No shard is read.

        Args:
            needed: Paths per repository.

        Raises:
            UsageError: A path leads out of the folder, or a revision of `--data-revision` is unknown.
            DataError: The hub does not answer, or does not have this repository or revision.
        """
        present: list[HubFile] = []
        unchecked, missing, absent = [], [], []
        for repository, paths in needed.items():
            for path in paths:
                if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                    raise UsageError(f"{path}: expected a path inside the repository {repository}")
            self._pins.learn(repository, paths)
            for path in dict.fromkeys(paths):
                file = self._describe(repository, path)
                whole = self._is_whole(file)
                if self._is_absent(file):
                    absent.append(file)
                elif whole is False:
                    missing.append(file)
                else:
                    present.append(file)
                    if whole is None:
                        unchecked.append(file)
        for file in absent:
            self._failures[file.repository, file.path] = (
                f"{file.path}: {file.repository} has no such file at commit {self.commit(file.repository) or ''}; "
                "check the name, or choose another --data-revision"
            )
        return Survey(
            folder=self.folder,
            num_files=len(present) + len(missing) + len(absent),
            size_bytes=total_bytes(present) + total_bytes(missing),
            num_present=len(present),
            present_bytes=total_bytes(present),
            unchecked=tuple(unchecked),
            missing=tuple(missing),
            missing_bytes=total_bytes(missing),
            partial_bytes=sum(size_on_disk(self._part(file)) for file in missing),
            absent=tuple(absent),
            free_bytes=free_bytes(self.folder),
        )

    def fetch(self, survey: Survey, progress: Progress) -> None:
        """Verify present files, and fetch missing or damaged ones.

        The error of a file that cannot be fetched is stored and raised by `file`, so that it costs only the datasets
        that need the file. Offline, nothing is fetched.

        Raises:
            UsageError: The disk has too little room.
            DataError: The hub does not answer.
        """
        damaged = self._find_damaged(survey.unchecked, progress)
        if client.is_offline():
            return
        for repository in {file.repository for file in damaged}:
            self._pins.learn(repository, [file.path for file in damaged if file.repository == repository], sizes=True)
        files = [*survey.missing, *(self._describe(file.repository, file.path) for file in damaged)]
        now = dataclasses.replace(
            survey,
            missing_bytes=total_bytes(files),
            partial_bytes=sum(size_on_disk(self._part(file)) for file in files),
            free_bytes=free_bytes(self.folder),
        )
        now.check_space()
        batch = _Batch()

        def work(file: HubFile, advance: Advance) -> None:
            self._fetch_file(file, advance, batch)

        _run("fetching shards", work, files, progress, batch.stop)

    def digest(self, repository: str, path: str) -> str:
        """SHA-256 of a file: the one that the hub lists, or that of the file on disk if none is known.

        Raises:
            DataError: No digest is known, and the file is missing.
        """
        info = self._pins.info(repository, path)
        if info is not None and info.sha256 is not None:
            return info.sha256
        if not (self.folder / path).is_file():
            raise DataError(self._failures.get((repository, path)) or self._not_there(path))
        return self._digests.sha256(path)

    def file(self, repository: str, path: str) -> Path:
        """The path of a file that has the size and digest that the hub lists, if they are known.

        Raises:
            DataError: The file is missing or differs; the message says what to do.
        """
        target = self.folder / path
        failure = self._failures.get((repository, path))
        if failure is not None:
            raise DataError(failure)
        if not target.is_file() or path_problem(target) is not None:
            raise DataError(self._not_there(path))
        info = self._pins.info(repository, path)
        if info is not None and not self._digests.check(path, info):
            found_bytes, commit = target.stat().st_size, self.commit(repository) or ""
            found, expected = f"{found_bytes} bytes", f"{info.size_bytes} bytes"
            if info.size_bytes in (None, found_bytes):
                found, expected = (
                    f"SHA-256 {self._digests.sha256(path)[:12]}...",
                    f"{(info.sha256 or 'another')[:12]}...",
                )
            instead = what_instead(target)
            if instead is not None:
                found = f"{instead.partition(',')[0]}, {found}"
            raise DataError(
                f"{target}: damaged or of another commit: {found}, {repository} at {commit[:12]} has {expected}; "
                "fetch it again with `python -m xares_bench download`"
            )
        return target

    def commit(self, repository: str) -> str | None:
        """The commit of a repository that is in use; None if it is not known."""
        pin = self._pins.pin(repository)
        return None if pin is None else pin.commit

    def _describe(self, repository: str, path: str) -> HubFile:
        info = self._pins.info(repository, path)
        size_bytes = None if info is None else info.size_bytes
        if size_bytes is None and (self.folder / path).is_file():
            size_bytes = size_on_disk(self.folder / path)
        return HubFile(repository=repository, path=path, size_bytes=size_bytes)

    def _is_absent(self, file: HubFile) -> bool:
        """Whether the repository does not have the file, according to the hub."""
        return self._pins.info(file.repository, file.path) is None and not client.is_offline()

    def _is_whole(self, file: HubFile) -> bool | None:
        """Whether a file is present and has the expected digest; None: it would have to be read to tell."""
        if not (self.folder / file.path).is_file():
            return False
        info = self._pins.info(file.repository, file.path)
        return True if info is None else self._digests.matches(file.path, info)

    def _not_there(self, path: str) -> str:
        problem = path_problem(self.folder / path)
        if problem is not None:
            return f"{self.folder / path}: {problem}"
        advice = "fetch it with `python -m xares_bench download`, or pass another --data-home"
        if client.is_offline():
            advice = "HF_HUB_OFFLINE is set: put the file there, pass another --data-home, or go online"
        return f"{self.folder / path}: this shard is missing; {advice}"

    def _part(self, file: HubFile) -> Path:
        """Receives the bytes of a file. Named after the digest, so that a transfer never resumes with other content."""
        info = self._pins.info(file.repository, file.path)
        digest = "" if info is None else info.sha256 or info.git_sha1 or ""
        return self.folder / CACHE_FOLDER / f"{file.path}.{digest[:16]}.part"

    def _find_damaged(self, files: Sequence[HubFile], progress: Progress) -> list[HubFile]:
        """The files whose digest differs from the hub's listing."""
        damaged: list[HubFile] = []
        stop = threading.Event()

        def work(file: HubFile, advance: Advance) -> None:
            info = self._pins.info(file.repository, file.path)
            if stop.is_set() or info is None:
                return
            try:
                if not self._digests.check(file.path, info):
                    damaged.append(file)
            except OSError as cause:
                self._failures[file.repository, file.path] = (
                    f"{self.folder / file.path}: {cause.strerror}; check the disk"
                )
            advance(file.size_bytes or 0)

        _run("checking shards", work, files, progress, stop)
        return damaged

    def _fetch_file(self, file: HubFile, advance: Advance, batch: _Batch) -> None:
        """Fetch one file, or store why it cannot be fetched."""
        info = self._pins.info(file.repository, file.path)
        assert info is not None, file
        target, part = self.folder / file.path, self._part(file)
        failure: str | None = None
        try:
            with _lock(self.folder / CACHE_FOLDER / f"{file.path}.lock", batch.stop):
                if target.is_file() and self._digests.check(file.path, info):
                    advance(file.size_bytes or 0)  # another process fetched it while this one waited for the lock
                else:
                    advance(size_on_disk(part))
                    self._transfer(file, info, part, advance, batch.stop)
            batch.renew()
        except client.Stopped:
            failure = f"{target}: not fetched, because another transfer failed: {batch.reason}"
        except DataError as cause:
            failure = str(cause)
            if isinstance(cause, client.UnreachableError):
                batch.lose(failure)
        except OSError as cause:
            part.unlink(missing_ok=True)
            failure = f"{target}: {cause.strerror}; check the disk, or choose another --data-home"
            if cause.errno in (errno.ENOSPC, errno.EDQUOT):
                failure = f"{target}: {cause.strerror}; make room, or choose a --data-home on another disk"
                batch.end(failure)
        if failure is not None:
            self._failures[file.repository, file.path] = failure
        else:
            self._failures.pop((file.repository, file.path), None)

    def _transfer(self, file: HubFile, info: FileInfo, part: Path, advance: Advance, stop: threading.Event) -> None:
        """Receive a file, verify it, and only then give it its final name."""
        commit = self.commit(file.repository)
        assert commit is not None, file
        repository = Repository(name=file.repository)
        for other in part.parent.glob(f"{glob.escape(PurePosixPath(file.path).name)}.*.part"):
            if other != part:
                other.unlink()  # the beginning of another revision's file
        client.download(repository, commit, file.path, info, part, advance, stop)
        received = DigestCache(folder=part.parent, write=False)
        if not received.check(part.name, info):
            digest = received.sha256(part.name)
            part.unlink()
            raise DataError(
                f"{self.folder / file.path}: the hub sent SHA-256 {digest[:12]}..., its listing says "
                f"{(info.sha256 or 'another')[:12]}...; the file was discarded: try again, and check the proxy if "
                "it recurs"
            )
        with part.open("rb") as content:
            os.fsync(content.fileno())  # before the rename: a file under its final name is trusted by its cached digest
        target = self.folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        self._digests.add(file.path, info)


class _Batch:
    """State that the transfers of one fetch share: all of them stop when further attempts are pointless."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.reason = "it was stopped"
        self._num_lost = 0

    def renew(self) -> None:
        """A file was fetched: start counting from zero."""
        self._num_lost = 0

    def lose(self, reason: str) -> None:
        """The hub sent nothing of a file; too many of these in a row stop all transfers."""
        self._num_lost += 1
        if self._num_lost >= _MAX_UNREACHABLE:
            self.end(reason)

    def end(self, reason: str) -> None:
        """Stop all transfers."""
        self.reason = reason
        self.stop.set()


def _run(
    title: str,
    work: Callable[[HubFile, Advance], None],
    files: Sequence[HubFile],
    progress: Progress,
    stop: threading.Event,
) -> None:
    """Call `work` on all files, on threads, with one progress bar; sets `stop` if interrupted."""
    if not files:
        return
    from concurrent.futures import ThreadPoolExecutor, as_completed

    with progress.bar(title, total_bytes(files), unit="bytes") as advance, ThreadPoolExecutor(_NUM_THREADS) as pool:
        futures = [pool.submit(work, file, advance) for file in files]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def _lock(path: Path, stop: threading.Event) -> Iterator[None]:
    """Lock a file against other processes; waits for one that has it, unless `stop` is set meanwhile."""
    from filelock import FileLock

    def check() -> None:
        if stop.is_set():
            raise client.Stopped

    path.parent.mkdir(parents=True, exist_ok=True)
    with acquire(FileLock(path), f"downloads {path.stem}", check):
        yield
