from __future__ import annotations

import re
from pathlib import Path

from xares_bench.encoders import contract
from xares_bench.encoders.clauses import CLAUSES


def test_every_clause_is_one_sentence() -> None:
    assert len(CLAUSES) == 24
    assert all(re.fullmatch(r"[A-Z][^\n]*\.", sentence) for sentence in CLAUSES.values())


def test_the_check_names_no_clause_that_does_not_exist() -> None:
    source = Path(contract.__file__).read_text(encoding="utf-8")
    named = re.findall(r'check\.(?:fail|settle|holds|try_encode)\(\s*"([a-z-]+)"', source)
    assert set(named) <= set(CLAUSES)
    assert len(named) > 10
