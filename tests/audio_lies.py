"""Audio files whose headers do not tell the truth, made from files that do."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

# A byte's bits in reverse order, for the checksum of an Ogg page.
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
ID3 = b"ID3\x03\0\0\0\0\0\x10" + bytes(16)
ID3_V1 = b"TAG" + b"x" * 125


def noise(num_samples: int, num_channels: int = 1, *, seed: int = 0) -> NDArray[np.float32]:
    """Noise, `[samples]` or `[samples, channels]`: no codec makes an end or a beginning of it that is not there."""
    shape = (num_samples,) if num_channels == 1 else (num_samples, num_channels)
    return (0.2 * np.random.default_rng(seed).standard_normal(shape)).clip(-1, 1).astype(np.float32)


def written(
    samples: NDArray[Any], container: str, subtype: str | None = None, rate_hz: int = 16_000, **how: Any
) -> bytes:
    """The bytes of an audio file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=container, subtype=subtype, **how)
    return file.getvalue()


def flac_saying(data: bytes, num_samples: int) -> bytes:
    """A FLAC with another number of samples in its header; 0: unknown."""
    (word,) = struct.unpack(">Q", data[18:26])
    return data[:18] + struct.pack(">Q", word & ~0xFFFFFFFFF | num_samples) + data[26:]


def wav_saying(data: bytes, size: int, riff_size: int | None = None) -> bytes:
    """A WAV with another size of its samples in its header."""
    place = data.index(b"data") + 4
    order = ">" if data[:4] == b"RIFX" else "<"
    changed = data[:place] + struct.pack(order + "I", size) + data[place + 4 :]
    return changed if riff_size is None else changed[:4] + struct.pack(order + "I", riff_size) + changed[8:]


def wav_of(payload: bytes, encoding: int, rate_hz: int) -> bytes:
    """A WAV around samples of any encoding."""
    fmt = struct.pack("<HHIIHHH", encoding, 1, rate_hz, 16_000, 1, 0, 0)
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", len(payload)) + payload
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks


def without_first_frame(mp3: bytes) -> bytes:
    """An MP3 without its Xing or Info frame, so that nothing counts its frames."""
    tag = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    return mp3[mp3.index(mp3[:2], tag) :]


def mp3_saying(mp3: bytes, num_frames: int) -> bytes:
    """An MP3 with another number of frames in its Xing or Info frame."""
    place = max(mp3.find(b"Xing"), mp3.find(b"Info")) + 8
    return mp3[:place] + struct.pack(">I", num_frames) + mp3[place + 4 :]


def ogg_pages(data: bytes) -> list[tuple[int, int]]:
    """Start and end of every page."""
    pages = []
    start = 0
    while data.startswith(b"OggS", start):
        num_sizes = data[start + 26]
        end = start + 27 + num_sizes + sum(data[start + 27 : start + 27 + num_sizes])
        pages.append((start, end))
        start = end
    return pages


def ogg_saying(data: bytes, granule: int, page: int = -1) -> bytes:
    """An Ogg file with another granule position on one of its pages, and the checksum that fits."""
    start, end = ogg_pages(data)[page]
    changed = bytearray(data[start:end])
    changed[6:14] = struct.pack("<q", granule)
    changed[22:26] = bytes(4)
    checksum = zlib.crc32(bytes(changed).translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    changed[22:26] = int(f"{checksum:032b}"[::-1], 2).to_bytes(4, "little")
    return data[:start] + bytes(changed) + data[end:]
