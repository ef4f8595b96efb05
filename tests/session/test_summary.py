from __future__ import annotations

from tests.config.test_plan import plan
from tests.reports.test_report import baseline
from tests.session.conftest import OpenSession, add_score
from xares_bench.metrics.registry import METRICS
from xares_bench.session.summary import listing_lines, summary_lines


def test_a_listing_names_all_mixes_and_metrics() -> None:
    mixes, metrics = listing_lines(plan())
    assert mixes.startswith("mixes (--train): auto, task1, task2, all, ")
    assert set(metrics.removeprefix("metrics: ").split(", ")) == set(METRICS)


def test_the_summary_has_the_table_what_improved_and_the_folder(open_session: OpenSession) -> None:
    session = open_session(baseline=baseline(esc_50=0.2, gtzan=0.7))
    add_score(session, "esc-50", 90)
    add_score(session, "gtzan", 70)
    found = session.results()
    assert found is not None
    table, improved, seconds, folder = summary_lines(session, found)
    assert "+0.700" in table
    assert improved.strip() == "better than the baseline by more than noise: esc-50"
    assert seconds.strip().startswith("compute time, cached results included: features 2 s, ")
    assert folder == f"results: {session.plan.runs_folder / 'logmel-0f0f'}"
