"""Tags at either end of an audio file, by their own sizes."""

from __future__ import annotations

import struct

import pytest

from tests.audio_lies import ID3, ID3_V1
from xares_bench.datasets.part import tag_size, without_end_tags

APE_ITEMS = b"some items"


def ape(flags: int) -> bytes:
    return b"APETAGEX" + struct.pack("<IIII", 2000, len(APE_ITEMS) + 32, 1, flags) + bytes(8)


APE = ape(0xA0000000) + APE_ITEMS + ape(0x80000000)  # header and footer


@pytest.mark.parametrize(
    ("tag", "size"),
    [
        (ID3, 26),
        (ID3[:5] + b"\x10" + ID3[6:] + bytes(10), 36),
        (ID3_V1, 128),
        (APE, len(APE)),
        (b"fLaC", 0),
        (b"ID3", 0),
    ],
)
def test_the_size_of_a_tag(tag: bytes, size: int) -> None:
    assert tag_size(b"ab" + tag + b"more", 2) == size
    assert tag_size(b"abID3", 2) == tag_size(b"ab", 2) == 0


@pytest.mark.parametrize("tags", [b"", ID3_V1, APE, APE + ID3_V1, ape(0), ID3_V1 + ID3_V1])
def test_tags_at_the_end_are_cut(tags: bytes) -> None:
    items = APE_ITEMS if tags == ape(0) else b""
    assert without_end_tags(b"audio" * 100 + items + tags) == b"audio" * 100


def test_a_tag_that_claims_more_than_there_is_leaves_nothing() -> None:
    assert without_end_tags(b"audio" + b"APETAGEX" + struct.pack("<IIII", 2000, 1 << 31, 0, 0) + bytes(8)) == b""
    assert without_end_tags(b"audio" + b"APETAGEX" + struct.pack("<IIII", 2000, 0, 0, 0) + bytes(8)) == b"audio"
