"""Run against run: what differs, how sure that is, and on which clips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xares_bench.core.errors import UsageError
from xares_bench.reports.report import shown_interval, tabulated
from xares_bench.reports.runs import FinishedRun
from xares_bench.scores.clip_sums import ClipSums
from xares_bench.scores.records import Overall, ScoreRecord
from xares_bench.scores.statistics import Difference, difference_of, paired_difference, pooled_training_noise

_MAX_TEXT = 60


@dataclass(frozen=True, kw_only=True)
class Row:
    """One dataset, or one task's overall score, in all runs.

    Attributes:
        what: Its name.
        metric: Name of the metric; empty for an overall score.
        found: The score of every run, None where a run has none.
        differences: How each run stands to the first one; None for the first, and where one of the two has no score.
    """

    what: str
    metric: str
    found: tuple[ScoreRecord | Overall | None, ...]
    differences: tuple[Difference | None, ...]

    @property
    def best(self) -> frozenset[int]:
        """Places of the runs with the highest score, as far as it is shown; none where only one run has a score."""
        scores = {place: round(found.score, 3) for place, found in enumerate(self.found) if found is not None}
        if len(scores) < 2:
            return frozenset()
        return frozenset(place for place, score in scores.items() if score == max(scores.values()))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several runs of one preset.

    Attributes:
        runs: The runs; the first is the one that the others are held against.
        rows: Datasets and overall scores, by task.
        warnings: What the runs differ in besides the encoder.
    """

    runs: tuple[FinishedRun, ...]
    rows: Mapping[str, tuple[Row, ...]]
    warnings: tuple[str, ...]


def compare(runs: Sequence[FinishedRun]) -> Comparison:
    """Hold runs against the first of them.

    Raises:
        UsageError: They are of different presets, or the clip sums of one is damaged.
    """
    presets = {run.run.preset: run for run in runs}
    if len(presets) > 1:
        named = ", ".join(f"{run.folder} is of --preset={preset}" for preset, run in presets.items())
        raise UsageError(f"scores of different presets cannot be compared: {named}")
    rows: dict[str, list[Row]] = {}
    for name, task in {record.dataset: record.task for run in runs for record in run.records.values()}.items():
        rows.setdefault(task, []).append(_dataset_row(name, runs))
    for task, members in rows.items():
        members.append(_overall_row(task, runs, members))
    return Comparison(
        runs=tuple(runs), rows={task: tuple(members) for task, members in rows.items()}, warnings=_warnings(runs)
    )


def comparison_table(comparison: Comparison) -> str:
    """One table a task for a terminal: `*` marks the best score of a row; differences are to the first run."""
    letters = _letters(comparison)
    headers = ["dataset", "metric"]
    for place, letter in enumerate(letters):
        headers += [letter, "95 %"] if place == 0 else [letter, f"{letter} - A", "95 % of it"]
    tables = []
    for task, rows in comparison.rows.items():
        cells = [[row.what, row.metric, *_cells(row)] for row in rows]
        tables.append(f"{task}\n{tabulated(cells, headers, 'simple', left=['95 % of it'])}")
    legend = "\n".join(
        f"{letter}: {run.folder} ({run.run.encoder['spec']})"
        for letter, run in zip(letters, comparison.runs, strict=True)
    )
    warnings = "".join(f"\nwarning: {warning}" for warning in comparison.warnings)
    return "\n\n".join([legend, *tables]) + ("\n" + warnings if warnings else "")


def differing_clips(first: FinishedRun, second: FinishedRun, number: int) -> str:
    """The rows whose own values differ most between two runs, for a terminal; empty where none differs."""
    found: list[tuple[float, str, str, str, str, str]] = []
    for dataset in first.records:
        if dataset not in second.records:
            continue
        ours, theirs = first.predictions(dataset), second.predictions(dataset)
        if [(row.clip, row.reference) for row in ours] != [(row.clip, row.reference) for row in theirs]:
            continue  # not the same test set
        for one, other in zip(ours, theirs, strict=True):
            if one.value is not None and other.value is not None and one.value != other.value:
                difference = other.value - one.value
                found.append((difference, dataset, one.clip, one.reference, one.hypothesis, other.hypothesis))
    found.sort(key=lambda row: (-abs(row[0]), row[1], row[2], row[3]))
    if not found:
        return ""
    rows = [[f"{row[0]:+.2f}", row[1], *map(_short, row[2:])] for row in found[:number]]
    headers = ["B - A", "dataset", "clip", "target", "A says", "B says"]
    table = tabulated(rows, headers, "simple", left=headers[1:])
    return f"rows that differ most, {min(number, len(found))} of {len(found)} that differ\n{table}"


def _dataset_row(name: str, runs: Sequence[FinishedRun]) -> Row:
    found = tuple(run.records.get(name) for run in runs)
    first, *others = runs
    differences: list[Difference | None] = [None]
    reference = first.clip_sums(name) if name in first.records else None
    for other in others:
        differences.append(_dataset_difference(name, first, other, reference))
    metric = next(record.metric for record in found if record is not None)
    return Row(what=name, metric=metric, found=found, differences=tuple(differences))


def _dataset_difference(
    name: str, first: FinishedRun, other: FinishedRun, reference: ClipSums | None
) -> Difference | None:
    """How one run stands to the first, over the clips of both where both have kept them."""
    held, record = first.records.get(name), other.records.get(name)
    if held is None or record is None or not math.isfinite(held.score + record.score):
        return None
    training = pooled_training_noise((record.spread, len(record.seed_scores)), (held.spread, len(held.seed_scores)))
    clip_sums = other.clip_sums(name)
    if reference is not None and clip_sums is not None:
        paired = paired_difference(reference, clip_sums, training=training)
        if paired is not None:
            return paired
    deviation = math.hypot(held.deviation or 0.0, record.deviation or 0.0)
    clips = min(held.num_clips, record.num_clips)
    return difference_of(record.score - held.score, deviation, num_clips=clips, training=training)


def _overall_row(task: str, runs: Sequence[FinishedRun], members: Sequence[Row]) -> Row:
    """The task's overall scores, of complete runs alone; the error of a difference is that of its datasets'."""
    found = tuple(overall if overall is not None and overall.complete else None for overall in _overalls(task, runs))
    differences: list[Difference | None] = [None]
    for place in range(1, len(runs)):
        own = [(row, row.differences[place]) for row in members]
        held, other = found[0], found[place]
        known = [difference for _, difference in own if difference is not None]
        if held is None or other is None or len(known) < len(own):
            differences.append(None)
            continue
        weights = [record.weight for row, _ in own if isinstance(record := row.found[0], ScoreRecord)]
        parts = [weight * difference.deviation for weight, difference in zip(weights, known, strict=True)]
        deviation = math.hypot(*parts) / sum(weights)
        num_clips = sum(difference.num_clips for difference in known)
        differences.append(difference_of(other.score - held.score, deviation, num_clips=num_clips))
    return Row(what="Overall", metric="", found=found, differences=tuple(differences))


def _overalls(task: str, runs: Sequence[FinishedRun]) -> list[Overall | None]:
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


def _letters(comparison: Comparison) -> list[str]:
    """A, B, ..., Z, A1, B1, ..."""
    return [chr(65 + place % 26) + (str(place // 26) if place >= 26 else "") for place in range(len(comparison.runs))]


def _warnings(runs: Sequence[FinishedRun]) -> tuple[str, ...]:
    """What else than the encoder differs between runs, one line each."""
    described = [_surroundings(run) for run in runs]
    warnings = []
    for name in dict.fromkeys(name for values in described for name in values):
        values = [values.get(name) for values in described]
        if any(value != values[0] for value in values):
            letters = zip((chr(65 + place) for place in range(len(values))), values, strict=True)
            shown = ", ".join(f"{letter} {_short(str(value))}" for letter, value in letters)
            warnings.append(f"{name} differs: {shown}")
    return tuple(warnings)


def _surroundings(run: FinishedRun) -> dict[str, Any]:
    manifest = run.run
    environment = {
        key: ", ".join([str(value), *_trained_elsewhere(run, key, value)])
        for key, value in manifest.environment.items()
        if not isinstance(value, Mapping)
    }
    judges = manifest.environment.get("judges", {})
    return {
        "the decoder": manifest.decoder["fingerprint"][:12],
        "the data's revision": manifest.data["revision"],
        "--limit": manifest.data["limit"],
        "the seeds": list(manifest.seeds),
        **{f"the recipe's {key}": value for key, value in manifest.recipe.items()},
        **{f"{key} of the environment": value for key, value in environment.items()},
        **{f"the judge of {key}": value for key, value in judges.items()},
    }


def _trained_elsewhere(run: FinishedRun, key: str, value: object) -> list[str]:
    """What was another when LALMs were trained that a later session has reused."""
    values = {lalm["mix"]: lalm.get("environment", {}).get(key, value) for lalm in run.lalms}
    return [f"LALM {mix} trained with {other}" for mix, other in values.items() if other != value]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
