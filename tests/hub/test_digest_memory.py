from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.hub.server import git_sha1, sha256
from xares_bench.hub.digest_memory import DigestMemory
from xares_bench.hub.lock import Promise

PATH = "esc/test/a.tar.gz"
NOTE = Path(".cache/xares-bench") / f"{PATH}.json"
PROMISE = Promise(size_bytes=5, sha256=sha256(b"first"))


@pytest.fixture
def memory(tmp_path: Path) -> DigestMemory:
    (tmp_path / PATH).parent.mkdir(parents=True)
    (tmp_path / PATH).write_bytes(b"first")
    return DigestMemory(folder=tmp_path, keep=True)


def test_a_file_is_read_once_and_again_when_it_has_changed(memory: DigestMemory) -> None:
    file, note = memory.folder / PATH, memory.folder / NOTE
    assert memory.keeps(PATH, PROMISE) is None
    assert memory.check(PATH, PROMISE)
    assert memory.keeps(PATH, PROMISE) is True
    known = json.loads(note.read_text())
    note.write_text(json.dumps({**known, "sha256": "remembered"}))
    assert memory.sha256(PATH) == "remembered"  # so it is not read
    status = file.stat()
    file.write_bytes(b"other")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time, and yet another file
    assert memory.keeps(PATH, PROMISE) is None
    assert memory.sha256(PATH) == sha256(b"other")
    assert memory.keeps(PATH, PROMISE) is False


def test_another_file_in_its_place_is_read(memory: DigestMemory) -> None:
    assert memory.check(PATH, PROMISE)
    (memory.folder / "new").write_bytes(b"other")
    (memory.folder / "new").replace(memory.folder / PATH)
    assert not memory.check(PATH, PROMISE)


def test_a_file_of_another_size_is_not_read(memory: DigestMemory) -> None:
    assert memory.keeps(PATH, Promise(size_bytes=6, sha256=PROMISE.sha256)) is False
    assert not (memory.folder / NOTE).exists()


def test_a_file_that_is_kept_in_git_is_compared_by_its_object_id(memory: DigestMemory) -> None:
    assert memory.check(PATH, Promise(size_bytes=5, git_sha1=git_sha1(b"first")))
    assert not memory.check(PATH, Promise(size_bytes=5, git_sha1=git_sha1(b"other")))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"size": 5, "sha256": 7}'])
def test_a_broken_note_is_no_note(memory: DigestMemory, content: str) -> None:
    memory.sha256(PATH)
    (memory.folder / NOTE).write_text(content)
    assert memory.sha256(PATH) == sha256(b"first")


def test_without_leave_to_keep_nothing_is_written(tmp_path: Path, memory: DigestMemory) -> None:
    before = sorted(tmp_path.rglob("*"))
    looking = DigestMemory(folder=tmp_path, keep=False)
    assert looking.check(PATH, PROMISE)
    looking.remember(PATH, PROMISE)
    assert sorted(tmp_path.rglob("*")) == before
