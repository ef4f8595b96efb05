from __future__ import annotations

from pathlib import Path

import pytest

from xares_bench.core.errors import DataError, UsageError
from xares_bench.core.progress import Progress
from xares_bench.decoder import locate_decoder


def test_a_folder_is_used_as_it_is_and_known_by_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "decoder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    found = locate_decoder(str(folder), tmp_path, Progress())
    assert (found.name, found.folder, found.commit) == (str(folder), str(folder), None)
    moved = folder.rename(tmp_path / "elsewhere")
    assert locate_decoder(str(moved), tmp_path, Progress()).digest == found.digest
    (moved / "model.safetensors").write_bytes(b"weights")
    assert locate_decoder(str(moved), tmp_path, Progress()).digest != found.digest


def test_a_model_that_is_nowhere_is_one_line(tmp_path: Path) -> None:
    for name in ("owner/absent", "owner/absent@v1"):
        with pytest.raises((DataError, UsageError), match=r"owner/absent") as raised:
            locate_decoder(name, tmp_path, Progress())
        assert "\n" not in str(raised.value)
