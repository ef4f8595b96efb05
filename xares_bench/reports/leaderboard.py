"""The leaderboard: many runs on one page, with a table per preset; published scores are rows, too.

Datasets of one's own have a table of their own, and incomplete runs are folded: neither can be compared with the rest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from xares_bench.config.catalogue import load_catalogue
from xares_bench.reports.described import arguments_in_words, deviations_in_words, frames_per_second_of
from xares_bench.reports.html_report import PAGE_FILE
from xares_bench.reports.runs import Run
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
        arguments: The encoder's arguments as JSON; empty if there are none.
        deviations: What differs from the preset, each as `NAME=VALUE`.
        about: Name of the run; or what baseline it is.
        report: Address of the run's page; empty if there is none.
        missing: Why it is incomplete; empty if it is complete.
        cells: Values in the order of the table's columns.
    """

    encoder: str
    arguments: str = ""
    deviations: tuple[str, ...] = ()
    about: str
    report: str = ""
    missing: str = ""
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Board:
    """The tables of a preset.

    Attributes:
        preset: Its name.
        columns: Headers: overall scores, date, costs, datasets.
        rows: Complete runs and baselines by overall score.
        incomplete: The other runs, by name.
        own_columns: Headers of the table of own datasets.
        own_rows: Runs with a score of one of them, by name.
    """

    preset: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    incomplete: tuple[Row, ...]
    own_columns: tuple[str, ...]
    own_rows: tuple[Row, ...]


_COSTS = ("dimensions", "frames/s", "real-time factor", "training s")


def leaderboard_html(runs: Iterable[Run], folder: Path) -> str:
    """Return the page of these runs; the table of the full preset is always there, for the published scores.

    Args:
        runs: The runs.
        folder: The folder that the page is for: links to the pages of runs are relative to it.
    """
    by_preset: dict[str, list[Run]] = {}
    for run in runs:
        by_preset.setdefault(run.manifest.preset, []).append(run)
    presets = sorted({*by_preset, "full"}, key=lambda preset: (preset != "full", preset))
    boards = [_board(preset, by_preset.get(preset, []), folder) for preset in presets]
    return rendered("leaderboard", {"boards": boards})


def _board(preset: str, runs: list[Run], folder: Path) -> Board:
    catalogue = load_catalogue(preset)
    tasks = {task: tuple(names) for task, names in catalogue.tasks.items()}
    datasets = list(catalogue.datasets)
    own = list(dict.fromkeys(name for run in runs for name in run.records if name not in catalogue.datasets))
    found = [_run_row(run, tasks, datasets, folder) for run in runs]
    rows = [row for row in found if not row.missing]
    rows += [row for name in shipped_baselines() if (row := _baseline_row(name, preset, tasks, datasets))]
    own_rows = [
        replace(row, missing="", cells=_scores(run, own))
        for run, row in zip(runs, found, strict=True)
        if any(name in run.records for name in own)
    ]
    incomplete = [row for row in found if row.missing and any(cell.text for cell in row.cells[-len(datasets) :])]

    def by_name(row: Row) -> tuple[str, str]:
        return row.encoder, row.about

    return Board(
        preset=preset,
        columns=("overall", *tasks, "date", *_COSTS, *datasets),
        rows=tuple(sorted(rows, key=lambda row: (-(row.cells[0].value or 0.0), *by_name(row)))),
        incomplete=tuple(sorted(incomplete, key=by_name)),
        own_columns=tuple(own),
        own_rows=tuple(sorted(own_rows, key=by_name)),
    )


def _run_row(run: Run, tasks: Mapping[str, tuple[str, ...]], datasets: list[str], folder: Path) -> Row:
    encoder = run.manifest.encoder
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
    frames_per_second = frames_per_second_of(run.manifest)
    costs = [
        Cell(text=str(encoder["output_dim"]), value=encoder["output_dim"]),
        Cell(text=f"{frames_per_second:.4g}", value=frames_per_second),
        Cell(text=f"{encoder['realtime_factor']:.2g}", value=encoder["realtime_factor"]),
        Cell(text=f"{training_s:.0f}", value=training_s, note=f"on {run.manifest.environment.get('device', '')}"),
    ]
    return Row(
        encoder=encoder["name"],
        arguments=arguments_in_words(run.manifest),
        deviations=tuple(deviations_in_words(run.manifest, run.records.values())),
        about=run.manifest.name,
        report=_address(run.folder / PAGE_FILE, folder),
        missing="; ".join(missing),
        cells=(mean, *overalls, _date(run), *costs, *_scores(run, datasets)),
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
        cells=(
            _score(math.fsum(known) / len(known), None, None),
            *(_score(overall.score, None, overall.spread) for overall in overalls),
            *(Cell() for _ in ("date", *_COSTS)),
            *(Cell() if score is None else _score(score.score, score.interval, score.spread) for score in scores),
        ),
    )


def _scores(run: Run, datasets: Iterable[str]) -> tuple[Cell, ...]:
    found = [run.records.get(name) for name in datasets]
    return tuple(Cell() if record is None else _score(record.score, record.interval, record.spread) for record in found)


def _date(run: Run) -> Cell:
    """Return the day of a run; what wrote it is the note."""
    origin = run.origin
    if origin is None or origin.date is None:
        return Cell()
    commit = f", commit {origin.commit}" if origin.commit else ""
    note = f"{origin.day}, xares-bench {origin.version}{commit}"
    return Cell(text=f"{origin.date:%Y-%m-%d}", value=origin.date.timestamp(), note=note)


def _address(file: Path, folder: Path) -> str:
    """Return the relative address of a file for a page in a folder; empty if there is no such file.

    It starts with a dot, so that no name of a folder can be read as a scheme such as `javascript:`.
    """
    if not file.is_file():
        return ""
    return "./" + quote(Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix(), errors="surrogateescape")


def _score(score: float, interval: tuple[float, float] | None, spread: float | None) -> Cell:
    notes = []
    if interval is not None and math.isfinite(score):
        notes.append(f"95 % confidence interval: {interval[0]:.3f} to {interval[1]:.3f}")
    if spread is not None:
        notes.append(f"±{spread:.3f} over training seeds")
    value = score if math.isfinite(score) else None
    return Cell(text=f"{score:.3f}", value=value, note=", ".join(notes))
