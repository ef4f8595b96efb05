"""The plugin: where the benchmark is named, and what happens where it is not."""

from __future__ import annotations

import re
import sys

import pytest

from tests.conftest import REPOSITORY

BENCH = REPOSITORY / "bench"
ENCODER = REPOSITORY / "examples" / "dummy_encoder.py"
CONFTEST = """
def pytest_addoption(parser):
    for name in {names}:
        parser.addoption(name, default="theirs")
"""
OWN_TEST = "def test_own(request): assert request.config.getoption('--seed') == 'theirs'"


def option_names() -> list[str]:
    text = (REPOSITORY / "xares_bench" / "session" / "arguments.py").read_text(encoding="utf-8")
    return [one or other for one, other in re.findall(r'^ +"(--[a-z-]+)",$|add\("(--[a-z-]+)"', text, re.MULTILINE)]


def test_a_project_with_options_of_all_our_names_runs_as_if_we_were_not_there(pytester: pytest.Pytester) -> None:
    names = option_names()
    assert len(names) >= 20
    pytester.makeconftest(CONFTEST.format(names=names))
    pytester.makepyfile(OWN_TEST)
    pytester.makeini("[pytest]\naddopts = --strict-markers --strict-config")
    result = pytester.runpytest_subprocess("--encoder=own", "-v")
    result.assert_outcomes(passed=1)
    assert "xares-bench:" not in result.stdout.str()
    modules = pytester.runpython_c(
        "import sys, pytest; pytest.main(['-q']); print([m for m in sys.modules if m.startswith('xares_bench')])"
    )
    modules.stdout.fnmatch_lines(["['xares_bench', 'xares_bench.plugin']"])


def test_their_options_are_not_in_the_help_and_ours_are_where_the_benchmark_is_named(pytester: pytest.Pytester) -> None:
    assert "--encoder" not in pytester.runpytest_inprocess("--help").stdout.str()
    assert "--encoder" in pytester.runpytest_inprocess(BENCH, "--help").stdout.str()


@pytest.mark.parametrize(
    "named",
    [
        [str(BENCH)],
        [f"{BENCH}/test_task1.py"],
        [f"{BENCH}/test_task1.py::test_dataset[esc-50]"],
        ["--pyargs", "xares_bench.bench"],
        ["--pyargs", "xares_bench.bench.test_task1"],
        ["xares_bench.bench", "--pyargs"],
    ],
)
def test_ways_to_name_it(pytester: pytest.Pytester, named: list[str]) -> None:
    result = pytester.runpytest_subprocess(*named, "--preset=mini", "--encoder", ENCODER, "--collect-only", "-q")
    assert result.ret == 0, result.stderr.str()
    result.stdout.fnmatch_lines(["*test_task1.py::test_dataset?esc-50?"])


def test_inside_its_folder_it_needs_no_name(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BENCH)
    result = pytester.run(
        sys.executable, "-m", "pytest", "--preset=mini", "--collect-only", "-q", "-p", "no:cacheprovider"
    )
    assert result.ret == 0


@pytest.mark.parametrize("value", ["bench", "xares_bench.bench"])
def test_the_value_of_an_option_names_nothing(pytester: pytest.Pytester, value: str) -> None:
    pytester.makepyfile("def test_own(): pass")
    (pytester.path / "bench").symlink_to(BENCH)
    result = pytester.runpytest_subprocess("-k", value, "test_the_value_of_an_option_names_nothing.py")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "xares-bench:" not in result.stdout.str()


def test_a_folder_above_does_not_name_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_own(): pass")
    (pytester.path / "suite").symlink_to(BENCH)
    result = pytester.runpytest_subprocess(".")
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "given", [["--encoder=enc.py"], ["--encoder", "enc.py"], ["--encoder=enc.py", "--preset=mini"]]
)
def test_an_encoder_without_the_benchmark_is_no_green_run_of_other_tests(
    pytester: pytest.Pytester, given: list[str]
) -> None:
    pytester.makepyfile(enc="", test_own="def test_own(): pass")
    result = pytester.runpytest_subprocess(*given, "test_own.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "passed" not in result.stdout.str()
    result.stderr.fnmatch_lines(
        [
            "ERROR: --encoder is an option of xares-bench, which is not named here; type pytest --pyargs "
            "xares_bench.bench, *"
        ]
    )


def test_an_option_that_a_conftest_has_too_is_named_with_both_owners(pytester: pytest.Pytester) -> None:
    conftest = pytester.makeconftest(CONFTEST.format(names=["--seed"]))
    result = pytester.runpytest_subprocess("--pyargs", "xares_bench.bench", "--preset=mini", "--co")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = filter(None, result.errlines)
    assert line.startswith(f"ERROR: --seed is an option of xares-bench and of {conftest}; leave that one out")


def test_an_option_that_a_plugin_has_too_is_named(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(theirs="def pytest_addoption(parser): parser.addoption('--limit')")
    pytester.syspathinsert()
    result = pytester.runpytest_subprocess("-p", "theirs", BENCH, "--preset=mini", "--co")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = filter(None, result.errlines)
    assert line.startswith("ERROR: --limit is an option of xares-bench and of ")
    assert "theirs" in line


@pytest.mark.parametrize("named", [[str(BENCH)], ["--pyargs", "xares_bench.bench"]])
@pytest.mark.parametrize(
    ("blocked", "said"),
    [
        ("xares_bench", "the plugin of xares-bench is not loaded; leave out -p no:xares_bench"),
        ("benchmark", "xares-bench needs the plugin pytest-benchmark; leave out -p no:benchmark"),
    ],
)
def test_a_plugin_that_is_blocked_is_said_in_a_line(
    pytester: pytest.Pytester, named: list[str], blocked: str, said: str
) -> None:
    result = pytester.runpytest_subprocess("-p", f"no:{blocked}", *named, "--co", "-q")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    output = result.stdout.str() + result.stderr.str()
    assert said in output
    assert "Traceback" not in output
    assert "INTERNALERROR" not in output


def test_without_autoload_the_plugins_are_named(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    result = pytester.runpytest_subprocess(BENCH, "--co", "-q")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    plugins = ("-p", "xares_bench.plugin", "-p", "pytest_benchmark.plugin")
    assert plugins == tuple(result.stderr.str().rpartition("add ")[2].split())
    assert pytester.runpytest_subprocess(*plugins, BENCH, "--preset=mini", "--co", "-q").ret == 0
