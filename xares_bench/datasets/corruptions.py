"""Corruptions: what `--corrupt` does to the waveforms of test clips, to measure how much of a score is lost.

Each is a function of the waveform and its level alone. What is random is drawn from a seed that is a digest of the
corruption and the waveform's samples: a clip is corrupted in the same way in every batch, process and session.

Shapes: S samples at 16 kHz before, and S' after the corruption; only `speed` has another S'.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xares_bench.core.digests import code_digest, library_versions
from xares_bench.core.errors import UsageError
from xares_bench.core.parsing import did_you_mean
from xares_bench.datasets.audio import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Waveform = NDArray[np.float32]

# The constant bitrates of MPEG-2 Layer III, which has the rate of 16 kHz (ISO/IEC 13818-3).
MP3_KBIT_S = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
# By how much decoded audio is late: LAME's encoder by 576 samples, every decoder by 529. A frame of less than 40 kbit/s
# has no room for the tag by which the decoder would know, and leave them out itself.
_MP3_DELAY_SAMPLES = 576 + 529
_LOWPASS_TAPS = 511
_BLOCK_SAMPLES = 1 << 17
_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """A corruption with its level.

    Attributes:
        name: Its name, a key of `KINDS`.
        level: Its level, in the unit of its kind.
    """

    name: str
    level: float

    def __str__(self) -> str:
        """`NAME:LEVEL`, the same text however the level was written."""
        return f"{self.name}:{self.level:g}"

    @property
    def identity(self) -> dict[str, Any]:
        """What corrupted clips depend on besides the clips, as part of a key."""
        code = code_digest("xares_bench.datasets.corruptions")
        return {"corruption": str(self), "code": code, "libraries": library_versions(("numpy", "soundfile", "soxr"))}

    def apply(self, waveform: Waveform) -> Waveform:
        """Return the corrupted waveform.

        Args:
            waveform: `[S]`, float32, within -1 and 1.

        Returns:
            `[S']`, float32, finite, at least one sample. It is divided by its peak if that exceeds 1, as audio that is
            read is, so nothing is clipped. Silence stays silence.
        """
        import numpy as np

        seed = hashlib.sha256(f"{self} ".encode() + waveform.tobytes()).digest()
        random = np.random.default_rng(int.from_bytes(seed))
        corrupted = KINDS[self.name].function(waveform, self.level, random)
        peak = float(np.abs(corrupted).max())
        return (corrupted / peak if peak > 1 else corrupted).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of corruption.

    Attributes:
        function: Computes it from a waveform, a level, and a generator of random numbers.
        what: What the level is, for messages.
        least: The lowest level.
        most: The highest level.
        example: An example of a level.
        default: The level if none is given; None: one has to be given.
        choices: The only levels, where not all between lowest and highest exist.
        without: A level that would change nothing.
    """

    function: Callable[[Waveform, float, np.random.Generator], NDArray[Any]]
    what: str
    least: float
    most: float
    example: float
    default: float | None = None
    choices: tuple[int, ...] = ()
    without: float | None = None

    @property
    def levels(self) -> str:
        """The levels that exist, in words."""
        if self.choices:
            return f"{self.what}: one of {', '.join(map(str, self.choices))}"
        but = "" if self.without is None else f", not {self.without:g}"
        return f"{self.what} from {self.least:g} to {self.most:g}{but}"

    def allows(self, level: float) -> bool:
        """Whether there is such a level."""
        is_chosen = not self.choices or level in self.choices
        return self.least <= level <= self.most and is_chosen and level != self.without


def parse_corruptions(texts: Iterable[str]) -> tuple[Corruption, ...]:
    """Read the values of `--corrupt`.

    Raises:
        UsageError: One is not `NAME` or `NAME:LEVEL` with a known name and a level that exists, or is given twice.

    Example:
        >>> [str(corruption) for corruption in parse_corruptions(["noise:10.0", "reverb"])]
        ['noise:10', 'reverb:0.5']
    """
    found: dict[str, Corruption] = {}
    for text in texts:
        corruption = _parsed(text)
        if str(corruption) in found:
            raise UsageError(f"--corrupt={text}: {corruption} is given twice; give each corruption once")
        found[str(corruption)] = corruption
    return tuple(found.values())


def _parsed(text: str) -> Corruption:
    name, colon, level = text.strip().partition(":")
    if name not in KINDS:
        expected = ", ".join(f"{known}:{kind.example:g}" for known, kind in KINDS.items())
        raise UsageError(
            f"--corrupt={text}: no such corruption; expected such as {expected}{did_you_mean(name, KINDS)}"
        )
    kind = KINDS[name]
    if not colon and kind.default is not None:
        return Corruption(name=name, level=kind.default)
    example = f"e.g. --corrupt={name}:{kind.example:g}"
    if not level.strip():
        raise UsageError(f"--corrupt={text}: found no level, expected a {kind.levels}; {example}")
    # By way of the text that names it, so that levels with equal names are equal.
    value = float(f"{float(level):g}") if _NUMBER.fullmatch(level.strip()) else math.nan
    if not kind.allows(value):
        raise UsageError(f"--corrupt={text}: found {level!r}, expected a {kind.levels}; {example}")
    return Corruption(name=name, level=value)


def _noise(waveform: Waveform, snr_db: float, random: np.random.Generator) -> NDArray[Any]:
    """Add white Gaussian noise; the powers of clip and noise, each over the whole clip, are in the ratio of the SNR."""
    noise = random.standard_normal(len(waveform))
    power, noise_power = _power(waveform), _power(noise)
    if power == 0:
        return waveform
    return waveform + noise * math.sqrt(power / noise_power / 10 ** (snr_db / 10))


def _mp3(waveform: Waveform, kbit_s: float, _: np.random.Generator) -> NDArray[Any]:
    """Encode as MP3 with LAME at a constant bitrate and decode it again, both by libsndfile."""
    import numpy as np
    import soundfile

    file = io.BytesIO()
    # libsndfile spreads the bitrates over 0 (the highest) to 1, and takes the nearest; it refuses 1 itself.
    compression = min((MP3_KBIT_S[-1] - kbit_s) / (MP3_KBIT_S[-1] - MP3_KBIT_S[0]), 0.9999)
    soundfile.write(
        file,
        waveform,
        SAMPLE_RATE_HZ,
        format="MP3",
        subtype="MPEG_LAYER_III",
        compression_level=compression,
        bitrate_mode="CONSTANT",
    )
    decoded, _rate_hz = soundfile.read(io.BytesIO(file.getvalue()), dtype="float32")
    if len(decoded) > len(waveform):
        decoded = decoded[_MP3_DELAY_SAMPLES:]
    return _of_length(np.asarray(decoded), len(waveform))


def _speed(waveform: Waveform, factor: float, _: np.random.Generator) -> NDArray[Any]:
    """Play faster or slower, so that pitch and length change together.

    As in Ko et al. 2015, "Audio Augmentation for Speech Recognition".
    """
    import soxr

    resampled = soxr.resample(waveform, SAMPLE_RATE_HZ * factor, SAMPLE_RATE_HZ)
    return _of_length(resampled, max(1, round(len(waveform) / factor)))


def _reverb(waveform: Waveform, rt60_s: float, random: np.random.Generator) -> NDArray[Any]:
    """Convolve with an impulse response of exponentially decaying white noise (Polack 1988).

    The response is the direct sound, then noise of the same energy whose level falls by 60 dB in `rt60_s`, where it
    ends. The result has the power of the clip; what rings on after its end is cut off.
    """
    import numpy as np

    time_s = np.arange(1, round(rt60_s * SAMPLE_RATE_HZ) + 1) / SAMPLE_RATE_HZ
    tail = random.standard_normal(len(time_s)) * 10 ** (-3 * time_s / rt60_s)
    response = np.concatenate([[1.0], tail / math.sqrt(float(np.square(tail).sum()))])
    reverberant = _convolved(waveform, response)[: len(waveform)]
    power = _power(reverberant)
    return reverberant * math.sqrt(_power(waveform) / power) if power > 0 else waveform


def _lowpass(waveform: Waveform, cutoff_hz: float, _: np.random.Generator) -> NDArray[Any]:
    """Remove what is above the cutoff by a sinc with a Blackman window, a linear-phase FIR filter without delay.

    The cutoff is where the level has fallen by 6 dB; 90 Hz above it, it has fallen by 70 dB.
    """
    import numpy as np

    places = np.arange(_LOWPASS_TAPS) - _LOWPASS_TAPS // 2
    response = np.sinc(2 * cutoff_hz / SAMPLE_RATE_HZ * places) * np.blackman(_LOWPASS_TAPS)
    filtered = _convolved(waveform, response / response.sum())
    return filtered[_LOWPASS_TAPS // 2 :][: len(waveform)]


def _power(samples: NDArray[Any]) -> float:
    import numpy as np

    return float(np.square(samples, dtype=np.float64).mean())


def _of_length(samples: NDArray[Any], length: int) -> NDArray[Any]:
    """Cut to a length, or fill up with silence."""
    import numpy as np

    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def _convolved(samples: NDArray[Any], response: NDArray[Any]) -> NDArray[np.float64]:
    """The convolution, `[S + R - 1]` of `[S]` and `[R]`, block by block: a clip may last for hours."""
    import numpy as np

    length = 1 << (min(_BLOCK_SAMPLES, len(samples)) + len(response) - 2).bit_length()
    spectrum = np.fft.rfft(response, length)
    result = np.zeros(len(samples) + len(response) - 1)
    for start in range(0, len(samples), _BLOCK_SAMPLES):
        block = samples[start : start + _BLOCK_SAMPLES]
        stop = start + len(block) + len(response) - 1
        result[start:stop] += np.fft.irfft(np.fft.rfft(block, length) * spectrum, length)[: stop - start]
    return result


KINDS = {
    "noise": Kind(function=_noise, what="signal-to-noise ratio in dB", least=-30, most=60, example=10),
    "mp3": Kind(function=_mp3, what="rate in kbit/s", least=8, most=160, example=32, choices=MP3_KBIT_S),
    "speed": Kind(function=_speed, what="factor", least=0.5, most=2, example=1.1, without=1),
    "reverb": Kind(function=_reverb, what="reverberation time RT60 in s", least=0.05, most=5, example=0.5, default=0.5),
    "lowpass": Kind(function=_lowpass, what="cutoff in Hz", least=100, most=7900, example=4000),
}
