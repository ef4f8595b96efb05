from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from xares_bench.core.errors import DataError
from xares_bench.hub.lock import LOCK_NAME, FileInfo, Pin, Repository, edit_pins, is_writable, read_pins

KEY = Repository(name="owner/shards").key
PIN = Pin(
    revision="main",
    commit="0" * 40,
    files={
        "a.tar": FileInfo(size_bytes=3, sha256="1" * 64),
        "b.json": FileInfo(size_bytes=2, git_sha1="2" * 40),
        "c.tar": FileInfo(size_bytes=None, sha256="3" * 64),
    },
)


def test_pins_come_back_as_they_were_written(tmp_path: Path) -> None:
    assert KEY == "datasets/owner/shards"
    assert read_pins(tmp_path / "nothing here") == {}
    with edit_pins(tmp_path, write=True) as pins:
        pins[KEY] = PIN
    assert read_pins(tmp_path) == {KEY: PIN}
    content = json.loads((tmp_path / LOCK_NAME).read_text())
    assert content["schema"] == 1
    assert content["repositories"][KEY]["files"]["b.json"] == {"size": 2, "git_sha1": "2" * 40}


def test_nothing_is_written_without_leave_without_a_change_or_after_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with edit_pins(folder, write=False) as pins:
        pins[KEY] = PIN
    assert not folder.exists()
    with edit_pins(folder, write=True):
        pass
    with contextlib.suppress(KeyError), edit_pins(folder, write=True) as pins:
        pins[KEY] = PIN
        raise KeyError
    assert not (folder / LOCK_NAME).exists()
    with edit_pins(folder, write=True) as pins:  # the lock was released
        assert pins == {}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 2, "repositories": {}}', '{"schema": 1, "repositories": 3}']
)
def test_a_file_that_is_no_lock_file_is_an_error_and_stays(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_NAME).write_text(text)
    with pytest.raises(DataError, match=rf"{LOCK_NAME}: not a lock file of xares-bench \(.*restore it, or delete it$"):
        read_pins(tmp_path)
    with pytest.raises(DataError, match="not a lock file"), edit_pins(tmp_path, write=True):
        pass
    assert (tmp_path / LOCK_NAME).read_text() == text


def test_a_folder_that_is_not_there_is_writable_where_it_could_be_made(tmp_path: Path) -> None:
    assert is_writable(tmp_path / "a" / "b")
    (tmp_path / "file").touch(0o600)
    assert not is_writable(tmp_path / "file" / "b")
