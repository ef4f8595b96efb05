"""What the documentation points to is there: files, headings, and the tests that show what it promises."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FOLDERS = ("", "docs", "benchmarks", "benchmarks/real_parts", "benchmarks/results", "fixtures/mini")
PAGES = [page for folder in FOLDERS for page in sorted((REPOSITORY / folder).glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")
TEST = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


def headings_of(page: Path) -> set[str]:
    """The anchors that a page's headings have on GitHub."""
    texts = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"#" + re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, heading in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name} links to {target}"
        if heading:
            assert heading in headings_of(file), f"{page.name} links to {target}{heading}"


def test_every_page_has_a_place_in_the_menu_of_the_site_and_nothing_else_has() -> None:
    program = ast.parse((REPOSITORY / "docs" / "conf.py").read_text(encoding="utf-8"))
    (menu,) = (
        ast.literal_eval(node.value)
        for node in program.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MENU"
    )
    listed = [(REPOSITORY / "docs" / f"{name}.md").resolve() for names in menu.values() for name in names]
    assert sorted([*listed, REPOSITORY / "README.md"]) == sorted(PAGES)


def test_every_promise_has_its_tests() -> None:
    page = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [
        line for line in page.splitlines() if line.startswith("| ") and not re.match(r"\| (promise|fault|---) ", line)
    ]
    assert len(rows) > 40
    for row in rows:
        tests = TEST.findall(row.rsplit("|", 2)[1])
        assert tests, f"no test shows: {row}"
        for file, name in tests:
            text = (REPOSITORY / "tests" / file).read_text(encoding="utf-8")
            assert f"\ndef {name}(" in text, f"{file} has no {name}"
