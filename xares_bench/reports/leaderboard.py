"""The leaderboard: many runs on one page, with a table per preset; published scores are rows, too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from xares_bench.config.catalogue import load_catalogue
from xares_bench.core.errors import UsageError
from xares_bench.reports.described import arguments_in_words, deviations_in_words
from xares_bench.reports.runs import RESULTS_FILE, FinishedRun, read_run
from xares_bench.reports.templating import rendered
from xares_bench.scores.baselines import load_baseline, shipped_baselines


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of the table.

    Attributes:
        text: The text; may be empty.
        value: The value to sort by; None sorts last.
        note: Shown when the mouse is over the cell.
    """

    text: str = ""
    value: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run, or a shipped baseline.

    Attributes:
        encoder: Name of the encoder.
        about: The encoder's arguments, what differs from the preset, and the run's name; or what baseline it is.
        missing: Why it is incomplete; empty if it is complete.
        cells: Values in the order of the board's columns.
    """

    encoder: str
    about: str
    missing: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Board:
    """The table of a preset.

    Attributes:
        preset: Its name.
        columns: Headers: overall scores, costs, datasets.
        rows: Complete runs first, each group by overall score.
    """

    preset: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


_COSTS = ("dimensions", "frames/s", "real-time factor", "training s")


def read_runs(folder: Path) -> tuple[list[FinishedRun], list[str]]:
    """Read the finished runs of a folder, by name.

    Returns:
        The runs, and a problem for each that cannot be read.

    Raises:
        UsageError: The folder has no runs.
    """
    files = sorted(folder.glob(f"*/{RESULTS_FILE}"))
    if not files:
        raise UsageError(f"no finished run in {folder}; expected the folder of --runs-dir (default: runs)")
    runs, problems = [], []
    for file in files:
        try:
            runs.append(read_run(file))
        except UsageError as cause:
            problems.append(str(cause))
    return runs, problems


def leaderboard_html(runs: Iterable[FinishedRun]) -> str:
    """Return the page of these runs; the table of the full preset is always there, for the published scores."""
    by_preset: dict[str, list[FinishedRun]] = {}
    for run in runs:
        by_preset.setdefault(run.run.preset, []).append(run)
    presets = sorted({*by_preset, "full"}, key=lambda preset: (preset != "full", preset))
    boards = [board for preset in presets if (board := _board(preset, by_preset.get(preset, []))).rows]
    return rendered("leaderboard", {"boards": boards})


def _board(preset: str, runs: list[FinishedRun]) -> Board:
    catalogue = load_catalogue(preset)
    tasks = {task: tuple(names) for task, names in catalogue.tasks.items()}
    datasets = list(dict.fromkeys([*catalogue.datasets, *(name for run in runs for name in run.records)]))
    rows = [_run_row(run, tasks, datasets) for run in runs]
    rows += [row for name in shipped_baselines() if (row := _baseline_row(name, preset, tasks, datasets))]
    columns = ("overall", *tasks, *_COSTS, *datasets)
    rows.sort(key=lambda row: (bool(row.missing), -(row.cells[0].value or 0.0), row.encoder, row.about))
    return Board(preset=preset, columns=columns, rows=tuple(rows))


def _run_row(run: FinishedRun, tasks: Mapping[str, tuple[str, ...]], datasets: list[str]) -> Row:
    encoder = run.run.encoder
    missing = [
        f"{task}: {overall.num_datasets if overall else 0} of {len(names)} datasets"
        + (", some clips left out" if overall and overall.partial else "")
        for task, names in tasks.items()
        if (overall := run.overalls.get(task)) is None or not overall.complete
    ]
    by_task = {task: found for task, found in run.overalls.items() if found.complete}
    overalls = [
        Cell() if task not in by_task else _score(by_task[task].score, by_task[task].interval, by_task[task].spread)
        for task in tasks
    ]
    complete = [record for name, record in run.records.items() if any(name in names for names in tasks.values())]
    # Over datasets, not over tasks, of which one has three times as many. An incomplete run has none: its datasets may
    # be the easy ones.
    mean = Cell()
    if not missing:
        weight = math.fsum(record.weight for record in complete)
        mean = _score(math.fsum(record.score * record.weight for record in complete) / weight, None, None)
    training_s = math.fsum(lalm["training_s"] for lalm in run.lalms)
    costs = [
        Cell(text=str(encoder["output_dim"]), value=encoder["output_dim"]),
        Cell(text=f"{encoder['frames_per_second']:.4g}", value=encoder["frames_per_second"]),
        Cell(text=f"{encoder['realtime_factor']:.2g}", value=encoder["realtime_factor"]),
        Cell(text=f"{training_s:.0f}", value=training_s, note=f"on {run.run.environment.get('device', '')}"),
    ]
    found = [run.records.get(name) for name in datasets]
    scores = [Cell() if record is None else _score(record.score, record.interval, record.spread) for record in found]
    deviations = ", ".join(deviations_in_words(run.run, run.records.values()))
    return Row(
        encoder=encoder["name"],
        about="; ".join(filter(None, [arguments_in_words(run.run), deviations, run.run.name])),
        missing="; ".join(missing),
        cells=(mean, *overalls, *costs, *scores),
    )


def _baseline_row(name: str, preset: str, tasks: Mapping[str, tuple[str, ...]], datasets: list[str]) -> Row | None:
    """Return the row of a shipped baseline; None if it is of another preset."""
    baseline = load_baseline(name, tasks=tasks)
    if baseline.preset != preset:
        return None
    known = [baseline.scores[dataset].score for names in tasks.values() for dataset in names]
    overalls = [baseline.overalls[task] for task in tasks]
    scores = [baseline.scores.get(dataset) for dataset in datasets]
    return Row(
        encoder=name,
        about="published" if preset == "full" else "shipped baseline",
        missing="",
        cells=(
            _score(math.fsum(known) / len(known), None, None),
            *(_score(overall.score, None, overall.spread) for overall in overalls),
            *(Cell() for _ in _COSTS),
            *(Cell() if score is None else _score(score.score, score.interval, score.spread) for score in scores),
        ),
    )


def _score(score: float, interval: tuple[float, float] | None, spread: float | None) -> Cell:
    notes = []
    if interval is not None and math.isfinite(score):
        notes.append(f"95 % confidence interval: {interval[0]:.3f} to {interval[1]:.3f}")
    if spread is not None:
        notes.append(f"±{spread:.3f} over training seeds")
    value = score if math.isfinite(score) else None
    return Cell(text=f"{score:.3f}", value=value, note=", ".join(notes))
