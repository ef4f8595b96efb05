from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import xares_bench
from tests.reports.test_report import results, scored
from xares_bench.core.edition import own_commit
from xares_bench.reports.origin import Origin, origin_of
from xares_bench.reports.report import results_json

DATE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_it_is_read_back_as_it_was_written() -> None:
    origin = Origin(version="1", commit="0a", date=DATE)
    assert Origin.from_json(json.loads(json.dumps(origin.to_json()))) == origin
    assert origin.day == "2026-01-02 03:04 UTC"
    assert Origin(version="1").day == ""


@pytest.mark.parametrize("data", [None, [], {}, {"version": 1}, "x"])
def test_what_is_no_origin_is_none(data: Any) -> None:
    assert Origin.from_json(data) is None


def test_what_is_not_known_of_it_is_left_out() -> None:
    assert Origin.from_json({"version": "1", "commit": 3, "date": "soon"}) == Origin(version="1")
    assert Origin.from_json({"version": "1", "date": [1]}) == Origin(version="1")


def test_scores_that_were_computed_have_the_date_of_now(tmp_path: Path) -> None:
    found = origin_of([scored("gtzan", 0.5)], tmp_path / "results.json")
    assert (found.version, found.commit) == (xares_bench.__version__, own_commit())
    assert found.date is not None
    assert timedelta(0) <= datetime.now(UTC) - found.date < timedelta(minutes=1)


def test_scores_that_were_all_reused_keep_their_date(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    origin = Origin(version="0", commit=None, date=DATE)
    file.write_text(
        results_json(dataclasses.replace(results(scored("gtzan", 0.5)), origin=origin), {}), encoding="utf-8"
    )
    reused = dataclasses.replace(scored("gtzan", 0.5), reused=True)
    assert origin_of([reused], file).date == DATE
    assert origin_of([reused, scored("esc-50", 0.5)], file).date != DATE
    file.write_text("{", encoding="utf-8")
    assert origin_of([reused], file).date != DATE
