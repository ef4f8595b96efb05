"""Audio: an audio file is read as a mono waveform at 16 kHz.

libsndfile (through soundfile) reads, soxr resamples; no system FFmpeg is needed. M4A and WMA, which libsndfile does not
know, are read by PyAV, whose wheel contains its own FFmpeg; the extra `[m4a]` installs it.
"""

from __future__ import annotations

import importlib.util
import io
from functools import cache
from typing import TYPE_CHECKING

from xares_bench.datasets.containers import av_files, parts_of
from xares_bench.datasets.part import Part

if TYPE_CHECKING:
    import numpy as np
    import soundfile
    from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000

# 40 ms, a frame of an encoder with 25 frames per second. Windows of a clip that is longer than its crop by no more than
# this hardly differ (GTZAN's clips last 30.013 s), so one stands for all, and its features can be cached.
SMALL_EXCESS_SAMPLES = SAMPLE_RATE_HZ // 25

# What the extra `[m4a]` installs.
_PYAV = "av>=14.0.0"
# Extensions of tar members: those that PyAV reads, and all.
EXTRA_SUFFIXES = ("m4a", "wma")
AUDIO_SUFFIXES = ("flac", "mp3", "wav", "ogg", "opus", *EXTRA_SUFFIXES)

# The most values over all channels that a clip may have, before and after resampling: 75 minutes of mono at 44.1 kHz,
# 3.5 hours of mono at 16 kHz, 0.8 GB of float32.
_MAX_VALUES = 200_000_000
# Rates that audio has, those for the calls of bats included. Each sample at 1 Hz would become 16,000.
_RATES_HZ = (1_000, 1_000_000)
# Values that are read at once.
_BLOCK_VALUES = 1 << 20
# libsndfile's number of samples for a file that does not say it.
_UNKNOWN_FRAMES = (1 << 63) - 1


def read_audio(data: bytes, suffix: str) -> NDArray[np.float32]:
    """The waveform of an audio file, read to its end whatever its header says.

    Channels are averaged, the result is resampled to 16 kHz, and divided by its peak if that exceeds 1.

    Args:
        data: A whole audio file.
        suffix: Its extension, one of `AUDIO_SUFFIXES`. It only chooses the library; FLAC, MP3, WAV and Ogg (Vorbis,
            Opus, FLAC) are told apart by their bytes.

    Returns:
        `[samples]`, float32, at least one sample, finite, within -1 and 1.

    Raises:
        ValueError: The bytes are not an audio file, or one that ends before the samples that its header promises, or
            whose header leaves open where its samples end; or one without samples, with NaN or infinite samples, with a
            rate that no audio has, or far longer than a clip; or the extra that reads it is not installed.
        MemoryError: There is too little memory for it.
    """
    import numpy as np
    import soxr

    waveform, rate_hz = (_read_with_av if suffix in EXTRA_SUFFIXES else _read_with_soundfile)(data, suffix)
    num_samples = len(waveform)
    if num_samples == 0:
        raise ValueError("audio without samples")
    if rate_hz != SAMPLE_RATE_HZ:
        waveform = soxr.resample(waveform, rate_hz, SAMPLE_RATE_HZ).astype(np.float32, copy=False)
        if len(waveform) == 0:
            raise ValueError(f"audio of {num_samples} samples at {rate_hz} Hz is shorter than one sample at 16 kHz")
    peak = float(np.abs(waveform).max())
    if not np.isfinite(peak):
        raise ValueError("audio with samples too large to average or resample")
    return waveform / peak if peak > 1 else waveform


def missing_extra(suffix: str) -> str | None:
    """A message that says what to install to read such files; None: nothing is missing."""
    if suffix in EXTRA_SUFFIXES and importlib.util.find_spec("av") is None:
        # The package itself: pip finds the extra by our name only where we are on its index.
        return f".{suffix} files are read by PyAV, which is not installed: pip install '{_PYAV}'"
    return None


def crop(waveform: NDArray[np.float32], max_audio_s: float, seed: str) -> NDArray[np.float32]:
    """A window of at most this many seconds, its place drawn from the seed; a shorter waveform unchanged.

    Where all windows lie within `SMALL_EXCESS_SAMPLES` of each other, it is the first one.
    """
    num_samples = round(max_audio_s * SAMPLE_RATE_HZ)
    if len(waveform) <= num_samples:
        return waveform
    if len(waveform) - num_samples <= SMALL_EXCESS_SAMPLES:
        return waveform[:num_samples]
    import random

    start = random.Random(seed).randint(0, len(waveform) - num_samples)
    return waveform[start : start + num_samples]


def _read_with_soundfile(data: bytes, suffix: str) -> tuple[NDArray[np.float32], int]:
    """The average of the channels `[samples]` and its rate in Hz."""
    import soundfile

    total = _Average()
    for part in parts_of(data, suffix):
        try:
            _read_part(part, total)
        except soundfile.LibsndfileError as cause:  # str(cause) contains the buffer's address, different in every run
            raise ValueError(f"unreadable audio: {cause.error_string}") from None
        except (TypeError, soundfile.SoundFileError) as cause:
            raise ValueError(f"unreadable audio: {cause}") from None
    return total.waveform(), total.rate_hz


def _read_part(part: Part, total: _Average) -> None:
    """Add the samples of a part, all that there are: block by block until none comes."""
    with _stream_type()(io.BytesIO(part.data)) as file:
        if part.otherwise is not None and file.frames < part.num_expected:
            _read_part(part.otherwise, total)
            return
        total.begin(file.samplerate, file.channels)
        num_promised = part.num_samples * file.samplerate // (part.per_s or file.samplerate)
        total.check_size(num_promised if file.frames == _UNKNOWN_FRAMES else file.frames)
        num_samples = 0
        while num_samples < file.frames:
            block = file.read(min(_BLOCK_VALUES // file.channels, file.frames), dtype="float32", always_2d=True)
            if len(block) == 0:
                break
            total.add(block)
            num_samples += len(block)
    if num_samples < num_promised:
        raise ValueError(f"unreadable audio: the file ends after {num_samples} samples, expected {num_promised}")


@cache
def _stream_type() -> type[soundfile.SoundFile]:
    """A file that is only read forwards: soundfile would seek after every block, and libsndfile decode some again."""
    import soundfile

    class Stream(soundfile.SoundFile):  # type: ignore[misc]
        def seekable(self) -> bool:
            return False

    return Stream


class _Average:
    """The average of the channels of blocks that come one after the other."""

    def __init__(self) -> None:
        """No block yet."""
        self.rate_hz = 0
        self._num_channels = 1
        self._num_samples = 0
        self._blocks: list[NDArray[np.float32]] = []

    def begin(self, rate_hz: int, num_channels: int) -> None:
        """What follows has this rate and number of channels.

        Raises:
            ValueError: No audio has such a rate, or what came before has another.
        """
        least, most = _RATES_HZ
        if not least <= rate_hz <= most:
            raise ValueError(f"unreadable audio: a rate of {rate_hz} Hz, expected {least} to {most}")
        if self.rate_hz not in (0, rate_hz):
            raise ValueError(f"unreadable audio: joined files of {self.rate_hz} and {rate_hz} Hz")
        self.rate_hz = rate_hz
        self._num_channels = num_channels

    def check_size(self, num_more: int) -> None:
        """Raise ValueError if so many more samples are too many: a few bytes can stand for hours of silence."""
        num_values = (self._num_samples + num_more) * self._num_channels
        if num_values > _MAX_VALUES:
            raise ValueError(
                f"unreadable audio: {num_values} samples over all channels, expected at most {_MAX_VALUES}"
            )
        num_resampled = (self._num_samples + num_more) * SAMPLE_RATE_HZ // self.rate_hz
        if num_resampled > _MAX_VALUES:
            raise ValueError(f"unreadable audio: {num_resampled} samples at 16 kHz, expected at most {_MAX_VALUES}")

    def add(self, block: NDArray[np.float32]) -> None:
        """Add `[samples, channels]`.

        Raises:
            ValueError: There are too many samples, or one is not finite.
        """
        import numpy as np

        self.check_size(len(block))
        if not np.isfinite(block).all():
            raise ValueError("audio with NaN or infinite samples")
        self._num_samples += len(block)
        self._blocks.append(block.mean(axis=1, dtype=np.float32))

    def waveform(self) -> NDArray[np.float32]:
        """The average, `[samples]`."""
        import numpy as np

        if len(self._blocks) == 1:
            return self._blocks[0]
        return np.concatenate(self._blocks) if self._blocks else np.zeros(0, dtype=np.float32)


def _read_with_av(data: bytes, suffix: str) -> tuple[NDArray[np.float32], int]:
    """The average of the channels `[samples]` and its rate in Hz, of the file's first audio stream."""
    problem = missing_extra(suffix)
    if problem is not None:
        raise ValueError(problem)
    import av

    files = av_files(data)
    if files is None:  # another format with this extension
        return _read_with_soundfile(data, suffix)
    total = _Average()
    for content in files[1]:
        try:
            _read_file_with_av(content, files[0], total)
        except av.FFmpegError as cause:
            raise ValueError(f"unreadable audio: {cause}") from None
    return total.waveform(), total.rate_hz


def _read_file_with_av(data: bytes, av_format: str, total: _Average) -> None:
    """Add the samples of a file. Its format is given: what FFmpeg guesses may be a list of other files to open."""
    import av
    import numpy as np

    with av.open(io.BytesIO(data), mode="r", format=av_format, metadata_errors="replace") as container:
        if not container.streams.audio:
            raise ValueError("unreadable audio: the file has no audio stream")
        stream = container.streams.audio[0]
        to_float = av.AudioResampler(format="fltp")
        num_packets = 0
        for packet in container.demux(stream):
            num_packets += packet.size > 0
            for frame in packet.decode():
                total.begin(frame.rate, frame.layout.nb_channels)
                for planes in to_float.resample(frame):
                    total.add(planes.to_ndarray().T.astype(np.float32, copy=False))
        if num_packets < stream.frames:
            raise ValueError(f"unreadable audio: the file has {num_packets} packets, its header says {stream.frames}")
