"""The origin of a run's files: the version and commit of xares-bench that wrote them, and the date of the scores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xares_bench
from xares_bench.core.edition import own_commit
from xares_bench.core.parsing import parse_json
from xares_bench.scores.records import ScoreRecord


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What wrote a run's files.

    Attributes:
        version: Of xares-bench.
        commit: Of xares-bench; None if it is not known.
        date: When the last of the scores was computed, to the second, in UTC; None in a run of an earlier version.
    """

    version: str
    commit: str | None = None
    date: datetime | None = None

    @property
    def day(self) -> str:
        """The date for people to read; empty if it is not known."""
        return "" if self.date is None else f"{self.date:%Y-%m-%d %H:%M} UTC"

    def to_json(self) -> dict[str, str | None]:
        """Return a plain mapping; `from_json` reads it back."""
        date = None if self.date is None else self.date.isoformat()
        return {"version": self.version, "commit": self.commit, "date": date}

    @classmethod
    def from_json(cls, data: Any) -> Origin | None:
        """Return what `to_json` wrote; None for anything else, as no score depends on it."""
        if not isinstance(data, dict) or not isinstance(data.get("version"), str):
            return None
        commit, date = data.get("commit"), None
        with contextlib.suppress(ValueError, OverflowError):
            date = datetime.fromisoformat(str(data.get("date"))).astimezone(UTC)
        return cls(version=data["version"], commit=commit if isinstance(commit, str) else None, date=date)


def origin_of(records: Iterable[ScoreRecord], file: Path) -> Origin:
    """Return the origin of files that are written now.

    Args:
        records: The scores. If this session has computed none of them, they keep their date.
        file: The run's `results.json`, which an earlier session may have written.
    """
    date = None
    if all(record.reused for record in records):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            earlier = Origin.from_json(parse_json(file.read_text(encoding="utf-8")).get("written_by"))
            date = None if earlier is None else earlier.date
    date = date or datetime.now(UTC).replace(microsecond=0)
    return Origin(version=xares_bench.__version__, commit=own_commit(), date=date)
