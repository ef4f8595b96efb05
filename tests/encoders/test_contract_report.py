from __future__ import annotations

from typing import Any

import pytest

from xares_bench.core.errors import EncoderError
from xares_bench.encoders.clauses import CLAUSES
from xares_bench.encoders.contract_report import ContractReport, Outcome, completed, stopped

NAMES = tuple(CLAUSES)


def report(**outcomes: Outcome) -> ContractReport:
    passed = {clause: Outcome(status="passed") for clause in NAMES}
    return ContractReport(
        encoder=None, outcomes={**passed, **outcomes}, honours_mask=True, frames_per_second=12.5, realtime_factor=0.1
    )


def test_an_error_passes_the_clauses_before_it_and_leaves_those_after_it_untested() -> None:
    found = stopped(None, {}, NAMES[:4], EncoderError(NAMES[2], "broken"))
    assert [found.outcomes[clause].status for clause in NAMES[:4]] == ["passed", "passed", "failed", "not tested"]
    assert found.failure == (NAMES[2], "broken")
    assert found.outcomes[NAMES[-1]] == Outcome(status="not tested", message=f"{NAMES[2]} does not hold")


def test_an_earlier_outcome_is_not_overwritten_by_a_pass() -> None:
    earlier = {NAMES[0]: Outcome(status="warning", message="odd")}
    assert stopped(None, earlier, NAMES[:2], EncoderError(NAMES[1], "broken")).warnings == ((NAMES[0], "odd"),)


def test_without_a_failure_every_clause_needs_an_outcome() -> None:
    with pytest.raises(AssertionError):
        completed({NAMES[0]: Outcome(status="passed")})


def test_a_report_reads_back_from_json_as_a_reused_one() -> None:
    written = report(lengths=Outcome(status="passed", message="12.5 frames per second"))
    encoder: Any = object()
    read = ContractReport.from_json(written.to_json(), encoder)
    assert read.encoder is encoder
    assert read.reused
    assert read.to_json() == written.to_json()
