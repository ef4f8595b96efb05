"""The verdict on a run, in a sentence: whether its scores pass against the baseline."""

from __future__ import annotations

from dataclasses import dataclass

from xares_bench.reports.results import Background, Results


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a page says first.

    Attributes:
        direction: `good`, `bad`, or empty if there is nothing to pass or fail.
        text: The sentence.
        reasons: Why scores fail, a sentence each.
    """

    direction: str
    text: str
    reasons: tuple[str, ...] = ()


def verdict_of(results: Results, background: Background) -> Verdict:
    """Return the verdict on what a session compared; scores that are missing are a failure, too."""
    failures = dict(background.failures)
    if results.missing:
        failures["missing"] = f"No score: {', '.join(results.missing)}."
    against = "" if background.baseline is None else f" against the baseline {background.baseline.name}"
    if background.failures:
        number = len(background.failures)
        scores = "1 score is" if number == 1 else f"{number} scores are"
        return Verdict(
            direction="bad", text=f"Failed{against}: {scores} not good enough", reasons=tuple(failures.values())
        )
    if results.missing:
        number = len(results.missing)
        unscored = "1 dataset has" if number == 1 else f"{number} datasets have"
        return Verdict(direction="bad", text=f"Incomplete: {unscored} no score", reasons=tuple(failures.values()))
    if background.baseline is None:
        return Verdict(direction="", text="No baseline: nothing to pass or fail")
    if not background.num_compared:
        return Verdict(direction="", text=f"No score could be compared with the baseline {background.baseline.name}")
    number = background.num_compared
    scores = "the score is not" if number == 1 else f"none of {number} scores is"
    return Verdict(direction="good", text=f"Passed{against}: {scores} below it by more than the tolerance")
