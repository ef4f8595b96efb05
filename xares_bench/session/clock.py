"""The time of a score as pytest-benchmark reports it."""

from __future__ import annotations


class ComputeClock:
    """A timer that advances by recorded seconds.

    A cached score is read from disk in a millisecond, which says nothing about the encoder. With this clock a
    benchmark lasts as long as its score took when it was computed, so that a rerun reports the same time, and
    `--benchmark-compare` compares encoders instead of caches.

    Example:
        >>> clock = ComputeClock()
        >>> start = clock()
        >>> clock.advance(2.5)
        >>> clock() - start
        2.5
    """

    __name__ = "compute seconds"  # as pytest-benchmark's JSON names the timer

    def __init__(self) -> None:
        """Begin at zero."""
        self._now_s = 0.0

    def __call__(self) -> float:
        """Seconds recorded so far."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self._now_s += seconds
