"""Part: an audio file of one stream; and the tags that may lie around one."""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Part:
    """An audio file of one stream, whose header promises libsndfile at least as many samples as it has.

    Attributes:
        data: The file's bytes.
        num_samples: Samples per channel that it must have at least; fewer are an error.
        per_s: Samples per second that they are counted in; None: the file's rate.
        num_expected: If libsndfile expects fewer samples per channel than this, `otherwise` is read instead.
        otherwise: The same stream with another header.
    """

    data: bytes
    num_samples: int = 0
    per_s: int | None = None
    num_expected: int = 0
    otherwise: Part | None = None


def tag_size(data: bytes, position: int) -> int:
    """Bytes of the ID3 or APE tag that begins here; 0: none does."""
    if data.startswith(b"ID3", position) and position + 10 <= len(data):
        flags, *sizes = data[position + 5 : position + 10]
        size = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(reversed(sizes)))
        return 10 + size + (10 if flags & 0x10 else 0)
    if data.startswith(b"TAG", position):
        return 128
    if data.startswith(b"APETAGEX", position) and position + 32 <= len(data):
        size, _, flags = struct.unpack_from("<III", data, position + 12)
        return 32 + (int(size) if flags & 1 << 29 else 0)
    return 0


def without_end_tags(data: bytes) -> bytes:
    """The data without the ID3 and APE tags at its end."""
    while True:
        if data[-128:-125] == b"TAG":
            data = data[:-128]
        elif data[-32:-24] == b"APETAGEX":
            size, _, flags = struct.unpack("<III", data[-20:-8])
            data = data[: -max(size + (32 if flags >> 31 else 0), 32)]
        else:
            return data
