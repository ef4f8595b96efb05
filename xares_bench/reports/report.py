"""Reports: records and verdicts become the terminal's table and the files of a run's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from xares_bench.core.store import write_atomically, write_together
from xares_bench.reports.html_report import PAGE_FILE, report_html
from xares_bench.reports.model_card import model_index_yaml
from xares_bench.reports.results import Background, Results
from xares_bench.scores.baselines import Baseline, BaselineScore
from xares_bench.scores.records import RESULTS_SCHEMA, Overall, ScoreRecord


def write_run(folder: Path, results: Results, background: Background | None = None) -> list[str]:
    """Write a run's files, each whole or not at all, `results.json` last; what is not written, in one line each.

    The page and the model card are made of the scores and never stand in their way.

    Args:
        folder: The run's folder.
        results: What was found out.
        background: What else the page shows.

    Raises:
        DiskError: The scores cannot be written.
    """
    background = background or Background()
    makers: dict[str, Callable[[], str]] = {
        "model_card.yaml": lambda: model_index_yaml(results),
        PAGE_FILE: lambda: report_html(results, folder, background),
    }
    problems = []
    for name, make in makers.items():
        try:
            write_atomically(folder / name, make())
        except Exception as cause:  # whatever it is, the scores are worth more
            (folder / name).unlink(missing_ok=True)  # one of an earlier session would show other scores
            problems.append(f"{folder / name} is not written: {type(cause).__name__}: {cause}")
    scores = {
        "scores.tsv": scores_tsv(results),
        "scores.md": scores_markdown(results, background.baseline),
        "results.json": results_json(results),
    }
    write_together({folder / name: text for name, text in scores.items()})
    return problems


def scores_tsv(results: Results) -> str:
    """`Task`, `score`, `weight`, a row a dataset and a last row `Overall` for every task.

    The overall's weight is the sum of its datasets'; where datasets are missing or limited the row says so.
    """
    lines = ["Task\tscore\tweight"]
    for overall in results.overalls:
        records = results.of_task(overall.task)
        lines.extend(f"{record.dataset}\t{record.score:.6f}\t{record.weight:g}" for record in records)
        weight = math.fsum(record.weight for record in records)
        lines.append(f"Overall{_incomplete(overall)}\t{overall.score:.6f}\t{weight:g}")
    return "\n".join(lines) + "\n"


def scores_markdown(results: Results, baseline: Baseline | None = None) -> str:
    """The scores as tables for a pull request, with what they are held against where there is a baseline."""
    run = results.run
    parts = [
        f"# {run.encoder['name']} on the {run.preset} preset",
        f"Encoder `{run.encoder['spec']}`, fingerprint `{run.encoder['fingerprint'][:12]}`; run `{run.name}`.",
    ]
    if baseline is not None:
        parts.append(f"Baseline `{baseline.name}`.")
    several = len(run.seeds) > 1
    headers = ["dataset", "metric", "score", "95 %", *(["over seeds"] if several else [])]
    headers += [*(["baseline", "difference"] if baseline is not None else []), "rows"]
    for overall in results.overalls:
        rows: list[Sequence[Any]] = []
        for record in results.of_task(overall.task):
            held = None if baseline is None or record.partial else baseline.scores.get(record.dataset)
            against = _against(record.score, held) if baseline is not None else ()
            rows.append([record.dataset, record.metric, *_measured(record, several=several), *against, record.num_rows])
        held = baseline.overalls.get(overall.task) if baseline is not None and overall.complete else None
        against = _against(overall.score, held) if baseline is not None else ()
        score, *noise = _measured(overall, several=several)
        rows.append([f"**Overall**{_incomplete(overall)}", "", f"**{score}**", *noise, *against, ""])
        parts.append(f"## {overall.task}\n\n{tabulated(rows, headers, 'github')}")
    dropped = {record.dataset: len(record.dropped) for record in results.records if record.dropped}
    if dropped:
        counts = ", ".join(f"{name} {count}" for name, count in dropped.items())
        parts.append(f"Samples that could not be used: {counts}.")
    if results.missing:
        parts.append(f"No score: {', '.join(results.missing)}.")
    return "\n\n".join(parts) + "\n"


def results_json(results: Results) -> str:
    """Everything, for programs; the schema's version comes first. A score that is no number is null."""
    data = {
        "schema": RESULTS_SCHEMA,
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
        "missing": list(results.missing),
        "lalms": [dict(lalm) for lalm in results.lalms],
        "timings": {"wall_s": results.wall_s, **timings(results)},
    }
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def timings(results: Results) -> dict[str, float]:
    """Seconds that features (of training shards), training and generation took when they were done."""
    return {
        "features_s": sum(lalm["features_s"] for lalm in results.lalms) + sum(r.features_s for r in results.records),
        "training_s": sum(lalm["training_s"] for lalm in results.lalms),
        "generation_s": sum(record.generation_s for record in results.records),
    }


def terminal_table(results: Results, baseline: Baseline | None) -> str:
    """One table a task: what was scored, how sure that is, against what, on how much, how long it took.

    `95 %` is the noise of the test clips; `over seeds`, where several LALMs were trained, that of the training.
    """
    several = len(results.run.seeds) > 1
    headers = ["dataset", "metric", "score", "95 %", *(["over seeds"] if several else []), "baseline", "difference"]
    headers += ["rows", "seconds"]
    tables = []
    for overall in results.overalls:
        rows: list[Sequence[Any]] = []
        for record in results.of_task(overall.task):
            held = None if baseline is None or record.partial else baseline.scores.get(record.dataset)
            name = record.dataset + (f" ({len(record.dropped)} dropped)" if record.dropped else "")
            seconds = "kept" if record.reused else f"{record.generation_s:.1f}"
            measured = _measured(record, several=several)
            rows.append([name, record.metric, *measured, *_against(record.score, held), record.num_rows, seconds])
        held = baseline.overalls.get(overall.task) if baseline is not None and overall.complete else None
        measured = _measured(overall, several=several)
        rows.append([f"Overall{_incomplete(overall)}", "", *measured, *_against(overall.score, held), "", ""])
        tables.append(f"{overall.task}\n" + tabulated(rows, headers, "simple"))
    return "\n\n".join(tables)


def _measured(found: ScoreRecord | Overall, *, several: bool) -> list[str]:
    """Score, interval, and spread over seeds where there are several."""
    cells = [f"{found.score:.3f}", shown_interval(found.interval)]
    if several:
        cells.append("" if found.spread is None else f"±{found.spread:.3f}")
    return cells


def shown_interval(interval: tuple[float, float] | None) -> str:
    """An interval for people to read; empty where there is none."""
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _against(score: float, baseline: BaselineScore | None) -> tuple[str, str]:
    return ("", "") if baseline is None else (f"{baseline.score:.3f}", f"{score - baseline.score:+.3f}")


def _incomplete(overall: Overall) -> str:
    if overall.complete:
        return ""
    if overall.num_datasets < overall.num_expected:
        return f" (incomplete: {overall.num_datasets} of {overall.num_expected} datasets)"
    return " (incomplete: --limit left clips out)"


def tabulated(rows: Iterable[Sequence[Any]], headers: Sequence[str], form: str, *, left: Collection[str] = ()) -> str:
    """A table of cells as they stand; columns of text are set to the left, the others to the right.

    Args:
        rows: Cells of every row.
        headers: Name of every column.
        form: One of tabulate's formats.
        left: Names of columns of text besides those that every table has.
    """
    from tabulate import tabulate

    left = {"dataset", "metric", "95 %", *left}
    alignment = ["left" if name in left else "right" for name in headers]
    return tabulate(rows, headers=headers, tablefmt=form, disable_numparse=True, colalign=alignment)
