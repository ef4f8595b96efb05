from __future__ import annotations

import doctest
import shutil
from pathlib import Path
from typing import Any

import pytest

from xares_bench.core.errors import UsageError
from xares_bench.hub import survey as module
from xares_bench.hub.survey import HubFile, Survey, free_bytes, size_on_disk, total_bytes


def a_file(size_bytes: int | None = 1000) -> HubFile:
    return HubFile(repository="owner/shards", path="a.tar", size_bytes=size_bytes)


def a_survey(**fields: Any) -> Survey:
    present: dict[str, Any] = {
        "folder": Path("data"),
        "num_files": 2,
        "size_bytes": 2000,
        "num_present": 2,
        "present_bytes": 2000,
        "missing_bytes": 0,
        "free_bytes": 5000,
    }
    return Survey(**{**present, **fields})


def test_the_examples_of_the_documentation_hold() -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


@pytest.mark.parametrize(
    ("fields", "summary"),
    [
        ({}, "2 files, 2.0 kB; all present; 5.0 kB free"),
        ({"unchecked": (a_file(),)}, "2 files, 2.0 kB; all present (1 to check); 5.0 kB free"),
        ({"num_present": 1, "absent": (a_file(),)}, "2 files, 2.0 kB; 1 present, 1 not in the repository; 5.0 kB free"),
        (
            {"num_files": 1, "num_present": 0, "missing": (a_file(None),)},
            "1 file; 0 present, 1 to fetch (size unknown); 5.0 kB free",
        ),
    ],
)
def test_the_summary_names_what_there_is_to_do(fields: dict[str, Any], summary: str) -> None:
    assert a_survey(**fields).summary == summary


def test_bytes_of_unfinished_transfers_need_no_room() -> None:
    a_survey(missing_bytes=7000, partial_bytes=2000).check_space()
    with pytest.raises(UsageError, match=r"^data: 5\.0 kB to fetch, 5\.0 kB free on its disk; make room"):
        a_survey(missing_bytes=7000, partial_bytes=1999).check_space()


def test_sizes_of_what_is_not_there_or_not_known_count_nothing(tmp_path: Path) -> None:
    assert total_bytes([a_file(3), a_file(None), a_file(4)]) == 7
    (tmp_path / "a").write_bytes(b"abc")
    assert (size_on_disk(tmp_path / "a"), size_on_disk(tmp_path / "b")) == (3, 0)
    assert free_bytes(tmp_path / "b" / "c") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
