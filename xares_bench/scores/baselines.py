"""Baselines: committed scores to compare a run with.

A baseline is a YAML file:

    schema: 2
    preset: mini            # the preset of its runs; runs of other presets cannot be compared
    note: one line on where it comes from                    # optional
    scores:
      gtzan: 0.323                                           # a published score: nothing else is known
      esc-50: {score: 0.76, interval: [0.71, 0.81], deviation: 0.025, rows: 200, clips: 200, seeds: 5, spread: 0.02,
               clip_sums: 5c1f...}                            # all but the score optional
    fingerprints: {encoder: 0f3a..., data: 77b1...}          # optional, for people to trace it

`clip_sums` is the SHA-256 of `NAME.clip_sums/DATASET.npz` beside `NAME.yaml`: the sums behind the score, clip by clip,
with which later scores are compared paired by clip. Files of schema 1, with scores only, are also read. Overall scores
are never stored: they are computed from the scores of the datasets, so they cannot contradict them.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xares_bench.core.digests import file_digest
from xares_bench.core.errors import BaselineError, UsageError
from xares_bench.core.parsing import Section, did_you_mean, local_path, read_yaml
from xares_bench.core.store import write_together
from xares_bench.core.yaml_text import dump_yaml

if TYPE_CHECKING:
    from xares_bench.scores.clip_sums import ClipSums
    from xares_bench.scores.records import RunManifest, ScoreRecord

BASELINE_SCHEMA = 2

_SHIPPED_FOLDER = Path(__file__).with_name("shipped_baselines")

# How far a score may be from the one that its clip sums give. Another order of summation, or float32, changes less.
_SUMS_ROUNDING = 1e-5


@dataclass(frozen=True, kw_only=True, eq=False)
class BaselineScore:
    """One score of a baseline, with its error as far as it is known.

    Attributes:
        score: The mean over the training seeds, within -1 and 1.
        interval: Its 95 % confidence interval.
        deviation: Its standard error from resampling the test clips.
        spread: Standard deviation over the training seeds.
        num_seeds: The number of training seeds.
        num_rows: (clip, target) pairs that it is over.
        num_clips: Clips that it is over.
        clip_sums: The clip sums behind it.
    """

    score: float
    interval: tuple[float, float] | None = None
    deviation: float | None = None
    spread: float | None = None
    num_seeds: int = 1
    num_rows: int | None = None
    num_clips: int | None = None
    clip_sums: ClipSums | None = None


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Scores to compare a run with.

    Attributes:
        name: As the user named it: a shipped name or a file.
        preset: The preset that the scores were measured with.
        scores: Scores by dataset.
        overalls: The mean by task, for the tasks that have a score for every dataset.
        note: Where the scores come from; may be empty.
        fingerprints: Digests of the encoder, the data and so on, for people to trace the scores; may be empty.
        path: The file that they were read from.
    """

    name: str
    preset: str
    scores: Mapping[str, BaselineScore]
    overalls: Mapping[str, BaselineScore]
    note: str
    fingerprints: Mapping[str, str]
    path: Path


def shipped_baselines() -> tuple[str, ...]:
    """Return the sorted names of the baselines that come with the package.

    Example:
        >>> shipped_baselines()
        ('dasheng-base', 'logmel-mini', 'whisper-base')
    """
    return tuple(sorted(path.stem for path in _SHIPPED_FOLDER.glob("*.yaml")))


def load_baseline(name_or_file: str, *, tasks: Mapping[str, Iterable[str]]) -> Baseline:
    """Load a baseline by its shipped name or from a YAML file.

    A shipped name wins over a file of the same name in the working directory; `./NAME` means the file.

    Args:
        name_or_file: One of `shipped_baselines()`, or a path.
        tasks: Datasets by task, to compute the overall scores from.

    Raises:
        BaselineError: There is no such baseline, or its file is invalid; the message names file and key.

    Example:
        >>> baseline = load_baseline("whisper-base", tasks={"music": ["gtzan", "nsynth"], "other": ["gtzan", "mine"]})
        >>> baseline.preset, baseline.scores["gtzan"].score, baseline.overalls["music"].score
        ('full', 0.697, 0.6675)
    """
    shipped = shipped_baselines()
    path = _SHIPPED_FOLDER / f"{name_or_file}.yaml" if name_or_file in shipped else local_path(name_or_file)
    if not path.is_file():
        raise BaselineError(
            f"no baseline {name_or_file!r}: no such file; the package ships {', '.join(shipped)}"
            f"{did_you_mean(name_or_file, shipped)}"
        )
    section = read_yaml(path, BaselineError)
    # Checked first: a file of another schema may have other keys.
    schema = section.integer("schema", at_least=1)
    if schema > BASELINE_SCHEMA:
        section.fail("schema", f"found {schema}, this version reads 1 to {BASELINE_SCHEMA}")
    section.only("schema", "preset", "note", "scores", "fingerprints")
    scores_section = section.section("scores")
    if not scores_section.values:
        section.fail("scores", "found no dataset, expected at least one")
    scores = {}
    for dataset in scores_section.values:
        if schema > 1 and isinstance(scores_section.values[dataset], Mapping):
            scores[dataset] = _read_score(scores_section.section(dataset), _clip_sums_file(path, dataset))
        else:
            scores[dataset] = BaselineScore(score=_share(scores_section, dataset))
    fingerprints = {}
    if section.has("fingerprints"):
        fingerprints_section = section.section("fingerprints")
        fingerprints = {part: fingerprints_section.text(part) for part in fingerprints_section.values}
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
    """Raise BaselineError unless the baseline has this preset and a score for each dataset.

    Args:
        baseline: The baseline to compare the run with.
        preset: The preset of the run.
        datasets: The datasets that the run evaluates.
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


def check_new_baseline(path: Path, *, replace: bool = False) -> None:
    """Raise UsageError if a baseline cannot be written there; nothing is created.

    Called before training, so that hours of work do not end in a wrong path.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{path} cannot be a baseline; expected a file name that ends in .yaml")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; expected a file name")
    if not replace and (path.exists() or path.is_symlink()):
        raise UsageError(f"{path} exists already; name another file, or overwrite it with --force")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise UsageError(f"{path} cannot be written: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK):
        raise UsageError(f"{path} cannot be written: no write permission for {nearest}")


def write_baseline(
    path: Path,
    *,
    preset: str,
    scores: Mapping[str, BaselineScore],
    note: str = "",
    fingerprints: Mapping[str, str] | None = None,
    replace: bool = False,
) -> None:
    """Write a baseline; `load_baseline` reads the same scores back, to the last bit.

    The YAML file is written last, after the clip sums whose digests it holds.

    Args:
        path: A .yaml file; missing folders above it are created.
        preset: The preset that the scores were measured with.
        scores: Scores by dataset.
        note: Where the scores come from.
        fingerprints: Digests of the encoder, the data and so on.
        replace: Whether to overwrite an existing baseline.

    Raises:
        UsageError: The file exists.
        DiskError: The file cannot be written.
        BaselineError: There are no scores, or one is not a finite number within -1 and 1.
    """
    check_new_baseline(path, replace=replace)
    if not scores:
        raise BaselineError(f"{path} is not written: there are no scores to save")
    for dataset, known in scores.items():
        # Also refuses NaN: any comparison with it is false.
        if not -1 <= known.score <= 1:
            raise BaselineError(
                f"{path} is not written: the score of {dataset} is {known.score}, expected a number within -1 and 1"
            )
    content: dict[str, object] = {"schema": BASELINE_SCHEMA, "preset": preset}
    if note:
        content["note"] = note
    clip_sums = {
        dataset: known.clip_sums.to_bytes() for dataset, known in scores.items() if known.clip_sums is not None
    }
    digests = {dataset: hashlib.sha256(data).hexdigest() for dataset, data in clip_sums.items()}
    content["scores"] = {name: _described(scores[name], digests.get(name)) for name in sorted(scores)}
    if fingerprints:
        content["fingerprints"] = {part: fingerprints[part] for part in sorted(fingerprints)}
    files: dict[Path, bytes | str] = {_clip_sums_file(path, dataset): data for dataset, data in clip_sums.items()}
    write_together({**files, path: dump_yaml(content)})


def save_as_baseline(
    path: Path,
    run: RunManifest,
    records: Iterable[ScoreRecord],
    clip_sums_files: Mapping[str, Path],
    *,
    replace: bool = False,
) -> None:
    """Write a run's scores as a baseline.

    Args:
        path: A .yaml file; missing folders above it are created.
        run: The run.
        records: Its scores.
        clip_sums_files: The file of every score's clip sums, by dataset.
        replace: Whether a baseline that is there already is overwritten.

    Raises:
        UsageError, DiskError, BaselineError: As for `write_baseline`.
    """
    from xares_bench.scores.clip_sums import load_clip_sums

    scores = {
        record.dataset: BaselineScore(
            score=record.score,
            interval=record.interval,
            deviation=record.deviation,
            spread=record.spread,
            num_seeds=len(record.seed_scores),
            num_rows=record.num_rows,
            num_clips=record.num_clips,
            clip_sums=load_clip_sums(clip_sums_files[record.dataset]),
        )
        for record in records
    }
    write_baseline(
        path,
        preset=run.preset,
        scores=scores,
        note=f"{run.encoder['spec']}, run {run.name}",
        fingerprints={"encoder": run.encoder["fingerprint"], "decoder": run.decoder["fingerprint"]},
        replace=replace,
    )


def _share(section: Section, key: str) -> float:
    value = section.number(key)
    if not -1 <= value <= 1:
        section.fail(key, f"found {value!r}, expected a score within -1 and 1")
    return value


def _at_least_zero(section: Section, key: str) -> float | None:
    if not section.has(key):
        return None
    value = section.number(key)
    if not 0 <= value <= 2:
        section.fail(key, f"found {value!r}, expected a standard error within 0 and 2")
    return value


def _read_score(section: Section, clip_sums_file: Path) -> BaselineScore:
    """Read one dataset's score of schema 2."""
    section.only("score", "interval", "deviation", "spread", "seeds", "rows", "clips", "clip_sums")
    interval = None
    if section.has("interval"):
        ends = section.values["interval"]
        is_pair = isinstance(ends, list) and len(ends) == 2
        if not (is_pair and all(isinstance(end, (int, float)) for end in ends) and ends[0] <= ends[1]):
            section.fail("interval", f"found {ends!r}, expected two numbers, the smaller one first")
        interval = (float(ends[0]), float(ends[1]))
    score = _share(section, "score")
    clip_sums = None
    if section.has("clip_sums") and clip_sums_file.is_file():
        from xares_bench.scores.clip_sums import load_clip_sums

        if file_digest(clip_sums_file) != section.text("clip_sums"):
            section.fail(
                "clip_sums", f"{clip_sums_file} is not the file that was saved with this baseline; restore both"
            )
        clip_sums = load_clip_sums(clip_sums_file)
        if abs(float(clip_sums.scores()[0]) - score) > _SUMS_ROUNDING:
            section.fail("score", f"found {score}, but {clip_sums_file} gives {float(clip_sums.scores()[0]):.6f}")
    return BaselineScore(
        score=score,
        interval=interval,
        deviation=_at_least_zero(section, "deviation"),
        spread=_at_least_zero(section, "spread"),
        num_seeds=section.integer("seeds", at_least=1) if section.has("seeds") else 1,
        num_rows=section.integer("rows", at_least=1) if section.has("rows") else None,
        num_clips=section.integer("clips", at_least=1) if section.has("clips") else None,
        clip_sums=clip_sums,
    )


def _described(known: BaselineScore, clip_sums: str | None) -> dict[str, object]:
    """Return a score for YAML, in plain floats: PyYAML cannot write numpy's."""
    found: dict[str, object] = {
        "score": float(known.score),
        "interval": None if known.interval is None else [float(end) for end in known.interval],
        "deviation": None if known.deviation is None else float(known.deviation),
        "rows": known.num_rows,
        "clips": known.num_clips,
        "seeds": known.num_seeds,
        "spread": None if known.spread is None else float(known.spread),
        "clip_sums": clip_sums,
    }
    return {key: value for key, value in found.items() if value is not None}


def _clip_sums_file(path: Path, dataset: str) -> Path:
    """Return the path of a dataset's clip sums, beside the baseline's YAML file."""
    return path.with_suffix(".clip_sums") / f"{dataset}.npz"


def _overalls(scores: Mapping[str, BaselineScore], tasks: Mapping[str, Iterable[str]]) -> dict[str, BaselineScore]:
    """Return the mean of every complete task; it has an error if all of its datasets have one."""
    overalls = {}
    for task, datasets in tasks.items():
        members = tuple(datasets)
        known = [scores[dataset] for dataset in members if dataset in scores]
        if not known or len(known) < len(members):
            continue  # over fewer datasets, it could not be compared
        deviations = [score.deviation for score in known if score.deviation is not None]
        spreads = [score.spread for score in known if score.spread is not None]
        overalls[task] = BaselineScore(
            score=math.fsum(score.score for score in known) / len(known),
            deviation=math.hypot(*deviations) / len(known) if len(deviations) == len(known) else None,
            spread=math.hypot(*spreads) / len(known) if len(spreads) == len(known) else None,
            num_seeds=min(score.num_seeds for score in known),
        )
    return overalls
