from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from xares_bench.core.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(progress: Progress) -> None:
    with progress.bar("training task1", 3) as advance:
        for step in range(3):
            advance(note=f"loss {step}")


def test_short_work_is_silent_unless_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    work(Progress())
    assert stream.getvalue() == ""


def test_elsewhere_long_work_writes_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = io.StringIO(), [1000.0]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress().bar("training task1", 100, num_before=20) as advance:
        for step in range(21, 101):
            now[0] += 1
            advance(note=f"loss {step}")
    with Progress().bar("fetching shards", 2_000_000, unit="bytes") as advance:
        now[0] += 31
        advance(1_500_000)
    assert stream.getvalue().splitlines() == [
        "xares-bench: training task1: 50 of 100 steps, loss 50",
        "xares-bench: training task1: 80 of 100 steps, loss 80",
        "xares-bench: fetching shards: 1.5 MB of 2.0 MB",
    ]
    with Progress(quiet=True).bar("training task1", 100) as advance:
        now[0] += 31
        advance()
    assert len(stream.getvalue().splitlines()) == 3


def test_a_terminal_shows_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    work(Progress())
    assert "training task1" in stream.getvalue()
    assert "3/3" in stream.getvalue()
    assert "loss 2" in stream.getvalue()


def test_capturing_is_off_while_it_shows_and_on_again_when_the_work_fails() -> None:
    events = []

    @contextlib.contextmanager
    def uncaptured() -> Iterator[None]:
        events.append("off")
        try:
            yield
        finally:
            events.append("on")

    with pytest.raises(RuntimeError), Progress(uncaptured).bar("work", 1):
        raise RuntimeError
    assert events == ["off", "on"]


def test_bytes_are_shown_as_sizes_whatever_thread_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with Progress().bar("fetching shards", 2_000_000, unit="bytes") as advance, ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(advance, 750_000) for _ in range(2)]:
            future.result()
    assert "fetching shards" in stream.getvalue()
    assert "1.5/2.0 MB" in stream.getvalue()


@pytest.mark.parametrize(
    "imports", [("", "import transformers"), ("import transformers", "")], ids=["imported later", "imported already"]
)
def test_transformers_draws_no_bars(imports: tuple[str, str]) -> None:
    program = f"""
{imports[0]}
from xares_bench.core.progress import hush_transformers
hush_transformers()
{imports[1]}
from transformers.utils.logging import is_progress_bar_enabled
raise SystemExit(is_progress_bar_enabled())
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
