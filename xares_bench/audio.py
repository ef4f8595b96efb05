"""Audio: the bytes of a tar member become a mono waveform at 16 kHz.

Decoding is libsndfile's (through soundfile), resampling soxr's; no system FFmpeg is needed.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000

# What libsndfile decodes without help, by the extension of the tar member.
AUDIO_SUFFIXES = ("flac", "mp3", "wav", "ogg", "opus")


def decode(data: bytes) -> NDArray[np.float32]:
    """The waveform of an encoded clip.

    Channels are averaged, the result is resampled to 16 kHz and divided by its peak where that exceeds 1.

    Args:
        data: A whole FLAC, MP3, WAV or Ogg (Vorbis, Opus) file.

    Returns:
        `[samples]`, float32, at least one sample, finite, within -1 and 1.

    Raises:
        ValueError: The bytes are no such file, hold no sample, or hold NaN or infinite samples.
    """
    import numpy as np
    import soundfile
    import soxr

    try:
        samples, rate_hz = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, TypeError, MemoryError) as cause:  # a damaged header may claim any length
        raise ValueError(f"unreadable audio: {cause}") from None
    if len(samples) == 0:
        raise ValueError("audio without a sample")
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


def crop(waveform: NDArray[np.float32], max_audio_s: float, key: str) -> NDArray[np.float32]:
    """A window of at most that many seconds, its place drawn from the clip's key.

    The place is random over clips and the same at every draw of one clip, so that the window's features can be kept.
    """
    num_samples = round(max_audio_s * SAMPLE_RATE_HZ)
    if len(waveform) <= num_samples:
        return waveform
    import random

    start = random.Random(key).randint(0, len(waveform) - num_samples)
    return waveform[start : start + num_samples]
