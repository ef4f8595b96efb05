"""Hooks that a small session shows; tests/test_bench.py and tests/test_pytest_ways.py run whole ones."""

from __future__ import annotations

import pytest

from tests.conftest import REPOSITORY

ENCODER = REPOSITORY / "examples" / "logmel_encoder.py"


@pytest.fixture(autouse=True)
def _bench(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


def test_a_session_without_an_encoder_is_refused_with_examples(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest(str(REPOSITORY / "bench"), "--preset=mini")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: the bench tests need an encoder:", "*--encoder=examples/logmel_encoder.py"])


def test_tests_that_the_mix_does_not_train_for_are_deselected(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest(str(REPOSITORY / "bench"), "--preset=mini", "--train=task2", "--collect-only", "-q")
    assert result.ret == 0
    listed = [line for line in result.outlines if "::test_dataset[" in line]
    assert len(listed) == 5
    assert all("test_task2.py" in line for line in listed)
    result.stdout.fnmatch_lines(["mixes (--train): auto, task1, *", "metrics: Accuracy, *"])


@pytest.mark.parametrize(
    ("arguments", "addopts", "is_quiet"),
    [
        ([], "", True),
        (["--benchmark-columns=mean"], "", False),
        (["--benchmark-json=timings.json"], "", False),
        ([], "--benchmark-sort=name", False),
    ],
)
def test_the_table_of_pytest_benchmark_is_shown_to_those_who_give_it_an_option(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, arguments: list[str], addopts: str, is_quiet: bool
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", addopts)
    config = pytester.parseconfigure(str(REPOSITORY / "bench"), "--preset=mini", *arguments)
    assert config.option.benchmark_quiet is is_quiet


@pytest.mark.filterwarnings("ignore:Can't compare")  # nothing was saved before
@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ([], []),
        (["--collect-only"], []),
        (["-n", "2"], []),
        (["--benchmark-json=timings.json"], []),
        (["--benchmark-autosave"], [".benchmarks"]),
        (["--benchmark-save=mine"], [".benchmarks"]),
        (["--benchmark-compare"], [".benchmarks"]),
    ],
)
def test_the_folder_of_pytest_benchmark_is_made_only_where_runs_are_saved_or_compared(
    pytester: pytest.Pytester, arguments: list[str], left: list[str]
) -> None:
    pytester.parseconfigure(str(REPOSITORY / "bench"), "--preset=mini", *arguments)
    assert sorted(path.name for path in pytester.path.iterdir()) == left
