"""The paper model of the full benchmark: its figures by hand, and the page that shows them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.paper_model import MIXES, Assumptions, page, parser, read_data, read_h100
from tests.conftest import REPOSITORY
from xares_bench.config.catalogue import load_catalogue
from xares_bench.core.errors import CatalogueError


def given(*options: str) -> Assumptions:
    return Assumptions(**vars(parser(read_h100()).parse_args(options)))


def output(*options: str) -> str:
    command = [sys.executable, "-m", "benchmarks.paper_model", *options]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


def test_the_page_contains_the_output() -> None:
    shown = (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8")
    assert f"\n\n{output()}\n" in shown, (
        "python -m benchmarks.paper_model prints other tables than docs/performance.md has"
    )


def test_every_dataset_is_drawn_and_tested_once() -> None:
    catalogue = load_catalogue("full")
    data = [one for mix in MIXES for one in read_data(catalogue, mix)]
    assert sorted(one.name for one in data) == sorted(catalogue.datasets)
    for mix in MIXES:
        assert sum(one.draws for one in read_data(catalogue, mix)) == pytest.approx(400_000)


def test_different_clips_and_what_is_encoded_of_them() -> None:
    data = {one.name: one for mix in MIXES for one in read_data(load_catalogue("full"), mix)}
    draws = 400_000 / 25.5  # of a dataset with weight 1
    assert data["asvspoof2015"].different_clips == pytest.approx(draws), "fewer draws than clips"
    assert data["esc-50"].different_clips == 1600, "more draws than clips"
    assert data["gtzan"].encoded == 900, "30.013 s: one window"
    assert data["songdescriber"].encoded == pytest.approx(400_000 / 9), "120 s: a window at every draw"
    assert data["songdescriber"].cached_s == 0


def test_operations_of_a_dataset_by_hand() -> None:
    data = {one.name: one for one in read_data(load_catalogue("full"), "task1")}
    esc_50 = data["esc-50"]  # clips of 5 s: 125 frames, 10 tokens of prompt, 3 of target, EOS
    assert esc_50.positions(given(), esc_50.crop_s) == 139
    weights = 4 * 106_168_320 + 6 * (2_442_240 + 768 * 576)
    by_hand = 139 * weights + 12 * 30 * 576 * 139**2 + 4 * 28_311_552 * 4
    assert esc_50.training_operations(given(), 8) / esc_50.draws == pytest.approx(by_hand)
    assert given().encoding(1) == 2 * 86e6 * 25
    assert given().feature_bytes(10) == 250 * 768 * 4


def test_an_option_changes_the_table_and_is_called_an_assumption() -> None:
    table = page(given("--launches", "1000", "--us-per-launch", "50"), read_h100(), load_catalogue("full"))
    assert "| kernels that a training step starts | 1,000 | assumed |" in table
    assert "| a step: starting its kernels | 50 ms | 50 ms | estimated |" in table
    assert "| a step on an H100 | 299 to 389 ms | 299 to 389 ms | measured |" in table


def test_a_figure_without_a_source_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    text = (REPOSITORY / "benchmarks" / "paper_model.yaml").read_text(encoding="utf-8")
    file.write_text(text.replace("16375 published", "16375 heard"), encoding="utf-8")
    with pytest.raises(CatalogueError, match=r"asvspoof2015\.train\.clips: no number"):
        read_data(load_catalogue("full"), "task1", file)
