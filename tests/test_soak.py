"""Sessions one after another in one process, as a notebook or a sweep has them: what they hold does not grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

NUM_WARM = 2  # sessions after which every library has its threads and its files open
LEEWAY_BYTES = 128 * 2**20  # how much the allocator's resident share moves while nothing is kept


@pytest.mark.parametrize(
    ("num_sessions", "tests"),
    [(6, "task2"), pytest.param(50, "task1 or task2", marks=pytest.mark.slow)],
    ids=["six of task2", "fifty of all"],
)
def test_what_a_process_holds_does_not_grow(tmp_path: Path, num_sessions: int, tests: str) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    ran = subprocess.run(
        [sys.executable, "-m", "tests.soak", str(num_sessions), str(tmp_path), "-k", tests, "--set", "steps=5"],
        cwd=REPOSITORY,
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    held = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [after["status"] for after in held] == [0] * num_sessions
    warm, last = held[NUM_WARM - 1], held[-1]
    assert last["resident_bytes"] < warm["resident_bytes"] + LEEWAY_BYTES
    for what in ("threads", "children", "open_files", "temporary_files", "tensor_bytes"):
        assert [what, last[what]] == [what, warm[what]]
