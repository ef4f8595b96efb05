"""The summary: what a session has found out, in lines for the terminal. The header's counterpart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xares_bench.metrics.registry import METRICS

if TYPE_CHECKING:
    from xares_bench.config.plan import Plan
    from xares_bench.reports.results import Results
    from xares_bench.session.session import BenchSession


def listing_lines(plan: Plan) -> list[str]:
    """What `--collect-only` cannot list as tests: mixes and metrics."""
    return [
        f"mixes (--train): auto, {', '.join(plan.catalogue.mix_names)}, FILE.yaml",
        f"metrics: {', '.join(sorted(METRICS))}",
    ]


def summary_lines(session: BenchSession, results: Results) -> list[str]:
    """The table, what has improved, what it took, and where the files are."""
    from xares_bench.reports.report import terminal_table, timings

    lines = [terminal_table(results, session.baseline)]
    improved = session.improvements()
    if improved:
        lines.append(f"\nbetter than the baseline by more than noise: {', '.join(improved)}")
    seconds = ", ".join(f"{name.removesuffix('_s')} {value:.0f} s" for name, value in timings(results).items())
    lines.append(f"\ncompute time, cached results included: {seconds}; this session: {results.wall_s:.0f} s")
    lines.append(f"results: {session.plan.runs_folder / results.run.name}")
    return lines
