"""Ogg files: joined, with other positions on their pages, with pages lost; Vorbis, Opus and FLAC."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.audio_lies import flac_saying, noise, ogg_pages, ogg_saying, written
from xares_bench.datasets.audio import read_audio
from xares_bench.datasets.ogg import ogg_parts

N = 60_000
KINDS = ("VORBIS", "OPUS")
PER_SAMPLE = {"VORBIS": 1, "OPUS": 3}  # Opus counts at 48 kHz


@pytest.mark.parametrize("subtype", KINDS)
@pytest.mark.parametrize("num_links", [2, 3])
def test_joined_files_are_read_whole(subtype: str, num_links: int) -> None:
    links = [written(noise(N // (seed + 1), seed=seed), "OGG", subtype) for seed in range(num_links)]
    expected = np.concatenate([read_audio(link, "ogg") for link in links])
    np.testing.assert_array_equal(read_audio(b"".join(links), "ogg"), expected)
    assert len(expected) == sum(N // (seed + 1) for seed in range(num_links))


@pytest.mark.parametrize("subtype", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 1.5, 100.0])
@pytest.mark.parametrize("num_samples", [2_000, 10_000, N])
def test_a_position_that_the_packets_contradict_is_refused(subtype: str, share: float, num_samples: int) -> None:
    data = written(noise(num_samples), "OGG", subtype)
    lie = ogg_saying(data, round(share * num_samples) * PER_SAMPLE[subtype])
    try:
        found = len(read_audio(lie, "ogg"))
    except ValueError as cause:
        assert "position" in str(cause) or "Ogg pages say" in str(cause)  # noqa: PT017  # either is fine
    else:  # within the last packets, which the position may cut
        assert abs(found - num_samples) <= 2048


@pytest.mark.parametrize("subtype", KINDS)
def test_the_last_packets_may_be_cut(subtype: str) -> None:
    data = written(noise(N), "OGG", subtype)
    (last,) = struct.unpack_from("<q", data, ogg_pages(data)[-1][0] + 6)
    assert len(read_audio(ogg_saying(data, last - 30 * PER_SAMPLE[subtype]), "ogg")) == N - 30


@pytest.mark.parametrize("subtype", KINDS)
def test_a_lost_page_is_refused(subtype: str) -> None:
    data = written(noise(N), "OGG", subtype)
    pages = ogg_pages(data)
    assert len(pages) > 4
    start, end = pages[3]
    with pytest.raises(ValueError, match="page 3 of the Ogg file is missing"):
        read_audio(data[:start] + data[end:], "ogg")


@pytest.mark.parametrize("subtype", KINDS)
def test_a_damaged_page_is_refused(subtype: str) -> None:
    data = bytearray(written(noise(N), "OGG", subtype))
    start, end = ogg_pages(bytes(data))[3]
    data[(start + end) // 2] ^= 0xFF
    with pytest.raises(ValueError, match=r"^unreadable audio: "):
        read_audio(bytes(data), "ogg")


@pytest.mark.parametrize("subtype", KINDS)
def test_bytes_behind_the_last_page_are_no_page(subtype: str) -> None:
    data = written(noise(N), "OGG", subtype)
    np.testing.assert_array_equal(read_audio(data + b"x" * 3000, "ogg"), read_audio(data, "ogg"))


@pytest.mark.parametrize("subtype", KINDS)
def test_a_stream_beside_it_is_left_out(subtype: str) -> None:
    """As video or a skeleton are in one file with sound."""
    data = written(noise(N), "OGG", subtype)
    beside = b"OggS\0\2" + bytes(8) + struct.pack("<IIIB", 4242, 0, 0, 1) + b"\x08fishead\0"
    np.testing.assert_array_equal(read_audio(beside + data, "ogg"), read_audio(data, "ogg"))


@pytest.mark.parametrize("num_said", [0, 1, N // 2, N])
def test_flac_in_ogg_is_read_to_its_end(num_said: int) -> None:
    flac = flac_saying(written(noise(N), "FLAC"), num_said)
    head, frames = flac[4:42], flac[42:]
    blocks = []
    while True:
        (word,) = struct.unpack(">I", frames[:4])
        is_last, size = word >> 31, word & 0xFFFFFF
        blocks.append(frames[: 4 + size])
        frames = frames[4 + size :]
        if is_last:
            break
    packets = [b"\x7fFLAC\x01\0" + struct.pack(">H", len(blocks)) + b"fLaC" + head, *blocks, frames]
    data = b""
    for number, packet in enumerate(packets):
        pieces = [packet[place : place + 255 * 255] for place in range(0, len(packet), 255 * 255)]
        for place, piece in enumerate(pieces):
            is_end = place == len(pieces) - 1
            sizes = b"\xff" * (len(piece) // 255) + (bytes([len(piece) % 255]) if is_end else b"")
            flags = (2 if number == 0 else 0) | (1 if place else 0)
            page = struct.pack("<BBqIIIB", 0, flags, 0, 7, data.count(b"OggS\0"), 0, len(sizes))
            data += b"OggS" + page + sizes + piece
    np.testing.assert_array_equal(read_audio(data, "ogg"), read_audio(written(noise(N), "FLAC"), "flac"))


def test_a_link_is_a_file_of_its_own() -> None:
    one, two = written(noise(3000), "OGG", "VORBIS"), written(noise(2000), "OGG", "OPUS")
    assert [part.data for part in ogg_parts(one + two)] == [one, two]


def test_a_stream_that_ends_within_its_first_packet_is_refused() -> None:
    data = bytearray(written(noise(N), "OGG", "VORBIS"))
    data = data[: ogg_pages(bytes(data))[0][1]]
    data[27] = 255  # the packet goes on
    with pytest.raises(ValueError, match=r"^unreadable audio: "):
        read_audio(bytes(data) + bytes(255 - 30), "ogg")
