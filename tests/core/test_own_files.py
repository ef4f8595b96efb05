from __future__ import annotations

from pathlib import Path

import pytest

import xares_bench
from tests.conftest import REPOSITORY
from xares_bench.config.catalogue import load_catalogue
from xares_bench.core.errors import UsageError
from xares_bench.core.own_files import own_folder, required_folder


def test_in_a_clone_folders_lie_beside_the_package() -> None:
    assert own_folder("fixtures/mini") == REPOSITORY / "fixtures" / "mini"
    assert own_folder("config") == REPOSITORY / "xares_bench" / "config"
    assert own_folder("no/such/folder") is None


def test_in_a_wheel_inside_it_and_a_strangers_folder_beside_it_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "xares_bench" / "bench").mkdir(parents=True)
    (tmp_path / "fixtures" / "mini").mkdir(parents=True)
    monkeypatch.setattr(xares_bench, "__path__", [str(tmp_path / "xares_bench")])
    assert own_folder("bench") == tmp_path / "xares_bench" / "bench"
    assert own_folder("fixtures/mini") is None


def test_a_preset_whose_own_folder_is_missing_is_no_name_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xares_bench, "__path__", [str(tmp_path)])
    monkeypatch.chdir(REPOSITORY)  # where a relative path would be found
    with pytest.raises(UsageError, match=r"--preset=mini: fixtures/mini, .* is not in this installation"):
        load_catalogue("mini")


def test_in_an_archive_the_error_says_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.whl").write_bytes(b"PK")
    monkeypatch.setattr(xares_bench, "__path__", [str(tmp_path / "x.whl" / "xares_bench")])
    with pytest.raises(
        UsageError, match=r"the suite: .*x\.whl/xares_bench is inside an archive, .* pip install FILE\.whl"
    ):
        required_folder("bench", "the suite")
