"""What jobs get of the machine; what they do is in test_sweep.py."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from xares_bench.runtime.variables import END_WITH_PARENT
from xares_bench.sweeps.jobs import environments_of


@pytest.mark.parametrize(
    ("num_jobs", "gpus", "seen", "threads"),
    [
        (None, [], [None], [None]),
        (None, ["0", "2"], ["0", "2"], [None, None]),
        (3, ["0", "2"], ["0", "2", "0"], [None] * 3),
        (2, [], [None, None], ["4", "4"]),
        (16, [], [None] * 16, ["1"] * 16),
    ],
)
def test_jobs_share_gpus_and_processors(
    num_jobs: int | None,
    gpus: Sequence[str],
    seen: list[str | None],
    threads: list[str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = environments_of(num_jobs, gpus, 8)
    assert [one.get("CUDA_VISIBLE_DEVICES") for one in found] == seen
    assert [one.get("OMP_NUM_THREADS") for one in found] == threads
    assert all(one[END_WITH_PARENT] == "1" for one in found)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert {one["OMP_NUM_THREADS"] for one in environments_of(num_jobs, gpus, 8)} == {"7"}
