"""Audio: an audio file is read as a mono waveform at 16 kHz.

libsndfile (through soundfile) reads, soxr resamples; no system FFmpeg is needed. M4A and WMA, which libsndfile does not
know, are read by PyAV, whose wheel contains its own FFmpeg; the extra `[m4a]` installs it.
"""

from __future__ import annotations

import importlib.util
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000

# Extensions of tar members: those that PyAV reads, and all.
EXTRA_SUFFIXES = ("m4a", "wma")
AUDIO_SUFFIXES = ("flac", "mp3", "wav", "ogg", "opus", *EXTRA_SUFFIXES)

# The most values over all channels that a clip may have: 75 minutes of mono at 44.1 kHz, 0.8 GB of float32.
_MAX_VALUES = 200_000_000


def read_audio(data: bytes, suffix: str) -> NDArray[np.float32]:
    """The waveform of an audio file.

    Channels are averaged, the result is resampled to 16 kHz, and divided by its peak if that exceeds 1.

    Args:
        data: A whole audio file.
        suffix: Its extension, one of `AUDIO_SUFFIXES`. It only chooses the library; libsndfile tells FLAC, MP3, WAV
            and Ogg (Vorbis, Opus) apart by their bytes.

    Returns:
        `[samples]`, float32, at least one sample, finite, within -1 and 1.

    Raises:
        ValueError: The bytes are not an audio file, or one without samples, or one with NaN or infinite samples; or the
            extra that reads it is not installed.
    """
    import numpy as np
    import soxr

    samples, rate_hz = (_read_with_av if suffix in EXTRA_SUFFIXES else _read_with_soundfile)(data, suffix)
    if len(samples) == 0:
        raise ValueError("audio without samples")
    if not np.isfinite(samples).all():
        raise ValueError("audio with NaN or infinite samples")
    waveform: NDArray[np.float32] = samples.mean(axis=1, dtype=np.float32)
    if rate_hz != SAMPLE_RATE_HZ:
        waveform = soxr.resample(waveform, rate_hz, SAMPLE_RATE_HZ).astype(np.float32, copy=False)
        if len(waveform) == 0:
            raise ValueError(f"audio of {len(samples)} samples at {rate_hz} Hz is shorter than one sample at 16 kHz")
    peak = float(np.abs(waveform).max())
    if not np.isfinite(peak):
        raise ValueError("audio with samples too large to average or resample")
    return waveform / peak if peak > 1 else waveform


def missing_extra(suffix: str) -> str | None:
    """A message that says what to install to read such files; None: nothing is missing."""
    if suffix in EXTRA_SUFFIXES and importlib.util.find_spec("av") is None:
        return f".{suffix} files are read by PyAV, which is not installed: pip install 'xares-bench[m4a]'"
    return None


def crop(waveform: NDArray[np.float32], max_audio_s: float, seed: str) -> NDArray[np.float32]:
    """A window of at most this many seconds, its place drawn from the seed; a shorter waveform unchanged."""
    num_samples = round(max_audio_s * SAMPLE_RATE_HZ)
    if len(waveform) <= num_samples:
        return waveform
    import random

    start = random.Random(seed).randint(0, len(waveform) - num_samples)
    return waveform[start : start + num_samples]


def _read_with_soundfile(data: bytes, suffix: str) -> tuple[NDArray[np.float32], int]:
    """Samples `[samples, channels]` and their rate in Hz."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_size(file.frames * file.channels)
            samples, rate_hz = file.read(dtype="float32", always_2d=True), file.samplerate
    except soundfile.LibsndfileError as cause:  # str(cause) contains the buffer's address, different in every run
        raise ValueError(f"unreadable audio: {cause.error_string}") from None
    except (TypeError, MemoryError) as cause:  # a damaged header may claim any length
        raise ValueError(f"unreadable audio: {cause}") from None
    return samples, rate_hz


def _check_size(num_values: int) -> None:
    """Raise ValueError if audio is far longer than a clip: a few bytes of FLAC can stand for hours of silence."""
    if num_values > _MAX_VALUES:
        raise ValueError(f"unreadable audio: {num_values} samples over all channels, expected at most {_MAX_VALUES}")


def _read_with_av(data: bytes, suffix: str) -> tuple[NDArray[np.float32], int]:
    """Samples `[samples, channels]` and their rate in Hz, of the file's first audio stream."""
    problem = missing_extra(suffix)
    if problem is not None:
        raise ValueError(problem)
    import av
    import numpy as np

    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            if not container.streams.audio:
                raise ValueError("unreadable audio: the file has no audio stream")
            to_float = av.AudioResampler(format="fltp")
            blocks: list[NDArray[Any]] = []
            num_values = 0
            for frame in container.decode(audio=0):
                blocks.extend(planes.to_ndarray() for planes in to_float.resample(frame))
                num_values += frame.samples * frame.layout.nb_channels
                _check_size(num_values)
            rate_hz = container.streams.audio[0].rate
    except (av.FFmpegError, MemoryError) as cause:
        raise ValueError(f"unreadable audio: {cause}") from None
    if not blocks:
        return np.zeros((0, 1), dtype=np.float32), rate_hz
    return np.concatenate(blocks, axis=1).T.astype(np.float32, copy=False), rate_hz
