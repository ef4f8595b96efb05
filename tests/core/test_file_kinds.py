from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xares_bench.core.file_kinds import path_problem, what_instead, what_it_is


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", "an empty file (0 bytes)"),
        (b"fLaC\x00\x00", "a FLAC file"),
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"070701000", "a cpio archive"),
        (b"  \n<!doctype HTML>", "a web page (HTML)"),
        (b"<!-- moved --><html>", "a web page (HTML)"),
        ("<html>".encode("utf-16"), "a web page (HTML)"),
        (b"\xef\xbb\xbf<html>", "a web page (HTML)"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', "an XML text ("),
        (
            b' {"error": "Invalid username or password."}',
            'a JSON text (\'{"error": "Invalid username or password."}\')',
        ),
        (b"Entry not found", "a text ('Entry not found')"),
        ("é".encode() * 400, "a text ("),
        (("é" * 255).encode() + b"\xc3", "a text ("),  # the last letter is cut
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "a Git LFS pointer"),
        (b"../../.git/annex/objects/Xx/Yy/SHA256E-s9--00.tar", "a git-annex pointer"),
    ],
)
def test_first_bytes_tell(head: bytes, expected: str) -> None:
    found = what_it_is(head)
    assert found is not None
    assert found[0].startswith(expected)
    assert "\n" not in found[0]
    assert len(found[0]) < 120


@pytest.mark.parametrize("head", [b"\x00" * 512, b"\xa5" * 512, b"key.wav\x00\x00", b"\xc3(", b" \n", b"\x1b[31m"])
def test_first_bytes_may_tell_nothing(head: bytes) -> None:
    assert what_it_is(head) is None


def test_a_file_that_cannot_be_read_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "cut.gz").write_bytes(b"\x1f\x8b\x08\x00")
    assert what_instead(tmp_path / "cut.gz") is None
    assert what_instead(tmp_path / "absent") is None


def test_a_file_and_nothing_at_all_have_no_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("file")
    assert path_problem(tmp_path / "file") is None
    assert path_problem(tmp_path / "link") is None
    assert path_problem(tmp_path / "absent") is None
    assert path_problem(tmp_path / "file" / "below") is None


def test_links_folders_and_pipes_are_named(tmp_path: Path) -> None:
    (tmp_path / "annexed").symlink_to(".git/annex/objects/Xx/Yy/SHA256E-s9--00.tar/SHA256E-s9--00.tar")
    (tmp_path / "broken").symlink_to("elsewhere/a.tar")
    (tmp_path / "endless").symlink_to("endless")
    os.mkfifo(tmp_path / "pipe")
    expected = {
        "annexed": "a git-annex link, and its file is not here; run `git annex get` on it",
        "broken": "a link to elsewhere/a.tar, which is missing; ",
        "endless": "cannot be read: Too many levels of symbolic links; ",
        "pipe": "a pipe, socket or device, expected a tar file; ",
        ".": "a folder, expected a tar file; ",
    }
    for name, start in expected.items():
        problem = path_problem(tmp_path / name)
        assert problem is not None, name
        assert problem.startswith(start), problem


def without_rights() -> None:
    """Let the permissions of files count for the superuser, too."""
    drop_from_bounding_set = 24
    for capability in (1, 2):  # to override permissions, and to read and search in spite of them
        ctypes.CDLL(None).prctl(drop_from_bounding_set, capability, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="drops the superuser's rights as Linux knows them")
def test_a_file_or_a_folder_without_rights_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "a.tar").touch()
    (tmp_path / "b.tar").touch(mode=0o200)
    (tmp_path / "closed").chmod(0o600)
    program = (
        "import sys\nfrom pathlib import Path\nfrom xares_bench.core.file_kinds import path_problem\n"
        "for name in sys.argv[1:]: print(path_problem(Path(name)))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "closed" / "a.tar"), str(tmp_path / "b.tar")],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=without_rights,
    )
    (tmp_path / "closed").chmod(0o700)
    assert [line.partition(";")[0] for line in finished.stdout.splitlines()] == [
        "cannot be read: Permission denied"
    ] * 2
