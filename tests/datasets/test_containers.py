"""Headers of FLAC, WAV, M4A and WMA that do not tell how much there is, or tell something wrong."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.audio_lies import (
    ID3,
    ID3_V1,
    flac_saying,
    mp3_saying,
    noise,
    ogg_pages,
    ogg_saying,
    wav_saying,
    without_first_frame,
    written,
)
from tests.datasets.test_audio import encode_with_av
from xares_bench.datasets.audio import read_audio
from xares_bench.datasets.containers import av_files, parts_of

N = 30_000
SOUND = noise(N)
FLAC = written(SOUND, "FLAC")
# Encodings of WAV; those in blocks come back with a part of a block more.
WAV_SUBTYPES = sorted(set(soundfile.available_subtypes("WAV")) - {"MPEG_LAYER_III"})
LIST = b"LIST\4\0\0\0abcd"


def wav(subtype: str = "PCM_16", container: str = "WAV") -> bytes:
    return written(SOUND, container, subtype)


def num_read(data: bytes, suffix: str = "wav") -> int:
    return len(read_audio(data, suffix))


@pytest.mark.parametrize("num_said", [0, 1, 4095, 4096, 5000, N - 1, N])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_a_flac_that_says_too_few_samples_is_read_to_its_end(num_said: int, subtype: str) -> None:
    data = written(noise(N, 2), "FLAC", subtype)
    np.testing.assert_array_equal(read_audio(flac_saying(data, num_said), "flac"), read_audio(data, "flac"))


@pytest.mark.parametrize("num_said", [N + 1, 2 * N])
def test_a_flac_that_says_too_many_samples_is_refused(num_said: int) -> None:
    with pytest.raises(ValueError, match=f"unreadable audio: the file ends after {N} samples, expected {num_said}"):
        num_read(flac_saying(FLAC, num_said), "flac")


@pytest.mark.parametrize("num_said", [0, N])
def test_joined_flacs_are_read_whole(num_said: int) -> None:
    joined = flac_saying(FLAC, num_said) + ID3_V1 + flac_saying(written(noise(5000, seed=1), "FLAC"), 5000)
    found = read_audio(joined, "flac")
    np.testing.assert_array_equal(found[:N], read_audio(FLAC, "flac"))
    assert len(found) == N + 5000


@pytest.mark.parametrize("num_said", [0, 5000, N])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_flac_is_refused_whatever_it_says(num_said: int, share: float) -> None:
    with pytest.raises(ValueError, match="unreadable audio"):
        num_read(flac_saying(FLAC, num_said)[: int(share * len(FLAC))], "flac")


def test_tags_around_a_flac() -> None:
    assert num_read(ID3 + ID3 + FLAC + ID3_V1, "flac") == N
    assert num_read(ID3 + flac_saying(FLAC, 0) + ID3_V1, "flac") == N


@pytest.mark.parametrize("num_said", [0, 5000, N])
def test_what_is_no_frame_behind_a_flac_is_refused(num_said: int) -> None:
    """It may be the rest of the samples."""
    with pytest.raises(ValueError, match="unreadable audio: Error : flac decoder lost sync"):
        num_read(flac_saying(FLAC, num_said) + b"q" * 5000, "flac")


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 10, 11])
def test_gsm_has_as_many_blocks_as_it_has(num_blocks: int) -> None:
    """Its blocks are of 65 bytes; an odd number of them is followed by a byte that is no sound."""
    data = written(noise(320 * num_blocks), "WAV", "GSM610", 16_000)
    assert num_read(data) == 320 * num_blocks
    assert num_read(data + LIST) == 320 * num_blocks
    assert num_read(data * 2) == 640 * num_blocks


@pytest.mark.parametrize("size", [0, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, (1 << 32) - 9])
@pytest.mark.parametrize("riff_size", [None, 0, 8, 36, (1 << 32) - 1])
@pytest.mark.parametrize("subtype", WAV_SUBTYPES)
def test_a_wav_from_a_pipe_is_read_to_its_end(subtype: str, size: int, riff_size: int | None) -> None:
    whole = wav(subtype)
    (true_size,) = struct.unpack_from("<I", whole, whole.index(b"data") + 4)
    whole = whole[: whole.index(b"data") + 8 + true_size]  # without a byte that makes the size even
    assert N <= num_read(whole) < N + 1100
    np.testing.assert_array_equal(read_audio(wav_saying(whole, size, riff_size), "wav"), read_audio(whole, "wav"))


@pytest.mark.parametrize("riff_size", [None, 0, 8, (1 << 32) - 1])
@pytest.mark.parametrize("size", [2, 1000, 5000])
@pytest.mark.parametrize("subtype", WAV_SUBTYPES)
def test_a_wav_with_more_than_it_says_is_refused(subtype: str, size: int, riff_size: int | None) -> None:
    with pytest.raises(
        ValueError, match=rf"the WAV header says {size} bytes of samples, but \d+ bytes follow that are no"
    ):
        num_read(wav_saying(wav(subtype), size, riff_size))


@pytest.mark.parametrize("subtype", WAV_SUBTYPES)
def test_chunks_and_tags_behind_the_samples_are_no_samples(subtype: str) -> None:
    whole = wav(subtype)
    whole += b"\0" * (len(whole) % 2)
    for tail in (LIST, LIST + LIST, b"LIST\3\0\0\0abc\0" + LIST, b"LIST\3\0\0\0abc" + LIST, ID3_V1, LIST + ID3_V1):
        np.testing.assert_array_equal(read_audio(whole + tail, "wav"), read_audio(whole, "wav"))


@pytest.mark.parametrize("subtype", WAV_SUBTYPES)
def test_joined_wavs_are_read_whole(subtype: str) -> None:
    whole = wav(subtype)
    whole += b"\0" * (len(whole) % 2)
    expected = np.concatenate([read_audio(whole, "wav")] * 2)
    np.testing.assert_array_equal(read_audio(whole + whole, "wav"), expected)
    np.testing.assert_array_equal(read_audio(whole + LIST + whole, "wav"), expected)


@pytest.mark.parametrize("container", ["WAV", "FLAC", "MP3", "OGG"])
def test_very_many_joined_files_are_refused(container: str) -> None:
    with pytest.raises(ValueError, match=r"^unreadable audio: more than 1000 joined files$"):
        num_read(written(noise(2), container) * 1001)


def test_other_bytes_behind_the_samples_are_refused() -> None:
    for tail in (b"junk" * 5, b"\0" * 100, LIST + b"junk" * 5, b"data\4\0\0\0abcd"):
        with pytest.raises(ValueError, match=r"that are no chunk|more than one data chunk"):
            num_read(wav() + tail)


@pytest.mark.parametrize("container", ["WAVEX", "RF64"])
def test_other_forms_of_wav(container: str) -> None:
    data = wav(container=container)
    assert num_read(data) == num_read(wav_saying(data, 0)) == num_read(wav_saying(data, (1 << 32) - 2)) == N
    with pytest.raises(ValueError, match="says 1000 bytes of samples"):
        num_read(wav_saying(data, 1000))


@pytest.mark.parametrize(("size", "is_whole"), [(1000, False), (2 * N, True), (3 * N, True), (1 << 40, True)])
def test_the_long_size_of_an_rf64(size: int, is_whole: bool) -> None:
    data = wav_saying(wav(container="RF64"), (1 << 32) - 1)
    place = data.index(b"ds64") + 16
    data = data[:place] + struct.pack("<Q", size) + data[place + 8 :]
    if is_whole:
        assert num_read(data) == N
    else:
        with pytest.raises(ValueError, match="says 1000 bytes of samples"):
            num_read(data)


@pytest.mark.parametrize("size", [0, 1000, 2 * N, (1 << 32) - 1])
def test_a_big_endian_wav(size: int) -> None:
    file = io.BytesIO()
    soundfile.write(file, SOUND, 16_000, format="WAV", subtype="PCM_16", endian="BIG")
    data = wav_saying(file.getvalue(), size)
    if size == 1000:
        with pytest.raises(ValueError, match="says 1000 bytes of samples"):
            num_read(data)
    else:
        np.testing.assert_array_equal(read_audio(data, "wav"), read_audio(wav(), "wav"))


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM"])
def test_a_count_of_samples_per_block_or_file_is_not_believed(subtype: str) -> None:
    data = bytearray(wav(subtype))
    expected = num_read(bytes(data))
    place = data.index(b"fact") + 8
    data[place : place + 4] = struct.pack("<I", 1000)
    assert num_read(bytes(data)) == expected
    place = data.index(b"fmt ") + 8 + 18
    data[place : place + 2] = struct.pack("<H", 100)
    with pytest.raises(ValueError, match="unreadable audio"):
        num_read(bytes(data))


def test_a_truncated_wav_is_what_is_there() -> None:
    assert num_read(wav()[: 44 + N]) == N // 2


@pytest.mark.parametrize("container", ["AIFF", "AU", "CAF", "W64", "VOC", "MAT5"])
def test_formats_whose_counts_are_not_checked_are_refused(container: str) -> None:
    with pytest.raises(ValueError, match="unreadable audio: not a FLAC, MP3, Ogg, WAV or NIST file"):
        num_read(wav(container=container))


def test_nist_sphere_is_as_long_as_the_file() -> None:
    data = wav(container="NIST")
    assert num_read(data) == num_read(data.replace(f"-i {N}".encode(), f"-i {N // 2}".encode())) == N
    assert len(parts_of(data, "wav")) == 1


@pytest.mark.parametrize("suffix", ["m4a", "wma"])
def test_joined_m4a_and_wma_are_read_whole(suffix: str) -> None:
    data = encode_with_av(SOUND[None], suffix, 16_000)
    once = read_audio(data, suffix)
    np.testing.assert_array_equal(read_audio(data + data, suffix), np.concatenate([once, once]))
    assert len(once) >= N - 1024


@pytest.mark.parametrize("suffix", ["m4a", "wma"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_m4a_and_wma_are_refused(suffix: str, share: float) -> None:
    data = encode_with_av(noise(N)[None], suffix, 16_000)
    with pytest.raises(ValueError, match="unreadable audio"):
        read_audio(data[: int(share * len(data))], suffix)


@pytest.mark.parametrize("num_lost", [1, 5])
def test_an_m4a_that_is_cut_between_two_packets_is_refused(tmp_path: Path, num_lost: int) -> None:
    """Its index comes first, as in files for the web, and lists all packets."""
    av = pytest.importorskip("av", reason="M4A and WMA need the extra [m4a]")
    path = tmp_path / "x.m4a"
    with (
        av.open(io.BytesIO(encode_with_av(SOUND[None], "m4a", 16_000))) as old,
        av.open(str(path), mode="w", format="ipod", options={"movflags": "faststart"}) as new,
    ):
        stream = new.add_stream_from_template(old.streams.audio[0])
        for packet in old.demux(old.streams.audio[0]):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    data = path.read_bytes()
    with av.open(io.BytesIO(data)) as file:
        starts = [packet.pos for packet in file.demux(file.streams.audio[0]) if packet.size]
    assert len(read_audio(data, "m4a")) >= N - 1024
    with pytest.raises(ValueError, match=f"has {len(starts) - num_lost} packets, its header says {len(starts)}"):
        read_audio(data[: starts[-num_lost]], "m4a")


@pytest.mark.parametrize("suffix", ["m4a", "wma"])
def test_other_formats_under_these_names(suffix: str) -> None:
    pytest.importorskip("av", reason="M4A and WMA need the extra [m4a]")
    assert num_read(flac_saying(FLAC, 0), suffix) == N
    assert num_read(wav_saying(wav(), 0), suffix) == N


def test_a_list_of_files_is_not_followed() -> None:
    """FFmpeg would open what a playlist names."""
    pytest.importorskip("av", reason="M4A and WMA need the extra [m4a]")
    text = b"ffconcat version 1.0\nfile '/etc/passwd'\n"
    assert av_files(text) is None
    with pytest.raises(ValueError, match="unreadable audio: not a FLAC"):
        read_audio(text, "m4a")


RATES_HZ = {"OPUS": [8_000, 12_000, 16_000, 24_000, 48_000], "MP3": [8_000, 11_025, 16_000, 22_050, 44_100, 48_000]}
OTHER_RATES_HZ = [1_000, 4_000, 8_000, 11_025, 16_000, 44_100, 96_000]


@st.composite
def lies(draw: st.DrawFn) -> tuple[bytes, str, int, int, int, bool]:
    """A file whose header may lie: bytes, suffix, rate, samples written, how many more may be read, must it be read."""
    subtype = draw(st.sampled_from(["FLAC", "MP3", "VORBIS", "OPUS", *WAV_SUBTYPES]))
    rate_hz = draw(st.sampled_from(RATES_HZ.get(subtype, OTHER_RATES_HZ)))
    num_channels = 1 if subtype[:3] in ("GSM", "G72", "NMS") else draw(st.integers(1, 2))
    num_samples = draw(st.integers(200, 30_000))
    sound = noise(num_samples, num_channels, seed=num_samples)
    sound[draw(st.integers(0, num_samples)) :] = 0
    said = draw(st.integers(0, 2 * num_samples))
    how = draw(st.sampled_from(["true", "unknown", "said", "joined", "tagged", "tail"]))
    more, suffix = 0, "wav"
    if subtype == "FLAC":
        suffix, data = "flac", written(sound, "FLAC", None, rate_hz)
        lie = {"unknown": flac_saying(data, 0), "said": flac_saying(data, said)}
    elif subtype == "MP3":
        mode = draw(st.sampled_from(["CONSTANT", "VARIABLE", "AVERAGE"]))
        suffix, data = "mp3", written(sound, "MP3", None, rate_hz, bitrate_mode=mode)
        lie = {"unknown": without_first_frame(data), "said": mp3_saying(data, said)}
        more = 3 * 1152 if how in lie else 0
    elif subtype in ("VORBIS", "OPUS"):
        suffix, data = "ogg", written(sound, "OGG", subtype, rate_hz)
        (true,) = struct.unpack_from("<q", data, ogg_pages(data)[-1][0] + 6)
        lie = {"unknown": ogg_saying(data, -1), "said": ogg_saying(data, round(true * said / num_samples))}
        more = 2048 if how in lie else 0
    else:
        data = written(sound, "WAV", subtype, rate_hz)
        data += b"\0" * (len(data) % 2)
        sizes = st.sampled_from([0, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
        lie = {"unknown": wav_saying(data, draw(sizes)), "said": wav_saying(data, said)}
        more = 8200 if "ADPCM" in subtype else 320  # what a block has more
    changed = {"joined": data * 3, "tagged": ID3 + data + ID3_V1, "tail": data + b"q" * said, **lie}.get(how, data)
    times = 3 if how == "joined" else 1
    must = how in ("true", "joined") or (how in ("unknown", "tagged") and suffix != "ogg")
    return changed, suffix, rate_hz, times * num_samples, times * more, must


@settings(max_examples=300, deadline=None, derandomize=True)
@given(lies())
def test_any_file_is_read_whole_or_refused(lie: tuple[bytes, str, int, int, int, bool]) -> None:
    data, suffix, rate_hz, num_samples, more, must = lie
    try:
        found = len(read_audio(data, suffix)) * rate_hz / 16_000
    except ValueError as cause:
        assert str(cause).startswith(("unreadable audio: ", "audio ")), cause  # noqa: PT017  # either is fine
        assert not must, cause  # noqa: PT017
    else:
        rounding = 1 + rate_hz / 16_000
        least = num_samples - (more if suffix == "ogg" else 0)
        assert least - rounding <= found <= num_samples + more + rounding
