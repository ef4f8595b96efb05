"""The leaderboard: rows, order, what is incomplete, what is published."""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.browser import CHROMIUM, NO_BROWSER, Page, open_page
from tests.run_factory import Rows, change_results, write_finished_run
from xares_bench.__main__ import main
from xares_bench.config.catalogue import load_catalogue
from xares_bench.core.errors import UsageError
from xares_bench.reports.leaderboard import leaderboard_html
from xares_bench.reports.origin import Origin
from xares_bench.reports.runs import find_runs, read_run

TASKS = load_catalogue("mini").tasks


def answers(num_right: int) -> Rows:
    return [(f"clip{place}", "dog", "dog" if place < num_right else "cat") for place in range(10)]


def whole(folder: Path, num_right: int, **manifest: object) -> Path:
    rows = {name: answers(num_right) for names in TASKS.values() for name in names}
    return write_finished_run(folder, rows, **{"tasks": TASKS, **manifest})


def rows_of(page: str, preset: str) -> list[list[str]]:
    """Texts of the cells of every row of a preset's table."""
    return [texts for row in tables_of(page, preset)[0] if (texts := re.findall(r">([^<\n]*)</(?:span|td)>", row))]


def tables_of(page: str, preset: str) -> list[list[str]]:
    """Markup of the rows of every table of a preset."""
    section = next(part for part in page.split("<section>") if f"The {preset} preset" in part)
    return [table.partition("</tbody>")[0].split("<tr>")[1:] for table in section.split("<tbody>")[1:]]


def test_the_best_complete_run_comes_first_and_incomplete_ones_last(tmp_path: Path) -> None:
    folders = [whole(tmp_path / "low", 3), whole(tmp_path / "high", 8)]
    folders.append(write_finished_run(tmp_path / "part", {"gtzan": answers(10)}, tasks=TASKS))
    page = leaderboard_html(map(read_run, folders), tmp_path)
    rows = rows_of(page, "mini")
    assert [row[0] for row in rows] == ["highEncoder", "logmel-mini", "lowEncoder"]
    high = rows[0][1:]
    assert high[2:5] == ["0.800", "0.800", "0.800"], "overall, task 1, task 2"
    assert high[5] == "", "a run of an earlier version has no date"
    assert high[6:10] == ["512", "12.5", "0.001", "60"]
    assert high[10:] == ["0.800"] * 20
    (part,) = tables_of(page, "mini")[1]
    assert "incomplete: task1: 1 of 15 datasets; task2: 0 of 5 datasets" in part
    assert re.findall(r">([^<]*)</td>", part)[:3] == ["", "", ""], "no overall score of it is shown"
    assert "<summary>1 incomplete run of the mini preset</summary>" in page
    assert 'title="95 % confidence interval: 0.' in page


def test_published_scores_are_rows_of_the_full_preset(tmp_path: Path) -> None:
    page = leaderboard_html([read_run(whole(tmp_path / "mine", 5, preset="full"))], tmp_path)
    rows = rows_of(page, "full")
    assert [row[0] for row in rows] == ["whisper-base", "dasheng-base", "mineEncoder"]
    assert rows[0][1:5] == ["published", "0.597", "0.652", "0.435"]
    assert "The mini preset" not in page


def test_presets_have_tables_of_their_own(tmp_path: Path) -> None:
    page = leaderboard_html([read_run(whole(tmp_path / "mine", 5))], tmp_path)
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
    page = leaderboard_html([read_run(whole(tmp_path / "mine", 5, encoder=encoder))], tmp_path)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "编码器 مرمز" in page


def test_the_page_loads_nothing_from_the_network(tmp_path: Path) -> None:
    page = leaderboard_html([read_run(whole(tmp_path / "mine", 5))], tmp_path)
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#|[.]/)", page)
    assert 'href="./mine/report.html"' in page


def test_links_lead_from_the_page_to_reports_that_are_there(tmp_path: Path) -> None:
    runs = [read_run(whole(tmp_path / "runs" / name, 5)) for name in ("javascript:alert(1)", "a b#c?d%e", "gone")]
    (tmp_path / "runs" / "gone" / "report.html").unlink()
    page = leaderboard_html(runs, tmp_path / "pages")
    links = [html.unescape(link) for link in re.findall(r'<a href="([^"]*)"', page)]
    assert all(link.startswith("./") for link in links)
    found = {(tmp_path / "pages" / unquote(link)).resolve() for link in links}
    assert found == {run.folder / "report.html" for run in runs[:2]}


def test_a_row_has_arguments_deviations_and_date(tmp_path: Path) -> None:
    encoder = {**read_run(whole(tmp_path / "plain", 5)).manifest.encoder, "arguments": {"layer": 6}}
    run = read_run(
        whole(tmp_path / "mine", 9, encoder=encoder, deviations={"batch_size": [32, 64], "x": [None, "<b>"]})
    )
    origin = Origin(version="9.8", commit="c0ffee", date=datetime(2026, 1, 2, 3, tzinfo=UTC))
    row = tables_of(leaderboard_html([replace(run, origin=origin)], tmp_path), "mini")[0][0]
    assert '{"layer": 6}' in html.unescape(row)
    assert re.findall(r'class="tag" dir="auto">([^<]*)<', row) == [
        "batch_size=64 (preset: 32)",
        "x=&lt;b&gt;",
        "mix=task1",
    ]
    assert 'title="2026-01-02 03:00 UTC, xares-bench 9.8, commit c0ffee">2026-01-02</td>' in row


def test_own_datasets_have_a_table_of_their_own(tmp_path: Path) -> None:
    rows = {name: answers(6) for names in TASKS.values() for name in names} | {"birds": answers(7)}
    own = read_run(write_finished_run(tmp_path / "own", rows, tasks={**TASKS, "own": ("birds",)}))
    alone = read_run(write_finished_run(tmp_path / "alone", {"birds": answers(2)}, tasks={**TASKS, "own": ("birds",)}))
    page = leaderboard_html([own, alone, read_run(whole(tmp_path / "other", 5))], tmp_path)
    first, second = tables_of(page, "mini")
    assert [re.findall(r'data-text="([^"]*)"', row)[0] for row in first] == [
        "logmel-mini",
        "ownEncoder",
        "otherEncoder",
    ]
    assert [re.findall(r">([^<]*)</td>", row) for row in second] == [["0.200"], ["0.700"]]
    assert page.count('data-column="birds"') == 1
    assert "incomplete run" not in page, "a run of own datasets alone is no unfinished one"


@pytest.mark.parametrize("damaged", [["schema"], []])
def test_a_run_that_cannot_be_read_is_left_out_and_named(tmp_path: Path, damaged: Sequence[str]) -> None:
    whole(tmp_path / "good", 5)
    change_results(whole(tmp_path / "bad", 5), **dict.fromkeys(damaged, 1))
    runs, problems = find_runs(tmp_path)
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
        find_runs(tmp_path)


# In a browser.

COMPLETE = "[...document.querySelectorAll('section > .scroll > table.board')].at(-1)"
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
    """Encoders of the complete runs of the last preset, from the top, without rows that are hidden."""
    found: list[str] = browser.evaluate(
        f"[...{COMPLETE}.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[0].dataset.text)"
    )
    return found


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 800, 1280])
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
    assert shown_names(browser) == [NAMES["d"], "logmel-mini", NAMES["c"], NAMES["b"], NAMES["a"]]
    button = f"{COMPLETE}.tHead.rows[0].cells[5].firstElementChild"
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


@needs_browser
def test_columns_are_chosen_and_the_address_keeps_the_choice(browser: Page, file: Path) -> None:
    browser.open(file)
    shown = (
        "[...document.querySelector('table.board').tHead.rows[0].cells]"
        ".filter((cell) => cell.checkVisibility()).map((cell) => cell.textContent)"
    )
    everything = browser.evaluate(shown)
    assert everything[:5] == ["encoder", "overall", "task1", "task2", "date"]
    browser.evaluate("document.querySelectorAll('#chooser button')[1].click()")
    wait_for(browser, f"{shown}.length === 1")
    browser.evaluate("document.querySelectorAll('#chooser input')[1].click()")
    wait_for(browser, f"{shown}.length === 2")
    assert browser.evaluate(shown) == ["encoder", "task1"]
    assert browser.evaluate("location.hash").startswith("#hide=overall,task2,")
    browser.evaluate("window.isBefore = true; location.reload()")
    wait_for(browser, f"!window.isBefore && document.readyState === 'complete' && {shown}.length === 2")
    browser.evaluate("document.querySelectorAll('#chooser button')[0].click()")
    wait_for(browser, f"{shown}.length === {len(everything)}")
    browser.evaluate("location.hash = '#hide=%E0%A4%A,date'")
    wait_for(browser, f"{shown}.length === {len(everything) - 1}")
    assert browser.errors == []


def wait_for(browser: Page, condition: str) -> None:
    deadline = time.monotonic() + 20
    while not browser.evaluate(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


@needs_browser
def test_without_script_everything_is_there_to_read(browser: Page, file: Path) -> None:
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(file)
    assert not browser.evaluate("document.getElementById('chooser').checkVisibility()")
    assert browser.evaluate("[...document.querySelectorAll('td[hidden], th[hidden]')].length") == 0
    assert browser.evaluate("document.querySelector('section details').open") is False
