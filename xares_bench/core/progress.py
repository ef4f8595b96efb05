"""Progress of long work: bars on a terminal, and elsewhere, as in notebooks and logs, a line now and then."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

# Seconds between two lines where there is no terminal. Shorter work is silent there.
_LINE_S = 30.0


class Advance(Protocol):
    """Reports finished units of work, with an optional note such as the loss; may be called from any thread."""

    def __call__(self, num_done: int = 1, note: str = "") -> None:
        """Advance the bar."""


@dataclass(frozen=True)
class Progress:
    """Shows progress on standard error: bars if it is a terminal, else a line every 30 s.

    Attributes:
        uncaptured: Context in which standard error is the terminal's, e.g. with pytest's capturing off.
        quiet: Whether nothing is shown.
    """

    uncaptured: Callable[[], AbstractContextManager[object]] = field(default=contextlib.nullcontext)
    quiet: bool = False

    def say(self, line: str) -> None:
        """Write a line to standard error at once, past any capturing."""
        if not self.quiet:
            with self.uncaptured():
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()

    @contextlib.contextmanager
    def bar(
        self, description: str, total: int, unit: Literal["steps", "bytes"] = "steps", *, num_before: int = 0
    ) -> Iterator[Advance]:
        """Show a bar of `total` units, `num_before` of them done, during the block; bytes with sizes and speed."""
        with self.uncaptured():
            if self.quiet:
                yield _ignore
                return
            if not sys.stderr.isatty():
                yield _lines(description, total, unit, num_before)
                return
            from rich import progress as rich_progress
            from rich.console import Console

            done: tuple[rich_progress.ProgressColumn, ...] = (rich_progress.MofNCompleteColumn(),)
            if unit == "bytes":
                done = (rich_progress.DownloadColumn(), rich_progress.TransferSpeedColumn())
            columns = (
                rich_progress.TextColumn("{task.description}"),
                rich_progress.BarColumn(),
                *done,
                rich_progress.TimeRemainingColumn(),
                rich_progress.TextColumn("{task.fields[note]}"),
            )
            with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
                task = bars.add_task(description, total=total, completed=num_before, note="")

                def advance(num_done: int = 1, note: str = "") -> None:
                    bars.update(task, advance=num_done, note=note)

                yield advance


def hush_transformers() -> None:
    """Disable the bars that transformers draws, even into logs, when it loads weights; imported already or not."""
    from huggingface_hub.utils import disable_progress_bars

    # On import, transformers disables its own bars if those of huggingface_hub are disabled.
    disable_progress_bars()
    imported = sys.modules.get("transformers.utils.logging")
    if imported is not None:
        imported.disable_progress_bar()


def _lines(description: str, total: int, unit: str, num_before: int) -> Advance:
    """Return what writes a line if the last one, or the beginning, is long enough ago."""
    lock, next_s, num_finished = threading.Lock(), time.monotonic() + _LINE_S, num_before

    def shown(number: int) -> str:
        from rich.filesize import decimal

        return decimal(number) if unit == "bytes" else str(number)

    def advance(num_done: int = 1, note: str = "") -> None:
        nonlocal next_s, num_finished
        with lock:
            num_finished += num_done
            if time.monotonic() < next_s:
                return
            next_s = time.monotonic() + _LINE_S
            amount = f"{shown(num_finished)} of {shown(total)}" + (" steps" if unit == "steps" else "")
            sys.stderr.write(f"xares-bench: {description}: {amount}{f', {note}' if note else ''}\n")
            sys.stderr.flush()

    return advance


def _ignore(num_done: int = 1, note: str = "") -> None:
    """Report nothing."""
