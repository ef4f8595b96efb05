"""The page of a run: `report.html`, one file that holds all it shows and asks no network for anything.

This module gathers what the page says; how it looks is in `templates/`.
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
from xares_bench.metrics import METRICS
from xares_bench.reports.charts import Plane, Point, Radar, cost_chart, line_chart, radar_chart, thinned
from xares_bench.reports.confusion_matrix import ConfusionMatrix, confusion_matrix_of
from xares_bench.reports.results import Background, ClipSource, Results
from xares_bench.reports.runs import OtherRun, other_run, other_runs
from xares_bench.reports.templating import json_for_script, rendered
from xares_bench.reports.worst_clips import Recording, WorstClip, limited, recordings_of, worst_clips
from xares_bench.scores.records import Overall, Prediction, ScoreRecord

PAGE_FILE = "report.html"
MAX_ROWS = 500
WORST_CLIPS = 3
MAX_AUDIO_BYTES = 4_000_000
_MAX_TEXT_LETTERS = 4000
_MAX_LOSS_POINTS = 300


@dataclass(frozen=True, kw_only=True)
class Line:
    """A score beside what it is held against.

    Attributes:
        name: Dataset, or what the overall score is over.
        metric: Name of the metric; empty for an overall score.
        score: The score, which may be NaN.
        interval: Its 95 % interval.
        spread: Standard deviation over the seeds.
        held: The baseline's score.
        held_interval: Its 95 % interval.
        difference_interval: That of score minus baseline.
        num_rows: Rows that were scored; None for an overall score.
        is_overall: Whether it is an overall score.
    """

    name: str
    metric: str
    score: float
    interval: tuple[float, float] | None
    spread: float | None
    held: float | None
    held_interval: tuple[float, float] | None
    difference_interval: tuple[float, float] | None
    num_rows: int | None
    is_overall: bool = False

    @property
    def difference(self) -> float | None:
        """Score minus baseline; None without one."""
        return None if self.held is None else self.score - self.held

    @property
    def direction(self) -> str:
        """`good` or `bad` where the difference is more than its interval explains, else empty."""
        if self.difference_interval is None:
            return ""
        low, high = self.difference_interval
        return "good" if low > 0 else "bad" if high < 0 else ""


@dataclass(frozen=True, kw_only=True)
class TaskPart:
    """What the page shows of a task."""

    name: str
    lines: tuple[Line, ...]
    radar: Radar | None
    costs: Plane | None
    others: tuple[OtherRun, ...]


@dataclass(frozen=True, kw_only=True)
class DatasetPart:
    """What the page shows of a dataset.

    Attributes:
        record: Its score.
        prompts: What was asked.
        problem: Why its predictions are not shown, or None.
        num_predictions: Rows that there are.
        rows: Those that can be searched.
        confusion_matrix: Of a classification.
        worst: The worst clips with their audio.
        no_worst: Why there are none, where there are none.
    """

    record: ScoreRecord
    prompts: tuple[str, ...]
    problem: str | None
    num_predictions: int
    rows: tuple[Prediction, ...]
    confusion_matrix: ConfusionMatrix | None
    worst: tuple[tuple[WorstClip, Recording], ...]
    no_worst: str

    @property
    def is_cut(self) -> bool:
        """Whether there are more rows than can be searched."""
        return len(self.rows) < self.num_predictions


def report_html(results: Results, folder: Path, background: Background) -> str:
    """The page of a run; the one that is in its folder already, where that shows the same.

    Reading audio takes longer than all the rest, and a session that finds everything finished should not wait for it.

    Args:
        results: What was found out.
        folder: The run's folder, with `predictions/`; beside it are the store, for the loss curves, and other runs.
        background: What else is known of the run.
    """
    datasets = _dataset_parts(results, folder, background.sources)
    silent = _rendered(results, folder, background, datasets, digest="")
    shards = {str(shard): _size(shard) for source in background.sources.values() for shard in source.shards}
    audio_code = code_digest("xares_bench.datasets.audio", "xares_bench.reports.worst_clips")
    digest = digest_of({"page": silent, "shards": shards, "code": audio_code})
    with contextlib.suppress(OSError, ValueError):
        earlier = (folder / PAGE_FILE).read_text(encoding="utf-8")
        if f'<meta name="digest" content="{digest}">' in earlier and earlier.endswith("</html>"):
            return earlier
    return _rendered(results, folder, background, _with_audio(datasets, background.sources), digest=digest)


def _rendered(
    results: Results, folder: Path, background: Background, datasets: Sequence[DatasetPart], *, digest: str
) -> str:
    values = {
        "results": results,
        "run": results.run,
        "background": background,
        "tasks": [_task_part(results, overall, folder, background) for overall in results.overalls],
        "datasets": datasets,
        "losses": _losses(results, folder.parent / "store" / "lalms"),
        "reproduction": _reproduction(results),
        "dropped": [(record.dataset, sample) for record in results.records for sample in record.dropped],
        "predictions": json_for_script(_searchable(datasets)),
        "max_rows": MAX_ROWS,
        "digest": digest,
    }
    return rendered("report", values, {"percent": _percent, "base64": _base64, "listed": _listed})


def _task_part(results: Results, overall: Overall, folder: Path, background: Background) -> TaskPart:
    records = results.of_task(overall.task)
    baseline = background.baseline
    lines = []
    for record in records:
        held = None if baseline is None or record.partial else baseline.scores.get(record.dataset)
        lines.append(
            Line(
                name=record.dataset,
                metric=record.metric,
                score=record.score,
                interval=record.interval,
                spread=record.spread,
                held=None if held is None else held.score,
                held_interval=None if held is None else held.interval,
                difference_interval=background.differences.get(record.dataset),
                num_rows=record.num_rows,
            )
        )
    held = baseline.overalls.get(overall.task) if baseline is not None and overall.complete else None
    what = "Overall"
    if overall.num_datasets < overall.num_expected:
        what += f", {overall.num_datasets} of {overall.num_expected} datasets"
    lines.append(
        Line(
            name=what + (", some clips left out" if overall.partial else ""),
            metric="",
            score=overall.score,
            interval=overall.interval if math.isfinite(overall.score) else None,
            spread=overall.spread,
            held=None if held is None else held.score,
            held_interval=None if held is None else held.interval,
            difference_interval=background.differences.get(f"{overall.task} overall"),
            num_rows=None,
            is_overall=True,
        )
    )
    others = _other_runs(results, records, folder)
    return TaskPart(
        name=overall.task,
        lines=tuple(lines),
        radar=_radar(overall.task, lines[:-1], results.run.name, baseline.name if baseline else ""),
        costs=_costs(others, None if held is None else held.score),
        others=tuple(others),
    )


def _radar(task: str, lines: Sequence[Line], name: str, baseline: str) -> Radar | None:
    """Task 1 around a circle; None for other tasks, whose metrics have no scale in common, and for too few datasets."""
    if task != "task1" or len(lines) < 3 or not all(math.isfinite(line.score) for line in lines):
        return None
    series = {name: [line.score for line in lines]}
    held = [line.held for line in lines if line.held is not None]
    if len(held) == len(lines):
        series[baseline] = held
    return radar_chart([line.name for line in lines], series)


def _other_runs(results: Results, records: Sequence[ScoreRecord], folder: Path) -> list[OtherRun]:
    """This run and those beside it that have all its datasets of a task; this one first."""
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
    """What there is of every dataset but for audio."""
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
                problem=problem,
                num_predictions=len(rows),
                rows=tuple(_worst_rows(rows)),
                confusion_matrix=confusion_matrix_of(rows) if METRICS[record.metric].single_label and rows else None,
                worst=tuple((clip, Recording()) for clip in worst),
                no_worst=no_worst,
            )
        )
    return parts


def _with_audio(parts: Sequence[DatasetPart], sources: Mapping[str, ClipSource]) -> list[DatasetPart]:
    found = {}
    for part in parts:
        name = part.record.dataset
        shards = sources[name].shards if name in sources else ()
        found[name] = recordings_of([clip.name for clip, _ in part.worst], shards)
    kept = limited(found, MAX_AUDIO_BYTES)
    return [
        dataclasses.replace(part, worst=tuple((clip, kept[part.record.dataset][clip.name]) for clip, _ in part.worst))
        for part in parts
    ]


def _worst_of(rows: Sequence[Prediction], num_clips: int) -> tuple[list[WorstClip], str]:
    """The worst clips, and why there are none."""
    if any(row.value is None for row in rows):
        return [], "The metric says nothing of a clip by itself."
    if len({row.clip for row in rows}) < num_clips:
        return [], "Several clips share a name, and the predictions do not tell which is meant."
    return worst_clips(rows, WORST_CLIPS), "Every clip has the value 1."


def _read_predictions(path: Path) -> list[Prediction]:
    with path.open(encoding="utf-8") as lines:
        return [Prediction(**json.loads(line)) for line in lines]


def _worst_rows(rows: Sequence[Prediction]) -> list[Prediction]:
    """As many rows as can be searched, in their order: where there are more, those of the lowest values."""
    if len(rows) <= MAX_ROWS:
        return list(rows)
    order = sorted(range(len(rows)), key=lambda place: (_value(rows[place]), place))[:MAX_ROWS]
    return [rows[place] for place in sorted(order)]


def _value(row: Prediction) -> float:
    return 0.0 if row.value is None else row.value


def _searchable(datasets: Sequence[DatasetPart]) -> list[dict[str, Any]]:
    """What the page's script searches."""
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
    """For every mix its name, its loss curves, and in words how they ended."""
    by_mix: dict[str, dict[str, list[Point]]] = {}
    for lalm in results.lalms:
        name = f"seed {lalm['seed']}" if "seed" in lalm else "loss"
        by_mix.setdefault(lalm["mix"], {})[name] = _read_losses(folder / str(lalm.get("key")) / "loss.tsv")
    found: list[tuple[str, Plane | None, str]] = []
    for mix, read in by_mix.items():
        curves = {name: points for name, points in read.items() if points}
        if not curves:
            found.append((mix, None, "its loss curve is not in the store"))
            continue
        ends = ", ".join(
            f"{name}: {thinned(points, 20)[-1][1]:.3f} after {points[-1][0]:g} steps" for name, points in curves.items()
        )
        plane = line_chart({name: thinned(points, _MAX_LOSS_POINTS) for name, points in curves.items()})
        found.append((mix, plane, f"mean of the last twentieth, {ends}"))
    return found


def _read_losses(path: Path) -> list[Point]:
    """Steps and losses, without those that are no number; nothing where the file cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
        points = [(float(step), float(loss)) for step, loss in (line.split("\t") for line in lines)]
    except (OSError, ValueError):
        return []
    return [point for point in points if math.isfinite(point[1])]


def _reproduction(results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titles, and under each what a run depends on: names and values."""
    run = results.run
    environment = dict(run.environment)
    judges = environment.pop("judges", {})
    changed = [(key, f"{_listed(own)} (preset: {_listed(preset)})") for key, (preset, own) in run.deviations.items()]
    shown_encoder = ("spec", "name", "arguments", "fingerprint", "commit", "output_dim", "frames_per_second")
    data = {**run.data, "repositories": None}
    data |= {f"repository {name}": commit for name, commit in run.data.get("repositories", {}).items()}
    return [
        ("Encoder", _rows({key: run.encoder.get(key) for key in (*shown_encoder, "honours_mask", "realtime_factor")})),
        ("Decoder", _rows(run.decoder)),
        ("Data", _rows(data)),
        ("Changed from the preset", changed or [("recipe", f"as the preset {run.preset} has it")]),
        ("Recipe", _rows({**run.recipe, "seeds": list(run.seeds)})),
        ("Machine and libraries", _rows({**environment, **{f"judge {name}": what for name, what in judges.items()}})),
    ]


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, _listed(value)) for key, value in values.items() if value not in (None, {}, [])]


def _listed(value: object) -> str:
    """A value for people: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _size(file: Path) -> int | None:
    """Size of a file in bytes; None where there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return None


def _percent(share: float) -> str:
    """A share as CSS has it, within 0 and 100 %."""
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
