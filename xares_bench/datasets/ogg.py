"""Ogg: joined (chained) files are taken apart, and the count of samples on the last page is held against the packets.

libsndfile reads the first of joined files only, and as many samples as the pages' granule positions say.

Sources: RFC 3533 (pages), RFC 7845 (Opus in Ogg), RFC 6716 (Opus packets), the Vorbis I specification, the mapping of
FLAC to Ogg at xiph.org/flac/ogg_mapping.html.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from xares_bench.datasets.part import Part

_MAGIC = b"OggS"
_MAX_PACKET_BYTES = 16 << 20
_OPUS_SAMPLES_PER_S = 48_000
# Opus: samples of one frame by configuration 0 to 31.
_OPUS_FRAMES = (480, 960, 1920, 2880) * 3 + (480, 960) * 2 + (120, 240, 480, 960) * 4


class _Page(NamedTuple):
    """One page; `granule` is the number of samples up to its last complete packet, -1: none ends on it."""

    start: int
    end: int
    is_first: bool
    granule: int
    serial: int
    number: int
    sizes: bytes


def ogg_parts(data: bytes) -> list[Part]:
    """One file per link of the chain.

    Raises:
        ValueError: A page is missing or incomplete, or granule positions contradict the packets.
    """
    links: list[list[_Page]] = []
    for page in _pages(data):
        if not links or (page.is_first and not links[-1][-1].is_first):
            links.append([])
        links[-1].append(page)
    return [_part(data, link) for link in links]


def _part(data: bytes, pages: Sequence[_Page]) -> Part:
    """The first audio stream of a link, without streams beside it."""
    opening = [page for page in pages if page.is_first]
    known = [page for page in opening if _packet(data, page).startswith((b"\x01vorbis", b"OpusHead", b"\x7fFLAC"))]
    serial = (known or opening or pages)[0].serial
    own = [page for page in pages if page.serial == serial]
    for before, page in itertools.pairwise(own):
        if page.number != before.number + 1:
            raise ValueError(f"unreadable audio: page {before.number + 1} of the Ogg file is missing")
    content = data[pages[0].start : pages[-1].end]
    if len(content) != sum(page.end - page.start for page in own):
        content = b"".join(data[page.start : page.end] for page in own)
    packets = _packets(data, own) if known else []
    if not packets:
        return Part(data=content)  # libsndfile says what it is
    head = packets[0][1]
    if head.startswith(b"\x7fFLAC"):
        return Part(data=head[9:] + b"".join(packet for _, packet in packets[1:]))
    if head.startswith(b"OpusHead"):
        durations = [(page, _opus_duration(packet)) for page, packet in packets[2:]]
        last = 2 * durations[-1][1] if durations else 0
        num_samples = _checked_granules(own, durations, last) - int.from_bytes(head[10:12], "little")
        return Part(data=content, num_samples=max(num_samples - last, 0), per_s=_OPUS_SAMPLES_PER_S)
    block = 1 << (head[28] >> 4) if len(head) > 28 else 0
    num_samples = _checked_granules(own, _vorbis_durations(packets), block)
    return Part(data=content, num_samples=max(num_samples - block, 0))


def _pages(data: bytes) -> Iterator[_Page]:
    position = 0
    while (position := data.find(_MAGIC, position)) >= 0:
        if position + 27 > len(data):
            raise ValueError("unreadable audio: the last page of the Ogg file is incomplete")
        _, flags, granule, serial, number, _, num_sizes = struct.unpack_from("<BBqIIIB", data, position + 4)
        sizes = data[position + 27 : position + 27 + num_sizes]
        end = position + 27 + num_sizes + sum(sizes)
        if len(sizes) < num_sizes or end > len(data):
            raise ValueError("unreadable audio: the last page of the Ogg file is incomplete")
        yield _Page(position, end, bool(flags & 2), granule, serial, number, sizes)
        position = end


def _packet(data: bytes, page: _Page) -> bytes:
    """What a page holds of packets."""
    return data[page.start + 27 + len(page.sizes) : page.end]


def _packets(data: bytes, pages: Sequence[_Page]) -> list[tuple[int, bytes]]:
    """The packets of a stream, each with the index of the page that it ends on."""
    packets = []
    begun = b""
    for index, page in enumerate(pages):
        start = end = page.start + 27 + len(page.sizes)
        for value in page.sizes:
            end += value
            if value < 255:
                packets.append((index, begun + data[start:end]))
                begun = b""
                start = end
        begun += data[start:end]
        if len(begun) > _MAX_PACKET_BYTES:
            raise ValueError(f"unreadable audio: a packet of the Ogg file has more than {_MAX_PACKET_BYTES} bytes")
    return packets


def _checked_granules(pages: Sequence[_Page], durations: Sequence[tuple[int, int]], max_trimmed: int) -> int:
    """Samples up to the last granule position.

    Args:
        pages: The pages of a stream.
        durations: Of every packet of audio, the index of the page that it ends on and its samples.
        max_trimmed: The position of the last page may be that much below the packets' samples.

    Raises:
        ValueError: The positions run backwards, or say more or fewer samples than the packets have.
    """
    num_samples = sum(duration for _, duration in durations)
    if not durations:
        return 0
    audio = [page for page in pages[durations[0][0] :] if page.granule != -1]
    if any(page.granule < before.granule for before, page in itertools.pairwise(audio)):
        raise ValueError("unreadable audio: the positions of the Ogg pages run backwards")
    start = 0
    if len(audio) > 1:  # a recording of a running transmission begins at any position
        first = pages.index(audio[0])
        start = audio[0].granule - sum(duration for index, duration in durations if index <= first)
    said = audio[-1].granule - max(start, 0) if audio else 0
    if start < -max_trimmed or not -max_trimmed <= num_samples - said <= max_trimmed:
        raise ValueError(f"unreadable audio: the Ogg pages say {said} samples, their packets have {num_samples}")
    return min(said, num_samples)


def _opus_duration(packet: bytes) -> int:
    """Samples at 48 kHz of an Opus packet."""
    if not packet:
        return 0
    code = packet[0] & 3
    num_frames = (1, 2, 2)[code] if code < 3 else (packet[1] & 63 if len(packet) > 1 else 0)
    return num_frames * _OPUS_FRAMES[packet[0] >> 3]


def _vorbis_durations(packets: Sequence[tuple[int, bytes]]) -> list[tuple[int, int]]:
    """Samples of every packet of audio: a quarter of its block and of the one before."""
    head, setup = packets[0][1], packets[2][1] if len(packets) > 2 else b""
    if len(head) < 29:
        return []
    blocks = (1 << (head[28] & 15), 1 << (head[28] >> 4))
    are_long = _vorbis_modes(setup)
    mask = (1 << (len(are_long) - 1).bit_length()) - 1
    found = []
    before = 0
    for page, packet in packets[3:]:
        if not packet or packet[0] & 1 or (mode := packet[0] >> 1 & mask) >= len(are_long):
            found.append((page, 0))
            continue
        block = blocks[are_long[mode]]
        found.append((page, (before + block) // 4 if before else 0))
        before = block
    return found


def _vorbis_modes(setup: bytes) -> list[bool]:
    """Whether each mode uses long blocks.

    The modes are the last entry of the setup packet, and what comes before them takes a decoder to pass over. So they
    are read from the end: a set bit, before it modes of 41 bits (flag, two words of zeros, mapping), before them their
    number less one in 6 bits.
    """
    bits = int.from_bytes(setup, "little")
    end = bits.bit_length() - 1  # of the modes: the last set bit is the packet's own
    modes: list[bool] = []
    found: list[bool] = []
    for count in range(1, 65):
        start = end - 41 * count
        if start < 6 or bits >> start + 1 & 0xFFFFFFFF:
            break
        modes.insert(0, bool(bits >> start & 1))
        if (bits >> start - 6 & 63) == count - 1:
            found = list(modes)
    if not found:
        raise ValueError("unreadable audio: the setup of the Vorbis stream is damaged")
    return found
