"""Comparison of runs: differences of scores, their confidence intervals, and the clips that differ most."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xares_bench.core.errors import UsageError
from xares_bench.reports.described import deviations_in_words, encoder_in_words, shown_in_line
from xares_bench.reports.report import INTERVAL_HEADER, shown_interval, tabulated
from xares_bench.reports.runs import Run
from xares_bench.scores.clip_sums import ClipSums
from xares_bench.scores.records import Overall, ScoreRecord
from xares_bench.scores.statistics import (
    Difference,
    TrainingNoise,
    difference_of,
    overall_difference,
    paired_difference,
    pooled_training_noise,
)

_MAX_TEXT = 60


@dataclass(frozen=True, kw_only=True)
class Row:
    """One dataset, or one task's overall score, in all runs.

    Attributes:
        what: Name of the dataset, or `Overall`.
        metric: Name of the metric; empty for an overall score.
        found: The score of each run; None for a run without it.
        differences: Each run's score minus that of the first run; None for the first run, and where a score is missing.
    """

    what: str
    metric: str
    found: tuple[ScoreRecord | Overall | None, ...]
    differences: tuple[Difference | None, ...]

    @property
    def best(self) -> frozenset[int]:
        """Indices of the runs with the highest score, as rounded in the table.

        Empty if only one run has a score, or if the scores are over different numbers of clips.
        """
        scores = {place: round(found.score, 3) for place, found in enumerate(self.found) if found is not None}
        numbers = {found.num_clips for found in self.found if isinstance(found, ScoreRecord)}
        if len(scores) < 2 or len(numbers) > 1:
            return frozenset()
        return frozenset(place for place, score in scores.items() if score == max(scores.values()))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several runs of one preset.

    Attributes:
        runs: The runs; the others are compared with the first.
        rows: Datasets and overall scores, by task.
        warnings: Differences between the runs besides the encoder.
    """

    runs: tuple[Run, ...]
    rows: Mapping[str, tuple[Row, ...]]
    warnings: tuple[str, ...]


def compare(runs: Sequence[Run]) -> Comparison:
    """Compare runs with the first of them.

    Raises:
        UsageError: The runs have different presets, or the clip sums of one are damaged.
    """
    presets = {run.manifest.preset: run for run in runs}
    if len(presets) > 1:
        named = ", ".join(f"{run.folder} has --preset={preset}" for preset, run in presets.items())
        raise UsageError(f"runs of different presets cannot be compared: {named}")
    rows: dict[str, list[Row]] = {}
    for name, task in {record.dataset: record.task for run in runs for record in run.records.values()}.items():
        rows.setdefault(task, []).append(_dataset_row(name, runs))
    for task, members in rows.items():
        members.append(_overall_row(task, runs, members))
    return Comparison(
        runs=tuple(runs), rows={task: tuple(members) for task, members in rows.items()}, warnings=_warnings(runs)
    )


def comparison_table(comparison: Comparison) -> str:
    """Return one table per task for a terminal; differences are to the first run, `*` marks the best score of a row."""
    letters = [_letter(place) for place in range(len(comparison.runs))]
    headers = ["dataset", "metric"]
    for place, letter in enumerate(letters):
        headers += [letter, *([] if place == 0 else [f"{letter} - A"]), INTERVAL_HEADER]
    tables = []
    for task, rows in comparison.rows.items():
        cells = [[_named(row), row.metric, *_cells(row)] for row in rows]
        tables.append(f"{task}\n{tabulated(cells, headers, 'simple')}")
    legend = "\n".join(
        f"{letter}: {run.folder} ({_described(run)})" for letter, run in zip(letters, comparison.runs, strict=True)
    )
    legend += _arguments(comparison.runs)
    warnings = "".join(f"\nwarning: {warning}" for warning in comparison.warnings)
    return "\n\n".join([legend, *tables]) + ("\n" + warnings if warnings else "")


def differing_clips(first: Run, second: Run, number: int) -> str:
    """Return a table of the rows whose values differ most between two runs; empty if none differ.

    Datasets take turns: each gives its largest difference, then each its second largest, and so on. Otherwise one
    dataset whose rows are wholly right or wrong would fill the table.
    """
    found: dict[str, list[tuple[float, str, str, str, str, str]]] = {}
    for dataset in first.records:
        if dataset not in second.records:
            continue
        ours, theirs = first.predictions_of(dataset), second.predictions_of(dataset)
        if [(row.clip, row.reference) for row in ours] != [(row.clip, row.reference) for row in theirs]:
            continue  # another test set
        for one, other in zip(ours, theirs, strict=True):
            if one.value is not None and other.value is not None and one.value != other.value:
                difference = other.value - one.value
                found.setdefault(dataset, []).append(
                    (difference, dataset, one.clip, one.reference, one.hypothesis, other.hypothesis)
                )
    if not found:
        return ""
    ranked = [
        (turn, row)
        for rows in found.values()
        for turn, row in enumerate(sorted(rows, key=lambda row: (-abs(row[0]), row[2], row[3])))
    ]
    ranked.sort(key=lambda ranking: (ranking[0], -abs(ranking[1][0]), ranking[1][1]))
    rows = [[f"{row[0]:+.2f}", row[1], *map(_short, row[2:])] for _, row in ranked[:number]]
    headers = ["B - A", "dataset", "clip", "target", "A predicts", "B predicts"]
    table = tabulated(rows, headers, "simple", left=headers[1:])
    of_datasets = "" if len(found) == 1 else f", datasets in turn, {len(found)} differ"
    return f"rows that differ most ({min(number, len(ranked))} of {len(ranked)}{of_datasets})\n{table}"


def _named(row: Row) -> str:
    """Return the name of a row, with the numbers of clips where `--limit` left some out or the runs differ in them."""
    records = [found for found in row.found if isinstance(found, ScoreRecord)]
    numbers = [record.num_clips for record in records]
    compared = [difference.num_clips for difference in row.differences if difference is not None]
    if not records or not (any(record.partial for record in records) or len({*numbers, *compared}) > 1):
        return row.what
    named = f"{row.what} ({', '.join(map(str, dict.fromkeys(numbers)))} clips"
    if {*compared} - {*numbers} or (compared and len({*numbers}) > 1):
        named += f"; compared over {', '.join(map(str, dict.fromkeys(compared)))}"
    return named + ")"


def _described(run: Run) -> str:
    return "; ".join([encoder_in_words(run.manifest), *deviations_in_words(run.manifest, run.records.values())])


def _arguments(runs: Sequence[Run]) -> str:
    """Return the encoders' arguments name by name, a line each; empty if no encoder has any."""
    given = [run.manifest.encoder["arguments"] for run in runs]
    names = dict.fromkeys(name for arguments in given for name in arguments)
    lines = [
        "\n  "
        + shown_in_line(
            f"{name}: "
            + _by_letter([json.dumps(own[name], ensure_ascii=False) if name in own else "not given" for own in given])
        )
        for name in names
    ]
    return "\narguments of the encoders:" + "".join(lines) if lines else ""


def _dataset_row(name: str, runs: Sequence[Run]) -> Row:
    found = tuple(run.records.get(name) for run in runs)
    first, *others = runs
    differences: list[Difference | None] = [None]
    reference = first.clip_sums(name) if name in first.records else None
    for other in others:
        differences.append(_dataset_difference(name, first, other, reference))
    metric = next(record.metric for record in found if record is not None)
    return Row(what=name, metric=metric, found=found, differences=tuple(differences))


def _dataset_difference(name: str, first: Run, other: Run, reference: ClipSums | None) -> Difference | None:
    """Return another run's score minus the first run's, paired by clip if both have clip sums."""
    base, record = first.records.get(name), other.records.get(name)
    if base is None or record is None or not math.isfinite(base.score + record.score):
        return None
    training = _training_noise(base, record)
    clip_sums = other.clip_sums(name)
    if reference is not None and clip_sums is not None:
        paired = paired_difference(reference, clip_sums, training=training)
        if paired is not None:
            return paired
    deviation = math.hypot(base.deviation or 0.0, record.deviation or 0.0)
    clips = min(base.num_clips, record.num_clips)
    return difference_of(record.score - base.score, deviation, num_clips=clips, training=training)


def _training_noise(base: ScoreRecord | Overall, other: ScoreRecord | Overall) -> TrainingNoise | None:
    return pooled_training_noise((other.spread, len(other.seed_scores)), (base.spread, len(base.seed_scores)))


def _overall_row(task: str, runs: Sequence[Run], members: Sequence[Row]) -> Row:
    """Return a task's overall scores, of complete runs only."""
    found = tuple(overall if overall is not None and overall.complete else None for overall in _overalls(task, runs))
    differences: list[Difference | None] = [None]
    for place in range(1, len(runs)):
        own = [(row, row.differences[place]) for row in members]
        base, other = found[0], found[place]
        known = [difference for _, difference in own if difference is not None]
        if base is None or other is None or len(known) < len(own):
            differences.append(None)
            continue
        weights = [record.weight for row, _ in own if isinstance(record := row.found[0], ScoreRecord)]
        shares = [weight / sum(weights) for weight in weights]
        training = _training_noise(base, other)
        parts = list(zip(shares, known, strict=True))
        differences.append(overall_difference(other.score - base.score, parts, training=training))
    return Row(what="Overall", metric="", found=found, differences=tuple(differences))


def _overalls(task: str, runs: Sequence[Run]) -> list[Overall | None]:
    return [run.overalls.get(task) for run in runs]


def _cells(row: Row) -> list[str]:
    cells = []
    for place, (found, difference) in enumerate(zip(row.found, row.differences, strict=True)):
        if found is None:
            cells += [""] * (2 if place == 0 else 3)
            continue
        spread = "" if found.spread is None else f" ±{found.spread:.3f}"
        cells.append(f"{found.score:.3f}{spread}{'*' if place in row.best else ' '}")
        if place == 0:
            cells.append(shown_interval(found.interval))
        elif difference is None:
            cells += ["", ""]
        else:
            cells += [f"{difference.difference:+.3f}", f"{difference.low:+.3f} to {difference.high:+.3f}"]
    return cells


def _letter(place: int) -> str:
    """Return A, B, ..., Z, A1, B1, ..."""
    return chr(65 + place % 26) + (str(place // 26) if place >= 26 else "")


def _warnings(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return what differs between the runs besides the encoder, one line each."""
    described = [_conditions(run) for run in runs]
    warnings = [
        f"different mix of {name}: {_by_letter([run.records[name].mix for run in runs])}"
        for name in runs[0].records
        if all(name in run.records for run in runs) and len({run.records[name].mix for run in runs}) > 1
    ]
    for name in dict.fromkeys(name for values in described for name in values):
        values = [values.get(name) for values in described]
        if any(value != values[0] for value in values):
            warnings.append(f"different {name}: {_by_letter(values)}")
    return tuple(warnings)


def _by_letter(values: Sequence[object]) -> str:
    return ", ".join(f"{_letter(place)} {_short(str(value))}" for place, value in enumerate(values))


def _conditions(run: Run) -> dict[str, Any]:
    """Return what a score depends on besides the encoder and the datasets, by name."""
    manifest = run.manifest
    environment = {
        key: ", ".join([str(value), *_trained_elsewhere(run, key, value)])
        for key, value in manifest.environment.items()
        if not isinstance(value, Mapping)
    }
    judges = manifest.environment.get("judges", {})
    return {
        "decoder": manifest.decoder["fingerprint"][:12],
        "data revision": manifest.data["revision"],
        "--limit": manifest.data["limit"],
        "seeds": list(manifest.seeds),
        **{f"recipe.{key}": value for key, value in manifest.recipe.items()},
        **{f"environment.{key}": value for key, value in environment.items()},
        **{f"variable {key}": value for key, value in manifest.environment.get("variables", {}).items()},
        **{f"models of {key}": value for key, value in judges.items()},
    }


def _trained_elsewhere(run: Run, key: str, value: object) -> list[str]:
    """Return where a value differed when LALMs were trained that this run reused."""
    values = {lalm["mix"]: lalm.get("environment", {}).get(key, value) for lalm in run.lalms}
    return [f"LALM {mix} trained with {other}" for mix, other in values.items() if other != value]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
