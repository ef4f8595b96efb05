from __future__ import annotations

import doctest

from xares_bench.session import clock
from xares_bench.session.clock import ComputeClock


def test_only_recorded_seconds_pass() -> None:
    timer = ComputeClock()
    assert timer() == timer() == 0.0
    timer.advance(1.5)
    timer.advance(2.0)
    assert timer() == 3.5


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(clock) == doctest.TestResults(0, 4)
