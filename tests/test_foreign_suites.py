"""What the comparison of foreign suites takes for a difference. The suites themselves need the package index."""

from __future__ import annotations

import importlib.metadata

import pytest

from benchmarks.foreign_suites import SuiteRun, brought_plugins, comparable, differences, outcomes_of

JUNIT = """<?xml version="1.0" encoding="utf-8"?><testsuites><testsuite>
<testcase classname="tests.test_a" name="test_one" time="0.1"/>
<testcase classname="tests.test_a" name="test_two" time="0.1"><failure message="no">no</failure></testcase>
<testcase classname="tests.test_a" name="test_three" time="0.1"><skipped message="not here"/></testcase>
<testcase classname="tests.test_a" name="test_four" time="0.1"><error message="fixture">fixture</error></testcase>
</testsuite></testsuites>"""


def printed(*, plugins: str, took: str, folder: str, rule: str = "==") -> str:
    return f"""plugins: {plugins}
rootdir: /tmp/pytest-of-root/pytest-{len(took)}/test_a0
{folder}/lib/site-packages/theirs.py:3: a warning of <object at 0x7f{len(took)}>
{rule} 3 passed in {took} {rule}
{rule.replace("=", "-")} generated xml file: {folder}/junit.xml {rule.replace("=", "-")}
"""


def suite_run(text: str = "1 passed", **outcomes: str) -> SuiteRun:
    return SuiteRun(outcomes=outcomes, text=text)


def test_how_tests_ended_is_read_from_junit() -> None:
    outcomes = outcomes_of(JUNIT)
    assert list(outcomes.values()) == ["passed", "failed", "skipped", "error"]
    assert next(iter(outcomes)) == "tests.test_a::test_one"
    assert suite_run(**outcomes).counts == "1 error, 1 failed, 1 passed, 1 skipped"


def test_times_places_and_the_names_of_plugins_are_no_difference() -> None:
    first = comparable(printed(plugins="mock-3", took="0.12s", folder="/tmp/x/plugins", rule="="), "/tmp/x/plugins")
    second = comparable(
        printed(plugins="xares-bench-1, mock-3", took="61.50s (0:01:01)", folder="../ours", rule="==="), "../ours"
    )
    assert first == second
    assert "a warning of" in first
    assert "3 passed" in first


@pytest.mark.parametrize("line", ["xares-bench: preset mini", "3 passed, 1 warning in 0.1s", "fixtures: encoder"])
def test_a_line_of_ours_is_one(line: str) -> None:
    texts = [comparable(text) for text in ("3 passed in 0.1s\n", f"3 passed in 0.1s\n{line}\n")]
    alone, plugins, ours = suite_run(), suite_run(texts[0]), suite_run(texts[1])
    assert any(line.split(" in ")[0] in found for found in differences(alone, plugins, ours))
    assert differences(alone, plugins, plugins) == []


def test_a_test_that_ends_otherwise_or_not_at_all_is_one() -> None:
    same, failed, absent = suite_run(a="passed", b="passed"), suite_run(a="failed", b="passed"), suite_run(a="passed")
    assert differences(same, same, same) == []
    assert differences(same, same, failed) == ["a: passed alone, passed with the plugins, failed with xares-bench"]
    assert differences(same, absent, absent) == ["b: passed alone, not run with the plugins, not run with xares-bench"]


def test_the_plugins_that_come_along_are_dependencies_and_none_of_the_tests() -> None:
    found = dict(one.split("==") for one in brought_plugins())
    assert "pytest-benchmark" in found
    assert not {"xares-bench", "pytest-xdist", "pytest-randomly", "hypothesis"} & found.keys()
    assert {name: importlib.metadata.version(name) for name in found} == found
