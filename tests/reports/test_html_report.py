"""The page of a run: what is in its file, and what a browser makes of it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.browser import CHROMIUM, NO_BROWSER, Page, open_page
from tests.run_factory import write_finished_run
from tests.shard_factory import tone, write_shard
from xares_bench.reports import html_report
from xares_bench.reports.html_report import report_html
from xares_bench.reports.origin import Origin
from xares_bench.reports.report import write_run
from xares_bench.reports.results import Background, ClipSource, Results
from xares_bench.reports.runs import read_run
from xares_bench.scores.baselines import Baseline, BaselineScore

MARKUP = "<script>window.harmed = 1</script><img src=x onerror='window.harmed = 2'></script><!--"
ARABIC = "كلب ينبح في الحديقة"
CHINESE = "一只狗在公园里叫"
DATASETS = ("esc-50", "gtzan", "cremad", "nsynth", "vocalsound")
ROWS = {
    **{
        name: [(f"{name}-{n}", "dog" if n % 2 else "cat", "dog" if n % 3 else "cat") for n in range(12)]
        for name in DATASETS
    },
    "librispeech": [("l0", "a plain target", MARKUP), ("l1", ARABIC, ARABIC[:6]), ("l2", CHINESE, "")],
}
TASKS = {"task1": DATASETS, "task2": ("librispeech",)}


class Reader(HTMLParser):
    """Elements with their attributes, and the text of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._tag = tag

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag == "script":
            self.scripts.append(data)
        elif self._tag != "style":
            self.text += data + " "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run beside another one, with a loss curve."""
    monkeypatch.setattr("tests.run_factory.TASKS", TASKS)
    lalm = tmp_path / "runs" / "store" / "lalms" / ("b" * 64)
    lalm.mkdir(parents=True)
    losses = "".join(f"{step}\t{5 / step:.6f}\n" for step in range(1, 501))
    (lalm / "loss.tsv").write_text("step\tloss\n" + losses, encoding="utf-8")
    write_finished_run(tmp_path / "runs" / "other", ROWS, tasks=TASKS)
    return write_finished_run(tmp_path / "runs" / "own", ROWS, tasks=TASKS)


@pytest.fixture
def background(tmp_path: Path) -> Background:
    """A baseline, and the shard of one of the datasets."""
    shard = write_shard(
        tmp_path / "esc.tar", [(f"esc-50-{n}", tone(0.3 + n / 10), {"label": "x"}) for n in range(12)], suffix="flac"
    )
    scores = {name: BaselineScore(score=0.7, interval=(0.6, 0.8)) for name in DATASETS}
    return Background(
        command="pytest bench --encoder=own.py --set 'a=<b>'",
        baseline=Baseline(
            name="before",
            preset="mini",
            scores=scores,
            overalls={"task1": BaselineScore(score=0.7)},
            note="",
            fingerprints={},
            path=Path("before.yaml"),
        ),
        differences={"esc-50": (-0.25, -0.125)},
        sources={
            "esc-50": ClipSource(prompts=("What is heard?",), shards=(shard,)),
            "gtzan": ClipSource(prompts=("Which genre?",), shards=(tmp_path / "absent.tar",)),
        },
    )


def results_of(folder: Path, **values: Any) -> Results:
    found = read_run(folder)
    return Results(run=found.manifest, records=tuple(found.records.values()), lalms=found.lalms, **values)


def predictions_in(reader: Reader) -> dict[str, list[list[Any]]]:
    return {part["name"]: part["rows"] for part in json.loads(reader.scripts[0])}


def test_the_page_loads_nothing_and_runs_only_its_own_script(folder: Path, background: Background) -> None:
    page = report_html(results_of(folder), folder, background)
    reader = Reader(page)
    addresses = [
        value for _, attributes in reader.elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert addresses
    assert all(value is not None and value.startswith(("data:", "#")) for value in addresses)
    assert "@import" not in page
    assert "url(" not in page
    policy = next(meta["content"] for meta in reader.all("meta") if "http-equiv" in meta) or ""
    (allowed,) = re.findall(r"script-src 'sha256-([^']+)'", policy)
    assert base64.b64encode(hashlib.sha256(reader.scripts[1].encode()).digest()).decode() == allowed
    assert "default-src 'none'" in policy
    assert not [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]


def test_what_a_prediction_holds_is_never_markup(folder: Path, background: Background) -> None:
    reader = Reader(report_html(results_of(folder), folder, background))
    assert len(reader.all("script")) == len(reader.scripts) == 2
    assert not reader.all("img")
    assert predictions_in(reader)["librispeech"][0] == ["l0", "a plain target", MARKUP, 0.0]
    assert predictions_in(reader)["librispeech"][2][1:3] == [CHINESE, ""]
    assert MARKUP in reader.text, "among the worst clips"
    assert "--set 'a=<b>'" in reader.text


def test_scores_stand_beside_the_baseline(folder: Path, background: Background) -> None:
    results = results_of(folder, missing=("clotho",))
    page = report_html(results, folder, background)
    text = " ".join(Reader(page).text.split())
    record = results.records[0]
    assert record.interval is not None
    low, high = record.interval
    difference = f"{record.score - 0.7:+.3f} -0.250 to -0.125"
    expected = f"esc-50 Accuracy {record.score:.3f} {low:.3f} to {high:.3f} 0.500 0.700 {difference}"
    assert expected in text
    assert "No score: clotho." in text
    assert f"left: {100 * low:.2f}%; right: calc(100% - {100 * high:.2f}%)" in page
    assert page.count('class="area') == 2, "the run's and the baseline's"


def test_a_licence_stands_beside_the_clips(tmp_path: Path) -> None:
    for licences, shown in (({"esc-50": "CC-BY-NC-3.0, <b>"}, ", licence CC-BY-NC-3.0, &lt;b&gt;"), ({}, "")):
        folder = write_finished_run(tmp_path / "runs" / "own", {"esc-50": ROWS["esc-50"]}, data={"licences": licences})
        (heading,) = re.findall(
            r"<summary><b>esc-50</b> .*Accuracy.*</summary>", (folder / "report.html").read_text(encoding="utf-8")
        )
        assert heading == f'<summary><b>esc-50</b> <span class="faint small">Accuracy 0.500{shown}</span></summary>'


def test_verdict_date_commit_and_deviations_stand_at_the_top(folder: Path, background: Background) -> None:
    results = results_of(
        folder, origin=Origin(version="9.8", commit="c0ffee" * 7, date=datetime(2026, 1, 2, tzinfo=UTC))
    )
    run = dataclasses.replace(
        results.run,
        deviations={"learning_rate": [0.1, 0.2], "note": [None, MARKUP]},
        encoder={**results.run.encoder, "arguments": {"layer": 6}},
    )
    background = dataclasses.replace(background, failures={"esc-50": f"esc-50 is too low {MARKUP}"})
    page = report_html(dataclasses.replace(results, run=run), folder, background)
    assert page.count("<script") == 2
    top = " ".join(Reader(page.partition("<main>")[0]).text.split())
    for expected in (
        "Failed against the baseline before: 1 score is not good enough.",
        "esc-50 is too low",
        "chance 0.500",
        "learning_rate 0.2 (preset: 0.1)",
        '{"layer": 6}',
        "2026-01-02 00:00 UTC",
        "xares-bench 9.8, commit c0ffeec0ffee",
    ):
        assert expected in top, expected
    plain = " ".join(Reader(report_html(results_of(folder), folder, Background())).text.split())
    assert "No baseline: nothing to pass or fail." in plain
    assert "Date unknown" in plain
    assert "without arguments" in plain


def test_scores_that_are_no_better_than_chance_are_named(folder: Path) -> None:
    text = " ".join(Reader(report_html(results_of(folder), folder, Background())).text.split())
    near = re.findall(r"Not above chance: ([^.]*)[.]", text)[0].split(", ")
    rows = ROWS["gtzan"]
    assert 2 * sum(target == "dog" for _, target, _ in rows) == len(rows), "chance is one half"
    accuracies = results_of(folder).records[: len(DATASETS)]
    assert near == [
        record.dataset for record in accuracies if record.interval is not None and record.interval[0] <= 0.5
    ]
    (folder / "predictions" / "gtzan.jsonl").unlink()
    text = Reader(report_html(results_of(folder), folder, Background())).text
    assert "chance 0." not in " ".join(text.partition("Encoder")[0].split()), "no overall level without one of gtzan"


def test_the_worst_clips_can_be_heard_where_their_shard_is_there(folder: Path, background: Background) -> None:
    reader = Reader(report_html(results_of(folder), folder, background))
    sources = [audio["src"] or "" for audio in reader.all("audio")]
    assert len(sources) == html_report.WORST_CLIPS
    for source in sources:
        samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert rate_hz == 16_000
        assert 0.2 < len(samples) / rate_hz < 1.6
    assert "Prompt: What is heard?" in reader.text
    assert "its shard is missing or cannot be read: absent.tar" in reader.text
    assert "its test shards are unknown" in reader.text


def test_other_runs_and_losses_are_drawn(folder: Path) -> None:
    page = report_html(results_of(folder), folder, Background())
    reader = Reader(page)
    assert "own (this run)" in " ".join(reader.text.split())
    assert "otherEncoder" in reader.text
    assert len(reader.all("circle")) == 4, "two runs, two tasks"
    assert "mean over the last 5 % of steps, seed 42:" in reader.text
    assert 'class="curve s1"' in page
    (folder.parent / "store" / "lalms" / ("b" * 64) / "loss.tsv").unlink()
    page = report_html(results_of(folder), folder, Background())
    assert "The loss curve is no longer cached" in page
    assert 'class="curve' not in page


def test_the_confusion_matrices_of_classifications_are_counted(folder: Path) -> None:
    page = report_html(results_of(folder), folder, Background())
    assert page.count('<table class="matrix">') == len(DATASETS)
    rows = ROWS["esc-50"]
    for label, predicted in (("dog", "cat"), ("cat", "dog")):
        count = sum(row[1:] == (label, predicted) for row in rows)
        assert re.search(rf"{label}.*>{count}</td>", page)
    assert "most frequent mistake: " in page
    assert page.count('<th scope="row"><bdi>other</bdi></th>') == 0, "no dataset has more than 20 labels"
    assert page.count('<th scope="row"><bdi>dog</bdi></th>') == page.count('<th scope="row"><bdi>cat</bdi></th>') == 5


def test_only_some_rows_of_a_large_dataset_are_searchable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html_report, "MAX_ROWS", 3)
    reader = Reader(report_html(results_of(folder), folder, Background()))
    found = predictions_in(reader)["esc-50"]
    assert len(found) == 3
    assert all(value == 0 for *_, value in found), "the worst"
    assert "esc-50 (12 rows)" in reader.text
    assert "librispeech (3 rows)" not in reader.text


def test_everything_to_reproduce_the_run_is_there(folder: Path, background: Background) -> None:
    results = results_of(folder)
    sources = {"repositories": {"owner/data": "c0ffee"}, "test_repositories": {"esc-50": "owner/data"}}
    run = dataclasses.replace(
        results.run,
        deviations={"learning_rate": [0.1, 0.2]},
        data={"revision": "abc", **sources},
        encoder={**results.run.encoder, "commit": "facade", "arguments": {"layer": 6}},
    )
    text = " ".join(Reader(report_html(dataclasses.replace(results, run=run), folder, background)).text.split())
    for expected in (
        "pytest bench --encoder=own.py",
        "fingerprint " + "0f" * 32,
        "commit facade",
        '{"layer": 6}',
        "learning_rate 0.2 (preset: 0.1)",
        "repository owner/data c0ffee",
        "threads 2",
        "torch 2.13.0",
        "seeds [42]",
        "score " + "a" * 64,
    ):
        assert expected in text, expected
    assert "test_repositories" not in text, "the repositories have rows of their own"


def test_several_seeds_show_their_spread_and_whose_predictions_these_are(folder: Path) -> None:
    results = results_of(folder)
    run = dataclasses.replace(results.run, seeds=(42, 43))
    records = tuple(dataclasses.replace(record, seed_scores=(0.5, 0.6)) for record in results.records)
    text = Reader(report_html(dataclasses.replace(results, run=run, records=records), folder, Background())).text
    assert "±0.071" in text
    assert text.count("From the LALMs of the first training seed, 42, only.") == 3
    assert "first training seed" not in Reader(report_html(results, folder, Background())).text


def test_a_run_without_predictions_says_so(folder: Path) -> None:
    (folder / "predictions" / "gtzan.jsonl").write_text("{", encoding="utf-8")
    (folder / "predictions" / "cremad.jsonl").unlink()
    text = Reader(report_html(results_of(folder), folder, Background())).text
    assert text.count("its predictions cannot be read") == 2


def test_a_run_with_nan_scores_has_a_page(folder: Path) -> None:
    results = results_of(folder)
    records = tuple(
        dataclasses.replace(record, score=float("nan"), interval=None, deviation=None, seed_scores=(float("nan"),))
        for record in results.records
    )
    page = report_html(dataclasses.replace(results, records=records), folder, Background())
    assert "nan%" not in page
    assert "Nothing to show" in page


def test_clips_that_share_a_name_are_not_played(folder: Path, background: Background) -> None:
    results = results_of(folder)
    records = tuple(dataclasses.replace(record, num_clips=record.num_clips + 1) for record in results.records)
    text = Reader(report_html(dataclasses.replace(results, records=records), folder, background)).text
    assert "Several clips share a name" in text


def test_an_error_in_the_page_loses_no_score(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("no template")

    results = results_of(folder)
    (folder / "results.json").unlink()
    assert (folder / "report.html").is_file()
    monkeypatch.setattr("xares_bench.reports.html_report._rendered", fail)
    (problem,) = write_run(folder, results).optional
    assert "report.html is not written: RuntimeError: no template" in problem
    assert not (folder / "report.html").exists(), "an earlier one would show other scores"
    assert read_run(folder).records == {record.dataset: record for record in results.records}
    assert (folder / "model_card.yaml").is_file()


def test_an_unchanged_page_is_reused_without_reading_audio_again(
    folder: Path, background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = results_of(folder)
    assert write_run(folder, results, background).optional == ()
    page = (folder / "report.html").read_bytes()
    assert write_run(folder, dataclasses.replace(results, wall_s=1.0), background).optional == ()
    assert (folder / "report.html").read_bytes() == page, "recomputed Ogg streams would have other serial numbers"
    (shard,) = background.sources["gtzan"].shards
    write_shard(shard, [(name, tone(0.3), {"label": "x"}) for name, _, _ in ROWS["gtzan"]])
    again = report_html(results, folder, background)
    assert again.count("<audio ") == 2 * html_report.WORST_CLIPS, "a shard that has come since is read"
    (folder / "report.html").write_bytes(page[:-100])
    assert report_html(results, folder, background).endswith("</html>")
    changed = dataclasses.replace(background, command="pytest bench --seeds=3")
    assert "--seeds=3" in report_html(results, folder, changed)


# In a browser.

OPEN_ALL = "for (const part of document.querySelectorAll('details')) part.open = true"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Page]:
    with open_page(tmp_path / "profile") as page:
        yield page


@pytest.fixture
def file(folder: Path, background: Background) -> Path:
    write_run(folder, results_of(folder), background)
    return folder / "report.html"


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 800, 1280])
def test_a_browser_shows_it_without_complaint(
    browser: Page, file: Path, width: int, dark: bool, tmp_path: Path
) -> None:
    browser.open(file, width=width, dark=dark)
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    colours = browser.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    ground, text = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (ground < text) == dark
    assert browser.evaluate("window.harmed") is None
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


@needs_browser
def test_nothing_is_cut_off_or_tiny_on_a_phone(browser: Page, file: Path) -> None:
    browser.open(file, width=400)
    browser.evaluate(OPEN_ALL)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 400
    outside = browser.evaluate(
        """[...document.querySelectorAll("body *")].filter((element) => {
          const box = element.getBoundingClientRect();
          const isOutside = box.width > 0 && (box.right > 401 || box.left < -1);
          return isOutside && !element.closest(".scroll, thead, pre, .contents");
        }).map((element) => element.outerHTML.slice(0, 100))"""
    )
    assert outside == []
    sizes = browser.evaluate(
        """[...document.querySelectorAll("svg text")].map((text) => text.getBoundingClientRect())
          .filter((box) => box.width > 0).map((box) => box.height)"""
    )
    assert sizes
    assert min(sizes) >= 9
    labels = browser.evaluate("[...document.querySelectorAll('.matrix tbody th')].map((label) => label.clientHeight)")
    assert max(labels) < 50, "labels of a word stand on a line"


@needs_browser
def test_the_page_is_short_until_a_section_is_opened(browser: Page, file: Path) -> None:
    browser.open(file)
    height = "document.documentElement.scrollHeight"
    closed = browser.evaluate(height)
    assert closed < 2500
    browser.evaluate(OPEN_ALL)
    assert browser.evaluate(height) > 2 * closed


@needs_browser
@pytest.mark.parametrize("has_script", [True, False])
def test_contents_open_their_sections_by_key_and_stay_in_sight(browser: Page, file: Path, has_script: bool) -> None:
    browser.send("Emulation.setScriptExecutionDisabled", value=not has_script)
    browser.open(file)
    part = "document.getElementById('worst').closest('details')"
    assert not browser.evaluate(f"{part}.open")
    browser.evaluate("document.querySelector('.contents a[href=\"#worst\"]').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.send(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
        )
    deadline = time.monotonic() + 20
    while not browser.evaluate(f"{part}.open") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert browser.evaluate(f"{part}.open")
    top, above = browser.evaluate(
        "['worst', ''].map((id) => (document.getElementById(id) ?? document.querySelector('.contents'))"
        ".getBoundingClientRect()).map((box) => box.top)"
    )
    assert above == 0, "the contents stay at the top"
    assert 0 < top < 900


@needs_browser
def test_everything_is_printed(browser: Page, file: Path) -> None:
    browser.open(file)
    browser.send("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate("document.getElementById('rows').checkVisibility()"), "without script, too"
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert browser.evaluate("document.querySelectorAll('.part[open]').length") == 1, "as it was"


@needs_browser
def test_predictions_are_found_as_one_types(browser: Page, file: Path) -> None:
    browser.open(file)

    def search(words: str) -> list[str]:
        browser.evaluate(
            f"query.value = {json.dumps(words)}; query.dispatchEvent(new Event('input', {{bubbles: true}}))"
        )
        found: list[str] = browser.evaluate("[...document.querySelectorAll('#rows tr')].map((row) => row.textContent)")
        return found

    assert len(search("")) == sum(map(len, ROWS.values()))
    assert len(search("ESC-50-1")) == 3, "1, 10 and 11"
    (found,) = search("onerror")
    assert MARKUP in found
    assert browser.evaluate("document.querySelectorAll('#rows img, #rows script').length") == 0
    (found,) = search(CHINESE[2:5])
    assert "(empty)" in found
    assert len(search(ARABIC.split()[1])) == 1
    assert browser.evaluate("getComputedStyle(document.querySelectorAll('#rows .text')[0]).direction") == "rtl"
    assert search("nowhere") == []
    assert browser.evaluate("document.getElementById('count').textContent").startswith("0 of ")
    search("")
    browser.evaluate("wrong.click()")
    assert "1.000" not in "".join(
        browser.evaluate("[...document.querySelectorAll('#rows tr')].map((r) => r.textContent)")
    )
    assert browser.errors == []
    assert browser.evaluate("window.harmed") is None


@needs_browser
def test_worst_clips_can_be_played(browser: Page, file: Path) -> None:
    browser.open(file)
    played = browser.evaluate(
        """(async () => {
          const audio = document.querySelector("audio");
          const ended = new Promise((resolve, reject) => {
            audio.addEventListener("ended", resolve);
            audio.addEventListener("error", () => reject(new Error(audio.error.message)));
          });
          await audio.play();
          await ended;
          return [audio.duration, audio.currentTime];
        })()"""
    )
    assert played[0] == pytest.approx(played[1])
    assert 0.2 < played[0] < 1.6
    assert browser.errors == []
