"""Progress bars for long work; silent unless standard error is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol


class Advance(Protocol):
    """Reports finished units of work, with an optional note such as the loss; may be called from any thread."""

    def __call__(self, num_done: int = 1, note: str = "") -> None:
        """Advance the bar."""


@dataclass(frozen=True)
class Progress:
    """Shows progress bars on a terminal's standard error; elsewhere, nothing.

    Attributes:
        uncaptured: Context in which standard error is the terminal's, e.g. with pytest's capturing off.
        quiet: Whether nothing is shown even on a terminal.
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
            if self.quiet or not sys.stderr.isatty():
                yield _ignore
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


def _ignore(num_done: int = 1, note: str = "") -> None:
    """Report nothing."""
