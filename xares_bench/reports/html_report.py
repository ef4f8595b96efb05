"""The HTML report of a run: `report.html`, one page that opens offline.

This module gathers the values of the page; its layout is in `templates/`.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xares_bench.core.digests import code_digest, digest_of
from xares_bench.core.errors import UsageError
from xares_bench.metrics import METRICS
from xares_bench.reports.chance import chance_level
from xares_bench.reports.charts import Plane, Point, Radar, cost_chart, line_chart, radar_chart, thinned
from xares_bench.reports.confusion_matrix import ConfusionMatrix, confusion_matrix_of
from xares_bench.reports.described import deviations_of
from xares_bench.reports.results import Background, ClipSource, Results
from xares_bench.reports.robustness import matrix_of
from xares_bench.reports.runs import OtherRun, other_run, other_runs
from xares_bench.reports.score_rows import ScoreRow, score_rows
from xares_bench.reports.templating import json_for_script, rendered
from xares_bench.reports.verdict import verdict_of
from xares_bench.reports.worst_clips import AUDIO_MODULES, Recording, WorstClip, limited, recordings_of, worst_clips
from xares_bench.scores.clip_sums import load_clip_sums
from xares_bench.scores.records import Overall, Prediction, ScoreRecord

PAGE_FILE = "report.html"
MAX_ROWS = 500
WORST_CLIPS = 3
MAX_AUDIO_BYTES = 4_000_000
_MAX_TEXT_LETTERS = 4000
_MAX_LOSS_POINTS = 300


@dataclass(frozen=True, kw_only=True)
class TaskPart:
    """The values of the page for a task."""

    name: str
    rows: tuple[ScoreRow, ...]
    radar: Radar | None
    costs: Plane | None
    others: tuple[OtherRun, ...]


@dataclass(frozen=True, kw_only=True)
class DatasetPart:
    """The values of the page for a dataset.

    Attributes:
        record: Its score.
        prompts: Its prompts.
        licence: The licence of its data; empty in a run of an earlier version.
        problem: Why its predictions are not shown, or None.
        num_predictions: Number of its predictions.
        rows: The predictions that can be searched on the page.
        chance: The chance level; see `chance_level`.
        confusion_matrix: For a classification with one label per clip, else None.
        worst: The worst clips with their audio.
        no_worst: Why there are no worst clips, if there are none.
    """

    record: ScoreRecord
    prompts: tuple[str, ...]
    licence: str
    problem: str | None
    num_predictions: int
    rows: tuple[Prediction, ...]
    chance: float | None
    confusion_matrix: ConfusionMatrix | None
    worst: tuple[tuple[WorstClip, Recording], ...]
    no_worst: str

    @property
    def is_cut(self) -> bool:
        """Whether some predictions cannot be searched on the page."""
        return len(self.rows) < self.num_predictions


def report_html(results: Results, folder: Path, background: Background) -> str:
    """Return the page of a run; an existing page is reused if it would be the same.

    Args:
        results: The results of the session.
        folder: The run's folder, with `predictions/`; beside it are the store, for the loss curves, and other runs.
        background: What the page shows besides the results.
    """
    # Reading the audio takes longer than all the rest, and a session that finds everything cached should not wait for
    # it. So the page is first made without audio; its digest, with the sizes of the shards that audio comes from, tells
    # whether the existing page shows the same.
    datasets = _dataset_parts(results, folder, background.sources)
    silent = _rendered(results, folder, background, datasets, digest="")
    shards = {str(shard): _size(shard) for source in background.sources.values() for shard in source.shards}
    audio_code = code_digest(*(f"xares_bench.{name}" for name in AUDIO_MODULES))
    digest = digest_of({"page": silent, "shards": shards, "code": audio_code})
    with contextlib.suppress(OSError, ValueError):
        earlier = (folder / PAGE_FILE).read_text(encoding="utf-8")
        if f'<meta name="digest" content="{digest}">' in earlier and earlier.endswith("</html>"):
            return earlier
    return _rendered(results, folder, background, _with_audio(datasets, background.sources), digest=digest)


def _rendered(
    results: Results, folder: Path, background: Background, datasets: Sequence[DatasetPart], *, digest: str
) -> str:
    chances = {part.record.dataset: part.chance for part in datasets}
    tasks = [_task_part(results, overall, folder, background, chances) for overall in results.overalls]
    values = {
        "results": results,
        "run": results.run,
        "background": background,
        "verdict": verdict_of(results, background),
        "deviations": deviations_of(results.run, results.records),
        "tasks": tasks,
        "near_chance": [row.name for task in tasks for row in task.rows if row.is_near_chance and not row.is_overall],
        "robustness": matrix_of(results),
        "datasets": datasets,
        "losses": _losses(results, folder.parent / "store" / "lalms"),
        "reproduction": _reproduction(results),
        "dropped": [(record.dataset, sample) for record in results.records for sample in record.dropped],
        "predictions": json_for_script(_searchable(datasets)),
        "max_rows": MAX_ROWS,
        "digest": digest,
    }
    return rendered("report", values, {"percent": _percent, "base64": _base64, "listed": _listed})


def _task_part(
    results: Results, overall: Overall, folder: Path, background: Background, chances: Mapping[str, float | None]
) -> TaskPart:
    rows = score_rows(results, overall, background, chances)
    baseline = background.baseline
    others = _other_runs(results, results.of_task(overall.task), folder)
    return TaskPart(
        name=overall.task,
        rows=rows,
        radar=_radar(overall.task, rows[:-1], results.run.name, baseline.name if baseline else ""),
        costs=_costs(others, rows[-1].baseline),
        others=tuple(others),
    )


def _radar(task: str, rows: Sequence[ScoreRow], name: str, baseline: str) -> Radar | None:
    """Return a radar chart of task 1; None for other tasks, whose metrics have no common scale, or few datasets."""
    if task != "task1" or len(rows) < 3 or not all(math.isfinite(row.score) for row in rows):
        return None
    series = {name: [row.score for row in rows]}
    expected = [row.baseline for row in rows if row.baseline is not None]
    if len(expected) == len(rows):
        series[baseline] = expected
    return radar_chart([row.name for row in rows], series)


def _other_runs(results: Results, records: Sequence[ScoreRecord], folder: Path) -> list[OtherRun]:
    """Return this run, then the runs beside it that have all its datasets of a task."""
    run = results.run
    names = [record.dataset for record in records]
    try:
        own = other_run(run, {record.dataset: record for record in records}, names)
        device = run.environment["device"]
    except KeyError:
        return []
    return [own, *other_runs(folder, preset=run.preset, device=device, datasets=names)] if own is not None else []


def _costs(others: Sequence[OtherRun], level: float | None) -> Plane | None:
    points = {str(place): (run.realtime_factor, run.score) for place, run in enumerate(others, start=1)}
    points = {place: point for place, point in points.items() if point[0] > 0 and all(map(math.isfinite, point))}
    return cost_chart(points, level) if points else None


def _dataset_parts(results: Results, folder: Path, sources: Mapping[str, ClipSource]) -> list[DatasetPart]:
    """Return the values of every dataset, without audio."""
    parts = []
    for record in results.records:
        problem = None
        rows: list[Prediction] = []
        try:
            rows = _read_predictions(folder / "predictions" / f"{record.dataset}.jsonl")
        except (OSError, ValueError, TypeError) as cause:
            problem = f"its predictions cannot be read: {cause}"
        worst, no_worst = _worst_of(rows, record.num_clips)
        parts.append(
            DatasetPart(
                record=record,
                prompts=sources[record.dataset].prompts if record.dataset in sources else (),
                licence=results.run.data.get("licences", {}).get(record.dataset, ""),
                problem=problem,
                num_predictions=len(rows),
                rows=tuple(_worst_rows(rows)),
                chance=_chance(rows, record, folder),
                confusion_matrix=confusion_matrix_of(rows) if METRICS[record.metric].single_label and rows else None,
                worst=tuple((clip, Recording()) for clip in worst),
                no_worst=no_worst,
            )
        )
    return parts


def _chance(rows: Sequence[Prediction], record: ScoreRecord, folder: Path) -> float | None:
    """Return the chance level of a dataset; None if not all of its rows, or not the metric's arguments, are there."""
    if len(rows) != record.num_rows:
        return None
    arguments: Mapping[str, int] = {}
    if METRICS[record.metric].arguments:
        try:
            arguments = load_clip_sums(folder / "clip_sums" / f"{record.dataset}.npz").arguments
        except (OSError, UsageError):
            return None
    return chance_level(record.metric, [row.reference for row in rows], arguments)


def _with_audio(parts: Sequence[DatasetPart], sources: Mapping[str, ClipSource]) -> list[DatasetPart]:
    found = {}
    for part in parts:
        name = part.record.dataset
        shards = sources[name].shards if name in sources else ()
        found[name] = recordings_of([clip.name for clip, _ in part.worst], shards)
    within = limited(found, MAX_AUDIO_BYTES)
    return [
        dataclasses.replace(part, worst=tuple((clip, within[part.record.dataset][clip.name]) for clip, _ in part.worst))
        for part in parts
    ]


def _worst_of(rows: Sequence[Prediction], num_clips: int) -> tuple[list[WorstClip], str]:
    """Return the worst clips, and the reason if there are none."""
    if any(row.value is None for row in rows):
        return [], "The metric has no value for single clips."
    if len({row.clip for row in rows}) < num_clips:
        return [], "Several clips share a name, so the worst ones cannot be told from the others."
    return worst_clips(rows, WORST_CLIPS), "All clips have the value 1."


def _read_predictions(path: Path) -> list[Prediction]:
    with path.open(encoding="utf-8") as lines:
        return [Prediction(**json.loads(line)) for line in lines]


def _worst_rows(rows: Sequence[Prediction]) -> list[Prediction]:
    """Return at most `MAX_ROWS` rows, those with the lowest values, in their original order."""
    if len(rows) <= MAX_ROWS:
        return list(rows)
    order = sorted(range(len(rows)), key=lambda place: (_value(rows[place]), place))[:MAX_ROWS]
    return [rows[place] for place in sorted(order)]


def _value(row: Prediction) -> float:
    return 0.0 if row.value is None else row.value


def _searchable(datasets: Sequence[DatasetPart]) -> list[dict[str, Any]]:
    """Return the predictions for the page's script to search."""
    return [
        {
            "name": part.record.dataset,
            "rows": [[row.clip, _short(row.reference), _short(row.hypothesis), row.value] for row in part.rows],
        }
        for part in datasets
    ]


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT_LETTERS else text[:_MAX_TEXT_LETTERS] + " …"


def _losses(results: Results, folder: Path) -> list[tuple[str, Plane | None, str]]:
    """Return every mix's name, its loss curves, and a sentence on the last losses."""
    by_mix: dict[str, dict[str, list[Point]]] = {}
    for lalm in results.lalms:
        name = f"seed {lalm['seed']}" if "seed" in lalm else "loss"
        by_mix.setdefault(lalm["mix"], {})[name] = _read_losses(folder / str(lalm.get("key")) / "loss.tsv")
    found: list[tuple[str, Plane | None, str]] = []
    for mix, read in by_mix.items():
        curves = {name: points for name, points in read.items() if points}
        if not curves:
            found.append((mix, None, "the loss curve is no longer cached"))
            continue
        ends = ", ".join(
            f"{name}: {thinned(points, 20)[-1][1]:.3f} after {points[-1][0]:g} steps" for name, points in curves.items()
        )
        plane = line_chart({name: thinned(points, _MAX_LOSS_POINTS) for name, points in curves.items()})
        found.append((mix, plane, f"mean over the last 5 % of steps, {ends}"))
    return found


def _read_losses(path: Path) -> list[Point]:
    """Read steps and finite losses; empty if the file cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
        points = [(float(step), float(loss)) for step, loss in (line.split("\t") for line in lines)]
    except (OSError, ValueError):
        return []
    return [point for point in points if math.isfinite(point[1])]


def _reproduction(results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what a run depends on: titles, and names and values under each."""
    run = results.run
    environment = dict(run.environment)
    judges = environment.pop("judges", {})
    changed = deviations_of(run, results.records)
    shown_encoder = ("spec", "name", "arguments", "fingerprint", "commit", "output_dim", "frames_per_second")
    listed_elsewhere = ("repositories", "test_repositories", "mixes", "test_data", "licences")
    data: dict[str, Any] = {**run.data, **dict.fromkeys(listed_elsewhere)}
    data |= {f"repository {name}": commit for name, commit in run.data.get("repositories", {}).items()}
    return [
        ("Encoder", _rows({key: run.encoder.get(key) for key in (*shown_encoder, "honours_mask", "realtime_factor")})),
        ("Decoder", _rows(run.decoder)),
        ("Data", _rows(data)),
        ("Changed from the preset", changed or [("recipe", f"defaults of the {run.preset} preset")]),
        ("Recipe", _rows({**run.recipe, "seeds": list(run.seeds)})),
        ("Machine and libraries", _rows(environment | {f"models of {name}": files for name, files in judges.items()})),
    ]


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, _listed(value)) for key, value in values.items() if value not in (None, {}, [])]


def _listed(value: object) -> str:
    """Return a value for people to read: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _size(file: Path) -> int | None:
    """Return the size of a file in bytes; None if there is no file."""
    try:
        return file.stat().st_size
    except OSError:
        return None


def _percent(share: float) -> str:
    """Return a share in CSS, clipped to 0 % and 100 %."""
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
