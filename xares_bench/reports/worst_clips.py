"""Worst clips: the clips with the lowest scores, and short copies of their audio.

Predictions hold only the names of clips, so the audio is read from the test shards again, each in a single pass.
"""

from __future__ import annotations

import io
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xares_bench.core.errors import DataError
from xares_bench.datasets.audio import SAMPLE_RATE_HZ, read_audio
from xares_bench.datasets.shards import Shard, read_samples
from xares_bench.metrics.parts import normalise
from xares_bench.scores.records import Prediction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Modules whose code the audio of a page depends on. A test compares the list with what these modules import
# (`tests/suite/test_keys.py`).
AUDIO_MODULES = (
    "core.parsing",
    "datasets.audio",
    "datasets.containers",
    "datasets.mpeg",
    "datasets.ogg",
    "datasets.part",
    "datasets.shards",
    "reports.worst_clips",
)

MAX_CLIP_S = 10.0

# A report is written at the end of every session, which must not read hundreds of gigabytes for three clips.
MAX_SHARD_BYTES = 256_000_000


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A clip's audio in a report, or why it has none.

    Attributes:
        audio: An Ogg or FLAC file; None if there is a problem.
        media_type: Its media type; empty if there is a problem.
        duration_s: Seconds of the whole clip.
        problem: Why there is no audio, or None.
    """

    audio: bytes | None = None
    media_type: str = ""
    duration_s: float = 0.0
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class WorstClip:
    """A clip with a wrong prediction.

    Attributes:
        name: Its key.
        references: Its targets, each once.
        hypothesis: The prediction.
        value: Mean of the values of its rows.
    """

    name: str
    references: tuple[str, ...]
    hypothesis: str
    value: float


def worst_clips(predictions: Iterable[Prediction], num_clips: int) -> list[WorstClip]:
    """Return the clips with the lowest values below 1, the lowest first.

    Among equal values, clips with a target that is not in the list yet come first. Rows without a value are left out.
    """
    rows_by_clip: dict[str, list[Prediction]] = {}
    for row in predictions:
        if row.value is not None:
            rows_by_clip.setdefault(row.clip, []).append(row)
    clips = []
    seen: Counter[str] = Counter()
    for name, rows in rows_by_clip.items():
        value = math.fsum(row.value for row in rows if row.value is not None) / len(rows)
        if value < 1:
            references = tuple(dict.fromkeys(row.reference for row in rows))
            clips.append(WorstClip(name=name, references=references, hypothesis=rows[0].hypothesis, value=value))
    # Sorted by value, then by how often the target came before: where whole classes are wrong, the list has one clip of
    # each class before the second of any.
    order: list[tuple[float, int, int]] = []
    for clip in clips:
        target = normalise(clip.references[0])
        order.append((clip.value, seen[target], len(order)))
        seen[target] += 1
    return [clips[place] for _, _, place in sorted(order)[:num_clips]]


def recordings_of(names: Sequence[str], shards: Sequence[Path]) -> dict[str, Recording]:
    """Return the audio of clips, or why it is missing, by name.

    Args:
        names: Keys of clips.
        shards: The test shards; some or all may be missing.
    """
    wanted = set(names)
    found: dict[str, Recording] = {}
    absent, size_bytes, is_cut = [], 0, False
    for path in shards:
        if len(found) == len(wanted):
            break
        if not path.is_file():
            absent.append(path.name)
            continue
        size_bytes += path.stat().st_size
        if size_bytes > MAX_SHARD_BYTES and path != shards[0]:
            is_cut = True
            break
        try:
            _read_shard(path, wanted, found)
        except (DataError, OSError) as cause:
            absent.append(f"{path.name} ({cause})")
    if is_cut:
        problem = f"not in the first {MAX_SHARD_BYTES // 1_000_000} MB of the test shards; the rest was not searched"
    elif absent:
        problem = f"its shard is missing or cannot be read: {', '.join(absent[:3])}" + ("..." if absent[3:] else "")
    else:
        problem = "no test shard has this clip" if shards else "its test shards are unknown"
    return {name: found.get(name, Recording(problem=problem)) for name in names}


def shortened(audio: bytes, suffix: str) -> Recording:
    """Return the first seconds of an encoded clip, as a small file that browsers play.

    Ogg/Opus if libsndfile can write it, else FLAC; mono at 16 kHz, as the encoder gets it.
    """
    try:
        waveform = read_audio(audio, suffix)
    except (ValueError, MemoryError) as cause:
        return Recording(problem=f"it cannot be read: {str(cause) or 'too little memory'}")
    import soundfile

    excerpt = waveform[: round(MAX_CLIP_S * SAMPLE_RATE_HZ)]
    duration_s = len(waveform) / SAMPLE_RATE_HZ
    content = io.BytesIO()
    if "OPUS" in soundfile.available_subtypes("OGG"):
        soundfile.write(content, excerpt, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS")
        return Recording(audio=content.getvalue(), media_type="audio/ogg", duration_s=duration_s)
    soundfile.write(content, _as_integers(excerpt), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return Recording(audio=content.getvalue(), media_type="audio/flac", duration_s=duration_s)


def limited(recordings: Mapping[str, Mapping[str, Recording]], max_bytes: int) -> dict[str, dict[str, Recording]]:
    """Return the recordings without the audio that exceeds a limit for all audio together.

    Args:
        recordings: Recordings by dataset and clip. The first clip of every dataset comes before the second of any, so
            that no dataset uses up the limit alone.
        max_bytes: The limit.
    """
    turns = itertools.zip_longest(*([(dataset, name) for name in clips] for dataset, clips in recordings.items()))
    within: dict[str, dict[str, Recording]] = {dataset: {} for dataset in recordings}
    used_bytes = 0
    for dataset, name in (place for turn in turns for place in turn if place is not None):
        recording = recordings[dataset][name]
        used_bytes += len(recording.audio or b"")
        if recording.audio is not None and used_bytes > max_bytes:
            recording = Recording(problem=f"left out, as a report holds at most {max_bytes / 1e6:g} MB of audio")
        within[dataset][name] = recording
    return within


def _read_shard(path: Path, wanted: set[str], found: dict[str, Recording]) -> None:
    """Add the wanted clips of one shard; of clips with the same key, the first."""
    for sample in read_samples(Shard(path=path, name=path.name, digest="")):
        if sample.key in wanted and sample.key not in found and sample.audio is not None:
            found[sample.key] = shortened(sample.audio, sample.suffix)
            if len(found) == len(wanted):
                return


def _as_integers(waveform: NDArray[np.float32]) -> NDArray[np.int16]:
    import numpy as np

    return (waveform * 32767).round().astype(np.int16)
