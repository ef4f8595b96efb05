"""A data folder that is filled from the hub: what is there, what is missing, and fetching it.

Files lie in it under their paths in their repositories, so that a folder filled by `hf download` is used as it is. A
file counts only when its size and SHA-256 are those that the hub promised; until then it lies in the folder's cache.
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

from xares_bench.core.errors import DataError, UsageError
from xares_bench.core.progress import Advance, Progress
from xares_bench.hub import client
from xares_bench.hub.digest_memory import DigestMemory
from xares_bench.hub.lock import CACHE_FOLDER, Promise, Repository, is_writable
from xares_bench.hub.pins import DataPins
from xares_bench.hub.survey import HubFile, Survey, free_bytes, size_on_disk, total_bytes

_NUM_THREADS = 8
# Files in a row that the hub gives no byte of, after which the rest is not tried.
_MAX_UNREACHABLE = 8
_LOCK_POLL_S = 0.2


class DataHome:
    """A folder that holds files of hub dataset repositories under their paths in the repository."""

    def __init__(self, folder: Path, revisions: Mapping[str | None, str] | None = None, *, keep: bool = True) -> None:
        """Nothing is read, made or asked before it is needed.

        Args:
            folder: Where the files lie, or will.
            revisions: Branch, tag or commit to use from now on, per repository; under None for all others.
            keep: Whether to write down commits and digests; False to look only.
        """
        self.folder = folder.absolute()
        keep = keep and is_writable(self.folder)
        self._pins = DataPins(self.folder, revisions or {}, keep=keep)
        self._memory = DigestMemory(folder=self.folder, keep=keep)
        self._failures: dict[tuple[str, str], str] = {}

    def survey(self, wanted: Mapping[str, Sequence[str]]) -> Survey:
        """What of the wanted files is there.

        The hub is asked only for what neither the lock file nor the records of `hf download` know, and never when
        HF_HUB_OFFLINE is set. No shard is read.

        Args:
            wanted: Paths per repository.

        Raises:
            UsageError: A path leads out of the folder, or a revision of `--data-revision` is not known.
            DataError: The hub does not answer, or does not give this repository or revision.
        """
        present: list[HubFile] = []
        unchecked, missing, absent = [], [], []
        for repository, paths in wanted.items():
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
                "check the name, or name another --data-revision"
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
        """Check what is there, fetch what is missing or damaged.

        What cannot be had is remembered and raised by `file`, so that the other files come all the same. Offline,
        nothing is fetched.

        Raises:
            UsageError: The disk has too little room for it.
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
        """SHA-256 of a file: what the hub promises, or that of the file on disk where nothing is promised.

        Raises:
            DataError: Nothing is promised, and the file is not there.
        """
        promise = self._pins.promise(repository, path)
        if promise is not None and promise.sha256 is not None:
            return promise.sha256
        if not (self.folder / path).is_file():
            raise DataError(self._failures.get((repository, path)) or self._not_there(path))
        return self._memory.sha256(path)

    def file(self, repository: str, path: str) -> Path:
        """A file that is what the hub promises, or simply there where nothing is promised.

        Raises:
            DataError: It is not; says why and what to do.
        """
        target = self.folder / path
        failure = self._failures.get((repository, path))
        if failure is not None:
            raise DataError(failure)
        if not target.is_file():
            raise DataError(self._not_there(path))
        promise = self._pins.promise(repository, path)
        if promise is not None and not self._memory.check(path, promise):
            found_bytes, commit = target.stat().st_size, self.commit(repository) or ""
            found, expected = f"{found_bytes} bytes", f"{promise.size_bytes} bytes"
            if promise.size_bytes in (None, found_bytes):
                found, expected = (
                    f"SHA-256 {self._memory.sha256(path)[:12]}...",
                    f"{(promise.sha256 or 'another')[:12]}...",
                )
            raise DataError(
                f"{target}: damaged or of another commit: {found}, {repository} at {commit[:12]} has {expected}; "
                "fetch it anew with `python -m xares_bench download`"
            )
        return target

    def commit(self, repository: str) -> str | None:
        """The commit of a repository that is in use; None where neither lock file, records nor hub say."""
        pin = self._pins.pin(repository)
        return None if pin is None else pin.commit

    def _describe(self, repository: str, path: str) -> HubFile:
        promise = self._pins.promise(repository, path)
        size_bytes = None if promise is None else promise.size_bytes
        if size_bytes is None and (self.folder / path).is_file():
            size_bytes = size_on_disk(self.folder / path)
        return HubFile(repository=repository, path=path, size_bytes=size_bytes)

    def _is_absent(self, file: HubFile) -> bool:
        """Whether the hub was asked and does not have the file."""
        return self._pins.promise(file.repository, file.path) is None and not client.is_offline()

    def _is_whole(self, file: HubFile) -> bool | None:
        """Whether a file is there and what was promised; None if that takes reading it."""
        if not (self.folder / file.path).is_file():
            return False
        promise = self._pins.promise(file.repository, file.path)
        return True if promise is None else self._memory.keeps(file.path, promise)

    def _not_there(self, path: str) -> str:
        advice = "fetch it with `python -m xares_bench download`, or name the right --data-home"
        if client.is_offline():
            advice = "HF_HUB_OFFLINE forbids to fetch it: put it there, name the right --data-home, or go online"
        return f"{self.folder / path}: this shard is missing; {advice}"

    def _part(self, file: HubFile) -> Path:
        """Where the bytes of a file gather. Its name has the digest, so that no other content is ever continued."""
        promise = self._pins.promise(file.repository, file.path)
        digest = "" if promise is None else promise.sha256 or promise.git_sha1 or ""
        return self.folder / CACHE_FOLDER / f"{file.path}.{digest[:16]}.part"

    def _find_damaged(self, files: Sequence[HubFile], progress: Progress) -> list[HubFile]:
        """Those of some files that are not what the hub promises."""
        damaged: list[HubFile] = []
        stop = threading.Event()

        def work(file: HubFile, advance: Advance) -> None:
            promise = self._pins.promise(file.repository, file.path)
            if stop.is_set() or promise is None:
                return
            try:
                if not self._memory.check(file.path, promise):
                    damaged.append(file)
            except OSError as cause:
                self._failures[file.repository, file.path] = (
                    f"{self.folder / file.path}: {cause.strerror}; check the disk"
                )
            advance(file.size_bytes or 0)

        _run("checking shards", work, files, progress, stop)
        return damaged

    def _fetch_file(self, file: HubFile, advance: Advance, batch: _Batch) -> None:
        """Bring one file, or remember why not."""
        promise = self._pins.promise(file.repository, file.path)
        assert promise is not None, file
        target, part = self.folder / file.path, self._part(file)
        failure: str | None = None
        try:
            with _lock(self.folder / CACHE_FOLDER / f"{file.path}.lock", batch.stop):
                if target.is_file() and self._memory.check(file.path, promise):
                    advance(file.size_bytes or 0)  # another process brought it while we waited
                else:
                    advance(size_on_disk(part))
                    self._transfer(file, promise, part, advance, batch.stop)
            batch.renew()
        except client.Stopped:
            failure = f"{target}: not fetched, because another transfer failed: {batch.reason}"
        except DataError as cause:
            failure = str(cause)
            if isinstance(cause, client.UnreachableError):
                batch.lose(failure)
        except OSError as cause:
            part.unlink(missing_ok=True)
            failure = f"{target}: {cause.strerror}; check the disk, or name another --data-home"
            if cause.errno in (errno.ENOSPC, errno.EDQUOT):
                failure = f"{target}: {cause.strerror}; make room, or name a --data-home on another disk"
                batch.end(failure)
        if failure is not None:
            self._failures[file.repository, file.path] = failure
        else:
            self._failures.pop((file.repository, file.path), None)

    def _transfer(self, file: HubFile, promise: Promise, part: Path, advance: Advance, stop: threading.Event) -> None:
        """Receive a file, compare it with its promise, and only then put it in its place."""
        commit = self.commit(file.repository)
        assert commit is not None, file
        repository = Repository(name=file.repository)
        for other in part.parent.glob(f"{glob.escape(PurePosixPath(file.path).name)}.*.part"):
            if other != part:
                other.unlink()  # the beginning of another revision's file
        client.download(repository, commit, file.path, promise, part, advance, stop)
        received = DigestMemory(folder=part.parent, keep=False)
        if not received.check(part.name, promise):
            digest = received.sha256(part.name)
            part.unlink()
            raise DataError(
                f"{self.folder / file.path}: the hub sent SHA-256 {digest[:12]}..., its listing promises "
                f"{(promise.sha256 or 'another')[:12]}...; thrown away: try again, and check the proxy if it recurs"
            )
        with part.open("rb") as content:
            os.fsync(content.fileno())
        target = self.folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        self._memory.remember(file.path, promise)


class _Batch:
    """What the transfers of one fetch share: they all end when going on has become pointless."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.reason = "it was stopped"
        self._num_lost = 0

    def renew(self) -> None:
        """A file came."""
        self._num_lost = 0

    def lose(self, reason: str) -> None:
        """The hub gave nothing of a file; too many of these in a row end it all."""
        self._num_lost += 1
        if self._num_lost >= _MAX_UNREACHABLE:
            self.end(reason)

    def end(self, reason: str) -> None:
        """End it all."""
        self.reason = reason
        self.stop.set()


def _run(
    title: str,
    work: Callable[[HubFile, Advance], None],
    files: Sequence[HubFile],
    progress: Progress,
    stop: threading.Event,
) -> None:
    """Do the same work on all files, several at a time, with one bar of bytes; `stop` is set if it is interrupted."""
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
    """Keep other processes from a file; while another has it, wait."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    while True:
        if stop.is_set():
            raise client.Stopped
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=_LOCK_POLL_S)
            break
    try:
        yield
    finally:
        lock.release()
