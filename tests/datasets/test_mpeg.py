"""MP3 files of variable bit rate, without a count, with a wrong one, joined, tagged, with bytes that are no frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.audio_lies import ID3, ID3_V1, mp3_saying, noise, wav_of, without_first_frame, written
from tests.shard_factory import Waveform
from xares_bench.datasets.audio import read_audio
from xares_bench.datasets.mpeg import mpeg_parts

RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
N = 60_000


def half_silent(num_channels: int = 1) -> Waveform:
    """Loud, then silent: an estimate from the first frames' bit rate is far too short."""
    samples = noise(N, num_channels)
    samples[N // 2 :] = 0
    return samples


def variable(rate_hz: int = 16_000, num_channels: int = 1) -> bytes:
    return written(half_silent(num_channels), "MP3", None, rate_hz, compression_level=0.5, bitrate_mode="VARIABLE")


def num_read(data: bytes, rate_hz: int = 16_000) -> float:
    """Samples that were read, at the file's rate."""
    return len(read_audio(data, "mp3")) * rate_hz / 16_000


@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_nothing_of_a_variable_bit_rate_is_lost_without_a_count(rate_hz: int, num_channels: int) -> None:
    whole = variable(rate_hz, num_channels)
    bare = without_first_frame(whole)
    # A coder's delay and its padding are counted nowhere then: up to three frames more.
    assert N <= num_read(bare, rate_hz) <= N + 3 * 1152
    found = read_audio(bare, "mp3")
    expected = read_audio(whole, "mp3")
    lag = round(576 * 16_000 / rate_hz)
    near = found[lag - 16 : lag + 16 + len(expected)]
    best = max(float(np.corrcoef(expected[2000:6000], near[2000 + shift : 6000 + shift])[0, 1]) for shift in range(32))
    assert best > 0.9


@pytest.mark.parametrize("bitrate_mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_joined_files_are_read_to_the_sample(rate_hz: int, bitrate_mode: str) -> None:
    first = written(half_silent(), "MP3", None, rate_hz, compression_level=0.5, bitrate_mode=bitrate_mode)
    second = written(noise(N // 2, seed=1), "MP3", None, rate_hz)
    tagged = ID3 + first + ID3_V1 + ID3 + second + ID3_V1
    for joined in (first + second, tagged, first + b"x" * 3000 + second):
        assert num_read(joined, rate_hz) == pytest.approx(1.5 * N, abs=1)
    if rate_hz == 16_000:
        found = read_audio(tagged, "mp3")
        np.testing.assert_array_equal(found[:N], read_audio(first, "mp3"))
        np.testing.assert_array_equal(found[N:], read_audio(second, "mp3"))


@pytest.mark.parametrize("num_said", [0, 1, 10, 100, 1 << 31, (1 << 32) - 1])
def test_a_wrong_count_is_not_believed(num_said: int) -> None:
    found = num_read(mp3_saying(variable(), num_said))
    assert N <= found <= N + 2 * 576  # with too many, the coder's padding is taken for sound


def test_joined_files_without_counts() -> None:
    bare = without_first_frame(variable())
    assert 2 * N <= num_read(bare + bare) <= 2 * N + 6 * 576


def test_bytes_around_the_frames() -> None:
    whole = variable()
    expected = read_audio(whole, "mp3")
    for data in (ID3 + whole, b"x" * 3000 + whole, whole + ID3_V1, whole + b"x" * 5000, whole + b"\0" * 5000):
        np.testing.assert_array_equal(read_audio(data, "mp3"), expected)


def test_what_comes_behind_the_count_is_read_in_a_wav_too() -> None:
    whole = variable()
    for payload, most in ((whole, N), (without_first_frame(whole), N + 3 * 576), (whole + whole, 2 * N)):
        assert most - 3 * 576 <= len(read_audio(wav_of(payload, 0x55, 16_000), "wav")) <= most


def test_a_constant_bit_rate_without_a_count_is_left_as_it_is() -> None:
    bare = without_first_frame(written(half_silent(), "MP3", None, 16_000, bitrate_mode="CONSTANT"))
    (part,) = mpeg_parts(bare)
    assert part.data.endswith(bare)


@pytest.mark.parametrize("change", [{"rate_hz": 24_000}, {"rate_hz": 44_100}])
def test_joined_files_of_different_rates_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"^unreadable audio: joined files of 16000 and (24000|44100) Hz$"):
        read_audio(variable() + variable(**change), "mp3")


def test_joined_files_of_different_channels_are_averaged() -> None:
    assert num_read(variable() + variable(num_channels=2)) == 2 * N


def test_a_truncated_file_is_what_is_there() -> None:
    whole = variable()
    assert 0.25 * N < num_read(whole[: len(whole) // 2]) < 0.7 * N


def test_no_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="no MPEG frames"):
        mpeg_parts(ID3 + b"\xff\xfb" * 50)


def test_a_file_in_the_current_folder_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libsndfile looks for the other half of a Sound Designer file there, as macOS leaves such files."""
    (tmp_path / "._").write_bytes(b"")
    expected = read_audio(variable(), "mp3")
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(read_audio(variable(), "mp3"), expected)
