from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.suite.conftest import MakeSuite

CLASS = """
import torch

class {name}(torch.nn.Module):
    output_dim = 4
    commit = "0123abc"

    def forward(self, audio, mask=None):
        return audio[:, : audio.shape[1] // 400 * 400].reshape(len(audio), -1, 4), None
"""


def test_the_name_of_a_folder_is_short_whatever_that_of_the_encoder(make_suite: MakeSuite, tmp_path: Path) -> None:
    name = f"{'E' * 300}Encoder"
    (tmp_path / "enc.py").write_text(CLASS.format(name=name))
    run = make_suite(encoder=str(tmp_path / "enc.py")).open_run(["mine"])
    assert run.name.startswith("E" * 50 + "-mini-")
    assert run.encoder["name"] == name
    assert run.encoder["commit"] == "0123abc"


def test_results_name_no_folder_of_a_home_or_an_installation(
    make_suite: MakeSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_suite().open_run(["mine"])
    assert run.decoder["name"] == "fixtures/mini-decoder of xares-bench"
    assert run.data["folder"] == "own tar files"
    (tmp_path / "decoder").mkdir()
    for file in (REPOSITORY / "fixtures" / "mini-decoder").iterdir():
        (tmp_path / "decoder" / file.name).symlink_to(file)
    suite = make_suite(decoder="decoder")
    run = suite.open_run(["mine"])
    assert run.decoder["name"] == "decoder"
    assert run.deviations["decoder"] == ["fixtures/mini-decoder of xares-bench", "decoder"]
    assert suite.open_run(["gtzan"]).data["folder"] == "fixtures/mini of xares-bench"
