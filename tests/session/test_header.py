"""The header's lines that do not need a real encoder; tests/test_bench.py has whole headers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.config.test_plan import plan
from tests.session.conftest import OpenSession
from xares_bench.core.errors import DataError, EncoderError, XaresError
from xares_bench.session.header import _cache_lines, _processes, _recipe, header_lines
from xares_bench.session.session import BenchSession


def test_a_session_that_is_not_ready_says_why_after_its_title(open_session: OpenSession) -> None:
    session = open_session()
    session.not_ready = DataError("the hub cannot be asked")
    title, reason = header_lines(session)
    assert title.startswith("xares-bench: preset mini, ")
    assert reason == "not ready: the hub cannot be asked"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (EncoderError("shape", "found [1, 2]"), "encoder: breaks its contract, clause shape: found [1, 2]"),
        (DataError("a shard is missing"), "not ready: a shard is missing"),
    ],
)
def test_what_keeps_a_run_from_being_described_is_the_header(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch, error: XaresError, line: str
) -> None:
    def fail(_: BenchSession) -> Any:
        raise error

    monkeypatch.setattr(BenchSession, "suite", property(fail))
    assert header_lines(open_session())[1:] == [line]


def test_the_recipe_is_the_preset_or_what_differs_from_it() -> None:
    assert _recipe(plan(), ["esc-50", "clotho"]).startswith("preset defaults; steps: task1 ")
    changed = _recipe(plan("steps=4", num_seeds=2), ["clotho"])
    assert changed.startswith("steps=4; "), "the preset gives no number of steps for all mixes"
    assert _recipe(plan("batch_size=4"), ["clotho"]).startswith("batch_size=4 (preset: 32); steps: ")
    assert changed.endswith("; steps: task2 4, each with the seeds 42 to 43")


def test_one_of_several_gpus_says_how_to_use_all() -> None:
    suite: Any = SimpleNamespace(num_processes=1, num_devices=1)
    assert _processes(suite) == ""
    suite.num_devices = 4
    assert "accelerate launch --num_processes=4 -m pytest" in _processes(suite)
    suite.num_processes = 4
    assert _processes(suite) == ", 4 processes"


def test_what_is_cached_is_unknown_while_a_shard_is_missing() -> None:
    class Missing:
        def reuse(self, _: object) -> None:
            raise DataError("no shard one.tar")

    suite: Any = SimpleNamespace(preflight=Missing())
    assert _cache_lines(suite, ["clotho"]) == ["cached: unknown: no shard one.tar"]
