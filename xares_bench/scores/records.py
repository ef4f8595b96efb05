"""Results as data: what an evaluation leaves behind, and its JSON forms."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

RESULTS_SCHEMA = 2

# Half the width of a 95 % interval, in standard errors.
_HALF_WIDTH = statistics.NormalDist().inv_cdf(0.975)

# Name of the file that holds the predictions of a dataset, where it is kept.
PREDICTIONS_FILE = "predictions.jsonl"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One row: what the LALM said of a clip, held against one target.

    Attributes:
        clip: Key of the clip in its shard.
        reference: The target, as the data has it.
        hypothesis: The generated text.
        value: The metric of this row alone, where it has one.
    """

    clip: str
    reference: str
    hypothesis: str
    value: float | None


@dataclass(frozen=True, kw_only=True)
class DroppedSample:
    """A sample that could not be used, and why."""

    shard: str
    clip: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ScoreRecord:
    """One dataset's score and all that is needed to judge and reproduce it.

    Attributes:
        dataset: Its id, e.g. `esc-50`.
        task: The task that it is averaged into, e.g. `task1`.
        metric: Name of the metric.
        score: The metric over all rows, at most 1; FENSE and DATE can be a little below 0, the others cannot.
        weight: Weight in the task's overall score.
        num_rows: (clip, target) pairs that were scored.
        num_clips: Clips that were generated for.
        duration_s: Seconds of audio in those clips.
        features_s: Wall time of computing the features of its test shards when that was done.
        generation_s: Wall time of generating and scoring when it was done.
        dropped: Samples that could not be used.
        mix: Name of the mix that the LALM was trained on.
        key: Digest of everything that the score depends on.
        lalm_key: Digest of everything that the LALM depends on.
        reused: Whether an earlier run had computed it.
        partial: Whether `--limit` left clips out.
        interval: 95 % interval of the score, from resampling clips; None where the score is NaN.
        deviation: Standard error of the score, from the same resamples; None where the score is NaN.
        seed_scores: The score of every seed of the training, in their order; `score` is their mean.
    """

    dataset: str
    task: str
    metric: str
    score: float
    weight: float
    num_rows: int
    num_clips: int
    duration_s: float
    features_s: float
    generation_s: float
    dropped: tuple[DroppedSample, ...]
    mix: str
    key: str
    lalm_key: str
    reused: bool
    partial: bool
    interval: tuple[float, float] | None = None
    deviation: float | None = None
    seed_scores: tuple[float, ...] = ()

    @property
    def spread(self) -> float | None:
        """Standard deviation of the score over the seeds of the training; None where there is one seed."""
        return _spread(self.seed_scores)

    def to_json(self) -> dict[str, Any]:
        """A plain mapping, with null for a score that is no number; `from_json` reads it back."""
        values = dataclasses.asdict(self)
        return {
            **values,
            "score": _number(self.score),
            "seed_scores": [_number(score) for score in self.seed_scores],
            "dropped": [vars(sample) for sample in self.dropped],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ScoreRecord:
        """The record that `to_json` wrote."""
        dropped = tuple(DroppedSample(**sample) for sample in data["dropped"])
        own = {
            "score": math.nan if data["score"] is None else data["score"],
            "dropped": dropped,
            "interval": None if data["interval"] is None else tuple(data["interval"]),
            "seed_scores": tuple(math.nan if score is None else score for score in data["seed_scores"]),
        }
        return cls(**{**data, **own})


@dataclass(frozen=True, kw_only=True)
class RunManifest:
    """What a run was made of; every value is plain JSON.

    Attributes:
        name: Name of the run's folder.
        datasets: The datasets that the run was asked for.
        encoder: Specification, arguments, fingerprint, frame rate, findings of the contract check.
        preset: Name of the preset.
        decoder: Name and fingerprint of the decoder.
        recipe: Every value of the recipe.
        deviations: Values of the recipe that differ from the preset's, as `{key: [preset's, this run's]}`.
        data: Where the data came from, and its revision.
        tasks: The datasets that each task has, complete or not.
        environment: Device, library versions, platform.
        seeds: Seeds of the training; every score is the mean over them.
    """

    name: str
    datasets: tuple[str, ...]
    encoder: Mapping[str, Any]
    preset: str
    decoder: Mapping[str, Any]
    recipe: Mapping[str, Any]
    deviations: Mapping[str, Any]
    data: Mapping[str, Any]
    tasks: Mapping[str, tuple[str, ...]]
    environment: Mapping[str, Any]
    seeds: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A plain mapping; `from_json` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunManifest:
        """The manifest that `to_json` wrote."""
        tasks = {task: tuple(names) for task, names in data["tasks"].items()}
        return cls(**{**data, "datasets": tuple(data["datasets"]), "tasks": tasks, "seeds": tuple(data["seeds"])})


@dataclass(frozen=True, kw_only=True)
class Overall:
    """A task's overall score: the weighted mean over its datasets.

    Attributes:
        task: The task.
        score: Weighted mean of the scores there are; NaN when one of them is.
        num_datasets: How many datasets that mean is over.
        num_expected: How many datasets the task has.
        partial: Whether a score is over fewer clips than its dataset has.
        deviation: Standard error of the score; None where one of its datasets has none.
        seed_scores: The overall score of every seed of the training.
    """

    task: str
    score: float
    num_datasets: int
    num_expected: int
    partial: bool
    deviation: float | None = None
    seed_scores: tuple[float, ...] = ()

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the score: that of a mean of independent scores."""
        if self.deviation is None:
            return None
        return self.score - _HALF_WIDTH * self.deviation, self.score + _HALF_WIDTH * self.deviation

    @property
    def spread(self) -> float | None:
        """Standard deviation of the score over the seeds of the training; None where there is one seed."""
        return _spread(self.seed_scores)

    @property
    def complete(self) -> bool:
        """Whether it may be compared with another run's."""
        return self.num_datasets == self.num_expected and not self.partial


def overall_of(task: str, records: Iterable[ScoreRecord], expected: Iterable[str]) -> Overall:
    """Weighted mean over the records of one task, with what it takes to call it complete.

    Raises:
        ValueError: There is no record of that task.
    """
    expected = set(expected)
    scored = {record.dataset: record for record in records if record.task == task}
    if not scored:
        raise ValueError(f"no score of task {task!r} to average")
    total_weight = sum(record.weight for record in scored.values())
    shares = {name: record.weight / total_weight for name, record in scored.items()}
    deviations = [(share, scored[name].deviation) for name, share in shares.items()]
    known = [share * deviation for share, deviation in deviations if deviation is not None]
    by_seed = zip(*(record.seed_scores for record in scored.values()), strict=True)
    return Overall(
        task=task,
        score=math.fsum(record.score * record.weight for record in scored.values()) / total_weight,
        num_datasets=len(scored),
        num_expected=len(expected | set(scored)),
        partial=any(record.partial for record in scored.values()),
        deviation=math.hypot(*known) if len(known) == len(scored) else None,
        seed_scores=tuple(
            math.fsum(share * score for share, score in zip(shares.values(), scores, strict=True)) for scores in by_seed
        ),
    )


def _spread(scores: tuple[float, ...]) -> float | None:
    return statistics.stdev(scores) if len(scores) > 1 and all(map(math.isfinite, scores)) else None


def _number(value: float) -> float | None:
    """A value as JSON has it: null for one that is no number."""
    return value if math.isfinite(value) else None


def predictions_to_jsonl(predictions: Iterable[Prediction]) -> str:
    """One JSON object a line, in the order given."""
    rows = map(dataclasses.asdict, predictions)
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
