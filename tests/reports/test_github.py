"""GitHub: annotations and the job's summary."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from xares_bench.reports import github
from xares_bench.reports.github import append_summary, error_lines

ON_GITHUB = {"GITHUB_ACTIONS": "true"}


def test_failures_are_annotations_of_one_line_each() -> None:
    lines = error_lines(ON_GITHUB, {"esc-50": "50 % lost\r\nsee a: b, c", "a:b,c%": "x"})
    assert lines == [
        "::error title=esc-50::50 %25 lost%0D%0Asee a: b, c",
        "::error title=a%3Ab%2Cc%25::x",
    ]


@pytest.mark.parametrize("environment", [{}, {"GITHUB_ACTIONS": "false"}])
def test_elsewhere_there_are_none(environment: dict[str, str]) -> None:
    assert error_lines(environment, {"esc-50": "lost"}) == []


def test_a_traceback_is_cut() -> None:
    (line,) = error_lines(ON_GITHUB, {"esc-50": "x" * 100_000})
    assert len(line) < 5000


def test_scores_and_failures_are_appended(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n", encoding="utf-8")
    environment = {"GITHUB_STEP_SUMMARY": str(summary)}
    assert append_summary(environment, "# Scores\n", {"esc-50": "score *0.4*\nis <b>low</b>"}) == []
    assert summary.read_text(encoding="utf-8") == (
        "before\n# Scores\n\n## Failed\n\n- **esc-50**: score \\*0.4\\* is &lt;b&gt;low&lt;/b&gt;\n\n"
    )


def test_without_failures_there_is_no_list(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    assert append_summary({"GITHUB_STEP_SUMMARY": str(summary)}, "# 狗\n", {}) == []
    assert summary.read_text(encoding="utf-8") == "# 狗\n\n"


def test_without_a_summary_file_nothing_is_written() -> None:
    assert append_summary({}, "# Scores\n", {}) == []
    assert append_summary({"GITHUB_STEP_SUMMARY": ""}, "# Scores\n", {}) == []


def test_a_summary_that_cannot_be_written_is_a_problem_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (problem,) = append_summary({"GITHUB_STEP_SUMMARY": str(tmp_path)}, "# Scores\n", {})
    assert "cannot be written" in problem
    monkeypatch.setattr(github, "_MAX_SUMMARY_BYTES", 5)
    summary = tmp_path / "summary.md"
    (problem,) = append_summary({"GITHUB_STEP_SUMMARY": str(summary)}, "# Scores\n", {})
    assert "would exceed GitHub's size limit" in problem
    assert summary.read_text(encoding="utf-8") == ""


def test_a_session_tells_github_what_failed(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    baseline = tmp_path / "better.yaml"
    baseline.write_text("schema: 1\npreset: mini\nscores: {esc-50: 1.0}\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    result = pytester.runpytest_inprocess(
        REPOSITORY / "bench",
        "-p",
        "no:cacheprovider",
        "--preset=mini",
        f"--encoder={REPOSITORY / 'examples' / 'logmel_encoder.py'}",
        "--train=esc-50",
        "-k",
        "dataset and esc-50",
        "--set",
        "steps=2",
        "--set",
        "max_new_tokens=3",
        f"--runs-dir={tmp_path / 'runs'}",
        f"--baseline={baseline}",
    )
    result.assert_outcomes(failed=1)
    (line,) = [line for line in result.outlines if line.startswith("::error")]
    assert line.startswith("::error title=esc-50::esc-50: score 0.")
    text = summary.read_text(encoding="utf-8")
    assert text.startswith("# LogMelEncoder on the mini preset")
    assert "## Failed\n\n- **esc-50**: esc-50: score 0." in text
    (page,) = (tmp_path / "runs").glob("*/report.html")
    content = page.read_text(encoding="utf-8")
    assert content.count("<audio ") == 3
    assert "pytest" in content
    assert f"--baseline={baseline}" in content
    assert "mean over the last 5 % of steps" in content
    assert (page.parent / "model_card.yaml").is_file()
