"""Audio: every container gives back what went in, at 16 kHz, mono and within -1 and 1, or says why it cannot."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import tomllib
from typing import Any

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.audio_lies import flac_saying
from tests.conftest import REPOSITORY
from tests.shard_factory import Waveform, encode, tone
from xares_bench.datasets.audio import AUDIO_SUFFIXES, EXTRA_SUFFIXES, SAMPLE_RATE_HZ, crop, missing_extra, read_audio


def read(data: bytes) -> Waveform:
    """The waveform of a file that libsndfile reads."""
    return read_audio(data, "wav")


def chirp(duration_s: float = 1.0, *, rate_hz: int = SAMPLE_RATE_HZ, to_hz: float = 3000.0) -> Waveform:
    """A sweep from 200 Hz, faded in and out, whose place in time can be told."""
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    sweep = scipy.signal.chirp(time_s, 200.0, duration_s, to_hz) * np.sin(np.pi * time_s / duration_s)
    return np.asarray(0.5 * sweep, dtype=np.float32)


def correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def assert_clip(waveform: Waveform) -> None:
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert len(waveform) >= 1
    assert np.isfinite(waveform).all()
    assert np.abs(waveform).max() <= 1


@pytest.mark.versions
@pytest.mark.parametrize(
    ("suffix", "at_least"), [("wav", 0.99999), ("flac", 0.99999), ("ogg", 0.99), ("opus", 0.99), ("mp3", 0.99)]
)
def test_every_container_gives_back_what_went_in(suffix: str, at_least: float) -> None:
    original = chirp()
    waveform = read(encode(original, suffix))
    assert_clip(waveform)
    assert len(waveform) == len(original)
    assert correlation(waveform, original) > at_least
    assert np.sqrt(np.mean(waveform**2)) == pytest.approx(np.sqrt(np.mean(original**2)), rel=0.05)


def test_every_suffix_is_tested_above() -> None:
    assert sorted({*AUDIO_SUFFIXES} - {*EXTRA_SUFFIXES}) == ["flac", "mp3", "ogg", "opus", "wav"]
    assert sorted(EXTRA_SUFFIXES) == ["m4a", "wma"]


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_usual_kind_of_wav(subtype: str) -> None:
    original = chirp(0.2)
    waveform = read(encode(original, subtype=subtype))
    assert len(waveform) == len(original)
    assert correlation(waveform, original) > 0.999
    if subtype == "FLOAT":
        np.testing.assert_array_equal(waveform, original)


def test_channels_are_averaged() -> None:
    left, right = tone(0.1, 300.0, amplitude=0.8), tone(0.1, 700.0, amplitude=0.2)
    waveform = read(encode(np.stack([left, right], axis=1), subtype="FLOAT"))
    np.testing.assert_allclose(waveform, (left + right) / 2, atol=1e-6)
    six = read(encode(np.stack([left, right, left, right, 0 * left, 0 * left], axis=1), subtype="FLOAT"))
    np.testing.assert_allclose(six, (left + right) / 3, atol=1e-6)


def test_opposite_channels_cancel_to_silence() -> None:
    wave = tone(0.1)
    waveform = read(encode(np.stack([wave, -wave], axis=1), subtype="FLOAT"))
    np.testing.assert_array_equal(waveform, np.zeros_like(wave))


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_resampling_keeps_pitch_loudness_and_length(rate_hz: int) -> None:
    waveform = read(encode(tone(1.0, 1000.0, rate_hz=rate_hz), rate_hz=rate_hz, subtype="FLOAT"))
    assert_clip(waveform)
    assert abs(len(waveform) - SAMPLE_RATE_HZ) <= 1
    middle = waveform[2000:14000].astype(np.float64)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) * SAMPLE_RATE_HZ / len(middle) == pytest.approx(1000.0, abs=2)
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(0.5, rel=0.002)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000])
def test_resampling_agrees_with_another_resampler(rate_hz: int) -> None:
    original = chirp(0.5, rate_hz=rate_hz)
    waveform = read(encode(original, rate_hz=rate_hz, subtype="FLOAT"))
    common = np.gcd(rate_hz, SAMPLE_RATE_HZ)
    expected = scipy.signal.resample_poly(original.astype(np.float64), SAMPLE_RATE_HZ // common, rate_hz // common)
    assert abs(len(waveform) - len(expected)) <= 1
    length = min(len(waveform), len(expected))
    np.testing.assert_allclose(waveform[:length], expected[:length], atol=0.01)


def test_what_16_khz_cannot_hold_is_filtered_out() -> None:
    """Without a low-pass filter, 10 kHz would come back as 6 kHz."""
    waveform = read(encode(tone(0.5, 10_000.0, rate_hz=48_000), rate_hz=48_000, subtype="FLOAT"))
    assert np.abs(waveform[500:-500]).max() < 1e-3


def test_a_peak_above_1_is_divided_by() -> None:
    loud = tone(0.1, amplitude=4.0)
    waveform = read(encode(loud, subtype="FLOAT"))
    assert np.abs(waveform).max() == 1.0
    np.testing.assert_allclose(waveform, loud / np.abs(loud).max(), atol=1e-6)


@pytest.mark.parametrize("amplitude", [1.0, 0.5, 1e-4])
def test_a_peak_of_at_most_1_is_left_alone(amplitude: float) -> None:
    quiet = tone(0.1, amplitude=amplitude)
    np.testing.assert_array_equal(read(encode(quiet, subtype="FLOAT")), quiet)


def test_the_peak_is_that_of_the_average() -> None:
    wave = tone(0.1, amplitude=1.0)
    waveform = read(encode(np.stack([1.6 * wave, 0 * wave], axis=1), subtype="FLOAT"))
    np.testing.assert_allclose(waveform, 0.8 * wave, atol=1e-6)


def test_silence_stays_silence() -> None:
    np.testing.assert_array_equal(read(encode(np.zeros(160, np.float32), "flac")), np.zeros(160, np.float32))


def test_one_sample_is_a_clip() -> None:
    assert_clip(read(encode(np.full(1, 0.25, np.float32), subtype="FLOAT")))


def test_less_than_one_sample_at_16_khz_is_none() -> None:
    data = encode(np.full(1, 0.25, np.float32), rate_hz=96_000, subtype="FLOAT")
    try:
        waveform = read(data)
    except ValueError as cause:
        assert "shorter than one sample" in str(cause)  # noqa: PT017  # either is fine, an empty waveform is not
    else:
        assert_clip(waveform)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_sample_that_is_no_number_is_refused(bad: float, channels: int) -> None:
    samples = np.stack([tone(0.1)] * channels, axis=1)
    samples[700, -1] = bad
    with pytest.raises(ValueError, match=r"^audio with NaN or infinite samples$"):
        read(encode(samples, subtype="FLOAT"))


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_samples_that_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^audio with samples too large to average or resample$"):
        read(encode(np.full((160, 2), 3e38, np.float32), subtype="FLOAT"))


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_no_sample_is_refused(suffix: str) -> None:
    with pytest.raises(ValueError, match=r"^(audio without samples|unreadable audio: .*)$"):
        read(encode(np.zeros(0, np.float32), suffix))


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"not audio at all", b"RIFF", b"RIFF\x00\x00\x00\x00WAVE", b"fLaC", b"OggS", b"ID3", b"{}" * 5000],
    ids=range(9),
)
def test_what_is_no_audio_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(unreadable audio: |audio without samples)") as caught:
        read(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "opus"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
def test_a_truncated_file_is_refused(suffix: str, share: float) -> None:
    data = encode(chirp(), suffix)
    with pytest.raises(ValueError, match=r"^(unreadable audio: |audio without samples)"):
        read(data[: int(share * len(data))])


@pytest.mark.parametrize("suffix", ["flac", "mp3", "ogg", "opus", "wav"])
def test_damage_to_a_header_is_survived_or_refused(suffix: str) -> None:
    """Also where it claims thousands of millions of samples."""
    original = encode(chirp(0.05), suffix)
    num_refused = 0
    for place in range(48):
        for bit in range(0, 8, 3):
            data = bytearray(original)
            data[place] ^= 1 << bit
            try:
                assert_clip(read(bytes(data)))
            except ValueError as cause:
                assert str(cause).startswith(("unreadable audio: ", "audio "))  # noqa: PT017  # either outcome is fine
                num_refused += 1
    assert num_refused > 0 or suffix == "mp3"


def encode_with_av(waveform: Waveform, suffix: str, rate_hz: int) -> bytes:
    """An M4A (AAC) or WMA file of `[channels, samples]`."""
    av = pytest.importorskip("av", reason="M4A and WMA need the extra [m4a]")
    buffer = io.BytesIO()
    container_format, codec = {"m4a": ("ipod", "aac"), "wma": ("asf", "wmav2")}[suffix]
    with av.open(buffer, mode="w", format=container_format) as container:
        layout = "mono" if len(waveform) == 1 else "stereo"
        stream = container.add_stream(codec, rate=rate_hz, layout=layout)
        stream.bit_rate = 96_000
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform), format="fltp", layout=layout)
        frame.rate = rate_hz
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return buffer.getvalue()


@pytest.mark.versions
@pytest.mark.parametrize("suffix", EXTRA_SUFFIXES)
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
@pytest.mark.parametrize("num_channels", [1, 2])
def test_m4a_and_wma_give_back_what_went_in(suffix: str, rate_hz: int, num_channels: int) -> None:
    # Silence around it, because these codecs add or lose some milliseconds at either end.
    original = np.pad(chirp(1.0, rate_hz=rate_hz, to_hz=1000.0), rate_hz // 4)
    waveform = read_audio(encode_with_av(np.stack([original] * num_channels), suffix, rate_hz), suffix)
    assert_clip(waveform)
    assert abs(len(waveform) - 1.5 * SAMPLE_RATE_HZ) < 0.15 * SAMPLE_RATE_HZ
    expected = chirp(1.0, to_hz=1000.0)
    lag = int(np.argmax(scipy.signal.correlate(waveform, expected, mode="valid")))
    assert abs(lag - 0.25 * SAMPLE_RATE_HZ) < 0.1 * SAMPLE_RATE_HZ
    assert correlation(waveform[lag : lag + len(expected)], expected) > 0.97


@pytest.mark.parametrize("suffix", EXTRA_SUFFIXES)
def test_garbage_is_no_m4a_and_no_wma(suffix: str) -> None:
    pytest.importorskip("av", reason="M4A and WMA need the extra [m4a]")
    for data in (b"", b"garbage" * 100, encode_with_av(chirp(0.5)[None], suffix, 16_000)[:300]):
        with pytest.raises(ValueError, match=r"^(unreadable audio: |audio without samples)") as caught:
            read_audio(data, suffix)
        assert "\n" not in str(caught.value)


def test_tags_in_other_encodings_are_no_reason() -> None:
    """M4A files have titles in Latin-1, too."""
    data = encode_with_av(chirp(0.5)[None], "m4a", 16_000)
    assert data.count(b"Lavf") == 1
    np.testing.assert_array_equal(read_audio(data.replace(b"Lavf", b"L\xe4vf"), "m4a"), read_audio(data, "m4a"))


def test_m4a_without_its_extra_says_to_install_what_the_extra_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing_extra("flac") is None
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (package,) = project["optional-dependencies"]["m4a"]
    assert str(missing_extra("m4a")).endswith(f"PyAV, which is not installed: pip install '{package}'")
    with pytest.raises(ValueError, match=f"^.wma .* pip install '{package}'$"):
        read_audio(b"", "wma")


def test_a_short_clip_is_not_cropped() -> None:
    wave = tone(1.0)
    assert crop(wave, 1.0, "k") is wave
    assert crop(wave[:5], 30.0, "k") is not None
    np.testing.assert_array_equal(crop(wave[:5], 30.0, "k"), wave[:5])


def test_a_crop_is_a_window_of_the_clip() -> None:
    ramp = np.arange(40_000, dtype=np.float32)
    for number in range(50):
        window = crop(ramp, 0.5, f"clip_{number}")
        assert len(window) == 8_000
        assert 0 <= window[0] <= 32_000
        np.testing.assert_array_equal(window, np.arange(window[0], window[0] + 8_000))


def test_a_crop_depends_on_the_key_alone() -> None:
    ramp = np.arange(40_000, dtype=np.float32)
    starts = [crop(ramp, 0.5, f"clip_{number}")[0] for number in range(200)]
    assert starts == [crop(-ramp, 0.5, f"clip_{number}")[0] * -1 for number in range(200)]
    assert len(set(starts)) > 150
    assert min(starts) < 3_200
    assert max(starts) > 28_800
    assert np.mean(starts) == pytest.approx(16_000, abs=2_500)


def test_a_clip_that_is_too_long_by_a_frame_is_cropped_at_its_end() -> None:
    ramp = np.arange(8_641, dtype=np.float32)
    for num_samples in (8_001, 8_640):
        windows = [crop(ramp[:num_samples], 0.5, f"clip_{number}") for number in range(50)]
        assert {(float(window[0]), len(window)) for window in windows} == {(0.0, 8_000)}
    starts = {float(crop(ramp, 0.5, f"clip_{number}")[0]) for number in range(5_000)}
    assert (min(starts), max(starts)) == (0.0, 641.0), "longer by one sample more, all windows are possible"


def test_a_crop_is_the_same_in_another_process() -> None:
    program = (
        "import numpy as np; from xares_bench.datasets.audio import crop\n"
        "print(*(int(crop(np.arange(40_000.0), 0.5, key)[0]) for key in ('a', 'b', 'sub/é')))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    ramp = np.arange(40_000, dtype=np.float32)
    assert output.stdout.split() == [str(int(crop(ramp, 0.5, key)[0])) for key in ("a", "b", "sub/é")]


def test_importing_the_module_imports_no_audio_library() -> None:
    program = (
        "import sys, xares_bench.datasets.audio, xares_bench.datasets.shards\n"
        "print(sorted({'numpy', 'soundfile', 'soxr', 'torch', 'webdataset'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


# What reading may take on top of the interpreter and its libraries if a file may have 2,000,000 values.
ALLOWED_BYTES = 150 << 20
READ_ALL = """
import pickle, resource, sys
import numpy, soundfile, soxr
from xares_bench.datasets import audio
audio._MAX_VALUES = 2_000_000
files = pickle.load(sys.stdin.buffer)
audio.read_audio(files[0], "wav")
taken = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmData"))) << 10
resource.setrlimit(resource.RLIMIT_DATA, (taken + int(sys.argv[1]),) * 2)
for data in files:
    try:
        waveform = audio.read_audio(data, "wav")
    except ValueError as error:
        print(error)
    else:
        assert len(waveform) <= 2_000_000, len(waveform)
        print(len(waveform))
"""


def wav_at(rate_hz: int, num_samples: int, num_channels: int) -> bytes:
    """A silent WAV at any rate."""
    data = bytearray(encode(np.zeros((num_samples, num_channels), np.float32), subtype="PCM_U8"))
    data[24:28] = rate_hz.to_bytes(4, "little")
    return bytes(data)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    files=st.lists(
        st.builds(
            wav_at,
            st.sampled_from([1, 10, 999, 1_000, 2_000, 8_000, 16_000, 48_000, 1_000_000, (1 << 31) - 1])
            | st.integers(1, 200_000),
            st.sampled_from([1, 20_000, 130_000, 2_000_000]) | st.integers(1, 300_000),
            st.sampled_from([1, 2, 8, 100]),
        ),
        min_size=20,
        max_size=20,
    )
)
def test_no_rate_length_or_number_of_channels_takes_more_than_its_bound(files: list[bytes]) -> None:
    files = [wav_at(16_000, 1000, 1), *files]
    output = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(ALLOWED_BYTES)], input=pickle.dumps(files), capture_output=True, check=True
    ).stdout.decode()
    lines = output.splitlines()
    assert len(lines) == len(files)
    for data, line in zip(files, lines, strict=True):
        rate_hz, num_channels = int.from_bytes(data[24:28], "little"), data[22]
        num_values = len(data) - 44
        if not 1_000 <= rate_hz <= 1_000_000:
            assert line == f"unreadable audio: a rate of {rate_hz} Hz, expected 1000 to 1000000"
        elif max(num_values, num_values // num_channels * 16_000 / rate_hz) > 2_000_000 + num_channels:
            assert "expected at most 2000000" in line
        else:
            assert line.isdigit() or "shorter than one sample" in line


@pytest.mark.parametrize("num_samples", [20_000, 60_000])
def test_a_few_bytes_at_1_hz_are_refused(num_samples: int) -> None:
    """At 16 kHz they would be 320 and 960 million samples."""
    with pytest.raises(ValueError, match=r"^unreadable audio: a rate of 1 Hz, expected 1000 to 1000000$"):
        read(wav_at(1, num_samples, 1))


def test_the_bound_holds_after_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xares_bench.datasets.audio._MAX_VALUES", 100_000)
    assert len(read(wav_at(1_000, 6_000, 1))) == 96_000
    with pytest.raises(ValueError, match=r"^unreadable audio: 112000 samples at 16 kHz, expected at most 100000$"):
        read(wav_at(1_000, 7_000, 1))
    with pytest.raises(
        ValueError, match=r"^unreadable audio: 100002 samples over all channels, expected at most 100000$"
    ):
        read(wav_at(48_000, 50_001, 2))


def test_the_bound_holds_for_joined_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xares_bench.datasets.audio._MAX_VALUES", 100_000)
    one = encode(tone(2.0), "flac")
    assert len(read(one * 3)) == 96_000
    with pytest.raises(ValueError, match="128000 samples over all channels, expected at most 100000"):
        read(one * 4)


@pytest.mark.parametrize("suffix", ["flac", "m4a"])
def test_the_bound_holds_while_an_unknown_number_is_read(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xares_bench.datasets.audio._MAX_VALUES", 100_000)
    sound = tone(7.0)
    data = flac_saying(encode(sound, "flac"), 0) if suffix == "flac" else encode_with_av(sound[None], "m4a", 16_000)
    with pytest.raises(ValueError, match="samples over all channels, expected at most 100000"):
        read_audio(data, suffix)
