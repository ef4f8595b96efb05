"""Two sides measured in turn, in one process, so that changes in the machine's speed affect both."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

LINES: pytest.StashKey[list[str]] = pytest.StashKey()

Work = Callable[[], object]
Report = Callable[[str], None]
"""Shows a line, with the test's title, at the end of the session."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Measures ours beside others, and leaves a line for the end of the session and figures in pytest-benchmark's JSON.

    Attributes:
        benchmark: Of the test.
        say: Adds a line to what the session shows at its end.
        rounds: How often.
    """

    benchmark: BenchmarkFixture
    say: Report
    rounds: int
    _seconds: dict[str, list[float]] = field(default_factory=dict)

    def measure(
        self, ours: Callable[..., object], others: Mapping[str, Work], *, prepare: Work | None = None, per: int = 1
    ) -> Mapping[str, float]:
        """Medians in seconds, by side: `ours` and the names of the others.

        Args:
            ours: What is measured.
            others: What it is measured beside, each round before it.
            prepare: Makes the argument of `ours`, unmeasured.
            per: Units, such as steps or clips, that a call works off; seconds are those of one.
        """

        def run_others() -> tuple[tuple[object, ...], dict[str, Any]]:
            for name, work in others.items():
                self._timed(name, work)
            return ((prepare(),) if prepare is not None else ()), {}

        def run_ours(*arguments: object) -> None:
            self._timed("ours", lambda: ours(*arguments))

        pedantic: Any = self.benchmark.pedantic  # untyped
        pedantic(run_ours, setup=run_others, rounds=self.rounds)
        medians = {name: statistics.median(seconds) / per for name, seconds in self._seconds.items()}
        self.note(ours_s=medians["ours"])
        parts = [f"ours {_shown(medians['ours'])}"]
        for name in others:
            # Round by round, since the spread of the ratio is what tells how far it can be trusted.
            ratios = [other / own for other, own in zip(self._seconds[name], self._seconds["ours"], strict=True)]
            ratio = medians[name] / medians["ours"]
            self.note(**{f"{name}_s": medians[name], f"{name}_ratio": ratio, f"{name}_ratios": ratios})
            parts.append(f"{name} {_shown(medians[name])} = {ratio:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")
        self.say(", ".join(parts))
        return medians

    def note(self, **figures: object) -> None:
        """Write figures into the benchmark's JSON."""
        self.benchmark.extra_info.update(figures)

    def _timed(self, name: str, work: Work) -> None:
        started = time.perf_counter()
        work()
        self._seconds.setdefault(name, []).append(time.perf_counter() - started)


@contextlib.contextmanager
def threads(num_threads: int) -> Iterator[None]:
    """So many threads of torch's for the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _shown(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"
