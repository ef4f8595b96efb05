"""Records: predictions, scores and runs as plain data, with their JSON forms."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xares_bench.core.text import writable

RESULTS_SCHEMA = 2

# Half the width of a 95 % confidence interval, in standard errors.
_HALF_WIDTH = statistics.NormalDist().inv_cdf(0.975)

# Name of the file with a cached score's predictions.
PREDICTIONS_FILE = "predictions.jsonl"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One row: the text predicted for a clip, and one target to compare it with.

    Attributes:
        clip: Key of the clip in its shard.
        reference: The target, as the dataset has it.
        hypothesis: The generated text.
        value: The metric of this row alone; None for a metric that has no value per row.
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

    def __post_init__(self) -> None:
        """Make the texts writable: they come from archives and their errors."""
        for name in ("shard", "clip", "reason"):
            object.__setattr__(self, name, writable(getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class ScoreRecord:
    """One dataset's score, with its error and what it was computed from.

    Attributes:
        dataset: Its id, e.g. `esc-50`.
        task: The task whose overall score it counts towards, e.g. `task1`.
        metric: Name of the metric.
        score: The metric over all rows, at most 1; FENSE and DATE can be a little below 0, the others cannot.
        weight: Weight in the task's overall score.
        num_rows: (clip, target) pairs that were scored.
        num_clips: Clips that a text was generated for.
        duration_s: Seconds of audio in those clips.
        features_s: Wall time of computing the features of its test shards. A reused score keeps the times that it took
            when it was computed.
        generation_s: Wall time of generating and scoring.
        dropped: Samples that could not be used.
        mix: Name of the mix that the LALM was trained on.
        key: Digest of everything that the score depends on.
        lalm_key: Digest of everything that the LALM depends on.
        reused: Whether it was in the cache when the session began.
        partial: Whether `--limit` left clips out.
        interval: 95 % confidence interval of the score, from resampling clips; None where the score is NaN.
        deviation: Standard error of the score, from the same resamples; None where the score is NaN.
        seed_scores: The score of each training seed, in the order of the seeds; `score` is their mean.
        num_corrupt_targets: Targets that are left out because they are corrupt.
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
    num_corrupt_targets: int = 0

    @property
    def spread(self) -> float | None:
        """Standard deviation of the score over the training seeds; None with a single seed."""
        return _spread(self.seed_scores)

    def to_json(self) -> dict[str, Any]:
        """Return a plain mapping, with null for a score that is NaN or infinite; `from_json` reads it back."""
        values = dataclasses.asdict(self)
        return {
            **values,
            "score": _number(self.score),
            "seed_scores": [_number(score) for score in self.seed_scores],
            "dropped": [vars(sample) for sample in self.dropped],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ScoreRecord:
        """Return the record that `to_json` wrote."""
        dropped = tuple(DroppedSample(**sample) for sample in data["dropped"])
        own = {
            "score": math.nan if data["score"] is None else data["score"],
            "dropped": dropped,
            "interval": None if data["interval"] is None else tuple(data["interval"]),
            "seed_scores": tuple(math.nan if score is None else score for score in data["seed_scores"]),
        }
        return cls(**{**data, **own})


@dataclass(frozen=True, kw_only=True)
class RobustnessRecord:
    """What a dataset's score loses when its test clips are corrupted.

    Attributes:
        dataset: The dataset.
        corruption: The corruption, `NAME:LEVEL`.
        score: The score on the corrupted clips.
        loss: Corrupted minus clean score, over the clips that both have; below 0 where the corruption costs. NaN if a
            score is.
        interval: 95 % confidence interval of the loss, paired by clip; None where there is none.
        num_clips: Clips that the loss is over.
        key: Digest of everything that the score on the corrupted clips depends on.
    """

    dataset: str
    corruption: str
    score: float
    loss: float
    interval: tuple[float, float] | None
    num_clips: int
    key: str

    @property
    def order(self) -> tuple[str, float]:
        """Name and level of the corruption, by which tables are sorted."""
        name, _, level = self.corruption.partition(":")
        return name, float(level)

    @property
    def direction(self) -> str:
        """`good` or `bad` if the interval of the loss excludes 0, else empty."""
        low, high = self.interval or (0.0, 0.0)
        return "good" if low > 0 else "bad" if high < 0 else ""

    def to_json(self) -> dict[str, Any]:
        """Return a plain mapping, with null for what is NaN; `from_json` reads it back."""
        return {**dataclasses.asdict(self), "score": _number(self.score), "loss": _number(self.loss)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RobustnessRecord:
        """Return the record that `to_json` wrote."""
        own = {name: math.nan if data[name] is None else data[name] for name in ("score", "loss")}
        interval = None if data["interval"] is None else tuple(data["interval"])
        return cls(**{**data, **own, "interval": interval})


@dataclass(frozen=True, kw_only=True)
class RunManifest:
    """What a run evaluated, and with what; every value is plain JSON.

    Attributes:
        name: Name of the run's folder.
        datasets: The datasets that the run was asked to evaluate.
        encoder: Specification, arguments, fingerprint, frame rate and results of the contract check.
        preset: Name of the preset.
        decoder: Name and fingerprint of the decoder.
        recipe: Every value of the recipe.
        deviations: Values of the recipe that differ from the preset's, as `{key: [preset's, this run's]}`.
        data: Where the data comes from, and its revision: among others `repositories`, the commit of every hub
            repository, and `test_repositories`, the one that a dataset's test data come from, if there is one.
        tasks: All datasets of each task, evaluated or not.
        environment: Device, library versions, platform.
        seeds: Training seeds; every score is the mean over them.
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

    def test_repository(self, datasets: Iterable[str]) -> tuple[str, str | None] | None:
        """Return the hub repository that the test data of all these datasets come from, and its commit if it is known.

        None if the data of one of them are not on the hub, or if they are in several repositories.
        """
        known = self.data.get("test_repositories", {})
        found = {known.get(dataset) for dataset in datasets}
        (repository,) = found if len(found) == 1 else (None,)
        return None if repository is None else (repository, self.data.get("repositories", {}).get(repository))

    def to_json(self) -> dict[str, Any]:
        """Return a plain mapping; `from_json` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunManifest:
        """Return the manifest that `to_json` wrote."""
        tasks = {task: tuple(names) for task, names in data["tasks"].items()}
        return cls(**{**data, "datasets": tuple(data["datasets"]), "tasks": tasks, "seeds": tuple(data["seeds"])})


@dataclass(frozen=True, kw_only=True)
class Overall:
    """A task's overall score: the weighted mean over its datasets.

    Attributes:
        task: The task.
        score: Weighted mean of the available scores; NaN if one of them is.
        num_datasets: Datasets in that mean.
        num_expected: Datasets of the task.
        partial: Whether `--limit` left out clips of a dataset.
        deviation: Standard error of the score; None if that of a dataset is unknown.
        interval: Its 95 % confidence interval: of a lone dataset, the dataset's; else that of a mean of independent
            scores, within the range of scores. None without a standard error.
        seed_scores: The overall score of each training seed.
    """

    task: str
    score: float
    num_datasets: int
    num_expected: int
    partial: bool
    deviation: float | None = None
    interval: tuple[float, float] | None = None
    seed_scores: tuple[float, ...] = ()

    @property
    def spread(self) -> float | None:
        """Standard deviation of the score over the training seeds; None with a single seed."""
        return _spread(self.seed_scores)

    @property
    def complete(self) -> bool:
        """Whether it can be compared with the overall score of another run."""
        return self.num_datasets == self.num_expected and not self.partial


def overall_of(task: str, records: Iterable[ScoreRecord], expected: Iterable[str]) -> Overall:
    """Return the weighted mean over the records of one task.

    Args:
        task: The task.
        records: Records of any tasks.
        expected: All datasets of the task.

    Raises:
        ValueError: No record is of that task.
    """
    expected = set(expected)
    scored = {record.dataset: record for record in records if record.task == task}
    if not scored:
        raise ValueError(f"no score of task {task!r} to average")
    total_weight = sum(record.weight for record in scored.values())
    shares = {name: record.weight / total_weight for name, record in scored.items()}
    deviations = [(share, scored[name].deviation) for name, share in shares.items()]
    known = [share * deviation for share, deviation in deviations if deviation is not None]
    # The datasets share a LALM, so their scores vary together from seed to seed: averaged seed by seed, the spread of
    # the overall score includes that. A spread combined from those of the datasets would ignore it.
    by_seed = zip(*(record.seed_scores for record in scored.values()), strict=True)
    score = math.fsum(record.score * record.weight for record in scored.values()) / total_weight
    deviation = math.hypot(*known) if len(known) == len(scored) else None
    return Overall(
        task=task,
        score=score,
        num_datasets=len(scored),
        num_expected=len(expected | set(scored)),
        partial=any(record.partial for record in scored.values()),
        deviation=deviation,
        interval=_interval_of_mean(list(scored.values()), score, deviation),
        seed_scores=tuple(
            math.fsum(share * score for share, score in zip(shares.values(), scores, strict=True)) for scores in by_seed
        ),
    )


def _interval_of_mean(
    records: Sequence[ScoreRecord], score: float, deviation: float | None
) -> tuple[float, float] | None:
    if len(records) == 1:
        return records[0].interval
    if deviation is None:
        return None
    # A dataset counts with 0 as its lowest score, unless its interval shows that its metric can be below 0.
    total_weight = math.fsum(record.weight for record in records)
    below_zero = math.fsum(record.weight for record in records if record.interval and record.interval[0] < 0)
    half = _HALF_WIDTH * deviation
    lowest = 0.0 - below_zero / total_weight  # never -0.0
    return min(score, max(score - half, lowest)), max(score, min(score + half, 1.0))


def _spread(scores: tuple[float, ...]) -> float | None:
    return statistics.stdev(scores) if len(scores) > 1 and all(map(math.isfinite, scores)) else None


def _number(value: float) -> float | None:
    """Replace NaN and infinities, which JSON cannot hold, by None."""
    return value if math.isfinite(value) else None


def predictions_to_jsonl(predictions: Iterable[Prediction]) -> str:
    """Return one JSON object per line, in the given order."""
    rows = map(dataclasses.asdict, predictions)
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
