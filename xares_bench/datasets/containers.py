"""Containers: an audio file of any accepted format, as parts whose headers make libsndfile read them to their end.

libsndfile believes the count of samples in a header. A header may not know it (a file written to a pipe), may be wrong,
or may speak for the first of several joined files. Here what a header says is held against the bytes that there are.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

from xares_bench.datasets.mpeg import mpeg_parts
from xares_bench.datasets.ogg import ogg_parts
from xares_bench.datasets.part import Part, tag_size, without_end_tags

_STREAMINFO = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_MAX_FLAC_SAMPLES = (1 << 36) - 1
_WAV_FORMS = (b"RIFF", b"RIFX", b"RF64")
_MPEG_IN_WAV = (0x50, 0x55)
_GSM_IN_WAV = 0x31
_MAX_PARTS = 1000
_UNKNOWN_SIZE = 0xFFFFFFFF
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")


def parts_of(data: bytes, suffix: str) -> list[Part]:
    """The parts of an audio file, one after the other; usually one.

    Args:
        data: A whole audio file.
        suffix: Its extension. Only needed for an MP3 that does not begin with a frame.

    Raises:
        ValueError: A header contradicts the bytes, so that it is unknown what the whole file is; or it is of another
            format, or joined from too many files.
    """
    parts = _all_parts(data, suffix)
    _check_number(parts)
    return parts


def _check_number(parts: Sequence[object]) -> None:
    if len(parts) > _MAX_PARTS:
        raise ValueError(f"unreadable audio: more than {_MAX_PARTS} joined files")


def _all_parts(data: bytes, suffix: str) -> list[Part]:
    start = 0
    while data.startswith(b"ID3", start):
        start += tag_size(data, start) or len(data)
    if data.startswith(b"fLaC", start):
        return _flac_parts(data[start:])
    if data.startswith(b"OggS", start):
        return [
            flac
            for part in ogg_parts(data)
            for flac in (_flac_parts(part.data) if part.data[:4] == b"fLaC" else [part])
        ]
    if data[start : start + 4] in _WAV_FORMS and data[start + 8 : start + 12] == b"WAVE":
        return _wav_parts(data[start:])
    if suffix == "mp3" or (data[start : start + 1] == b"\xff" and data[start + 1 : start + 2] >= b"\xe0"):
        return mpeg_parts(data)
    if data.startswith(b"NIST_1A"):
        return [Part(data=data)]  # libsndfile takes the number of samples from the size of the file
    raise ValueError("unreadable audio: not a FLAC, MP3, Ogg, WAV or NIST file")


def av_files(data: bytes) -> tuple[str, list[bytes]] | None:
    """FFmpeg's name of the format of an M4A, WMA or AAC file, and its parts one after the other; None: it is another.

    FFmpeg reads the first of joined M4A or WMA files only, and what is left of a WMA that is cut short.

    Raises:
        ValueError: A WMA is shorter than it says.
    """
    kind = "asf" if data.startswith(_ASF) else "mp4"
    if kind == "asf":
        starts = [match.start() for match in re.finditer(re.escape(_ASF), data)]
    elif data[4:8] in _MP4_BOXES:
        starts = _mp4_starts(data)
    elif data[:1] == b"\xff" and data[1:2] and data[1] & 0xF6 == 0xF0:
        return "aac", [data]
    else:
        return None
    files = [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]
    _check_number(files)
    for file in files:
        place = file.find(_ASF_PROPERTIES) if kind == "asf" else -1
        if place >= 0 and len(file) >= place + 48:
            (size,) = struct.unpack_from("<Q", file, place + 40)
            if size > len(file):
                raise ValueError(f"unreadable audio: the file has {len(file)} bytes, its header says {size}")
    return kind, files


def _mp4_starts(data: bytes) -> list[int]:
    """Where each of joined files begins: at a box of its type."""
    starts = [0]
    position = 0
    while position + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        if name == b"ftyp" and position > 0:
            starts.append(position)
        if size == 1 and position + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, position + 8)
        if size < 8:
            break  # 0: the box ends with the file
        position += size
    return starts


def _flac_parts(data: bytes) -> list[Part]:
    """Every FLAC of joined ones, without its number of samples, so that libsndfile reads until the frames end."""
    starts = [match.start() for match in _STREAMINFO.finditer(data)]
    if not starts or starts[0] != 0:
        return [Part(data=data)]  # libsndfile says what is wrong
    return [_flac_part(data[start:end]) for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def _flac_part(data: bytes) -> Part:
    data = without_end_tags(data)
    if len(data) < 26:
        return Part(data=data)
    # STREAMINFO from byte 8: 10 bytes of sizes, then rate, channels and bits, and 36 bits of length; 0: unknown.
    (word,) = struct.unpack_from(">Q", data, 18)
    unknown = struct.pack(">Q", word & ~_MAX_FLAC_SAMPLES)
    num_samples = word & _MAX_FLAC_SAMPLES
    return Part(data=data[:18] + unknown + data[26:], num_samples=num_samples)


def _wav_parts(data: bytes) -> list[Part]:
    """Every WAV of joined ones.

    Raises:
        ValueError: There is more in the file than its header accounts for, or several pieces of samples.
    """
    parts: list[Part] = []
    while data:
        found, end = _first_wav(data)
        parts += found
        data = data[end:]
        _check_number(parts)
    return parts


def _first_wav(data: bytes) -> tuple[list[Part], int]:
    """The first WAV, and where it ends."""
    order = ">" if data[:4] == b"RIFX" else "<"
    encoding = 0
    long_size = None  # RF64: sizes of 64 bits stand in a chunk of their own
    position = 12
    while True:
        name, size = _chunk(data, position, order)
        start = position + 8
        if name is None or name == b"data":
            break
        if name == b"fmt " and len(data) >= start + 2:
            (encoding,) = struct.unpack_from(order + "H", data, start)
        if name == b"ds64" and len(data) >= start + 16:
            (long_size,) = struct.unpack_from("<Q", data, start + 8)
        position = start + size + size % 2
    if name is None:
        raise ValueError("unreadable audio: the WAV file has no data chunk")
    if long_size is not None and size == _UNKNOWN_SIZE:
        size = long_size
    num_rest = len(data) - start
    end = min(start + size, len(data))
    next_file = _next_file(data, end, order)
    if size > num_rest or (size == 0 and next_file is None):  # not known when the header was written, or cut short
        next_file = end = len(data)
    elif next_file is None:
        raise ValueError(
            f"unreadable audio: the WAV header says {size} bytes of samples, but {num_rest - size} bytes follow that "
            "are no chunk"
        )
    if encoding in _MPEG_IN_WAV:
        return mpeg_parts(data[start:end]), next_file
    said = end - start
    if encoding == _GSM_IN_WAV:  # blocks of 65 bytes; an odd size makes libsndfile read one more than there are
        said -= said % 65
        said -= said % 2
    if said != size:
        data = data[: start - 4] + struct.pack(order + "I", said) + data[start:]
    return [Part(data=data[:next_file])], next_file


def _chunk(data: bytes, position: int, order: str) -> tuple[bytes | None, int]:
    """Name and size of the chunk at a position; None: the file ends."""
    if position + 8 > len(data):
        return None, 0
    (size,) = struct.unpack_from(order + "I", data, position + 4)
    return data[position : position + 4], size


def _is_chunk(data: bytes, position: int, order: str) -> bool:
    """Whether a chunk begins here that ends within the file."""
    name, size = _chunk(data, position, order)
    return name is not None and all(32 <= byte < 127 for byte in name) and position + 8 + size <= len(data)


def _next_file(data: bytes, position: int, order: str) -> int | None:
    """Where the chunks behind the samples end: at another file, or at the end of this; None: they are no chunks.

    Raises:
        ValueError: One of them is another chunk of samples.
    """
    while True:
        if len(data) - position < 2:
            return len(data)
        for start in (position + position % 2, position):  # padded to an even size, or not
            if data[start : start + 4] in _WAV_FORMS:
                return start
            if tag_size(data, start) >= len(data) - start:
                return len(data)
            if _is_chunk(data, start, order):
                position = start
                break
        else:
            return None
        name, size = _chunk(data, position, order)
        if name == b"data":
            raise ValueError("unreadable audio: the WAV file has more than one data chunk")
        position += 8 + size
