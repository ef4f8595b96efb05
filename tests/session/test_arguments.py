"""The options: how their values are read."""

from __future__ import annotations

import pytest

from tests.conftest import REPOSITORY

BENCH = REPOSITORY / "bench"


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("50GB", 50 * 10**9),
        ("300MB", 300 * 10**6),
        ("1.5g", 1_500_000_000),
        ("2 TB", 2 * 10**12),
        ("12k", 12_000),
        ("0.1kb", 100),
        ("700", 700),
        ("0", 0),
        ("0B", 0),
    ],
)
def test_a_budget_is_a_size(pytester: pytest.Pytester, text: str, size_bytes: int) -> None:
    assert pytester.parseconfig(BENCH, f"--feature-budget={text}").getoption("xares_feature_budget") == size_bytes


def test_no_budget_is_none(pytester: pytest.Pytester) -> None:
    assert pytester.parseconfig(BENCH).getoption("xares_feature_budget") is None


@pytest.mark.parametrize("text", ["abc", "", "GB", "-1", "50PB", "1e9", "50 G B", "1.GB", "nan", "5%"])
def test_what_is_no_size_is_refused_in_a_line(pytester: pytest.Pytester, text: str) -> None:
    result = pytester.runpytest_inprocess(BENCH, f"--feature-budget={text}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = (line for line in result.errlines if "--feature-budget" in line and "error" in line)
    assert line.endswith(f"argument --feature-budget: found {text!r}, expected a size, e.g. 50GB, 300MB or 0")
