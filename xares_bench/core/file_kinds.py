"""What is in the place of a tar file: a link to nothing, a pointer, a web page, an archive of another kind."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from pathlib import Path

_HEAD_BYTES = 512
_GZIP_MAGIC = b"\x1f\x8b"
_SHOWN_CHARACTERS = 60

_REPACK = "pack it as .tar or .tar.gz"
_FETCH = "fetch or build this shard again"
# First bytes, by what a file is.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (_GZIP_MAGIC, "a file compressed with gzip"),
    (b"BZh", "a file compressed with bzip2"),
    (b"\xfd7zXZ\x00", "a file compressed with xz"),
    (b"\x5d\x00\x00", "a file compressed with lzma"),
    (b"LZIP", "a file compressed with lzip"),
    (b"\x89LZO", "a file compressed with lzop"),
    (b"\x28\xb5\x2f\xfd", "a file compressed with zstd"),
    (b"\x04\x22\x4d\x18", "a file compressed with lz4"),
    (b"\x1f\x9d", "a file compressed with compress"),
    (b"\xff\x06\x00\x00sNaPpY", "a file compressed with snappy"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive without files"),
    (b"PK\x07\x08", "a part of a zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"070701", "a cpio archive"),
    (b"070707", "a cpio archive"),
    (b"!<arch>\n", "an ar archive"),
    (b"MSCF", "a cabinet archive"),
    (b"hsqs", "a squashfs image"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"SQLite format 3", "an SQLite database"),
    (b"fLaC", "a FLAC file"),
    (b"RIFF", "a RIFF file (WAV)"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
)


def what_it_is(head: bytes) -> tuple[str, str] | None:
    r"""What a file is that is no tar archive, by its first bytes, and what to do; None if they do not tell.

    >>> what_it_is(b"PK\x03\x04...")
    ('a zip archive', 'pack it as .tar or .tar.gz')
    >>> what_it_is(b"Entry not found")
    ("a text ('Entry not found')", 'fetch or build this shard again')
    """
    if not head:
        return "an empty file (0 bytes)", _FETCH
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind, _REPACK
    text = _text_of(head)
    if text is None:
        return None
    if text.startswith("version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer, not the file that it stands for", "run `git lfs pull`"
    if "annex/objects/" in text:
        return "a git-annex pointer, not the file that it stands for", "run `git annex get` on it"
    if text.startswith("<") and any(mark in text.lower() for mark in ("<!doctype html", "<html", "<head", "<body")):
        return "a web page (HTML)", f"{_FETCH} (check its address, and whether a login is needed)"
    kind = "a text"
    if text.startswith("<"):
        kind = "an XML text"
    elif text.startswith(("{", "[")):
        kind = "a JSON text"
    start = " ".join(text.split())
    return f"{kind} ({start[:_SHOWN_CHARACTERS]!r}{'...' if len(start) > _SHOWN_CHARACTERS else ''})", _FETCH


def what_instead(path: Path) -> str | None:
    """What is in the place of a tar archive, and what to do; None if the first bytes of the file do not tell."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        prefix = ""
        if head.startswith(_GZIP_MAGIC):
            with gzip.open(path, "rb") as unpacked:
                head, prefix = unpacked.read(_HEAD_BYTES), "in gzip: "
    except (OSError, EOFError, zlib.error):
        return None
    found = what_it_is(head)
    return None if found is None else f"{prefix}{found[0]}, expected a tar or tar.gz archive; {found[1]}"


def path_problem(path: Path) -> str | None:
    """What keeps the file at a path from being read, and what to do; None: nothing, or there is nothing at the path."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if not path.is_symlink():
            return None
        target = os.fspath(path.readlink())
        if "annex/objects/" in target:
            return "a git-annex link, and its file is not here; run `git annex get` on it"
        return f"a link to {target}, which is missing; restore that file, or put the shard itself here"
    except OSError as cause:
        return f"cannot be read: {cause.strerror}; check the path and its permissions"
    if stat.S_ISDIR(mode):
        return "a folder, expected a tar file; name the tar files in it, or pack it"
    if not stat.S_ISREG(mode):
        return "a pipe, socket or device, expected a tar file; write its content to a file"
    if not os.access(path, os.R_OK):
        return "cannot be read: Permission denied; change its permissions (chmod +r)"
    return None


def _text_of(head: bytes) -> str | None:
    """The text that begins a file, without leading blanks; None if it is none."""
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = head.decode(encoding)
    except UnicodeDecodeError as cause:
        if cause.start < len(head) - 3:  # else a letter is cut at the end of what was read
            return None
        text = head[: cause.start].decode(encoding)
    return text.lstrip() if text.strip() and all(letter.isprintable() or letter.isspace() for letter in text) else None
