"""Evaluation results: a run's scores in the hub's present form, the `.eval_results/*.yaml` of a model's repository.

Every entry of that form names a dataset repository of the hub. A score whose data are in none has no entry, because any
other name would be an invention; a comment in the file says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from xares_bench.core.yaml_text import dump_yaml
from xares_bench.reports.described import arguments_in_words, deviations_in_words, shown_in_line
from xares_bench.reports.results import Results
from xares_bench.scores.records import Overall

if TYPE_CHECKING:
    from huggingface_hub import EvalResultEntry

_NOT_ON_THE_HUB = "the data are in no repository of the hub"


def eval_results_yaml(results: Results) -> str:
    """Return an entry for every comparable score whose data are on the hub, and comments on the others."""
    comments = [f"# No entry for {shown_in_line(line)}\n" for line in left_out(results)]
    entries = _entries(results)
    if not entries:
        return "".join(comments) + "[]\n"
    from huggingface_hub import eval_result_entries_to_yaml

    return "".join(comments) + dump_yaml(eval_result_entries_to_yaml(entries))


def has_entries(results: Results) -> bool:
    """Whether there is a score that the hub's form can hold."""
    return not all(_reasons(results).values())


def left_out(results: Results) -> list[str]:
    """Return which scores have no entry, and why: a line for every reason.

    Example:
        `esc-50, gtzan, task1 overall: the data are in no repository of the hub`
    """
    names: dict[str, list[str]] = {}
    for name, reason in _reasons(results).items():
        if reason:
            names.setdefault(reason, []).append(name)
    return [f"{', '.join(found)}: {reason}" for reason, found in names.items()]


def _reasons(results: Results) -> Mapping[str, str]:
    """Why a score has no entry, by dataset and task; empty for those that have one."""
    run, reasons = results.run, {}
    for record in results.records:
        reason = ""
        if not math.isfinite(record.score):
            reason = "the score is not a number"
        elif record.partial:
            reason = "some clips are left out"
        elif run.test_repository([record.dataset]) is None:
            reason = _NOT_ON_THE_HUB
        reasons[record.dataset] = reason
    for overall in results.overalls:
        datasets = run.tasks.get(overall.task, ())
        reason = ""
        if not overall.complete:
            reason = "the overall score is incomplete"
        elif not math.isfinite(overall.score):
            reason = "the score is not a number"
        elif run.test_repository(datasets) is None:
            alone = [run.test_repository([dataset]) for dataset in datasets]
            reason = _NOT_ON_THE_HUB if None in alone else "the data are in several repositories of the hub"
        reasons[_overall_name(overall)] = reason
    return reasons


def _overall_name(overall: Overall) -> str:
    return f"{overall.task} overall"


def _entries(results: Results) -> list[EvalResultEntry]:
    reasons = _reasons(results)
    found = [
        _entry(results, record.dataset, [record.dataset], record.score, f"metric {record.metric}")
        for record in results.records
        if not reasons[record.dataset]
    ]
    for overall in results.overalls:
        if not reasons[_overall_name(overall)]:
            what = f"weighted mean over {overall.num_datasets} datasets"
            found.append(_entry(results, overall.task, results.run.tasks[overall.task], overall.score, what))
    return found


def _entry(results: Results, task_id: str, datasets: Sequence[str], score: float, what: str) -> EvalResultEntry:
    from huggingface_hub import EvalResultEntry

    run, origin = results.run, results.origin
    source = run.test_repository(datasets)
    assert source is not None, task_id
    repository, commit = source
    by = "xares-bench" if origin is None else f"xares-bench {origin.version}"
    notes = [f"{by}, preset {run.preset}", what, f"encoder {run.encoder['name']} {arguments_in_words(run)}".strip()]
    notes += [f"mean over {len(run.seeds)} trainings"] if len(run.seeds) > 1 else []
    notes += ["the commit of the data is not known"] if commit is None else []
    return EvalResultEntry(
        dataset_id=repository,
        dataset_revision=commit,
        task_id=task_id,
        value=round(float(score), 6),
        date=None if origin is None or origin.date is None else origin.date.isoformat(),
        notes=shown_in_line("; ".join([*notes, *deviations_in_words(run, results.records)])),
    )
