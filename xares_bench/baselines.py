"""Baselines: committed scores that a run is held against, and the verdict on a score.

A baseline is a YAML file:

    schema: 1
    preset: mini            # the preset it was measured with; no other preset is held against it
    note: one line on where it comes from                    # optional
    scores: {esc-50: 0.76, gtzan: 0.323}
    fingerprints: {encoder: 0f3a..., data: 77b1...}          # optional, for people to trace it

Overall scores are never stored: they are the means of the rows, so that they cannot disagree with them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from xares_bench.errors import BaselineError, UsageError
from xares_bench.store import write_atomically
from xares_bench.yaml_file import read_yaml

BASELINE_SCHEMA = 1

_SHIPPED_FOLDER = Path(__file__).with_name("data") / "baselines"

# A score of 0.85 against 0.87 with tolerance 0.02 is at the floor, but 0.87 - 0.02 is above 0.85 in binary.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Scores to hold a run against.

    Attributes:
        name: What the user called it: a shipped name or a file.
        preset: The preset that the scores were measured with.
        scores: Score within -1 and 1 by dataset.
        overalls: Mean score by task, only of tasks all of whose datasets have a score here.
        note: Where the scores come from; may be empty.
        fingerprints: What they were measured on, by part; may be empty.
        path: The file they were read from.
    """

    name: str
    preset: str
    scores: Mapping[str, float]
    overalls: Mapping[str, float]
    note: str
    fingerprints: Mapping[str, str]
    path: Path


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a score stands against a baseline.

    Attributes:
        passed: Whether the score is at most `tolerance` below the baseline.
        score: What was measured.
        baseline: What it was held against.
        tolerance: How far below it was allowed to be.
        difference: Score minus baseline; NaN where one of them is.
    """

    passed: bool
    score: float
    baseline: float
    tolerance: float
    difference: float


def shipped_baselines() -> tuple[str, ...]:
    """The names of the baselines that come with the package, sorted.

    Example:
        >>> shipped_baselines()
        ('dasheng-base', 'whisper-base')
    """
    return tuple(sorted(path.stem for path in _SHIPPED_FOLDER.glob("*.yaml")))


def load_baseline(name_or_file: str, *, tasks: Mapping[str, Iterable[str]]) -> Baseline:
    """Return a shipped baseline or one of a YAML file.

    A shipped name wins over a file of the same name in the working directory; `./NAME` means the file.

    Args:
        name_or_file: One of `shipped_baselines()`, or a path.
        tasks: Datasets by task, to compute the overall scores from.

    Raises:
        BaselineError: There is no such baseline, or its file is ill-formed; the message names file and key.

    Example:
        >>> baseline = load_baseline("whisper-base", tasks={"music": ["gtzan", "nsynth"], "other": ["gtzan", "mine"]})
        >>> baseline.preset, baseline.scores["gtzan"], baseline.overalls
        ('full', 0.697, {'music': 0.6675})
    """
    shipped = shipped_baselines()
    path = _SHIPPED_FOLDER / f"{name_or_file}.yaml" if name_or_file in shipped else Path(name_or_file)
    if not path.is_file():
        raise BaselineError(
            f"no baseline {name_or_file!r}: there is no such file, and the package ships {', '.join(shipped)}"
        )
    section = read_yaml(path, BaselineError)
    # The schema goes first: a file of another edition may well have other keys.
    if section.integer("schema", at_least=1) != BASELINE_SCHEMA:
        section.fail("schema", f"found {section.values['schema']}, this version reads {BASELINE_SCHEMA}")
    section.only("schema", "preset", "note", "scores", "fingerprints")
    scores_section = section.section("scores")
    if not scores_section.values:
        section.fail("scores", "found no dataset, expected at least one")
    scores = {}
    for dataset in scores_section.values:
        if not isinstance(dataset, str):
            scores_section.fail(str(dataset), "found a key that is no text; put the dataset's name in quotes")
        value = scores_section.number(dataset)
        if not -1 <= value <= 1:
            scores_section.fail(dataset, f"found {value!r}, expected a score within -1 and 1")
        scores[dataset] = value
    fingerprints = {}
    if section.has("fingerprints"):
        fingerprints_section = section.section("fingerprints")
        fingerprints = {str(part): fingerprints_section.text(part) for part in fingerprints_section.values}
    return Baseline(
        name=name_or_file,
        preset=section.text("preset"),
        scores=scores,
        overalls=_overalls(scores, tasks),
        note=section.text("note") if section.has("note") else "",
        fingerprints=fingerprints,
        path=path,
    )


def check_comparable(baseline: Baseline, *, preset: str, datasets: Iterable[str]) -> None:
    """Raise BaselineError unless every one of the datasets, under this preset, has a score in the baseline.

    Args:
        baseline: What the run is to be held against.
        preset: The run's preset.
        datasets: The datasets that the run is going to score.
    """
    if baseline.preset != preset:
        raise BaselineError(
            f"baseline {baseline.name!r} was measured with --preset={baseline.preset} and this run uses "
            f"--preset={preset}; their scores cannot be compared. Make one with --preset={preset} --save-baseline=FILE"
        )
    missing = sorted(set(datasets) - set(baseline.scores))
    if missing:
        raise BaselineError(
            f"baseline {baseline.name!r} ({baseline.path}) has no score for {', '.join(missing)}; "
            "select fewer datasets with -k, or use a baseline that has them"
        )


def judge(score: float, baseline: float, tolerance: float) -> Verdict:
    """Return whether a score is at most `tolerance` below a baseline.

    Differences within 1e-9 do not count. A score or baseline that is not finite never passes.

    Args:
        score: What was measured.
        baseline: What it is held against.
        tolerance: How far below the score may be; finite and not negative.

    Raises:
        ValueError: The tolerance is negative or not finite.

    Example:
        >>> judge(0.85, 0.87, 0.02).passed, judge(0.84, 0.87, 0.02).passed, judge(float("nan"), 0.0, 1.0).passed
        (True, False, False)
    """
    score, baseline, tolerance = float(score), float(baseline), float(tolerance)
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance is {tolerance}; expected a finite number of at least 0")
    finite = math.isfinite(score) and math.isfinite(baseline)
    return Verdict(
        passed=finite and score >= baseline - tolerance - _ROUNDING,
        score=score,
        baseline=baseline,
        tolerance=tolerance,
        difference=score - baseline,
    )


def check_new_baseline(path: Path) -> None:
    """Raise UsageError if a baseline cannot be written there; to be asked before anything is trained.

    Nothing is created, and nothing is ever overwritten: a baseline is committed, so replacing one takes deleting it.
    """
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} is there already and is not overwritten; name another file or delete it first")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise UsageError(f"{path} cannot be written: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK):
        raise UsageError(f"{path} cannot be written: no permission to write in {nearest}")


def write_baseline(
    path: Path,
    *,
    preset: str,
    scores: Mapping[str, float],
    note: str = "",
    fingerprints: Mapping[str, str] | None = None,
) -> None:
    """Write a new baseline file, whole or not at all; `load_baseline` reads the same scores back to the last bit.

    Args:
        path: A file that does not exist yet; missing folders above it are created.
        preset: The preset that the scores were measured with.
        scores: Score within -1 and 1 by dataset.
        note: Where the scores come from.
        fingerprints: What they were measured on, by part.

    Raises:
        UsageError: The file exists or cannot be written.
        BaselineError: There is no score, or one is not a finite number within -1 and 1.
    """
    check_new_baseline(path)
    if not scores:
        raise BaselineError(f"{path} is not written: there is no score to save")
    for dataset, value in scores.items():
        # A comparison with NaN is false, so this refuses it.
        if not -1 <= value <= 1:
            raise BaselineError(
                f"{path} is not written: the score of {dataset} is {value}, expected a number within -1 and 1"
            )
    content: dict[str, object] = {"schema": BASELINE_SCHEMA, "preset": preset}
    if note:
        content["note"] = note
    # Sorted by name and cast, as numpy's scalars have no YAML form.
    content["scores"] = {dataset: float(scores[dataset]) for dataset in sorted(scores)}
    if fingerprints:
        content["fingerprints"] = {part: fingerprints[part] for part in sorted(fingerprints)}
    try:
        write_atomically(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    except OSError as cause:
        raise UsageError(f"{path} cannot be written: {cause}") from cause


def _overalls(scores: Mapping[str, float], tasks: Mapping[str, Iterable[str]]) -> dict[str, float]:
    overalls = {}
    for task, members in tasks.items():
        datasets = tuple(members)
        if datasets and all(dataset in scores for dataset in datasets):
            overalls[task] = math.fsum(scores[dataset] for dataset in datasets) / len(datasets)
    return overalls
