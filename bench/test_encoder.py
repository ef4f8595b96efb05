"""The encoder keeps its contract: one test per clause."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pytest

from xares_bench.core.errors import EncoderWarning
from xares_bench.encoders.clauses import CLAUSES

if TYPE_CHECKING:
    from xares_bench.encoders.contract_report import ContractReport

pytestmark = pytest.mark.encoder


@pytest.mark.parametrize("clause", CLAUSES)
def test_contract(contract: ContractReport, clause: str) -> None:
    """The clause holds for the user's encoder."""
    outcome = contract.outcomes[clause]
    if outcome.status == "failed":
        pytest.fail(f"{clause}: {outcome.message}", pytrace=False)
    if outcome.status == "not tested":
        pytest.skip(outcome.message)
    if outcome.status == "warning":
        warnings.warn(f"{clause}: {outcome.message}", EncoderWarning, stacklevel=1)
