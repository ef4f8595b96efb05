"""Options of pytest that show something, choose tests or change how pytest works: the right status, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

OK, USAGE, NONE = pytest.ExitCode.OK, pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED

SHOWN = {
    "--fixtures": OK,
    "--fixtures -v": OK,
    "--fixtures-per-test": OK,
    "--markers": OK,
    "--setup-plan": OK,
    "--setup-plan -k esc-50": OK,
    "--help": OK,
    "--version": OK,
    "-VV": OK,
    "--cache-show": OK,
    "--trace-config --co": OK,
    "--co": OK,
    "--co -q": OK,
    "--co -qq": OK,
    "--collect-only -v": OK,
    "--co -k esc-50": OK,
    "--co -m task2": OK,
    "--co -m encoder": OK,
    "--co --deselect bench/test_task1.py": OK,
    "--co --ignore=bench/test_task2.py": OK,
    "--co --ignore-glob=*task2*": OK,
    "--co --strict-markers --strict-config": OK,
    "--co -p no:terminal": OK,
    "--co -p no:cacheprovider": OK,
    "--co -p no:logging": OK,
    "--co -p no:warnings": OK,
    "--co -p no:junitxml": OK,
    "--co --junitxml=out.xml": OK,
    "--co --durations=3": OK,
    "--co --tb=no": OK,
    "--co -o addopts=": OK,
    "--co --rootdir=.": OK,
    "--co --confcutdir=.": OK,
    "--co -c empty.ini": OK,
    "--co --import-mode=prepend": OK,
    "--co --import-mode=append": OK,
    "--co --sw": OK,
    "--co --lf": OK,
    "--co --ff": OK,
    "--co --nf": OK,
    "--co -n 2": OK,
    "--co -n 0": OK,
    "--co -W error": OK,
    "--co -s": OK,
    "--co -x": OK,
    "--co --maxfail=2": OK,
    "--co --color=yes": OK,
    "--co --benchmark-only": OK,
    "--co --benchmark-disable": OK,
    "--co --benchmark-skip": OK,
    "--co -p randomly": OK,
    "-k nothing": NONE,
    "-k nothing --co": NONE,
    "-k nothing -n 2": NONE,
    "-m task1 -k clotho": NONE,
    "--no-such-option": USAGE,
    "--preset=nothing --co": USAGE,
    "--train=nothing --co": USAGE,
    "-c missing.ini": USAGE,
    "--maxfail=many": USAGE,
    "--seed=one --co": USAGE,
}


@pytest.mark.parametrize("options", SHOWN)
def test_status_and_no_traceback(options: str, pytester: pytest.Pytester, tmp_path: Path) -> None:
    (pytester.path / "empty.ini").write_text("[pytest]\n", encoding="utf-8")
    encoder = f"--encoder={REPOSITORY / 'examples' / 'dummy_encoder.py'}"
    words = options.split()
    # Given last, the preset of the option counts.
    given = [] if any(word.startswith("--preset") for word in words) else ["--preset=mini"]
    result = pytester.runpytest_inprocess(
        str(REPOSITORY / "bench"), encoder, f"--runs-dir={tmp_path / 'runs'}", *given, *words
    )
    output = result.stdout.str() + result.stderr.str()
    assert result.ret == SHOWN[options], output
    assert "Traceback (most recent call last)" not in output
    assert "INTERNALERROR" not in output
    assert not (tmp_path / "runs").exists(), "what only shows writes nothing"


def test_benchmark_skip_scores_nothing_and_passes(pytester: pytest.Pytester, tmp_path: Path) -> None:
    encoder = f"--encoder={REPOSITORY / 'examples' / 'dummy_encoder.py'}"
    runs = f"--runs-dir={tmp_path / 'runs'}"
    result = pytester.runpytest_inprocess(
        str(REPOSITORY / "bench"), encoder, "--preset=mini", runs, "--benchmark-skip", "-k", "esc-50"
    )
    assert result.ret == OK
    result.assert_outcomes(skipped=1, deselected=45)
