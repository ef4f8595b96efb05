"""The ending: at the end of a session the run's files, the baseline and GitHub's job summary are written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xares_bench.core.errors import XaresError
from xares_bench.scores.new_baseline import save_as_baseline
from xares_bench.session.session import BenchSession

if TYPE_CHECKING:
    from xares_bench.reports.results import Results


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a session ended.

    Attributes:
        results: Everything that it found out; None where there is no score.
        problems: Why the run fails beside its failed tests, in one line each.
        notes: What is worth knowing and no reason to fail.
        failures: Messages of all failures, by test; the problems are under `xares-bench`.
    """

    results: Results | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    failures: Mapping[str, str]


def end_session(session: BenchSession) -> Ending:
    """Write everything that is to be written, whatever of it fails.

    Args:
        session: The session, all of whose tests have ended.
    """
    problems: list[str] = []
    notes: list[str] = []
    brought = {*session.outcomes.records}
    try:
        session.enter_cached()
    except XaresError as error:
        problems.append(str(error))
    results = session.results()
    if results is not None:
        from xares_bench.reports.earlier import with_earlier
        from xares_bench.reports.origin import origin_of
        from xares_bench.reports.report import write_run
        from xares_bench.reports.results import background_of
        from xares_bench.reports.runs import RESULTS_FILE

        folder = session.plan.runs_folder / results.run.name
        results, unread = with_earlier(results, folder)
        results = replace(results, origin=origin_of(results.records, folder / RESULTS_FILE))
        findings, failed = session.outcomes.findings, session.failures_by_gate()
        background = background_of(session.plan, results, session.command, session.baseline, findings, failed)
        unwritten = write_run(folder, results, background)
        problems += unwritten.required
        notes += [*unread, *unwritten.optional]
        num_earlier = sum(record.dataset not in brought for record in results.records)
        if num_earlier:
            notes.append(f"{num_earlier} of {len(results.records)} scores are from earlier sessions")
    # A controller of xdist has selected nothing itself.
    expected = session.selected or session.outcomes.datasets
    without_score = [name for name in expected if results is None or name in results.missing]
    if without_score:
        problems.append(f"no score for {', '.join(without_score)}: the run fails")
    # The gate decides each test with what is known at its time. Next to losses of later tests a smaller loss can turn
    # out to be significant (Holm), after its test has passed: then the run fails, not the test.
    late = session.outcomes.late(session.failures_by_gate())
    over_all = f"also below the baseline after Holm correction over all {session.num_gated} tests"
    problems += [f"{over_all}: {failure}" for failure in late]
    save_to = session.options.save_to
    if save_to is not None and (results is None or results.missing):
        problems.append(f"{save_to} is not written: not every selected dataset has a score")
    elif save_to is not None and results is not None:
        clip_sums_files = {record.dataset: session.clip_sums_file(record.dataset) for record in results.records}
        try:
            save_as_baseline(save_to, results.run, results.records, clip_sums_files, replace=session.options.replace)
        except XaresError as error:
            problems.append(str(error))
    failures = {**session.outcomes.failures}
    if problems:
        failures["xares-bench"] = "; ".join(problems)
    if results is not None:
        from xares_bench.reports.github import append_summary

        # From the file: if it could not be written, that is a problem already.
        markdown = folder / "scores.md"
        scores = markdown.read_text(encoding="utf-8") if markdown.exists() else ""
        notes += append_summary(os.environ, scores, failures)
    return Ending(results=results, problems=tuple(problems), notes=tuple(notes), failures=failures)
