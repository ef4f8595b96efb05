"""Clip sums: the sums behind a score, clip by clip, so that it can be recomputed for other sets of clips.

Every metric is a function of sums over rows (`Metric.of_sums`). The sums of each clip's rows are stored for every seed
that a LALM was trained with; the score of resampled, selected or weighted clips then follows exactly. All rows of a
clip stay together, because they are not independent of each other.

Shapes: S seeds, C clips, P parts of the metric's sums, B weightings of the clips, L labels.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from xares_bench.core.errors import UsageError
from xares_bench.core.parsing import parse_json
from xares_bench.core.store import write_atomically
from xares_bench.metrics.parts import MetricResult
from xares_bench.metrics.registry import METRICS

Array: TypeAlias = NDArray[np.float64]

# Name of the file with a cached score's clip sums.
CLIP_SUMS_FILE = "clip_sums.npz"
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipSums:
    """The sums behind one dataset's score.

    Attributes:
        metric: Name of the metric.
        arguments: Arguments of the metric.
        clips: Unique names of the clips, `[C]`.
        parts: Sums over each clip's rows, `[S, C, P]`; see `MetricResult.row_parts`.
    """

    metric: str
    arguments: Mapping[str, int]
    clips: tuple[str, ...]
    parts: Array

    def scores(self, weights_BC: Array | None = None) -> Array:
        """Return the score for each weighting of the clips, the mean over the seeds: `[B]`; without weights, `[1]`.

        NaN for a weighting whose sums have no score, such as one of no clip at all.
        """
        return np.mean(self._scores_of_seeds(weights_BC), axis=0)  # type: ignore[no-any-return]

    def scores_of_seeds(self) -> Array:
        """Return the score of each seed, `[S]`."""
        return self._scores_of_seeds(None)[:, 0]

    def _scores_of_seeds(self, weights_BC: Array | None) -> Array:
        """Return the score of each seed for each weighting, `[S, B]`."""
        if weights_BC is None:
            weights_BC = np.ones((1, len(self.clips)))
        of_sums = METRICS[self.metric].of_sums
        return np.array([of_sums(weights_BC @ parts_CP, **self.arguments) for parts_CP in self.parts])

    def select(self, clips: Iterable[str]) -> ClipSums:
        """Return the clip sums of these clips, in the given order, as if the dataset had no others.

        Raises:
            KeyError: A clip is missing.
        """
        places = {clip: place for place, clip in enumerate(self.clips)}
        chosen = tuple(clips)
        parts = self.parts[:, [places[clip] for clip in chosen]]
        counted_parts = METRICS[self.metric].counted_parts
        if counted_parts is not None:
            parts = parts[:, :, counted_parts(parts.sum(axis=(0, 1)))]
        return ClipSums(metric=self.metric, arguments=self.arguments, clips=chosen, parts=parts)

    def save(self, path: Path) -> None:
        """Write the file atomically; `load_clip_sums` reads it."""
        write_atomically(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the file's content: a compressed .npz of numbers and JSON; equal clip sums give equal bytes."""
        about = {"schema": _SCHEMA, "metric": self.metric, "arguments": dict(self.arguments)}
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, text in (("about.json", json.dumps(about)), ("clips.json", json.dumps(self.clips))):
                archive.writestr(zipfile.ZipInfo(name), text)
            member = io.BytesIO()
            np.lib.format.write_array(member, self.parts, allow_pickle=False)
            info = zipfile.ZipInfo("parts.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue())
        return content.getvalue()


def gather(
    results: Sequence[MetricResult], *, metric: str, arguments: Mapping[str, int], row_clips: Sequence[str]
) -> ClipSums:
    """Sum the rows of each clip of one dataset.

    Args:
        results: The metric's results for the same rows, one per seed.
        metric: Name of the metric.
        arguments: Arguments of the metric.
        row_clips: For every row, the name of its clip; equal names are the same clip.
    """
    clips = tuple(dict.fromkeys(row_clips))
    places = {clip: place for place, clip in enumerate(clips)}
    places_N = [places[clip] for clip in row_clips]
    parts = np.zeros((len(results), len(clips), results[0].row_parts.shape[1]))
    for parts_CP, result in zip(parts, results, strict=True):
        np.add.at(parts_CP, places_N, result.row_parts)
    return ClipSums(metric=metric, arguments=dict(arguments), clips=clips, parts=parts)


def joined(all_clip_sums: Sequence[ClipSums]) -> ClipSums:
    """Combine the clip sums of several seeds over the same clips."""
    first = all_clip_sums[0]
    assert all(clip_sums.clips == first.clips for clip_sums in all_clip_sums), (
        "the seeds were scored on different clips"
    )
    parts = np.concatenate([clip_sums.parts for clip_sums in all_clip_sums])
    return ClipSums(metric=first.metric, arguments=first.arguments, clips=first.clips, parts=parts)


def load_clip_sums(path: Path) -> ClipSums:
    """Read a file of `ClipSums.save`; nothing in the file is executed.

    Raises:
        UsageError: The file is missing, truncated or has other content.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            about = parse_json(archive.read("about.json"))
            clips = parse_json(archive.read("clips.json"))
            parts = np.lib.format.read_array(io.BytesIO(archive.read("parts.npy")), allow_pickle=False)
        if about["schema"] != _SCHEMA:
            raise ValueError(f"its schema is {about['schema']}; this version reads schema {_SCHEMA}")
        clip_sums = ClipSums(metric=about["metric"], arguments=about["arguments"], clips=tuple(clips), parts=parts)
        if (
            parts.ndim != 3
            or parts.shape[1] != len(clips)
            or len(set(clips)) != len(clips)
            or parts.dtype != np.float64
        ):
            raise ValueError("its clips and its array do not match")
        if about["metric"] not in METRICS:
            raise ValueError(f"unknown metric {about['metric']!r}")
        clip_sums.scores()  # fails if the number of sums is not the metric's
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError, IndexError, EOFError) as cause:
        raise UsageError(f"cannot read {path} as clip sums: {cause}; run the suite again to recompute them") from cause
    return clip_sums
