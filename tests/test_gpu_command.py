"""The command for machines with a GPU, as far as it runs without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY


def run(out: Path, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), *options]
    subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)
    return [json.loads(line) for line in (out / "gpu.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_part_leaves_a_line_with_its_figures(tmp_path: Path) -> None:
    facts, equality, step, generation = run(tmp_path, "--tiny", "--only", "facts,equality,step,generation")
    assert facts["torch"]
    assert equality["texts are equal"]
    assert equality["losses"][0] == equality["losses"][1]
    expected = step["tiny"]["kernel by kernel"]["losses"]
    for kind in step["tiny"].values():
        assert kind["losses"] == pytest.approx(expected, rel=1e-3)
        assert "warnings" not in kind
    assert generation["40 tokens, ms a clip"] > 0
    assert generation["kernel by kernel"]["40 tokens, ms a clip"] > 0
    assert not generation["recorded"]
    assert generation["problems"] == []


def test_a_part_that_fails_leaves_its_last_lines_and_stops_no_other(tmp_path: Path) -> None:
    first, second = run(tmp_path, "--only", "facts,memory", "--budget-s", "60")
    assert [first["part"], second["part"]] == ["facts", "memory"]
    for line in (first, second):
        assert "failed" not in line or "torch finds no GPU here; --tiny runs the parts on a CPU" in line["failed"]


def test_what_the_budget_leaves_no_time_for_is_said(tmp_path: Path) -> None:
    (line,) = run(tmp_path, "--tiny", "--only", "facts", "--budget-s", "1")
    assert line == {"part": "facts", "left out": "the budget is used up"}
