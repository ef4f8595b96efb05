"""The leaderboard: rows, order, what is incomplete, what is published."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, NO_BROWSER, Page, open_page
from tests.run_factory import Rows, change_results, write_finished_run
from xares_bench.__main__ import main
from xares_bench.config.catalogue import load_catalogue
from xares_bench.core.errors import UsageError
from xares_bench.reports.leaderboard import leaderboard_html, read_runs
from xares_bench.reports.runs import read_run

TASKS = load_catalogue("mini").tasks


def answers(num_right: int) -> Rows:
    return [(f"clip{place}", "dog", "dog" if place < num_right else "cat") for place in range(10)]


def whole(folder: Path, num_right: int, **manifest: object) -> Path:
    rows = {name: answers(num_right) for names in TASKS.values() for name in names}
    return write_finished_run(folder, rows, **{"tasks": TASKS, **manifest})


def rows_of(page: str, preset: str) -> list[list[str]]:
    """Texts of the cells of every row of a preset's table."""
    section = next(part for part in page.split("<section>") if f"The {preset} preset" in part)
    body = section.partition("<tbody>")[2].partition("</tbody>")[0]
    return [re.findall(r">([^<\n]*)</(?:span|td)>", row) for row in body.split("<tr>")[1:]]


def test_the_best_complete_run_comes_first_and_incomplete_ones_last(tmp_path: Path) -> None:
    folders = [whole(tmp_path / "low", 3), whole(tmp_path / "high", 8)]
    folders.append(write_finished_run(tmp_path / "part", {"gtzan": answers(10)}, tasks=TASKS))
    page = leaderboard_html(map(read_run, folders))
    rows = rows_of(page, "mini")
    assert [row[0] for row in rows] == ["highEncoder", "logmel-mini", "lowEncoder", "partEncoder"]
    high, _, _, part = rows
    assert high[2:5] == ["0.800", "0.800", "0.800"], "overall, task 1, task 2"
    assert high[5:9] == ["512", "12.5", "0.001", "60"]
    assert high[9:] == ["0.800"] * 20
    assert "incomplete: task1: 1 of 15 datasets; task2: 0 of 5 datasets" in part
    assert part[3:6] == ["", "", ""], "no overall score of it is shown"
    assert 'title="95 % confidence interval: 0.' in page


def test_published_scores_are_rows_of_the_full_preset(tmp_path: Path) -> None:
    page = leaderboard_html([read_run(whole(tmp_path / "mine", 5, preset="full"))])
    rows = rows_of(page, "full")
    assert [row[0] for row in rows] == ["whisper-base", "dasheng-base", "mineEncoder"]
    assert rows[0][1:5] == ["published", "0.597", "0.652", "0.435"]
    assert "The mini preset" not in page


def test_presets_have_tables_of_their_own(tmp_path: Path) -> None:
    page = leaderboard_html([read_run(whole(tmp_path / "mine", 5))])
    assert page.index("The full preset") < page.index("The mini preset")
    assert "mineEncoder" not in page.partition("The mini preset")[0]


def test_names_cannot_put_anything_into_the_page(tmp_path: Path) -> None:
    encoder = {
        "spec": "x.py",
        "name": "<script>alert(1)</script>",
        "fingerprint": "0f" * 32,
        "arguments": {"name": "编码器 مرمز"},
        "output_dim": 4,
        "frames_per_second": 1.0,
        "realtime_factor": 0.5,
    }
    page = leaderboard_html([read_run(whole(tmp_path / "mine", 5, encoder=encoder))])
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "编码器 مرمز" in page


def test_the_page_loads_nothing_from_the_network(tmp_path: Path) -> None:
    page = leaderboard_html([read_run(whole(tmp_path / "mine", 5))])
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)


@pytest.mark.parametrize("damaged", [["schema"], []])
def test_a_run_that_cannot_be_read_is_left_out_and_named(tmp_path: Path, damaged: Sequence[str]) -> None:
    whole(tmp_path / "good", 5)
    change_results(whole(tmp_path / "bad", 5), **dict.fromkeys(damaged, 1))
    runs, problems = read_runs(tmp_path)
    assert len(runs) == 2 - len(damaged)
    assert len(problems) == len(damaged)
    assert all("bad/results.json has schema 1" in problem for problem in problems)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole(tmp_path / "runs" / "mine", 5)
    assert main(["leaderboard", str(tmp_path / "runs")]) == 0
    assert "leaderboard.html: 1 runs" in capsys.readouterr().out
    assert "mineEncoder" in (tmp_path / "runs" / "leaderboard.html").read_text(encoding="utf-8")
    assert main(["leaderboard", str(tmp_path / "runs"), f"--output={tmp_path / 'a' / 'b.html'}"]) == 0
    assert (tmp_path / "a" / "b.html").is_file()
    assert main(["leaderboard", str(tmp_path / "nothing")]) == 2
    assert "no finished run in " in capsys.readouterr().err
    with pytest.raises(UsageError, match="no finished run"):
        read_runs(tmp_path)


# In a browser.

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)
NAMES = {"a": "Äther", "b": "<img src=x onerror='window.harmed = 1'>", "c": "مرمز", "d": "编码器"}


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Page]:
    with open_page(tmp_path / "profile") as page:
        yield page


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A board of four runs in two presets, whose scores rise with their names."""
    runs = tmp_path / "runs"
    for place, (name, shown) in enumerate(NAMES.items()):
        encoder = {
            "spec": "x.py",
            "name": shown,
            "fingerprint": "0f" * 32,
            "arguments": {},
            "output_dim": 512 - place,
            "frames_per_second": 12.5,
            "realtime_factor": 0.001,
        }
        whole(runs / name, 2 + 2 * place, encoder=encoder)
    write_finished_run(runs / "part", {"gtzan": answers(10)}, tasks=TASKS)
    assert main(["leaderboard", str(runs)]) == 0
    return runs / "leaderboard.html"


def shown_names(browser: Page) -> list[str]:
    """Encoders of the last table, from the top, without rows that are hidden."""
    found: list[str] = browser.evaluate(
        "[...[...document.querySelectorAll('table.board')].at(-1).tBodies[0].rows].filter(row => !row.hidden)"
        ".map(row => row.cells[0].dataset.text)"
    )
    return found


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_opens_without_complaint_and_fits(browser: Page, file: Path, width: int, dark: bool) -> None:
    browser.open(file, width=width, dark=dark)
    assert browser.errors == []
    assert browser.requests == [file.as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("window.harmed === undefined")
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")


@needs_browser
def test_a_header_sorts_and_sorts_back_by_click_and_by_key(browser: Page, file: Path) -> None:
    browser.open(file)
    assert shown_names(browser) == [NAMES["d"], "logmel-mini", NAMES["c"], NAMES["b"], NAMES["a"], "partEncoder"]
    button = "[...document.querySelectorAll('table.board')].at(-1).tHead.rows[0].cells[4].firstElementChild"
    sort = f"{button}.parentElement.getAttribute('aria-sort')"
    browser.evaluate(f"{button}.click()")
    assert browser.evaluate(sort) == "descending"
    widest_first = shown_names(browser)
    assert widest_first.index(NAMES["a"]) < widest_first.index(NAMES["d"])
    assert widest_first[-1] == "logmel-mini", "what has no value is last"
    browser.evaluate(f"{button}.focus(), document.activeElement === {button} && {button}.click()")
    assert browser.evaluate(sort) == "ascending"
    narrowest_first = shown_names(browser)
    assert narrowest_first.index(NAMES["d"]) < narrowest_first.index(NAMES["a"])
    assert narrowest_first[-1] == "logmel-mini"
    assert browser.errors == []


@needs_browser
def test_search_finds_names_in_any_script(browser: Page, file: Path) -> None:
    browser.open(file)
    for query, expected in (("编码", ["d"]), ("مرمز", ["c"]), ("äTHER", ["a"]), ("onerror img", ["b"])):
        browser.evaluate(
            f"(() => {{ const box = document.getElementById('query'); box.value = {json.dumps(query)};"
            " box.dispatchEvent(new Event('input')); })()"
        )
        assert shown_names(browser) == [NAMES[name] for name in expected]
    assert "of 8 rows" in browser.evaluate("document.getElementById('count').textContent")
    assert browser.errors == []
