"""Which commits a data folder holds files of, and what is promised of the files: asked once, then known."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from xares_bench.core.errors import UsageError
from xares_bench.hub import client
from xares_bench.hub.lock import LOCK_NAME, Pin, Promise, Repository, edit_pins, read_pins

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPOSITORY_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


class DataPins:
    """The commits of the dataset repositories of a data folder, and the promises of their files.

    What is not in the folder's lock file is taken from the records of `hf download`, else asked of the hub.
    """

    def __init__(self, folder: Path, revisions: Mapping[str | None, str], *, keep: bool) -> None:
        """Nothing is read or asked before it is needed.

        Args:
            folder: The data folder.
            revisions: Branch, tag or commit to use from now on, per repository; under None for all others.
            keep: Whether to write down what the hub said.
        """
        self._folder = folder
        self._revisions = dict(revisions)
        self._keep = keep
        self._pins: dict[str, Pin] | None = None
        self._resolved: set[str] = set()

    def pin(self, repository: str) -> Pin | None:
        """What is known of a repository.

        Raises:
            DataError: The lock file cannot be read.
        """
        if self._pins is None:
            self._pins = read_pins(self._folder)
        return self._pins.get(Repository(name=repository).key)

    def promise(self, repository: str, path: str) -> Promise | None:
        """What is known of a file."""
        pin = self.pin(repository)
        return None if pin is None else pin.files.get(path)

    def learn(self, repository: str, paths: Sequence[str], *, sizes: bool = False) -> None:
        """Get to know the commit of a repository and the promises of files, as far as it can be known.

        Args:
            repository: Which one.
            paths: Its files.
            sizes: Ask for sizes that are not known also where the file is there.

        Raises:
            UsageError: Offline, a revision is asked for that is not known.
            DataError: The hub does not answer, or does not give this repository or revision.
        """

        def unknown(pin: Pin) -> list[str]:
            return [
                path
                for path in paths
                if (promise := pin.files.get(path)) is None
                or (promise.size_bytes is None and (sizes or not (self._folder / path).is_file()))
            ]

        pin = self.pin(repository)
        if pin is not None and self._is_settled(repository, pin) and not unknown(pin):
            return
        key = Repository(name=repository).key
        records = self._records(paths)
        if client.is_offline() and not records:  # nothing to learn, but a revision may be one that is not known
            self._settle(repository, pin, None)
            return
        with edit_pins(self._folder, keep=self._keep) as pins:
            commits = {commit for commit, _ in records.values()}
            pin = self._settle(repository, pins.get(key), commits.pop() if len(commits) == 1 else None)
            if pin is None:
                return
            recorded = {path: promise for path, (commit, promise) in records.items() if commit == pin.commit}
            pin = dataclasses.replace(pin, files={**recorded, **pin.files})
            if not client.is_offline() and (asked := unknown(pin)):
                found = client.promises(Repository(name=repository), pin.commit, asked)
                pin = dataclasses.replace(pin, files={**pin.files, **found})
            pins[key] = pin
        assert self._pins is not None
        self._pins[key] = pin

    def _is_settled(self, repository: str, pin: Pin) -> bool:
        """Whether a pin is at the revision that was asked for in this run."""
        asked = self._asked(repository)
        return asked is None or asked == pin.commit or repository in self._resolved

    def _asked(self, repository: str) -> str | None:
        return self._revisions.get(repository, self._revisions.get(None))

    def _settle(self, repository: str, pin: Pin | None, recorded: str | None) -> Pin | None:
        """The pin to use: the asked revision's, else the lock file's, else the recorded commit's, else main's."""
        if pin is not None and self._is_settled(repository, pin):
            return pin
        asked = self._asked(repository)
        if recorded is not None and asked in (None, recorded):
            return Pin(revision=asked, commit=recorded, files={})
        if client.is_offline():
            if asked is None or (pin is not None and pin.revision == asked):
                return pin
            held = "nothing of it" if pin is None else f"{pin.revision or 'an earlier download'} ({pin.commit[:12]})"
            raise UsageError(
                f"--data-revision={asked}: HF_HUB_OFFLINE is set, and of {repository} {self._folder / LOCK_NAME} "
                f"knows {held}; go online once, or leave the option out"
            )
        revision = asked or "main"
        commit = revision if _COMMIT.fullmatch(revision) else client.resolve(Repository(name=repository), revision)
        self._resolved.add(repository)
        files = pin.files if pin is not None and pin.commit == commit else {}
        return Pin(revision=revision, commit=commit, files=files)

    def _records(self, paths: Iterable[str]) -> dict[str, tuple[str, Promise]]:
        """Commit and promise of the files that `hf download --local-dir` brought, which notes both for each file."""
        records = {}
        for path in paths:
            note = self._folder / ".cache" / "huggingface" / "download" / f"{path}.metadata"
            with contextlib.suppress(OSError, ValueError):
                commit, digest, *_ = note.read_text(encoding="utf-8").splitlines()
                if (self._folder / path).is_file() and _COMMIT.fullmatch(commit) and _SHA256.fullmatch(digest):
                    records[path] = commit, Promise(size_bytes=None, sha256=digest)
        return records


def parse_data_revisions(texts: Sequence[str]) -> Mapping[str | None, str]:
    """What the values of `--data-revision=[OWNER/NAME@]REVISION` ask for, per repository; under None for all others.

    >>> parse_data_revisions(["v1", "mispeech/MECAT-Caption@refs/pr/1"])
    {None: 'v1', 'mispeech/MECAT-Caption': 'refs/pr/1'}

    Raises:
        UsageError: A value has another form, or two are for the same repository.
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
                f"--data-revision={text}: {revisions[repository]} is already asked for; give one per repository"
            )
        revisions[repository] = revision
    return revisions
