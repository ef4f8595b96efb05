"""Baselines: committed scores to compare a run with.

A baseline is a YAML file:

    schema: 3
    preset: mini            # the preset of its runs; runs of other presets cannot be compared
    note: one line on where it comes from                    # optional
    scores:
      gtzan: 0.323                                           # a published score: nothing else is known
      esc-50: {score: 0.76, interval: [0.71, 0.81], deviation: 0.025, rows: 200, clips: 200, seeds: 5, spread: 0.02,
               seed_scores: [0.75, ...], weight: 1.0, clip_sums: 5c1f...}      # all but the score optional
    run: {decoder: 5c1f..., steps: "600", mix of gtzan: task1 0f3a, ...}    # optional: what the scores depend on
    fingerprints: {encoder: 0f3a..., data: 77b1...}          # optional, for people to trace it

`clip_sums` is the SHA-256 of `NAME.clip_sums/DATASET.npz` beside `NAME.yaml`: the sums behind the score, clip by clip,
with which later scores are compared paired by clip. Files of schema 1, with scores only, and of schema 2, without
`run`, are also read. Overall scores are never stored: they are computed from the scores of the datasets, so they cannot
contradict them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from xares_bench.core.digests import file_digest
from xares_bench.core.errors import BaselineError
from xares_bench.core.parsing import Section, did_you_mean, local_path, read_yaml, shown

if TYPE_CHECKING:
    from xares_bench.scores.clip_sums import ClipSums

BASELINE_SCHEMA = 3

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
        seed_scores: The score of each training seed, where they are known.
        weight: Its weight in the overall score of its task.
        num_rows: (clip, target) pairs that it is over.
        num_clips: Clips that it is over.
        clip_sums: The clip sums behind it.
    """

    score: float
    interval: tuple[float, float] | None = None
    deviation: float | None = None
    spread: float | None = None
    num_seeds: int = 1
    seed_scores: tuple[float, ...] = ()
    weight: float = 1.0
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
        facts: What the scores depend on besides the encoder, as far as it is known; see `comparability.facts_of`.
    """

    name: str
    preset: str
    scores: Mapping[str, BaselineScore]
    overalls: Mapping[str, BaselineScore]
    note: str
    fingerprints: Mapping[str, str]
    path: Path
    facts: Mapping[str, str] = field(default_factory=dict)


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
    section.only("schema", "preset", "note", "scores", "run", "fingerprints")
    scores_section = section.section("scores")
    if not scores_section.values:
        section.fail("scores", "found no dataset, expected at least one")
    scores = {}
    for dataset in scores_section.values:
        if schema > 1 and isinstance(scores_section.values[dataset], Mapping):
            scores[dataset] = _read_score(scores_section.section(dataset), clip_sums_file(path, dataset))
        else:
            scores[dataset] = BaselineScore(score=_share(scores_section, dataset))
    return Baseline(
        name=name_or_file,
        preset=section.text("preset"),
        scores=scores,
        overalls=_overalls(scores, tasks),
        note=section.text("note") if section.has("note") else "",
        fingerprints=_texts(section, "fingerprints"),
        # Numbers and words as well: tools that rewrite YAML leave the quotes out.
        facts={name: str(value) for name, value in section.section("run").scalars().items()}
        if section.has("run")
        else {},
        path=path,
    )


def _texts(section: Section, key: str) -> dict[str, str]:
    """Return a mapping of texts; empty if it is not there."""
    if not section.has(key):
        return {}
    texts = section.section(key)
    return {name: texts.text(name) for name in texts.values}


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


def _read_score(section: Section, file: Path) -> BaselineScore:
    """Read one dataset's score of schema 2 or 3."""
    known = ("score", "interval", "deviation", "spread", "seeds", "seed_scores", "weight", "rows", "clips", "clip_sums")
    section.only(*known)
    score = _share(section, "score")
    clip_sums = None
    if section.has("clip_sums") and file.is_file():
        from xares_bench.scores.clip_sums import load_clip_sums

        if file_digest(file) != section.text("clip_sums"):
            section.fail("clip_sums", f"{file} is not the file that was saved with this baseline; restore both")
        clip_sums = load_clip_sums(file)
        if abs(float(clip_sums.scores()[0]) - score) > _SUMS_ROUNDING:
            section.fail("score", f"found {score}, but {file} gives {float(clip_sums.scores()[0]):.6f}")
    num_seeds = section.integer("seeds", at_least=1) if section.has("seeds") else 1
    seed_scores = _seed_scores(section) if clip_sums is None else tuple(map(float, clip_sums.scores_of_seeds()))
    if seed_scores and len(seed_scores) != num_seeds:
        section.fail("seeds", f"found {num_seeds}, but there are scores of {len(seed_scores)} seeds")
    if seed_scores and abs(statistics.fmean(seed_scores) - score) > _SUMS_ROUNDING:
        section.fail("score", f"found {score}, but the mean over the seeds is {statistics.fmean(seed_scores):.6f}")
    spread = _at_least_zero(section, "spread")
    if spread is not None and num_seeds == 1:
        section.fail("spread", f"found {spread} over one seed; give the number of seeds as `seeds`")
    return BaselineScore(
        score=score,
        interval=_interval(section, score),
        deviation=_at_least_zero(section, "deviation"),
        spread=statistics.stdev(seed_scores) if spread is None and len(seed_scores) > 1 else spread,
        num_seeds=num_seeds,
        seed_scores=seed_scores,
        weight=section.number("weight", above=0) if section.has("weight") else 1.0,
        num_rows=section.integer("rows", at_least=1) if section.has("rows") else None,
        num_clips=section.integer("clips", at_least=1) if section.has("clips") else None,
        clip_sums=clip_sums,
    )


def _interval(section: Section, score: float) -> tuple[float, float] | None:
    """Return a score's interval; None for one that does not hold the score, which earlier versions wrote for mAP."""
    if not section.has("interval"):
        return None
    ends = section.values["interval"]
    is_pair = isinstance(ends, list) and len(ends) == 2
    if not (is_pair and all(isinstance(end, int | float) for end in ends) and -1 <= ends[0] <= ends[1] <= 1):
        section.fail("interval", f"found {shown(ends)}, expected two numbers within -1 and 1, the smaller one first")
    low, high = map(float, ends)
    return (low, high) if low - _SUMS_ROUNDING <= score <= high + _SUMS_ROUNDING else None


def _seed_scores(section: Section) -> tuple[float, ...]:
    if not section.has("seed_scores"):
        return ()
    found = section.values["seed_scores"]
    is_list = isinstance(found, list) and all(isinstance(score, int | float) and -1 <= score <= 1 for score in found)
    if not is_list:
        section.fail("seed_scores", f"found {shown(found)}, expected a list of scores within -1 and 1, one per seed")
    return tuple(map(float, found))


def clip_sums_file(path: Path, dataset: str) -> Path:
    """Return the path of a dataset's clip sums, beside the baseline's YAML file."""
    return path.with_suffix(".clip_sums") / f"{dataset}.npz"


def _overalls(scores: Mapping[str, BaselineScore], tasks: Mapping[str, Iterable[str]]) -> dict[str, BaselineScore]:
    """Return the weighted mean of every complete task; it has an error if all of its datasets have one."""
    overalls = {}
    for task, datasets in tasks.items():
        members = tuple(datasets)
        known = [scores[dataset] for dataset in members if dataset in scores]
        if not known or len(known) < len(members):
            continue  # over fewer datasets, it could not be compared
        total_weight = math.fsum(score.weight for score in known)
        shares = [score.weight / total_weight for score in known]
        pairs = list(zip(shares, known, strict=True))
        deviations = [share * one.deviation for share, one in pairs if one.deviation is not None]
        seed_scores = _overalls_of_seeds(shares, known)
        overalls[task] = BaselineScore(
            score=math.fsum(share * one.score for share, one in pairs),
            deviation=math.hypot(*deviations) if len(deviations) == len(known) else None,
            spread=statistics.stdev(seed_scores) if len(seed_scores) > 1 else _spread_bound(shares, known),
            num_seeds=min(score.num_seeds for score in known),
            seed_scores=seed_scores,
        )
    return overalls


def _overalls_of_seeds(shares: Sequence[float], known: Sequence[BaselineScore]) -> tuple[float, ...]:
    """Return the overall score of each training seed; empty unless all datasets have the scores of the same seeds.

    The datasets of a task share a LALM, so their scores vary together from seed to seed. Only the overall scores of the
    seeds themselves include that.
    """
    if len({len(score.seed_scores) for score in known}) != 1:
        return ()
    by_seed = zip(*(score.seed_scores for score in known), strict=True)
    return tuple(math.fsum(share * one for share, one in zip(shares, of_seed, strict=True)) for of_seed in by_seed)


def _spread_bound(shares: Sequence[float], known: Sequence[BaselineScore]) -> float | None:
    """Return the largest spread that an overall score can have, given those of the datasets; None without them.

    For baselines that do not know the scores of their seeds: it is that of datasets that vary together entirely.
    """
    spreads = [share * score.spread for share, score in zip(shares, known, strict=True) if score.spread is not None]
    return math.fsum(spreads) if len(spreads) == len(known) else None
