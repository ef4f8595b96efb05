"""A sweep's file: every combination is a point, and what is wrong is said with file and key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from xares_bench.core.errors import UsageError
from xares_bench.sweeps.points import Point, read_points

ENCODER = """
import torch
class ToneEncoder(torch.nn.Module):
    output_dim = 2
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "enc.py").write_text(ENCODER)
    (tmp_path / "other.py").write_text(ENCODER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def points(folder: Path, text: str) -> list[Point]:
    (folder / "sweep.yaml").write_text(text)
    return read_points(Path("sweep.yaml"))


def test_every_combination_is_a_point(folder: Path) -> None:
    found = points(
        folder,
        """
encoders:
  - my/enc.py
  - encoder: my/enc.py::ToneEncoder
    arguments: {layer: [3, 6], sizes: [[1, 2]], causal: false}
  - encoder: hf:microsoft/wavlm-base
    revisions: [main, v1.0]
tasks: [task1, clotho]
options:
  preset: mini
  seeds: 2
  pool: [1, 4]
  set: {learning_rate: [0.001, 0.0005], steps: 5}
""",
    )
    assert len(found) == (1 + 2 + 2) * 2 * 2
    assert found[0].arguments == (
        *(
            "--encoder=my/enc.py",
            "--preset=mini",
            "--seeds=2",
            "--pool=1",
            "--set=learning_rate=0.001",
            "--set=steps=5",
        ),
        *("-k", "task1 or clotho"),
    )
    assert '--encoder-args={"layer": 6, "sizes": [1, 2], "causal": false}' in found[8].arguments
    assert "--encoder=hf:microsoft/wavlm-base@v1.0" in found[-1].arguments
    assert [point.label for point in found[:2]] == [
        "enc.py pool=1 learning_rate=0.001",
        "enc.py pool=1 learning_rate=0.0005",
    ]
    assert found[8].label == "enc.py::ToneEncoder layer=6 sizes=[1, 2] causal=False pool=1 learning_rate=0.001"
    assert len({point.label for point in found}) == len({point.file_name for point in found}) == len(found)
    assert found[0].command(Path("a b")).endswith("--set=steps=5 -k 'task1 or clotho' '--runs-dir=a b'")


def test_what_all_have_in_common_is_not_in_the_label(folder: Path) -> None:
    (only,) = points(
        folder, "encoders: [{encoder: other.py, arguments: {layer: 3}}]\noptions: {preset: mini, pool: [2]}\n"
    )
    assert only.label == "other.py"
    assert only.arguments == ("--encoder=other.py", '--encoder-args={"layer": 3}', "--preset=mini", "--pool=2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("encoder: other.py", r"sweep.yaml: encoder: unknown key; expected one of .*did you mean encoders\?"),
        ("options: {preset: mini}", "sweep.yaml: encoders: found nothing, expected a list of encoders"),
        ("encoders: other.py", "encoders: found 'other.py', expected a list of encoders"),
        ("encoders: []", r"encoders: found \[\], expected a list"),
        ("encoders: [3]", "encoders: found 3, expected text or a mapping with the key encoder"),
        ("encoders: [{encodr: x}]", r"encoders\[0\].encodr: unknown key"),
        ("encoders: [{arguments: {a: 1}}]", r"encoders\[0\].encoder: missing"),
        ("encoders: [{encoder: other.py, revisions: [main]}]", "revisions: only models of the hub have them"),
        ("encoders: [{encoder: other.py, arguments: [1]}]", r"arguments: found \[1\], expected a mapping"),
        ("encoders: [{encoder: other.py, arguments: {a: []}}]", "arguments.a: found an empty list"),
        ("encoders: [missing.py]", "sweep.yaml: --encoder=missing.py: there is no file"),
        ("encoders: [other.py, other.py]", "sweep.yaml: other.py is named twice"),
        ("encoders: [other.py]\ntasks: esc50", r"tasks: esc50: no such task or dataset; .*did you mean esc-50\?"),
        ("encoders: [other.py]\noptions: {limits: 3}", r"limits: no such option; .*did you mean limit\?"),
        ("encoders: [other.py]\noptions: {runs_dir: a}", "runs_dir: a sweep has no such option; give it on the"),
        ("encoders: [other.py]\noptions: {encoder_args: {a: 1}}", "options.encoder_args: a sweep has no such option"),
        ("encoders: [other.py]\noptions: {save_baseline: a.yaml}", "save_baseline: .* all runs would write one file"),
        ("encoders: [other.py]\noptions: {limit: [true]}", "limit=True: expected a text, a number or a path"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(folder: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        points(folder, text)


def test_a_file_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing.yaml: no such file"):
        read_points(Path("nothing.yaml"))


def test_the_file_of_the_page_is_the_sweep_of_its_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(REPOSITORY)
    page = (REPOSITORY / "docs" / "sweeps.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "layers.yaml").write_text(text)
    labels = [point.label for point in read_points(tmp_path / "layers.yaml")]
    assert labels == re.findall(r"^(\w+\.py .*?)  +0\.\d+  ", page, flags=re.MULTILINE)
