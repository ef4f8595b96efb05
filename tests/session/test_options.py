"""The command line as a whole: which options go together, and what a mistake says."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from xares_bench import plugin
from xares_bench.core.errors import UsageError
from xares_bench.session.options import Options, read_options


def read(*arguments: str) -> Options:
    parser = pytest.Parser(_ispytest=True)
    plugin.pytest_addoption(parser)
    return read_options(parser.parse([*arguments], namespace=argparse.Namespace()))


def test_nothing_asked_for_is_the_published_benchmark_without_a_baseline() -> None:
    options = read()
    assert options.plan.catalogue.preset.name == "full"
    assert (options.baseline, options.save_to, options.replace) == (None, None, False)
    assert (options.by_noise, options.tolerance) == (True, None)


@pytest.mark.parametrize(
    ("text", "by_noise", "number"), [("ci", True, None), ("ci:0.01", True, 0.01), ("0.02", False, 0.02)]
)
def test_a_tolerance_is_noise_with_a_floor_or_a_number(text: str, by_noise: bool, number: float | None) -> None:
    options = read("--baseline=whisper-base", f"--tolerance={text}")
    assert options.baseline is not None
    assert options.baseline.name == "whisper-base"
    assert (options.by_noise, options.tolerance) == (by_noise, number)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tolerance=ci"], "--tolerance needs --baseline"),
        (["--limit=3", "--baseline=whisper-base"], "--limit leaves clips out"),
        (["--limit=3", "--save-baseline=new.yaml"], "--limit leaves clips out"),
        (["--force"], "--force needs --save-baseline"),
        (["--preset=mini", "--baseline=whisper-base"], "cannot be compared"),
        (["--baseline=unknown"], "no baseline 'unknown'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(*arguments)


def test_a_baseline_is_overwritten_only_with_force(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert read(f"--save-baseline={path}").save_to == path
    path.touch()
    with pytest.raises(UsageError, match=r"exists already.*--force"):
        read(f"--save-baseline={path}")
    assert read(f"--save-baseline={path}", "--force").replace
