"""Reports: the files of a run's folder, and the terminal's table."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xares_bench.core.errors import DiskError
from xares_bench.core.store import write_atomically
from xares_bench.reports.described import deviations_in_words, encoder_in_words, markdown_code
from xares_bench.reports.eval_results import eval_results_yaml
from xares_bench.reports.html_report import PAGE_FILE, report_html
from xares_bench.reports.model_card import model_index_yaml
from xares_bench.reports.results import Background, Results
from xares_bench.reports.robustness import cells, matrix_of
from xares_bench.scores.baselines import Baseline, BaselineScore
from xares_bench.scores.records import RESULTS_SCHEMA, Overall, ScoreRecord


@dataclass(frozen=True, kw_only=True)
class Report:
    """A file in a run's folder.

    Attributes:
        file: Its name.
        text: Makes its content from the results, the run's folder and the background.
        required: Whether the run fails without it. The others are views of the scores and never stand in their way.
    """

    file: str
    text: Callable[[Results, Path, Background], str]
    required: bool = False


# Header of confidence intervals in tables.
INTERVAL_HEADER = "95 % CI"

# All of them, in the order in which they are written: the scores first.
REPORTS: tuple[Report, ...] = (
    Report(
        file="results.json",
        text=lambda results, folder, background: results_json(results, background.failures),
        required=True,
    ),
    Report(file="scores.tsv", text=lambda results, folder, background: scores_tsv(results), required=True),
    Report(
        file="scores.md",
        text=lambda results, folder, background: scores_markdown(results, background.baseline),
        required=True,
    ),
    Report(file="eval_results.yaml", text=lambda results, folder, background: eval_results_yaml(results)),
    Report(file="model_card.yaml", text=lambda results, folder, background: model_index_yaml(results)),
    Report(file=PAGE_FILE, text=report_html),
)


@dataclass(frozen=True, kw_only=True)
class Unwritten:
    """Reports that could not be written, each as a line that names the file and the cause.

    Attributes:
        required: Those without which the run fails.
        optional: The others.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]


def write_run(folder: Path, results: Results, background: Background | None = None) -> Unwritten:
    """Write all reports of a run, each by itself and atomically; whatever happens to one, the others are written.

    Of a report that cannot be written, one of an earlier session stays where it has scores. A page of that session
    would contradict them, and is removed.

    Args:
        folder: The run's folder.
        results: What the session found out.
        background: What reports show beside the results.
    """
    background = background or Background()
    required, optional = [], []
    for report in REPORTS:
        path = folder / report.file
        try:
            write_atomically(path, report.text(results, folder, background))
        except Exception as cause:  # whatever it is, the other reports are worth more
            problem = f"{path} is not written: {type(cause).__name__}: {cause}"
            if report.required:
                required.append(str(cause) if isinstance(cause, DiskError) else problem)
                continue
            optional.append(problem)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return Unwritten(required=tuple(required), optional=tuple(optional))


def scores_tsv(results: Results) -> str:
    """Return `Task`, `score` and `weight`: one row per dataset, and a last row `Overall` per task.

    The weight of an overall score is the sum of its datasets'. Where datasets are missing or limited, the row says so.
    """
    lines = ["Task\tscore\tweight"]
    for overall in results.overalls:
        records = results.of_task(overall.task)
        lines.extend(f"{record.dataset}\t{record.score:.6f}\t{record.weight:g}" for record in records)
        weight = math.fsum(record.weight for record in records)
        lines.append(f"Overall{_incomplete(overall)}\t{overall.score:.6f}\t{weight:g}")
    return "\n".join(lines) + "\n"


def scores_markdown(results: Results, baseline: Baseline | None = None) -> str:
    """Return the scores as tables for a pull request, beside the baseline where there is one."""
    run = results.run
    parts = [
        f"# {run.encoder['name']} on the {run.preset} preset",
        f"Encoder {markdown_code(encoder_in_words(run))}, fingerprint `{run.encoder['fingerprint'][:12]}`; "
        f"run `{run.name}`.",
    ]
    deviations = deviations_in_words(run, results.records)
    if deviations:
        parts.append(f"Differs from the preset: {', '.join(map(markdown_code, deviations))}.")
    if baseline is not None:
        parts.append(f"Baseline {markdown_code(baseline.name)}.")
    several = len(run.seeds) > 1
    headers = ["dataset", "metric", "score", INTERVAL_HEADER, *(["over seeds"] if several else [])]
    headers += [*(["baseline", "difference"] if baseline is not None else []), "rows"]
    for overall in results.overalls:
        rows: list[Sequence[Any]] = []
        for record in results.of_task(overall.task):
            expected = None if baseline is None or record.partial else baseline.scores.get(record.dataset)
            compared = _comparison(record.score, expected) if baseline is not None else ()
            rows.append(
                [record.dataset, record.metric, *_measured(record, several=several), *compared, record.num_rows]
            )
        expected = baseline.overalls.get(overall.task) if baseline is not None and overall.complete else None
        compared = _comparison(overall.score, expected) if baseline is not None else ()
        score, *noise = _measured(overall, several=several)
        rows.append([f"**Overall**{_incomplete(overall)}", "", f"**{score}**", *noise, *compared, ""])
        parts.append(f"## {overall.task}\n\n{tabulated(rows, headers, 'github')}")
    matrix = matrix_of(results)
    if matrix is not None:
        headers = ["dataset", "metric", "clean score", *matrix.corruptions]
        rows = [cells(row, intervals=True) for row in matrix.rows]
        about = "What scores lose on corrupted test clips, with 95 % confidence intervals:"
        parts.append(f"## Robustness\n\n{about}\n\n{tabulated(rows, headers, 'github')}")
    dropped = {record.dataset: len(record.dropped) for record in results.records if record.dropped}
    if dropped:
        counts = ", ".join(f"{name} {count}" for name, count in dropped.items())
        parts.append(f"Dropped samples: {counts}.")
    if results.missing:
        parts.append(f"No score: {', '.join(results.missing)}.")
    return "\n\n".join(parts) + "\n"


def results_json(results: Results, failures: Mapping[str, str]) -> str:
    """Return everything, for programs, with the version of the schema first. A score of NaN is null.

    docs/results.md describes every field.

    Args:
        results: What the session found out.
        failures: Why scores fail against the baseline, by dataset or `TASK overall`.
    """
    data = {
        "schema": RESULTS_SCHEMA,
        "written_by": None if results.origin is None else results.origin.to_json(),
        "run": results.run.to_json(),
        "scores": [record.to_json() for record in results.records],
        "overall": [
            {
                "task": overall.task,
                "score": overall.score if math.isfinite(overall.score) else None,
                "interval": overall.interval if math.isfinite(overall.score) else None,
                "deviation": overall.deviation,
                "seed_scores": overall.seed_scores if math.isfinite(overall.score) else [],
                "complete": overall.complete,
                "num_datasets": overall.num_datasets,
                "num_expected": overall.num_expected,
            }
            for overall in results.overalls
        ],
        "robustness": [record.to_json() for record in results.robustness],
        "missing": list(results.missing),
        "failures": {**failures, **dict.fromkeys(results.missing, "no score")},
        "lalms": [dict(lalm) for lalm in results.lalms],
        "timings": {"wall_s": results.wall_s, **timings(results)},
    }
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def timings(results: Results) -> dict[str, float]:
    """Return the seconds that features, training and generation took when they were computed."""
    return {
        "features_s": sum(lalm["features_s"] for lalm in results.lalms) + sum(r.features_s for r in results.records),
        "training_s": sum(lalm["training_s"] for lalm in results.lalms),
        "generation_s": sum(record.generation_s for record in results.records),
    }


def terminal_table(results: Results, baseline: Baseline | None) -> str:
    """Return one table per task: score, noise, baseline, number of rows, and seconds or `cached`.

    `95 % CI` is the confidence interval from the test clips. `over seeds` is the standard deviation over trainings,
    where there are several. A last table has the losses by corruptions, if there are any.
    """
    several = len(results.run.seeds) > 1
    headers = ["dataset", "metric", "score", INTERVAL_HEADER, *(["over seeds"] if several else [])]
    headers += ["baseline", "difference", "rows", "seconds"]
    tables = []
    for overall in results.overalls:
        rows: list[Sequence[Any]] = []
        for record in results.of_task(overall.task):
            expected = None if baseline is None or record.partial else baseline.scores.get(record.dataset)
            name = record.dataset + (f" ({len(record.dropped)} dropped)" if record.dropped else "")
            seconds = "cached" if record.reused else f"{record.generation_s:.1f}"
            measured = _measured(record, several=several)
            rows.append(
                [name, record.metric, *measured, *_comparison(record.score, expected), record.num_rows, seconds]
            )
        expected = baseline.overalls.get(overall.task) if baseline is not None and overall.complete else None
        measured = _measured(overall, several=several)
        rows.append([f"Overall{_incomplete(overall)}", "", *measured, *_comparison(overall.score, expected), "", ""])
        tables.append(f"{overall.task}\n" + tabulated(rows, headers, "simple"))
    matrix = matrix_of(results)
    if matrix is not None:
        headers = ["dataset", "metric", "clean", *matrix.corruptions]
        table = tabulated([cells(row, intervals=False) for row in matrix.rows], headers, "simple")
        tables.append(f"robustness: loss on corrupted test clips (* its 95 % CI excludes 0)\n{table}")
    return "\n\n".join(tables)


def _measured(found: ScoreRecord | Overall, *, several: bool) -> list[str]:
    """Score, confidence interval, and standard deviation over seeds where there are several."""
    cells = [f"{found.score:.3f}", shown_interval(found.interval)]
    if several:
        cells.append("" if found.spread is None else f"±{found.spread:.3f}")
    return cells


def shown_interval(interval: tuple[float, float] | None) -> str:
    """Return an interval for people to read; empty where there is none."""
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _comparison(score: float, baseline: BaselineScore | None) -> tuple[str, str]:
    return ("", "") if baseline is None else (f"{baseline.score:.3f}", f"{score - baseline.score:+.3f}")


def _incomplete(overall: Overall) -> str:
    if overall.complete:
        return ""
    if overall.num_datasets < overall.num_expected:
        return f" (incomplete: {overall.num_datasets} of {overall.num_expected} datasets)"
    return " (incomplete: --limit left clips out)"


def tabulated(rows: Iterable[Sequence[Any]], headers: Sequence[str], form: str, *, left: Collection[str] = ()) -> str:
    """Return a table of the given cells; columns of text are aligned left, the others right.

    Args:
        rows: Cells of every row.
        headers: Name of every column.
        form: One of tabulate's formats.
        left: Names of columns of text, besides those that every table has.
    """
    from tabulate import tabulate

    left = {"dataset", "metric", INTERVAL_HEADER, *left}
    alignment = ["left" if name in left else "right" for name in headers]
    return tabulate(rows, headers=headers, tablefmt=form, disable_numparse=True, colalign=alignment)
