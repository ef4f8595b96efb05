"""MPEG audio (MP3): its frames are counted, because a count in its header is optional, and wrong when files are joined.

libsndfile reads as many samples as the Xing or Info frame at the start says, or as it estimates from the bit rate of
the first frames. So it is given one file per header, each with a header that counts the frames that there are.

Sources: ISO/IEC 11172-3 and 13818-3 (frame headers), G. Bouvigne, "Mp3 Info Tag rev 1", 2005 (Xing, Info, LAME).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from xares_bench.datasets.part import Part, tag_size

_SYNC = re.compile(rb"\xff[\xe2-\xff]")
_INFO = re.compile(rb"Xing|Info|VBRI")
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by version bits
# kbit/s by (MPEG 1 or not, layer bits: 3 is Layer I) and index 1 to 14.
_KBITS = {
    (True, 3): range(32, 449, 32),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 3): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 1): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
# A header of ours: the frame, the tag, and its count need this many bytes.
_INFO_BYTES = 64
# Begins each file: without a tag, libsndfile looks for a file `._` in the current folder first, and takes it for the
# other half of a Sound Designer file.
_EMPTY_TAG = b"ID3\x03\0\0\0\0\0\x0a" + bytes(10)
# Of a file's samples, an encoder's delay and padding are left out at its ends: 12 bits each, and the decoder's own.
_MAX_TRIMMED = 2 * 4095 + 529


class _Kind(NamedTuple):
    """What the frames of one stream have in common."""

    is_mpeg_1: bool
    layer: int
    rate_hz: int
    is_mono: bool

    @property
    def num_samples(self) -> int:
        """Samples per channel of a frame."""
        if self.layer == 1:
            return 384
        return 1152 if self.layer == 2 or self.is_mpeg_1 else 576

    @property
    def tag_place(self) -> int:
        """Where the tag Xing or Info lies in a frame of Layer III."""
        return 4 + ((17 if self.is_mono else 32) if self.is_mpeg_1 else (9 if self.is_mono else 17))


class _Frame(NamedTuple):
    """A whole frame."""

    start: int
    end: int
    kind: _Kind


def mpeg_parts(data: bytes) -> list[Part]:
    """One file per stream: joined files, and streams that change their rate or channels, are taken apart.

    Raises:
        ValueError: There is no frame.
    """
    frames = list(_frames(data))
    if not frames:
        raise ValueError("unreadable audio: no MPEG frames")
    info_starts = _info_starts(data, frames)
    streams: list[list[_Frame]] = []
    for frame in frames:
        if not streams or frame.kind != streams[-1][-1].kind or frame.start in info_starts:
            streams.append([])
        streams[-1].append(frame)
    return [_part(data, stream, info_starts.get(stream[0].start)) for stream in streams]


def _part(data: bytes, frames: Sequence[_Frame], tag: int | None) -> Part:
    """A file of one stream; `tag` is the place of the tag in its first frame, None: it has none."""
    kind = frames[0].kind
    audio = frames if tag is None else frames[1:]
    content = _joined(data, frames)
    num_samples = len(audio) * kind.num_samples
    least = max(num_samples - _MAX_TRIMMED, 0)
    if tag is not None and data[tag : tag + 4] != b"VBRI" and data[tag + 7] & 1:  # a tag with a count
        (num_said,) = struct.unpack_from(">I", data, tag + 8)
        # Too many are as harmless as some more than there are; then the last samples are no padding to be left out.
        counted = min(max(num_said, len(audio)), len(audio) + _MAX_TRIMMED // kind.num_samples)
        if counted != num_said:
            place = tag + 8 - frames[0].start
            content = content[:place] + struct.pack(">I", counted) + content[place + 4 :]
        return Part(data=_EMPTY_TAG + content, num_samples=least)
    if kind.layer != 3 or not audio:
        return Part(data=_EMPTY_TAG + content, num_samples=least)
    with_count = _info_frame(data, audio[0], len(audio)) + _joined(data, audio)
    # For a constant bit rate the estimate is right, and nothing is to be changed: our header would make libsndfile
    # leave out the delay of a decoder.
    return Part(
        data=_EMPTY_TAG + content,
        num_expected=num_samples,
        num_samples=least,
        otherwise=Part(data=_EMPTY_TAG + with_count, num_samples=least),
    )


def _info_frame(data: bytes, first: _Frame, num_frames: int) -> bytes:
    """A frame of silence with a count of frames, for a stream that begins with this frame."""
    head = bytearray(data[first.start : first.start + 4])
    head[1] |= 1  # without a checksum
    size = 0
    for index in range(1, 15):
        head[2] = index << 4 | head[2] & 0x0C
        parsed = _header(bytes(head[1:4]))
        assert parsed is not None
        size = parsed[1]
        if size >= _INFO_BYTES:
            break
    tag = b"Info" + struct.pack(">II", 1, num_frames)
    return (bytes(head).ljust(first.kind.tag_place, b"\0") + tag).ljust(size, b"\0")


def _info_starts(data: bytes, frames: Sequence[_Frame]) -> dict[int, int]:
    """Starts of the frames that are headers of files, with the places of their tags."""
    found: dict[int, int] = {}
    by_start: dict[int, _Frame] | None = None
    for match in _INFO.finditer(data):
        if by_start is None:
            by_start = {frame.start: frame for frame in frames if frame.kind.layer == 3}
        for place in (13, 21, 36, 15, 23, 38):  # the latter three behind a checksum
            frame = by_start.get(match.start() - place)
            if frame is not None:
                is_place = place == 36 if match[0] == b"VBRI" else place - frame.kind.tag_place in (0, 2)
                if is_place and match.start() + 12 <= frame.end:
                    found[frame.start] = match.start()
    return found


def _joined(data: bytes, frames: Sequence[_Frame]) -> bytes:
    """The bytes of frames, without what lies between them."""
    if frames[-1].end - frames[0].start == sum(frame.end - frame.start for frame in frames):
        return data[frames[0].start : frames[-1].end]
    return b"".join(data[frame.start : frame.end] for frame in frames)


def _frames(data: bytes) -> Iterator[_Frame]:
    """Every whole frame; tags and other bytes between them are passed over.

    After such bytes a frame counts only if another one of its kind, a tag or the end follows it.
    """
    position = 0
    kind = None  # of the frame that ends here
    while position + 4 <= len(data):
        parsed = _header(data[position + 1 : position + 4]) if data[position] == 0xFF else None
        end = position + (parsed[1] if parsed is not None else 0)
        if parsed is not None and end <= len(data) and (parsed[0] == kind or _goes_on(data, end, parsed[0])):
            kind = parsed[0]
            yield _Frame(position, end, kind)
            position = end
            continue
        size = tag_size(data, position)
        if size:
            position += size
            continue
        kind = None
        match = _SYNC.search(data, position + 1)
        position = match.start() if match is not None else len(data)


def _goes_on(data: bytes, position: int, kind: _Kind) -> bool:
    if position == len(data) or tag_size(data, position):
        return True
    parsed = _header(data[position + 1 : position + 4]) if data[position] == 0xFF else None
    return parsed is not None and parsed[0] == kind


@lru_cache(maxsize=4096)
def _header(rest: bytes) -> tuple[_Kind, int] | None:
    """Kind and size in bytes of the frame with this header, given without its first byte, 0xFF; None: it is none."""
    if len(rest) < 3 or rest[0] < 0xE0:
        return None
    version, layer_bits = rest[0] >> 3 & 3, rest[0] >> 1 & 3
    bit_rate, rate = rest[1] >> 4, rest[1] >> 2 & 3
    if version == 1 or layer_bits == 0 or not 0 < bit_rate < 15 or rate == 3:
        return None
    kind = _Kind(
        is_mpeg_1=version == 3, layer=4 - layer_bits, rate_hz=_RATES_HZ[version][rate], is_mono=rest[2] >> 6 == 3
    )
    bits_per_s = 1000 * _KBITS[kind.is_mpeg_1, layer_bits][bit_rate - 1]
    padding = rest[1] >> 1 & 1
    if kind.layer == 1:
        return kind, (12 * bits_per_s // kind.rate_hz + padding) * 4
    return kind, kind.num_samples // 8 * bits_per_s // kind.rate_hz + padding
