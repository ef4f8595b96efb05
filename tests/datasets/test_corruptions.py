"""Corruptions, against what is measured in another way: powers, spectra, decays, headers of MP3 frames."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from tests.shard_factory import tone
from xares_bench.core.errors import UsageError
from xares_bench.datasets import corruptions
from xares_bench.datasets.corruptions import KINDS, MP3_KBIT_S, Corruption, parse_corruptions

RATE_HZ = 16_000
ONE_OF_EACH = ("noise:10", "mp3:16", "mp3:64", "speed:0.9", "speed:1.1", "reverb:0.3", "lowpass:3000")

Waveform = NDArray[np.float32]


def corruption(text: str) -> Corruption:
    (found,) = parse_corruptions([text])
    return found


def white(num_samples: int, *, level: float = 0.1, seed: int = 0) -> Waveform:
    return (level * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def decibels(ratio: Any) -> Any:
    return 10 * np.log10(ratio)


def levels_of_bands(waveform: Waveform) -> tuple[NDArray[Any], NDArray[Any]]:
    """Frequencies in Hz, and the mean power around each: Welch's method, by hand."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform.astype(np.float64), 2048)[::1024] * np.hanning(2048)
    return np.fft.rfftfreq(2048, 1 / RATE_HZ), np.square(np.abs(np.fft.rfft(frames))).mean(axis=0)


@pytest.mark.parametrize("snr_db", [-10, 0, 10, 40])
def test_noise_has_its_power_below_that_of_the_clip_and_is_white(snr_db: int) -> None:
    clip = tone(4.0, 440, amplitude=0.05)
    noisy = corruption(f"noise:{snr_db}").apply(clip)
    # The peak may have been divided by: the sine's share in the sum says by how much.
    share = float(noisy @ clip / (clip @ clip))
    noise = noisy - share * clip
    measured = decibels(np.square(share * clip).mean() / np.square(noise, dtype=np.float64).mean())
    assert measured == pytest.approx(snr_db, abs=0.1)
    _, powers = levels_of_bands(noise)
    quarters = [part.mean() for part in np.array_split(powers[8:-8], 4)]
    assert decibels(max(quarters) / min(quarters)) < 1


def test_a_peak_above_1_is_divided_by_and_not_clipped() -> None:
    clip = tone(1.0, 440, amplitude=1.0)
    noisy = corruption("noise:0").apply(clip)
    assert np.abs(noisy).max() == 1
    assert (np.abs(noisy) == 1).sum() == 1, "a clipped waveform is at its limit more than once"


@pytest.mark.parametrize("cutoff_hz", [300, 1000, 4000, 7500])
def test_lowpass_removes_what_is_above_the_cutoff_and_nothing_below_or_of_the_time(cutoff_hz: int) -> None:
    clip = white(8 * RATE_HZ)
    filtered = corruption(f"lowpass:{cutoff_hz}").apply(clip)
    assert len(filtered) == len(clip)
    frequencies, before = levels_of_bands(clip)
    _, after = levels_of_bands(filtered)
    changes = decibels(after / before)
    assert changes[frequencies > cutoff_hz + 110].max() < -65
    assert np.abs(changes[(frequencies > 40) & (frequencies < cutoff_hz - 110)]).max() < 0.1
    low = tone(1.0, cutoff_hz / 4)
    middle = slice(1000, -1000)
    assert np.abs(corruption(f"lowpass:{cutoff_hz}").apply(low) - low)[middle].max() < 0.001


def test_lowpass_is_the_convolution_with_a_windowed_sinc() -> None:
    clip = white(3000)
    places = np.arange(-255, 256)
    sinc = np.sinc(places / 4) / 4 * np.blackman(511)  # 2000 Hz is a quarter of what 16 kHz can hold
    expected = np.convolve(clip, sinc / sinc.sum())[255:][:3000]
    np.testing.assert_allclose(corruption("lowpass:2000").apply(clip), expected, atol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 2.0])
def test_speed_divides_the_length_and_multiplies_the_pitch(factor: float) -> None:
    faster = corruption(f"speed:{factor}").apply(tone(2.0, 1000))
    assert len(faster) == round(2 * RATE_HZ / factor)
    spectrum = np.abs(np.fft.rfft(faster * np.hanning(len(faster))))
    assert spectrum.argmax() * RATE_HZ / len(faster) == pytest.approx(1000 * factor, abs=1)


@pytest.mark.parametrize("rt60_s", [0.2, 0.5, 1.5])
def test_reverb_falls_by_60_db_in_its_time(rt60_s: float) -> None:
    click = np.zeros(round((rt60_s + 0.5) * RATE_HZ), np.float32)
    click[0] = 0.5
    echo = corruption(f"reverb:{rt60_s}").apply(click)
    assert len(echo) == len(click)
    # Schroeder 1965: the energy that is still to come falls as the level does; here between -5 and -35 dB.
    to_come = np.cumsum(np.square(echo[1:], dtype=np.float64)[::-1])[::-1]
    levels_db = decibels(np.maximum(to_come / to_come[0], 1e-12))
    inside = np.flatnonzero((levels_db < -5) & (levels_db > -35))
    slope_db_per_s = np.polyfit(inside / RATE_HZ, levels_db[inside], 1)[0]
    assert -60 / slope_db_per_s == pytest.approx(rt60_s, rel=0.07)
    assert np.square(echo[1:]).sum() == pytest.approx(float(echo[0] ** 2), rel=0.001), "as loud as the direct sound"
    assert not echo[round(rt60_s * RATE_HZ) + 2 :].round(6).any(), "then it ends"


def test_reverb_keeps_the_power_and_its_default_is_half_a_second() -> None:
    clip = white(RATE_HZ)
    assert corruption("reverb") == corruption("reverb:0.5")
    echo = corruption("reverb").apply(clip)
    assert np.square(echo).mean() == pytest.approx(float(np.square(clip).mean()), rel=1e-3)


@pytest.mark.parametrize("kbit_s", MP3_KBIT_S)
def test_mp3_has_its_rate_and_comes_back_in_time(kbit_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[bytes] = []
    read = soundfile.read

    def read_and_note(file: io.BytesIO, **options: Any) -> Any:
        files.append(file.getvalue())
        return read(file, **options)

    monkeypatch.setattr(soundfile, "read", read_and_note)
    clip = corruption("lowpass:1500").apply(white(2 * RATE_HZ))
    decoded = corruption(f"mp3:{kbit_s}").apply(clip)
    assert {rate for rate, _ in frames_of(files[0])} == {kbit_s}
    assert {rate_hz for _, rate_hz in frames_of(files[0])} == {RATE_HZ}
    assert len(decoded) == len(clip)
    padded = 2 * len(clip)
    correlation = np.fft.irfft(np.fft.rfft(decoded, padded) * np.conj(np.fft.rfft(clip, padded)))
    assert correlation.argmax() == 0, "neither late nor early"
    assert np.corrcoef(clip, decoded)[0, 1] > 0.8


def frames_of(data: bytes) -> list[tuple[int, int]]:
    """Bitrate in kbit/s and rate in Hz of every frame, by the tables of ISO/IEC 13818-3."""
    place, found = 0, []
    while place + 4 <= len(data) and data[place] == 0xFF:
        assert data[place + 1] & 0xFE == 0xF2, "MPEG 2, Layer III"
        kbit_s = (0, *MP3_KBIT_S)[data[place + 2] >> 4]
        rate_hz = (22_050, 24_000, 16_000)[(data[place + 2] >> 2) & 3]
        found.append((kbit_s, rate_hz))
        place += 72 * kbit_s * 1000 // rate_hz + ((data[place + 2] >> 1) & 1)
    assert place == len(data)
    return found


@pytest.mark.parametrize("text", ["noise:10", "mp3:8", "mp3:40", "speed:0.5", "speed:2", "reverb:5", "lowpass:100"])
def test_every_length_and_level_gives_finite_audio_of_the_stated_length(text: str) -> None:
    found = corruption(text)
    factor = found.level if found.name == "speed" else 1
    for num_samples, level in itertools.product((1, 2, 575, 1153, 5000), (1e-20, 0.3, 1.0)):
        clip = np.clip(white(num_samples, level=level), -1, 1)
        made = found.apply(clip)
        assert made.dtype == np.float32
        assert len(made) == max(1, round(num_samples / factor))
        assert np.isfinite(made).all()
        assert np.abs(made).max() <= 1
        assert not found.apply(np.zeros(num_samples, np.float32)).any(), "silence stays silence"


def test_long_clips_are_convolved_block_by_block_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = white(20_000)
    for text in ("reverb:0.2", "lowpass:1000"):
        whole = corruption(text).apply(clip)
        monkeypatch.setattr(corruptions, "_BLOCK_SAMPLES", 3000)
        np.testing.assert_allclose(corruption(text).apply(clip), whole, atol=1e-6)
        monkeypatch.undo()


def test_a_clip_is_corrupted_in_the_same_way_whatever_comes_before_or_beside_it() -> None:
    clips = [white(4000 + 100 * number, seed=number) for number in range(6)]
    for found in parse_corruptions(ONE_OF_EACH):
        before = [clip.copy() for clip in clips]
        forwards = [found.apply(clip) for clip in clips]
        backwards = [found.apply(clip) for clip in reversed(clips)][::-1]
        with ThreadPoolExecutor(3) as pool:
            at_once = list(pool.map(found.apply, clips))
        for first, second, third, old, clip in zip(forwards, backwards, at_once, before, clips, strict=True):
            assert first.tobytes() == second.tobytes() == third.tobytes()
            assert clip.tobytes() == old.tobytes(), "the clip itself is left alone"


def test_another_process_corrupts_in_the_same_way() -> None:
    source = (
        "import hashlib, numpy as np; from xares_bench.datasets.corruptions import parse_corruptions\n"
        "clip = (0.1 * np.random.default_rng(0).standard_normal(4000)).astype(np.float32)\n"
        f"for found in parse_corruptions({ONE_OF_EACH!r}): print(hashlib.sha256(found.apply(clip)).hexdigest())"
    )
    outputs = {subprocess.run([sys.executable, "-c", source], capture_output=True, check=True).stdout for _ in range(2)}
    (output,) = outputs
    assert len(set(output.split())) == len(ONE_OF_EACH)


def test_clips_and_levels_have_noise_of_their_own() -> None:
    clips = [tone(0.2, 440), tone(0.2, 441)]
    noises = [corruption("noise:0").apply(clip) * 4 - clip for clip in clips]
    assert abs(np.corrcoef(noises[0], noises[1])[0, 1]) < 0.9
    assert corruption("noise:10").identity != corruption("noise:11").identity


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nose:10", r"--corrupt=nose:10: no such corruption; expected .*noise:10, mp3:32.*; did you mean noise\?"),
        ("", "no such corruption"),
        ("noise", "found no level, expected a signal-to-noise ratio in dB from -30 to 60; e.g. --corrupt=noise:10"),
        ("noise:", "found no level"),
        ("reverb:", "found no level"),
        ("noise:61", "found '61', expected a signal-to-noise ratio in dB from -30 to 60"),
        ("noise:ten", "found 'ten'"),
        ("noise:nan", "found 'nan'"),
        ("noise:1_0", "found '1_0'"),
        ("noise:10:20", "found '10:20'"),
        ("mp3:20", r"found '20', expected a rate in kbit/s: one of 8, 16, 24, 32, .*, 160; e.g. --corrupt=mp3:32"),
        ("speed:1", "found '1', expected a factor from 0.5 to 2, not 1"),
        ("speed:1.0000001", "found '1.0000001', expected a factor"),
        ("speed:-1", "found '-1'"),
        ("lowpass:8000", "found '8000', expected a cutoff in Hz from 100 to 7900"),
        ("reverb:0", "found '0', expected a reverberation time RT60 in s from 0.05 to 5"),
    ],
)
def test_what_is_not_a_corruption_is_refused_with_what_is(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_corruptions([text])


def test_a_corruption_that_is_given_twice_is_refused_however_it_is_written() -> None:
    with pytest.raises(UsageError, match=r"--corrupt=reverb:0\.50: reverb:0\.5 is given twice"):
        parse_corruptions(["noise:10", "reverb", "reverb:0.50"])


def test_the_text_of_a_corruption_is_read_as_the_same_one() -> None:
    for name, kind in KINDS.items():
        for level in (kind.least, kind.most, kind.example):
            found = Corruption(name=name, level=level)
            assert parse_corruptions([str(found)]) == (found,)
