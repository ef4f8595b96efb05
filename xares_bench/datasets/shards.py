"""Shards: tar files in WebDataset form, located, verified and read sample by sample.

A sample is a run of neighbouring members that share a key: `KEY.flac` (or another audio suffix) beside `KEY.json`.
Nothing is ever extracted to disk. An archive that is damaged anywhere is an error, never a shorter archive.

Every shard has a SHA-256 before it is used, since the cache keys of features, LALMs and scores contain it. Local shards
are digested when a session locates them; shards of the hub when they are downloaded, so that their keys are known
without reading them, and even without having them.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tarfile import HeaderError, ReadError
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Self, cast

from xares_bench.config.catalogue import Split
from xares_bench.core.digests import file_digest
from xares_bench.core.errors import DataError, OutOfMemory
from xares_bench.core.file_kinds import path_problem, what_instead
from xares_bench.core.parsing import parse_json
from xares_bench.datasets.audio import AUDIO_SUFFIXES, read_audio
from xares_bench.hub import DataHome
from xares_bench.hub.digest_cache import DigestCache

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MANIFEST_NAME = "manifest.json"
# Limits on members of a shard: far above those of any published shard, and small enough to be read into memory.
_MAX_MEMBER_BYTES = 1 << 30
_MAX_JSON_BYTES = 64 << 20

_GZIP_MAGIC = b"\x1f\x8b"
# Raised by tarfile at the zero block that ends an archive; missing from its type stubs.
_END_MARK: type[HeaderError] = getattr(tarfile, "EOFHeaderError")  # noqa: B009


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A tar file on disk.

    Attributes:
        path: Path of the file.
        name: Its name in messages and results.
        digest: SHA-256 of its bytes.
        status: Size in bytes and modification time in ns of the file when it was digested; None: not checked.
    """

    path: Path
    name: str
    digest: str
    status: tuple[int, int] | None = None

    def check_status(self, file: IO[bytes]) -> None:
        """Check that an open file is still the one that was digested.

        Raises:
            DataError: The file was replaced or written to since.
        """
        found = _status(os.fstat(file.fileno()))
        if self.status is not None and found != self.status:
            raise DataError(
                f"{self.path}: changed while it was in use ({found[0]} bytes, before {self.status[0]}); "
                "do not change the data while a session runs, and run the command again"
            )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample of a shard, as stored.

    Attributes:
        key: The members' common name, e.g. `esc-50_train_0007`.
        audio: Bytes of the audio file; None if the sample is unusable.
        suffix: Extension of the audio member, e.g. `flac`; empty if the sample is unusable.
        fields: The JSON object; empty if the sample is unusable.
        problem: Why the sample is unusable; None: it is usable as far as is known.
    """

    key: str
    audio: bytes | None
    suffix: str = ""
    fields: Mapping[str, Any]
    problem: str | None = None


def read_audio_of(sample: Sample, shard: str) -> NDArray[np.float32]:
    """The waveform of a usable sample of a shard; see `audio.read_audio`.

    Raises:
        ValueError: The audio cannot be read.
        OutOfMemory: There is too little memory for it. That makes no sample unusable: the score would depend on the
            machine's memory.
    """
    assert sample.audio is not None
    try:
        return read_audio(sample.audio, sample.suffix)
    except ValueError:
        raise
    except MemoryError:
        raise OutOfMemory(
            f"{shard}: {sample.key}: too little memory to read this clip ({len(sample.audio)} bytes of "
            f".{sample.suffix}); read fewer clips at a time (num_workers, num_training_workers), or free memory"
        ) from None
    except Exception as cause:
        cause.add_note(f"This happened while the audio of {sample.key} of {shard} was read.")
        raise


class ShardFolder:
    """A folder of shards, verified against the folder's manifest if it has one."""

    def __init__(
        self, folder: Path, digests_folder: Path | None = None, digest: Callable[[Path], str] = file_digest
    ) -> None:
        """Read the folder's manifest.

        Args:
            folder: Folder that relative paths of shards start at.
            digests_folder: Caches digests of shards with absolute paths, which may be large; None: not cached.
            digest: Computes the digests that are cached.

        Raises:
            DataError: The manifest cannot be read.
        """
        self.folder = folder
        self._digests = None
        if digests_folder is not None:
            self._digests = DigestCache(folder=Path("/"), write=True, cache_folder=digests_folder, compute=digest)
        self._shards: dict[str, Shard] = {}
        self._expected: dict[str, str] | None = None
        manifest = folder / MANIFEST_NAME
        if manifest.is_file():
            try:
                listed = parse_json(manifest.read_text(encoding="utf-8"))["shards"]
                self._expected = {name: entry["sha256"] for name, entry in listed.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as cause:
                raise DataError(f"{manifest}: not a manifest of shards ({cause!r}); restore it or delete it") from None

    def locate(self, split: Split) -> tuple[Shard, ...]:
        """The shards of a split, with their digests. A shard is read in full, unless its digest is cached.

        Raises:
            DataError: A shard is missing, or differs from the manifest.
        """
        return tuple(self._locate(name) for name in split.shards)

    def unread_bytes(self, name: str) -> int:
        """Size of a shard that `locate` will read in full, because its digest is not cached."""
        path = self.folder / name
        if name in self._shards or self._digests is None or not Path(name).is_absolute() or not path.is_file():
            return 0
        return 0 if self._digests.knows(name.lstrip("/")) else path.stat().st_size

    def _locate(self, name: str) -> Shard:
        if name not in self._shards:
            path = self.folder / name
            problem = path_problem(path)
            if problem is None and not path.is_file():
                problem = "this shard is missing; restore the file, or pass another --data-home"
            if problem is not None:
                raise DataError(f"{path}: {problem}")
            inside = not Path(name).is_absolute()
            try:
                status = _status(path.stat())
                # The folder's own shards (the small mini corpus) are read at every start: a digest from the cache could
                # not tell whether they still match the manifest.
                cached = None if inside else self._digests
                digest = file_digest(path) if cached is None else cached.sha256(name.lstrip("/"))
            except OSError as cause:
                raise unreadable(path, cause) from None
            if inside and self._expected is not None and digest != self._expected.get(name):
                expected = f"has {str(self._expected[name])[:12]}..." if name in self._expected else "does not list it"
                raise DataError(
                    f"{path}: SHA-256 is {digest[:12]}..., {MANIFEST_NAME} {expected}; "
                    "the shard is damaged or was changed: restore it, or rebuild the corpus and its manifest"
                )
            self._shards[name] = Shard(path=path, name=name, digest=digest, status=status)
        return self._shards[name]


class ShardSource:
    """Finds the shards of every split: in a local folder, or in the data home if they come from a hub repository."""

    def __init__(self, local: ShardFolder, home: DataHome) -> None:
        """Nothing is located yet."""
        self._local = local
        self._home = home

    def digests(self, split: Split, repository: str | None) -> tuple[str, ...]:
        """SHA-256 of every shard; shards of a repository need not be on disk.

        Raises:
            DataError: A local shard is missing or differs from the manifest, or the digest of a hub's shard is unknown.
        """
        if repository is None:
            return tuple(shard.digest for shard in self._local.locate(split))
        return tuple(self._home.digest(repository, path) for path in split.shards)

    def locate(self, split: Split, repository: str | None) -> tuple[Shard, ...]:
        """The shards, all of them on disk.

        Raises:
            DataError: A shard is missing, or differs from the manifest or from the hub's listing.
        """
        if repository is None:
            return self._local.locate(split)
        return tuple(self._fetched(repository, path) for path in split.shards)

    def unread(self, split: Split) -> dict[str, int]:
        """Sizes in bytes of the local shards of a split that `locate` will read in full, by name."""
        sizes = {name: self._local.unread_bytes(name) for name in split.shards}
        return {name: size_bytes for name, size_bytes in sizes.items() if size_bytes}

    def _fetched(self, repository: str, name: str) -> Shard:
        path = self._home.file(repository, name)
        return Shard(path=path, name=name, digest=self._home.digest(repository, name), status=_status(path.stat()))


def read_samples(shard: Shard, file: BinaryIO | None = None) -> Iterator[Sample]:
    """The samples of a shard in order; unusable ones come with their problem.

    Args:
        shard: The shard.
        file: Its file, opened by the caller, who closes it; None: it is opened here.

    Raises:
        DataError: The archive is damaged.
    """
    seen: set[str] = set()
    for key, members in itertools.groupby(_read_members(shard, file), key=lambda member: member[0]):
        sample = _make_sample(key, [(suffix, data) for _, suffix, data in members])
        if key in seen:
            sample = Sample(key=key, audio=None, fields={}, problem="another sample of this shard has the same key")
        seen.add(key)
        yield sample


def _make_sample(key: str, found: Sequence[tuple[str, bytes]]) -> Sample:
    members = dict(found)
    audio = [suffix for suffix in members if suffix in AUDIO_SUFFIXES]
    problem = None
    fields: Any = {}
    if len(members) < len(found):
        problem = f"{len(found)} members in a row share this key and a suffix (a key ends at the first dot of a name)"
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
            fields = parse_json(members["json"], unique_keys=False)  # the last counts, as in XARES-LLM
        except ValueError as cause:
            problem = f"unreadable .json member: {cause}"
        if problem is None and not isinstance(fields, dict):
            problem = "the .json member is not an object"
    if problem is not None:
        return Sample(key=key, audio=None, fields={}, problem=problem)
    return Sample(key=key, audio=members[audio[0]], suffix=audio[0], fields=fields)


def _read_members(shard: Shard, opened: BinaryIO | None) -> Iterator[tuple[str, str, bytes]]:
    """Key, suffix and bytes of every file in the archive."""
    num_members = 0
    try:
        with _opened(shard.path, opened) as file, _unpacked(file) as stream:
            shard.check_status(file)
            with tarfile.open(fileobj=cast(IO[bytes], _Bounded(stream)), mode="r:", tarinfo=_StrictTarInfo) as archive:
                for member in archive:
                    num_members += 1
                    if member.islnk() or member.issym():
                        raise ReadError(f"{member.name!r} is a link; store the file itself")
                    if member.issparse():
                        raise _sparse_error(member)
                    if member.size < 0:
                        raise ReadError(f"{member.name!r} claims {member.size} bytes")
                    if not member.isfile():
                        continue
                    # A name that is not UTF-8 comes with lone surrogates, which cannot be written to a result file.
                    path = PurePosixPath(member.name.encode("utf-8", "backslashreplace").decode())
                    stem, dot, suffix = path.name.partition(".")
                    if not stem or not dot:
                        continue
                    content = archive.extractfile(member)
                    assert content is not None
                    data = content.read()
                    shard.check_status(file)
                    yield str(path.with_name(stem)), suffix.rpartition(".")[2].lower(), data
            # Read to the end: gzip's checksum is there, and tarfile would ignore a second archive after the end mark.
            num_rest = 0
            while rest := stream.read(1 << 20):
                num_rest += len(rest)
                if rest.strip(b"\0"):
                    raise ReadError("there is data after the end mark of the archive")
                if num_rest > _MAX_MEMBER_BYTES:
                    raise ReadError(f"more than {_MAX_MEMBER_BYTES} zeros after the end mark of the archive")
    except RecursionError:
        raise DataError(f"{shard.path}: damaged archive: endless headers; fetch or build this shard again") from None
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError) as cause:
        problem = None if num_members else what_instead(shard.path)
        problem = problem or f"damaged archive: {cause}; fetch or build this shard again"
        raise DataError(f"{shard.path}: {problem}") from None
    except OSError as cause:
        raise unreadable(shard.path, cause) from None


def unreadable(path: Path, cause: OSError) -> DataError:
    """The error of a shard that the system does not let be read."""
    problem = path_problem(path) or f"cannot be read: {cause.strerror or cause}; check the disk"
    return DataError(f"{path}: {problem}")


def _opened(path: Path, opened: BinaryIO | None) -> contextlib.AbstractContextManager[BinaryIO]:
    """The file of a shard: one that is open stays open."""
    return path.open("rb") if opened is None else contextlib.nullcontext(opened)


def _unpacked(file: BinaryIO) -> contextlib.AbstractContextManager[IO[bytes]]:
    """The archive in a file that may be compressed with gzip; the file stays open."""
    compressed = file.read(2) == _GZIP_MAGIC
    file.seek(0)
    return cast(IO[bytes], gzip.open(file, "rb")) if compressed else contextlib.nullcontext(file)


def _status(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


class _Bounded:
    """A stream that refuses reads larger than a member may be: a few kilobytes of gzip can unpack to any size."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.tell, self.seek = stream.tell, stream.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_MEMBER_BYTES:
            raise ReadError(f"a member or its header claims {size} bytes, expected at most {_MAX_MEMBER_BYTES}")
        return self._stream.read(size)


class _StrictTarInfo(tarfile.TarInfo):
    """Ends an archive only at its end mark; the base class takes a damaged header for the end, too."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except _END_MARK:
            raise
        except HeaderError as cause:
            raise ReadError(f"{cause} after {tarfile.offset} bytes") from None

    # A sparse file: a few bytes of positions stand for any number of zeros, or for a list of positions of any length.
    def _proc_sparse(self, tarfile: tarfile.TarFile) -> Self:
        raise _sparse_error(self)

    def _proc_gnusparse_00(self, next: tarfile.TarInfo, *_: object) -> None:
        raise _sparse_error(next)

    _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_gnusparse_00


def _sparse_error(member: tarfile.TarInfo) -> ReadError:
    return ReadError(f"{member.name!r} is a sparse file; pack it again without tar's option --sparse (-S)")
