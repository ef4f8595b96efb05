"""What users of pytest do with any suite, done with the bench tests."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import NUM_BENCH_TESTS, REPOSITORY
from tests.test_bench import ENCODER, FEW_STEPS, run_folder, write_data
from xares_bench.reports import report
from xares_bench.reports.report import results_json
from xares_bench.reports.results import Background, Results

TASK2 = ["aishell-1", "clotho", "librispeech", "mecat", "songdescriber"]

Run = Callable[..., pytest.RunResult]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ways")
    write_data(folder / "data")
    return folder


@pytest.fixture
def run(pytester: pytest.Pytester, folder: Path) -> Run:
    """The tests of task2 with the options given; what is trained is shared."""

    def run_bench(*options: str, data: str = "data", runs: str = "runs", anew: bool = False) -> pytest.RunResult:
        start = pytester.runpytest_subprocess if anew else pytester.runpytest_inprocess
        cache = () if "no:cacheprovider" in options else ("-o", f"cache_dir={pytester.path}/cache")
        return start(
            *(str(REPOSITORY / "bench"), "--preset=mini", f"--encoder={ENCODER}", "-k", "task2", *FEW_STEPS),
            *(f"--data-home={folder / data}", f"--runs-dir={folder / runs}", *cache, *options),
        )

    return run_bench


@pytest.fixture
def scores_file(run: Run) -> Path:
    """The scores of an undisturbed session, which another one with the same command writes, too."""
    result = run()
    assert result.ret == 0, result.stdout.str()
    return run_folder(result) / "scores.tsv"


@pytest.fixture
def scores(scores_file: Path) -> str:
    """The scores of an undisturbed session."""
    return scores_file.read_text()


def scored(result: pytest.RunResult) -> list[str]:
    """The datasets that have a score."""
    results = json.loads((run_folder(result) / "results.json").read_text())
    return [record["dataset"] for record in results["scores"]]


@pytest.fixture
def damaged(folder: Path) -> str:
    """A data folder of which the test shard of clotho is damaged."""
    data = folder / "damaged"
    if not data.exists():
        write_data(data)
        (data / "clotho" / "test_00.tar.gz").write_bytes(b"no tar")
    return data.name


@pytest.mark.parametrize(
    "way",
    [
        ("-p", "no:cacheprovider"),
        ("-W", "error"),
        ("--import-mode=prepend",),
        ("-s", "-v", "--durations=3"),
        ("-p", "no:terminal"),
    ],
    ids=" ".join,
)
def test_it_works_in_any_way(run: Run, scores: str, scores_file: Path, way: tuple[str, ...]) -> None:
    scores_file.unlink()
    result = run(*way)
    assert result.ret == 0, result.stdout.str() + result.stderr.str()
    assert scores_file.read_text() == scores


def test_a_fresh_training_warns_of_nothing(run: Run, scores: str) -> None:
    result = run("-W", "error", runs="anew", anew=True)
    assert result.ret == 0, result.stdout.str()
    assert (run_folder(result) / "scores.tsv").read_text() == scores


def test_tests_in_any_order_have_the_same_scores(run: Run, scores: str) -> None:
    """The overall score may come before the datasets that it is made of, and one dataset before another trains."""
    for seed in (1, 2):
        result = run("-p", "randomly", f"--randomly-seed={seed}", runs=f"s{seed}")
        assert result.ret == 0, result.stdout.str()
        assert (run_folder(result) / "scores.tsv").read_text() == scores


def test_the_last_failed_is_run_alone(run: Run, scores: str, damaged: str) -> None:
    result = run(data=damaged)
    result.assert_outcomes(passed=4, failed=2, deselected=NUM_BENCH_TESTS - 6)
    again = run("--lf", data=damaged)
    again.assert_outcomes(failed=2)
    mended = run("--lf")
    mended.assert_outcomes(passed=2)
    assert scored(mended) == [*TASK2], "the failed run is completed"
    assert (run_folder(mended) / "scores.tsv").read_text() == scores
    mended.stdout.fnmatch_lines(["xares-bench: 4 of 5 scores are from earlier sessions"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_while_files_are_written_waits_for_them(
    run: Run, scores: str, scores_file: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def interrupted(results: Results, folder: Path, background: Background) -> str:
        os.kill(os.getpid(), number)
        return results_json(results, {})

    first, *others = report.REPORTS
    monkeypatch.setattr(report, "REPORTS", (dataclasses.replace(first, text=interrupted), *others))
    files = {path.name for path in scores_file.parent.iterdir()}
    for name in ("results.json", "scores.tsv", "report.html"):
        (scores_file.parent / name).unlink()
    result = run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert {path.name for path in scores_file.parent.iterdir()} == files
    assert scores_file.read_text() == scores
    result.stdout.fnmatch_lines(["xares-bench: interrupted while the files were written; they are complete"])


def test_the_first_failure_may_end_it(run: Run, damaged: str) -> None:
    result = run("-x", data=damaged, runs="first")
    assert result.ret == 1
    result.assert_outcomes(passed=1, failed=1, deselected=NUM_BENCH_TESTS - 6)
    assert scored(result) == ["aishell-1"], "what was scored before is kept, and written"
    result.stdout.fnmatch_lines(["*no score for clotho, librispeech, mecat, songdescriber: the run fails*"])


@pytest.mark.parametrize("is_stored", [True, False], ids=["from the store", "from the run's files"])
@pytest.mark.parametrize("options", [("-x", "-n0"), ("--maxfail=1",), ("-x", "-n2")], ids=" ".join)
def test_a_session_that_ends_early_takes_no_score_from_a_finished_run(
    run: Run, scores_file: Path, scores: str, options: tuple[str, ...], is_stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first dataset fails, for a baseline that is out of reach."""
    page = (scores_file.parent / "results.json").read_text()
    runs = scores_file.parent.parent
    if not is_stored:
        shutil.rmtree(runs / "store" / "scores")
    baseline = scores_file.parent / "high.yaml"
    expected = json.dumps(dict.fromkeys(TASK2, 0.99))
    baseline.write_text(f"schema: 2\npreset: mini\nscores: {expected}\n")
    result = run(*options, f"--baseline={baseline}", "--tolerance=0.01")
    assert result.ret in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED), "which it is with xdist"
    assert scored(result) == [*TASK2]
    assert scores_file.read_text() == scores
    kept = json.loads((scores_file.parent / "results.json").read_text())
    assert kept["missing"] == []
    assert [record["score"] for record in kept["scores"]] == [record["score"] for record in json.loads(page)["scores"]]


def test_what_is_deselected_is_not_missed(run: Run) -> None:
    result = run("--deselect", "bench/test_task2.py::test_dataset[clotho]", f"--rootdir={REPOSITORY}")
    assert result.ret == 0, result.stdout.str()
    result.assert_outcomes(passed=4, skipped=1, deselected=NUM_BENCH_TESTS - 5)
    assert scored(result) == [name for name in TASK2 if name != "clotho"]
    result.stdout.fnmatch_lines(["Overall (incomplete: 4 of 5 datasets)*"])


def test_junit_has_the_scores(run: Run, pytester: pytest.Pytester, damaged: str) -> None:
    result = run("--junitxml=junit.xml", data=damaged)
    cases = {case.get("name"): case for case in ET.parse(pytester.path / "junit.xml").getroot().iter("testcase")}
    kept = json.loads((run_folder(result) / "results.json").read_text())["scores"]
    for record in kept:
        properties = {
            found.get("name"): found.get("value")
            for found in cases[f"test_dataset[{record['dataset']}]"].iter("property")
        }
        assert float(properties["score"] or "nan") == record["score"]
    failure = cases["test_dataset[clotho]"].find("failure")
    assert failure is not None
    assert "test_00.tar.gz: a text ('no tar'), expected a tar or tar.gz archive" in (failure.text or "")


@pytest.mark.versions
def test_benchmark_json_has_the_scores_and_what_they_took_when_computed(
    run: Run, pytester: pytest.Pytester, scores_file: Path
) -> None:
    """Of cached scores, too: the time of reading a cache tells nothing about an encoder."""
    result = run("--benchmark-json=timings.json", "--benchmark-columns=mean")
    assert result.ret == 0, result.stdout.str()
    result.stdout.fnmatch_lines(["*benchmark 'task2': 5 tests*", "*test_dataset[[]clotho[]]*"])
    timed = json.loads((pytester.path / "timings.json").read_text())["benchmarks"]
    by_dataset = {entry["params"]["dataset"]: entry for entry in timed}
    assert set(by_dataset) == set(TASK2)
    for record in json.loads((scores_file.parent / "results.json").read_text())["scores"]:
        entry = by_dataset[record["dataset"]]
        assert entry["extra_info"]["cached"]
        assert entry["extra_info"]["score"] == record["score"]
        assert entry["stats"]["mean"] == pytest.approx(record["features_s"] + record["generation_s"])


def test_a_slower_encoder_fails_where_pytest_benchmark_is_told_to_compare(run: Run, scores: str) -> None:
    """With its own options; the same cached scores are never slower."""
    first = run("--benchmark-save=before", "--benchmark-storage=timings")
    assert first.ret == 0, first.stdout.str()
    again = run("--benchmark-compare", "--benchmark-compare-fail=mean:1%", "--benchmark-storage=timings")
    assert again.ret == 0, again.stdout.str()
    again.stdout.fnmatch_lines(["*test_dataset[[]clotho[]] (0001_before)*"])


def test_two_workers_in_any_order(run: Run, scores: str, scores_file: Path) -> None:
    scores_file.unlink()
    result = run("-p", "randomly", "-n", "2", "--dist=loadscope", anew=True)
    assert result.ret == 0, result.stdout.str()
    assert "Benchmark" not in result.stdout.str() + result.stderr.str(), "nobody has asked for benchmarks"
    assert scores_file.read_text() == scores
