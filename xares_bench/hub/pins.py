"""Pins: the commit of every repository in a data folder, with sizes and digests of its files; requested only once."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from xares_bench.core.errors import UsageError
from xares_bench.hub import client
from xares_bench.hub.lock import LOCK_NAME, FileInfo, Pin, Repository, edit_pins, read_pins

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPOSITORY_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


class DataPins:
    """The commits of the dataset repositories of a data folder, with sizes and digests of their files.

    They come from the folder's lock file, else from the metadata that `hf download` left, else from the hub.
    """

    def __init__(self, folder: Path, revisions: Mapping[str | None, str], *, write: bool) -> None:
        """Nothing is read or requested before it is needed.

        Args:
            folder: The data folder.
            revisions: Branch, tag or commit to use from now on, per repository; under None for all others.
            write: Whether to write the hub's answers to the lock file.
        """
        self._folder = folder
        self._revisions = dict(revisions)
        self._write = write
        self._pins: dict[str, Pin] | None = None
        self._resolved: set[str] = set()

    def pin(self, repository: str) -> Pin | None:
        """The pin of a repository, or None.

        Raises:
            DataError: The lock file cannot be read.
        """
        if self._pins is None:
            self._pins = read_pins(self._folder)
        return self._pins.get(Repository(name=repository).key)

    def info(self, repository: str, path: str) -> FileInfo | None:
        """Size and digest of a file, or None."""
        pin = self.pin(repository)
        return None if pin is None else pin.files.get(path)

    def learn(self, repository: str, paths: Sequence[str], *, sizes: bool = False) -> None:
        """Find the commit of a repository, and sizes and digests of files; the hub is asked only for unknown ones.

        Args:
            repository: Owner and name.
            paths: Files of the repository.
            sizes: Whether to request unknown sizes even of files that are present.

        Raises:
            UsageError: Offline, an unknown revision is requested.
            DataError: The hub does not answer, or does not have this repository or revision.
        """

        def unknown(pin: Pin) -> list[str]:
            return [
                path
                for path in paths
                if (info := pin.files.get(path)) is None
                or (info.size_bytes is None and (sizes or not (self._folder / path).is_file()))
            ]

        pin = self.pin(repository)
        if pin is not None and self._is_settled(repository, pin) and not unknown(pin):
            return
        key = Repository(name=repository).key
        records = self._records(paths)
        if client.is_offline() and not records:  # nothing can be found; raises if the requested revision is unknown
            self._settle(repository, pin, None)
            return
        with edit_pins(self._folder, write=self._write) as pins:
            commits = {commit for commit, _ in records.values()}
            pin = self._settle(repository, pins.get(key), commits.pop() if len(commits) == 1 else None)
            if pin is None:
                return
            recorded = {path: info for path, (commit, info) in records.items() if commit == pin.commit}
            pin = dataclasses.replace(pin, files={**recorded, **pin.files})
            if not client.is_offline() and (asked := unknown(pin)):
                found = client.file_infos(Repository(name=repository), pin.commit, asked)
                pin = dataclasses.replace(pin, files={**pin.files, **found})
            pins[key] = pin
        assert self._pins is not None
        self._pins[key] = pin

    def _is_settled(self, repository: str, pin: Pin) -> bool:
        """Whether a pin is at the requested revision, resolved in this run or by its commit."""
        asked = self._asked(repository)
        return asked is None or asked == pin.commit or repository in self._resolved

    def _asked(self, repository: str) -> str | None:
        return self._revisions.get(repository, self._revisions.get(None))

    def _settle(self, repository: str, pin: Pin | None, recorded: str | None) -> Pin | None:
        """The pin to use: of the requested revision, else the lock file, else `hf download`'s metadata, else `main`."""
        if pin is not None and self._is_settled(repository, pin):
            return pin
        asked = self._asked(repository)
        if recorded is not None and asked in (None, recorded):
            return Pin(revision=asked, commit=recorded, files={})
        if client.is_offline():
            if asked is None or (pin is not None and pin.revision == asked):
                return pin
            known = "no commit" if pin is None else f"only {pin.revision or 'an earlier download'} ({pin.commit[:12]})"
            raise UsageError(
                f"--data-revision={asked}: HF_HUB_OFFLINE is set, and {self._folder / LOCK_NAME} has {known} of "
                f"{repository}; go online once, or omit the option"
            )
        revision = asked or "main"
        commit = revision if _COMMIT.fullmatch(revision) else client.resolve(Repository(name=repository), revision)
        self._resolved.add(repository)
        files = pin.files if pin is not None and pin.commit == commit else {}
        return Pin(revision=revision, commit=commit, files=files)

    def _records(self, paths: Iterable[str]) -> dict[str, tuple[str, FileInfo]]:
        """Commit and SHA-256 of files that `hf download --local-dir` fetched, from its metadata files."""
        records = {}
        for path in paths:
            note = self._folder / ".cache" / "huggingface" / "download" / f"{path}.metadata"
            with contextlib.suppress(OSError, ValueError):
                commit, digest, *_ = note.read_text(encoding="utf-8").splitlines()
                if (self._folder / path).is_file() and _COMMIT.fullmatch(commit) and _SHA256.fullmatch(digest):
                    records[path] = commit, FileInfo(size_bytes=None, sha256=digest)
        return records


def parse_data_revisions(texts: Sequence[str]) -> Mapping[str | None, str]:
    """The revisions that `--data-revision=[OWNER/NAME@]REVISION` requests, by repository; under None for all others.

    >>> parse_data_revisions(["v1", "mispeech/MECAT-Caption@refs/pr/1"])
    {None: 'v1', 'mispeech/MECAT-Caption': 'refs/pr/1'}

    Raises:
        UsageError: A value is malformed, or two are for the same repository.
    """
    revisions: dict[str | None, str] = {}
    for text in texts:
        name, at, revision = text.strip().rpartition("@")
        repository = name if at else None
        if not revision or (repository is not None and not _REPOSITORY_NAME.fullmatch(repository)):
            raise UsageError(
                f"--data-revision={text}: expected a branch, tag or commit, or OWNER/NAME@REVISION for one repository"
            )
        if repository in revisions:
            raise UsageError(
                f"--data-revision={text}: {revisions[repository]} is already requested; pass one per repository"
            )
        revisions[repository] = revision
    return revisions
