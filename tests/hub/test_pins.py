from __future__ import annotations

import doctest
from collections.abc import Sequence
from pathlib import Path

import pytest

from xares_bench.core.errors import UsageError
from xares_bench.hub import client, parse_data_revisions, pins
from xares_bench.hub.lock import FileInfo, Repository, read_pins
from xares_bench.hub.pins import DataPins

NAME = "owner/shards"
COMMIT, OTHER_COMMIT = "1" * 40, "2" * 40
SHA256 = "a" * 64


class FakeHub:
    """Answers with one commit and files of 7 bytes; notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def resolve(self, repository: Repository, revision: str) -> str:
        self.asked.append(revision)
        return COMMIT

    def file_infos(self, repository: Repository, commit: str, paths: Sequence[str]) -> dict[str, FileInfo]:
        self.asked.extend(paths)
        return {path: FileInfo(size_bytes=7, sha256=SHA256) for path in paths}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    hub = FakeHub()
    monkeypatch.setattr(client, "is_offline", lambda: False)
    monkeypatch.setattr(client, "resolve", hub.resolve)
    monkeypatch.setattr(client, "file_infos", hub.file_infos)
    return hub


def fetched_by_hf(folder: Path, path: str, commit: str) -> None:
    """A file as `hf download --local-dir` leaves it, with its metadata."""
    note = folder / ".cache" / "huggingface" / "download" / f"{path}.metadata"
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(f"{commit}\n{SHA256}\n123.4\n")
    (folder / path).write_bytes(b"content")


def test_the_hub_is_asked_once_and_only_for_what_is_unknown(hub: FakeHub, tmp_path: Path) -> None:
    DataPins(tmp_path, {}, write=True).learn(NAME, ["a.tar", "b.tar"])
    assert hub.asked == ["main", "a.tar", "b.tar"]
    later = DataPins(tmp_path, {}, write=True)
    later.learn(NAME, ["a.tar", "c.tar"])
    assert hub.asked == ["main", "a.tar", "b.tar", "c.tar"]
    assert later.info(NAME, "b.tar") == FileInfo(size_bytes=7, sha256=SHA256)
    assert later.info(NAME, "d.tar") is None


def test_without_leave_to_write_answers_are_known_to_this_run_only(hub: FakeHub, tmp_path: Path) -> None:
    data_pins = DataPins(tmp_path, {}, write=False)
    data_pins.learn(NAME, ["a.tar"])
    assert data_pins.info(NAME, "a.tar") is not None
    assert read_pins(tmp_path) == {}


def test_a_requested_revision_replaces_the_pin_and_a_commit_is_not_resolved(hub: FakeHub, tmp_path: Path) -> None:
    DataPins(tmp_path, {}, write=True).learn(NAME, ["a.tar"])
    hub.asked.clear()
    data_pins = DataPins(tmp_path, {NAME: OTHER_COMMIT, None: "not used"}, write=True)
    data_pins.learn(NAME, ["a.tar"])
    assert hub.asked == ["a.tar"]
    pin = data_pins.pin(NAME)
    assert pin is not None
    assert (pin.revision, pin.commit) == (OTHER_COMMIT, OTHER_COMMIT)


def test_a_folder_filled_by_hf_download_says_its_commit_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "is_offline", lambda: True)
    fetched_by_hf(tmp_path, "a.tar", COMMIT)
    data_pins = DataPins(tmp_path, {}, write=True)
    data_pins.learn(NAME, ["a.tar"])
    pin = data_pins.pin(NAME)
    assert pin is not None
    assert (pin.revision, pin.commit) == (None, COMMIT)
    assert pin.files == {"a.tar": FileInfo(size_bytes=None, sha256=SHA256)}


def test_files_of_two_commits_do_not_say_which_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "is_offline", lambda: True)
    fetched_by_hf(tmp_path, "a.tar", COMMIT)
    fetched_by_hf(tmp_path, "b.tar", OTHER_COMMIT)
    data_pins = DataPins(tmp_path, {}, write=True)
    data_pins.learn(NAME, ["a.tar", "b.tar"])
    assert data_pins.pin(NAME) is None


def test_the_examples_of_the_documentation_hold() -> None:
    assert doctest.testmod(pins).failed == 0
    assert doctest.testmod(pins).attempted > 0


def test_revisions_are_read_per_repository_or_for_all() -> None:
    assert parse_data_revisions([]) == {}
    assert parse_data_revisions(["main"]) == {None: "main"}
    assert parse_data_revisions(["a/b@refs/pr/1", "c/d@v1"]) == {"a/b": "refs/pr/1", "c/d": "v1"}


@pytest.mark.parametrize("texts", [[""], ["a/b@"], ["b@v1"], ["a/b/c@v1"], ["v1", "v2"], ["a/b@v1", "a/b@v2"]])
def test_ill_formed_revisions_are_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError, match=f"^--data-revision={texts[-1]}: "):
        parse_data_revisions(texts)
