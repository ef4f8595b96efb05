from __future__ import annotations

from tests.reports.test_report import results, scored
from tests.reports.test_score_rows import BASELINE
from xares_bench.reports.results import Background
from xares_bench.reports.verdict import verdict_of

RESULTS = results(scored("gtzan", 0.5))


def test_without_a_baseline_there_is_nothing_to_pass() -> None:
    found = verdict_of(RESULTS, Background())
    assert (found.direction, found.text) == ("", "No baseline: nothing to pass or fail")


def test_a_pass_says_over_how_many_scores_it_is() -> None:
    found = verdict_of(RESULTS, Background(baseline=BASELINE, num_compared=3))
    assert found.direction == "good"
    assert found.text == ("Passed against the baseline before: none of 3 scores is below it by more than the tolerance")
    found = verdict_of(RESULTS, Background(baseline=BASELINE, num_compared=1))
    assert "the score is not below it" in found.text
    found = verdict_of(RESULTS, Background(baseline=BASELINE))
    assert (found.direction, found.text) == ("", "No score could be compared with the baseline before")


def test_a_failure_has_its_reasons() -> None:
    found = verdict_of(RESULTS, Background(baseline=BASELINE, failures={"gtzan": "too low", "esc-50": "NaN"}))
    assert found.direction == "bad"
    assert found.text == "Failed against the baseline before: 2 scores are not good enough"
    assert found.reasons == ("too low", "NaN")


def test_missing_scores_are_no_pass() -> None:
    found = verdict_of(results(scored("gtzan", 0.5), missing=("esc-50",)), Background(baseline=BASELINE))
    assert (found.direction, found.text) == ("bad", "Incomplete: 1 dataset has no score")
    assert found.reasons == ("No score: esc-50.",)
