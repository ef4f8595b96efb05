"""Shards: tar files in WebDataset form, located, verified and read sample by sample.

A sample is a run of neighbouring members that share a key: `KEY.flac` (or another audio suffix) beside `KEY.json`.
Nothing is ever extracted to disk. An archive that is damaged anywhere is an error, never a shorter archive.
"""

from __future__ import annotations

import gzip
import itertools
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tarfile import HeaderError, ReadError
from typing import IO, Any, BinaryIO, Self, cast

from xares_bench.config.catalogue import Split
from xares_bench.core.digests import file_digest
from xares_bench.core.errors import DataError
from xares_bench.core.parsing import parse_json
from xares_bench.datasets.audio import AUDIO_SUFFIXES
from xares_bench.hub import DataHome
from xares_bench.hub.digest_memory import DigestMemory

MANIFEST_NAME = "manifest.json"
# Bounds of what a shard may hold; far beyond any of the published ones, and small enough to be read.
_MAX_MEMBER_BYTES = 1 << 30
_MAX_JSON_BYTES = 64 << 20

_GZIP_MAGIC = b"\x1f\x8b"
# Raised by tarfile at the zero block that ends an archive; its type stubs do not know it.
_END_MARK: type[HeaderError] = getattr(tarfile, "EOFHeaderError")  # noqa: B009


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A tar file on disk.

    Attributes:
        path: Where it is.
        name: What to call it in messages and results.
        digest: SHA-256 of its bytes.
        status: Size and time of the last change, in bytes and ns, of the file that was digested; None: never digested.
    """

    path: Path
    name: str
    digest: str
    status: tuple[int, int] | None = None

    def check_status(self, file: IO[bytes]) -> None:
        """Refuse bytes of another file than the one that was digested.

        Raises:
            DataError: The file was replaced or written to since.
        """
        found = _status(os.fstat(file.fileno()))
        if self.status is not None and found != self.status:
            raise DataError(
                f"{self.path}: changed while it was in use ({found[0]} bytes, before {self.status[0]}); "
                "leave the data alone while a session runs, and give the command again"
            )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample of a shard, not yet decoded.

    Attributes:
        key: The members' common name, e.g. `esc-50_train_0007`.
        audio: The encoded audio; None where something is wrong.
        suffix: The audio member's extension, e.g. `flac`; empty where something is wrong.
        fields: The JSON object; empty where something is wrong.
        problem: What is wrong with it, or None.
    """

    key: str
    audio: bytes | None
    suffix: str = ""
    fields: Mapping[str, Any]
    problem: str | None = None


class ShardFolder:
    """A folder of shards, with the digests that its manifest (if it has one) promises."""

    def __init__(self, folder: Path, digests_folder: Path | None = None) -> None:
        """Read the folder's manifest.

        Args:
            folder: Where shards lie whose paths are relative.
            digests_folder: Where digests of the others, which may be large, are remembered; None: nowhere.

        Raises:
            DataError: There is a manifest and it cannot be read.
        """
        self.folder = folder
        self._memory = None
        if digests_folder is not None:
            self._memory = DigestMemory(folder=Path("/"), keep=True, cache=digests_folder)
        self._shards: dict[str, Shard] = {}
        self._promised: dict[str, str] | None = None
        manifest = folder / MANIFEST_NAME
        if manifest.is_file():
            try:
                listed = parse_json(manifest.read_text(encoding="utf-8"))["shards"]
                self._promised = {name: entry["sha256"] for name, entry in listed.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as cause:
                raise DataError(f"{manifest}: not a manifest of shards ({cause!r}); restore it or delete it") from None

    def locate(self, split: Split) -> tuple[Shard, ...]:
        """The shards of a split, each read in full to digest it, unless its digest is remembered.

        Raises:
            DataError: A shard is missing, or is not the one that the manifest promises.
        """
        return tuple(self._locate(name) for name in split.shards)

    def _locate(self, name: str) -> Shard:
        if name not in self._shards:
            path = self.folder / name
            if not path.is_file():
                raise DataError(f"{path}: this shard is missing; restore the file, or name the right --data-home")
            inside = not Path(name).is_absolute()
            status = _status(path.stat())
            # A memory of the folder's own shards would outlive the manifest that they are compared with.
            digest = file_digest(path) if inside or self._memory is None else self._memory.sha256(name.lstrip("/"))
            if inside and self._promised is not None and digest != self._promised.get(name):
                promised = f"says {str(self._promised[name])[:12]}..." if name in self._promised else "does not list it"
                raise DataError(
                    f"{path}: SHA-256 is {digest[:12]}..., {MANIFEST_NAME} {promised}; "
                    "the shard is damaged or was changed: restore it, or build the corpus and its manifest anew"
                )
            self._shards[name] = Shard(path=path, name=name, digest=digest, status=status)
        return self._shards[name]


class ShardSource:
    """Finds the shards of every split: in a local folder, or in the data home where a hub repository holds them."""

    def __init__(self, local: ShardFolder, home: DataHome) -> None:
        """Keep both places."""
        self._local = local
        self._home = home

    def digests(self, split: Split, repository: str | None) -> tuple[str, ...]:
        """SHA-256 of every shard; those of a repository need not be on disk.

        Raises:
            DataError: A shard is missing, or is not the one that was promised.
        """
        if repository is None:
            return tuple(shard.digest for shard in self._local.locate(split))
        return tuple(self._home.digest(repository, path) for path in split.shards)

    def locate(self, split: Split, repository: str | None) -> tuple[Shard, ...]:
        """The shards, all of them on disk.

        Raises:
            DataError: A shard is missing, or is not the one that was promised.
        """
        if repository is None:
            return self._local.locate(split)
        return tuple(self._fetched(repository, path) for path in split.shards)

    def _fetched(self, repository: str, name: str) -> Shard:
        path = self._home.file(repository, name)
        return Shard(path=path, name=name, digest=self._home.digest(repository, name), status=_status(path.stat()))


def read_samples(shard: Shard) -> Iterator[Sample]:
    """The samples of a shard in order, the unusable ones included with their problem.

    Raises:
        DataError: The archive is damaged.
    """
    seen: set[str] = set()
    for key, members in itertools.groupby(_read_members(shard), key=lambda member: member[0]):
        sample = _make_sample(key, [(suffix, data) for _, suffix, data in members])
        if key in seen:
            sample = Sample(key=key, audio=None, fields={}, problem="another sample of this shard has the same key")
        seen.add(key)
        yield sample


def _make_sample(key: str, parts: Sequence[tuple[str, bytes]]) -> Sample:
    members = dict(parts)
    audio = [suffix for suffix in members if suffix in AUDIO_SUFFIXES]
    problem = None
    fields: Any = {}
    if len(members) < len(parts):
        problem = f"{len(parts)} members in a row share this key and a suffix (a key ends at the first dot of a name)"
    elif not audio:
        problem = f"no audio member (found {', '.join(sorted(members))}; expected one of {', '.join(AUDIO_SUFFIXES)})"
    elif len(audio) > 1:
        problem = f"several audio members ({', '.join(audio)})"
    elif "json" not in members:
        problem = "no .json member"
    elif len(members["json"]) > _MAX_JSON_BYTES:
        problem = f".json member of {len(members['json'])} bytes, expected at most {_MAX_JSON_BYTES}"
    else:
        try:
            fields = parse_json(members["json"])
        except ValueError as cause:
            problem = f"unreadable .json member: {cause}"
        if problem is None and not isinstance(fields, dict):
            problem = "the .json member holds no object"
    if problem is not None:
        return Sample(key=key, audio=None, fields={}, problem=problem)
    return Sample(key=key, audio=members[audio[0]], suffix=audio[0], fields=fields)


def _read_members(shard: Shard) -> Iterator[tuple[str, str, bytes]]:
    """Key, suffix and bytes of every file in the archive."""
    try:
        with shard.path.open("rb") as file, _unpacked(file) as stream:
            shard.check_status(file)
            with tarfile.open(fileobj=cast(IO[bytes], _Bounded(stream)), mode="r:", tarinfo=_StrictTarInfo) as archive:
                for member in archive:
                    if member.islnk() or member.issym():
                        raise ReadError(f"{member.name!r} is a link; store the file itself")
                    if not member.isfile():
                        continue
                    # A name that is not UTF-8 comes with half characters, which no result file could hold.
                    path = PurePosixPath(member.name.encode("utf-8", "backslashreplace").decode())
                    stem, dot, suffix = path.name.partition(".")
                    if not stem or not dot:
                        continue
                    content = archive.extractfile(member)
                    assert content is not None
                    data = content.read()
                    shard.check_status(file)
                    yield str(path.with_name(stem)), suffix.rpartition(".")[2].lower(), data
            # To the end, where gzip keeps its checksum; tarfile would ignore a second archive behind the end mark.
            num_rest = 0
            while rest := stream.read(1 << 20):
                num_rest += len(rest)
                if rest.strip(b"\0"):
                    raise ReadError("there is data behind the mark that ends the archive")
                if num_rest > _MAX_MEMBER_BYTES:
                    raise ReadError(f"more than {_MAX_MEMBER_BYTES} zeros behind the mark that ends the archive")
    except RecursionError:
        raise DataError(f"{shard.path}: damaged archive: headers of headers without end; fetch it anew") from None
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as cause:
        raise DataError(f"{shard.path}: damaged archive: {cause}; fetch or build this shard anew") from None


def _unpacked(file: BinaryIO) -> IO[bytes]:
    """The archive in a file that may be compressed."""
    compressed = file.read(2) == _GZIP_MAGIC
    file.seek(0)
    return cast(IO[bytes], gzip.open(file, "rb")) if compressed else file


def _status(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


class _Bounded:
    """A stream of which nobody reads more at once than a member may have; a few kilobytes can unpack to any size."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.tell, self.seek = stream.tell, stream.seek

    def read(self, size: int) -> bytes:
        if size > _MAX_MEMBER_BYTES:
            raise ReadError(f"a member or its header claims {size} bytes, expected at most {_MAX_MEMBER_BYTES}")
        return self._stream.read(size)


class _StrictTarInfo(tarfile.TarInfo):
    """Ends an archive only at its end mark; the base class takes any damaged header for the end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except _END_MARK:
            raise
        except HeaderError as cause:
            raise ReadError(f"{cause} after {tarfile.offset} bytes") from None
