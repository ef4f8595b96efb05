"""Earlier sessions of a run: their scores, and losses by corruptions, stay in its files.

A session that ends early, or that runs only what failed before, has fewer scores than the run. One with other
corruptions, or none, has other losses. The name of a run's folder is a digest of the keys of all its scores, so what an
earlier session has left in the folder is of the same keys.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from xares_bench.core.errors import UsageError
from xares_bench.reports.results import Results
from xares_bench.reports.runs import RESULTS_FILE, read_run


def with_earlier(results: Results, folder: Path) -> tuple[Results, list[str]]:
    """Add the scores and losses of earlier sessions of a run to those of this one, which has precedence.

    Args:
        results: What this session found out.
        folder: The run's folder.

    Returns:
        All results, and why those of earlier sessions are left out, if they are, in a line.
    """
    if not (folder / RESULTS_FILE).exists():
        return results, []
    try:
        earlier = read_run(folder)
    except UsageError as cause:
        return results, _needed(results, f"scores of earlier sessions are not kept: {cause}")
    if earlier.manifest.name != results.run.name:
        problem = f"{folder / RESULTS_FILE} is of {earlier.manifest.name}"
        return results, _needed(results, f"scores of earlier sessions are not kept: {problem}")
    kept = [
        dataclasses.replace(earlier.records[name], reused=True) for name in results.missing if name in earlier.records
    ]
    if not kept and not earlier.losses:
        return results, []
    losses = {(loss.dataset, loss.corruption): loss for loss in (*earlier.losses, *results.robustness)}
    records = {record.dataset: record for record in (*results.records, *kept)}
    lalms = {lalm["key"]: lalm for lalm in (*earlier.lalms, *results.lalms)}
    merged = dataclasses.replace(
        results,
        records=tuple(records[name] for name in results.run.datasets if name in records),
        lalms=tuple(lalms[key] for key in sorted(lalms)),
        missing=tuple(name for name in results.missing if name not in records),
        robustness=tuple(losses.values()),
    )
    return merged, []


def _needed(results: Results, problem: str) -> list[str]:
    """Return a problem with an earlier session, if this one lacks scores that it could have."""
    return [problem] if results.missing else []
