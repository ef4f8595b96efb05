"""Clip sums: what a score was made of, clip by clip, so that it can be made again of other clips.

Every metric is a function of sums over rows. The sums of each clip's rows are kept, for every LALM that was trained
with a seed of its own; clips can then be drawn anew, left out or weighted, and the metric follows exactly. All rows of
a clip stay together, as they are not independent of each other.

Shapes: S seeds, C clips, P parts of the metric's sums, B weightings of the clips, L labels.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from xares_bench.core.errors import UsageError
from xares_bench.core.parsing import parse_json
from xares_bench.core.store import write_atomically
from xares_bench.metrics.registry import MetricResult

Array: TypeAlias = NDArray[np.float64]

# Name of the file that holds the clip sums of a score, where it is kept.
CLIP_SUMS_FILE = "clip_sums.npz"
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipSums:
    """What a dataset's score is made of.

    Attributes:
        metric: Name of the metric.
        arguments: What the metric is told besides.
        clips: Names of the clips, `[C]`, each of which occurs once.
        parts: Sums over each clip's rows, `[S, C, P]`; see `MetricResult.row_parts`.
    """

    metric: str
    arguments: Mapping[str, int]
    clips: tuple[str, ...]
    parts: Array

    def scores(self, weights_BC: Array | None = None) -> Array:
        """The score with every clip counted so often, the mean over the seeds: `[B]`; without weights, `[1]`.

        A weighting whose sums do not make a score, as of no clip at all, gives NaN.
        """
        if weights_BC is None:
            weights_BC = np.ones((1, len(self.clips)))
        scores_SB = [self._of_sums(weights_BC @ parts_CP) for parts_CP in self.parts]
        return np.mean(scores_SB, axis=0)  # type: ignore[no-any-return]

    def select(self, clips: Iterable[str]) -> ClipSums:
        """The clip sums of these clips, in their order.

        Raises:
            KeyError: One of them is not there.
        """
        places = {clip: place for place, clip in enumerate(self.clips)}
        chosen = tuple(clips)
        parts = self.parts[:, [places[clip] for clip in chosen]]
        return ClipSums(metric=self.metric, arguments=self.arguments, clips=chosen, parts=parts)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all; `load_clip_sums` reads it back."""
        write_atomically(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of its file: an .npz of numbers and text, compressed, the same bytes for the same clip_sums."""
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

    @property
    def _of_sums(self) -> Callable[[Array], Array]:
        """The metric as a function of sums, `[B]` from `[B, P]`."""
        if self.metric == "mAP":
            return lambda sums_BP: _mean_average_precision(sums_BP, self.arguments["num_classes"])
        return _OF_SUMS[self.metric]


def gather(
    results: Sequence[MetricResult], *, metric: str, arguments: Mapping[str, int], row_clips: Sequence[str]
) -> ClipSums:
    """The clip sums of one dataset's results.

    Args:
        results: What the metric says of the same rows, seed by seed.
        metric: Its name.
        arguments: What it is told besides.
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
    """The clip sums of several seeds over the same clips as one."""
    first = all_clip_sums[0]
    assert all(clip_sums.clips == first.clips for clip_sums in all_clip_sums), (
        "the seeds were scored on different clips"
    )
    parts = np.concatenate([clip_sums.parts for clip_sums in all_clip_sums])
    return ClipSums(metric=first.metric, arguments=first.arguments, clips=first.clips, parts=parts)


def load_clip_sums(path: Path) -> ClipSums:
    """Read what `ClipSums.save` wrote; nothing in the file is executed.

    Raises:
        UsageError: The file is absent, truncated or not what was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            about = parse_json(archive.read("about.json"))
            clips = parse_json(archive.read("clips.json"))
            parts = np.lib.format.read_array(io.BytesIO(archive.read("parts.npy")), allow_pickle=False)
        if about["schema"] != _SCHEMA:
            raise ValueError(f"its schema is {about['schema']}, this version reads {_SCHEMA}")
        clip_sums = ClipSums(metric=about["metric"], arguments=about["arguments"], clips=tuple(clips), parts=parts)
        if (
            parts.ndim != 3
            or parts.shape[1] != len(clips)
            or len(set(clips)) != len(clips)
            or parts.dtype != np.float64
        ):
            raise ValueError("its arrays do not fit each other")
        if about["metric"] not in (*_OF_SUMS, "mAP"):
            raise ValueError(f"its metric is {about['metric']!r}, which is not known")
        clip_sums.scores()  # fails where the number of parts is not the metric's
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError, IndexError, EOFError) as cause:
        raise UsageError(f"{path} cannot be read as the clip sums of a score: {cause}; run the suite again") from cause
    return clip_sums


def _mean(sums_BP: Array) -> Array:
    """Mean of values: their sum and their number."""
    return _ratio(sums_BP[:, 0], sums_BP[:, 1])


def _inverse_error_rate(sums_BP: Array) -> Array:
    """`max(0, 1 - edits / length)`."""
    return np.maximum(0.0, 1 - _ratio(sums_BP[:, 0], sums_BP[:, 1]))


def _chrf(sums_BP: Array) -> Array:
    """chrF2 of counts of character n-grams of order 1 to 6: of the hypothesis, of the reference, of both.

    Precision and recall are averaged over the orders that occur on both sides (Popović 2015; sacrebleu's `eff:yes`).
    """
    num_said, num_wanted, num_both = sums_BP.reshape(len(sums_BP), -1, 3).transpose(2, 0, 1)
    is_effective = (num_said > 0) & (num_wanted > 0)
    num_effective = np.maximum(1, is_effective.sum(axis=1))
    precision, recall = (
        (is_effective * num_both / np.maximum(1, counts)).sum(axis=1) / num_effective
        for counts in (num_said, num_wanted)
    )
    score = 5 * precision * recall / np.where(precision + recall > 0, 4 * precision + recall, 1)
    return np.where(num_wanted.any(axis=1), score, np.nan)


def _mean_average_precision(sums_BP: Array, num_classes: int) -> Array:
    """Mean average precision of label sets; see `metrics.mean_average_precision`. P is 1 + 3 L."""
    num_rows_B1 = sums_BP[:, :1]
    positives, predicted, hits = sums_BP[:, 1:].reshape(len(sums_BP), 3, -1).transpose(1, 0, 2)
    recall = hits / np.maximum(1, positives)
    precision = hits / np.maximum(1, predicted)
    average_precision_BL = recall * precision + (1 - recall) * _ratio(positives, num_rows_B1)
    mean_B: Array = average_precision_BL.sum(axis=1) / num_classes
    return mean_B


def _ratio(above: Array, below: Array) -> Array:
    """The quotient; NaN over 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)


_OF_SUMS: Mapping[str, Callable[[Array], Array]] = {
    "Accuracy": _mean,
    "FENSE": _mean,
    "DATE": _mean,
    "iWER": _inverse_error_rate,
    "iCER": _inverse_error_rate,
    "chrF": _chrf,
}
