"""The command line as a whole: which options go together, and what a mistake says."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from xares_bench.core.errors import UsageError
from xares_bench.session.arguments import add_options
from xares_bench.session.options import Options, check_given_once, read_options


def read(*arguments: str) -> Options:
    parser = pytest.Parser(_ispytest=True)
    add_options(parser)
    parser.addoption("--collect-only", dest="collectonly", action="store_true")  # pytest's own
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
        (["--corrupt=noise"], "found no level"),
        (["--corrupt=noise:10", "--corrupt=noise:10.0"], "noise:10 is given twice"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(*arguments)


def test_corruptions_are_in_the_order_given_and_none_are_the_default() -> None:
    assert read().corruptions == ()
    found = read("--corrupt=reverb", "--corrupt=noise:-5").corruptions
    assert [str(corruption) for corruption in found] == ["reverb:0.5", "noise:-5"]


def test_a_baseline_is_overwritten_only_with_force(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert read(f"--save-baseline={path}").save_to == path
    path.touch()
    with pytest.raises(UsageError, match=r"exists already.*--force"):
        read(f"--save-baseline={path}")
    assert read(f"--save-baseline={path}", "--force").replace


@pytest.mark.parametrize(
    "arguments",
    [
        ["--preset=mini", "--preset=full"],
        ["--limit", "3", "--limit", "3"],
        ["-q", "--seeds=2", "-k", "x", "--seeds", "3"],
    ],
)
def test_an_option_that_is_given_twice_is_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match=r"(--preset|--limit|--seeds) is given twice, before as .*; give it once"):
        check_given_once(arguments)


def test_repeatable_options_and_those_of_others_may_be_given_twice() -> None:
    check_given_once(["--set", "a=1", "--set", "b=2", "-k", "x", "-k", "y", "--data-revision=a", "--data-revision=b"])
    check_given_once(["--preset=mini", "--", "--preset=full"])


@pytest.mark.parametrize("option", ["encoder", "eval", "decoder", "data-home", "runs-dir", "baseline", "save-baseline"])
def test_a_variable_that_is_not_set_is_an_error_in_every_option_with_a_path(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(
        UsageError, match=r"^\$NOWHERE/it: the environment variable NOWHERE is not set; set it, or write"
    ):
        read(f"--{option}=$NOWHERE/it")


def test_the_home_is_expanded_in_every_option_with_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XARES_DATA_HOME", "~/data")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "enc.py").write_text("class MyEncoder: pass\n")
    (tmp_path / "one.tar").touch()
    (tmp_path / "train.yaml").write_text("train_data:\n  mine: {prompt: a, data: ~/one.tar, key: label}\n")
    (tmp_path / "eval.yaml").write_text("mine: {data: {data: [~/one.tar], key: label, prompt: a}, metric: Accuracy}\n")
    (tmp_path / "base.yaml").write_text("schema: 1\npreset: mini\nscores: {mine: 0.5}\n")
    (tmp_path / "decoder").mkdir()
    (tmp_path / "decoder" / "config.json").write_text("{}")
    paths = {"encoder": "enc.py", "train": "train.yaml", "eval": "eval.yaml", "baseline": "base.yaml"}
    paths |= {"decoder": "decoder", "runs-dir": "runs", "save-baseline": "new.yaml"}
    options = read("--preset=mini", *(f"--{name}=~/{path}" for name, path in paths.items()))
    assert options.plan.encoder is not None
    assert options.plan.mix is not None
    assert options.baseline is not None
    found = [options.plan.encoder.file, options.plan.runs_folder, options.save_to, options.baseline.path]
    assert found == [tmp_path / name for name in ("enc.py", "runs", "new.yaml", "base.yaml")]
    assert options.plan.decoder == str(tmp_path / "decoder")
    assert options.plan.data_home == tmp_path / "data"
    assert options.plan.mix.datasets[0].train is not None
    assert options.plan.mix.datasets[0].train.shards == (str(tmp_path / "one.tar"),)


def test_a_listing_needs_no_folder_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=f"{tmp_path}/file is a file, expected a folder"):
        read(f"--runs-dir={tmp_path}/file")
    assert read("--collect-only", f"--runs-dir={tmp_path}/file").plan.runs_folder == tmp_path / "file"


def test_a_runs_folder_may_end_in_any_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read("--runs-dir=with=").plan.runs_folder == tmp_path / "with="
    with pytest.raises(UsageError, match="--runs-dir=: found nothing, expected a folder"):
        read("--runs-dir=")
