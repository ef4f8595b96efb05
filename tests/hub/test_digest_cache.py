from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.hub.server import git_sha1, sha256
from xares_bench.hub.digest_cache import DigestCache
from xares_bench.hub.lock import FileInfo

PATH = "esc/test/a.tar.gz"
CACHED = Path(".cache/xares-bench") / f"{PATH}.json"
EXPECTED = FileInfo(size_bytes=5, sha256=sha256(b"first"))


@pytest.fixture
def digests(tmp_path: Path) -> DigestCache:
    (tmp_path / PATH).parent.mkdir(parents=True)
    (tmp_path / PATH).write_bytes(b"first")
    return DigestCache(folder=tmp_path, write=True)


def test_a_file_is_read_once_and_again_when_it_has_changed(digests: DigestCache) -> None:
    file, cached = digests.folder / PATH, digests.folder / CACHED
    assert digests.matches(PATH, EXPECTED) is None
    assert digests.check(PATH, EXPECTED)
    assert digests.matches(PATH, EXPECTED) is True
    known = json.loads(cached.read_text())
    cached.write_text(json.dumps({**known, "sha256": "cached"}))
    assert digests.sha256(PATH) == "cached"  # so it is not read
    status = file.stat()
    file.write_bytes(b"other")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time, and yet another file
    assert digests.matches(PATH, EXPECTED) is None
    assert digests.sha256(PATH) == sha256(b"other")
    assert digests.matches(PATH, EXPECTED) is False


def test_another_file_in_its_place_is_read(digests: DigestCache) -> None:
    assert digests.check(PATH, EXPECTED)
    (digests.folder / "new").write_bytes(b"other")
    (digests.folder / "new").replace(digests.folder / PATH)
    assert not digests.check(PATH, EXPECTED)


def test_a_file_of_another_size_is_not_read(digests: DigestCache) -> None:
    assert digests.matches(PATH, FileInfo(size_bytes=6, sha256=EXPECTED.sha256)) is False
    assert not (digests.folder / CACHED).exists()


def test_a_file_that_is_stored_in_git_is_compared_by_its_object_id(digests: DigestCache) -> None:
    assert digests.check(PATH, FileInfo(size_bytes=5, git_sha1=git_sha1(b"first")))
    assert not digests.check(PATH, FileInfo(size_bytes=5, git_sha1=git_sha1(b"other")))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"size": 5, "sha256": 7}'])
def test_a_broken_file_of_digests_is_ignored(digests: DigestCache, content: str) -> None:
    digests.sha256(PATH)
    (digests.folder / CACHED).write_text(content)
    assert digests.sha256(PATH) == sha256(b"first")


def test_without_leave_to_write_nothing_is_written(tmp_path: Path, digests: DigestCache) -> None:
    before = sorted(tmp_path.rglob("*"))
    read_only = DigestCache(folder=tmp_path, write=False)
    assert read_only.check(PATH, EXPECTED)
    read_only.add(PATH, EXPECTED)
    assert sorted(tmp_path.rglob("*")) == before


def test_another_way_of_computing_a_digest_is_used_once_per_file(tmp_path: Path, digests: DigestCache) -> None:
    read: list[Path] = []

    def compute(path: Path) -> str:
        read.append(path)
        return sha256(path.read_bytes())

    other = DigestCache(folder=tmp_path, write=True, compute=compute)
    assert not other.knows(PATH)
    assert other.check(PATH, EXPECTED)
    assert other.knows(PATH)
    assert digests.sha256(PATH) == other.sha256(PATH)
    assert read == [tmp_path / PATH]
