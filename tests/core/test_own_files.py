from __future__ import annotations

from pathlib import Path

import pytest

import xares_bench
from tests.conftest import REPOSITORY
from xares_bench.config.catalogue import load_catalogue
from xares_bench.core.errors import UsageError
from xares_bench.core.own_files import own_folder, required_folder, shown_path


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


@pytest.mark.parametrize("is_wheel", [False, True])
def test_what_is_ours_is_shown_by_its_name_and_what_is_here_without_the_folder(
    is_wheel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = REPOSITORY
    if is_wheel:
        place = tmp_path / "site-packages" / "xares_bench"
        for name in ("fixtures/mini-decoder", "fixtures/mini", "examples"):
            (place / name).mkdir(parents=True)
        monkeypatch.setattr(xares_bench, "__path__", [str(place)])
    for name in ("fixtures/mini-decoder", "fixtures/mini", "examples/logmel_encoder.py"):
        assert shown_path(str(place / name)) == f"{name} of xares-bench"
    monkeypatch.chdir(tmp_path)
    assert shown_path(str(tmp_path / "fixtures" / "decoder")) == "fixtures/decoder"
    for other in ("/data/decoder", "HuggingFaceTB/SmolLM2-135M", f"{place}/tests/decoder", f"{place}/fixtures_of_mine"):
        assert shown_path(other) == other.replace(f"{tmp_path}/", "")


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
