from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from xares_bench.core import edition
from xares_bench.core.edition import commit_of_clone, own_commit

COMMIT, OTHER = "0123456789" * 4, "abcdef0123" * 4


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose branch `main` is at `COMMIT`."""
    folder = tmp_path / "clone"
    refs = folder / ".git" / "refs" / "heads"
    refs.mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "xares-bench"\n', encoding="utf-8")
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n", encoding="utf-8")
    (refs / "main").write_text(f"{COMMIT}\n", encoding="utf-8")
    return folder


def test_the_commit_of_a_branch_of_a_detached_head_and_of_packed_refs(clone: Path) -> None:
    assert commit_of_clone(clone) == COMMIT
    (clone / ".git" / "refs" / "heads" / "main").unlink()
    assert commit_of_clone(clone) is None, "a branch without a commit"
    (clone / ".git" / "packed-refs").write_text(
        f"# pack-refs with: peeled\n{COMMIT} refs/heads/other/main\n{OTHER} refs/heads/main\n", encoding="utf-8"
    )
    assert commit_of_clone(clone) == OTHER
    (clone / ".git" / "HEAD").write_text(f"{COMMIT}\n", encoding="utf-8")
    assert commit_of_clone(clone) == COMMIT


def test_a_worktree_has_its_branch_in_the_common_folder(clone: Path, tmp_path: Path) -> None:
    own = clone / ".git" / "worktrees" / "side"
    own.mkdir(parents=True)
    (own / "HEAD").write_text("ref: refs/heads/side\n", encoding="utf-8")
    (own / "commondir").write_text("../..\n", encoding="utf-8")
    (clone / ".git" / "refs" / "heads" / "side").write_text(f"{OTHER}\n", encoding="utf-8")
    side = tmp_path / "side"
    side.mkdir()
    (side / ".git").write_text(f"gitdir: {own}\n", encoding="utf-8")
    (side / "pyproject.toml").write_text('name = "xares-bench"\n', encoding="utf-8")
    assert commit_of_clone(side) == OTHER


def test_a_copy_in_another_project_has_no_commit(clone: Path, tmp_path: Path) -> None:
    (clone / "pyproject.toml").write_text('[project]\nname = "mine"\n', encoding="utf-8")
    assert commit_of_clone(clone) is None
    assert commit_of_clone(tmp_path) is None


def test_git_names_the_same_commit_here() -> None:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a clone")
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    own_commit.cache_clear()
    assert own_commit() == found.stdout.strip()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"ref: refs/heads/../../../pyproject.toml", b""])
def test_a_damaged_repository_fails_nothing(clone: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / ".git" / "HEAD").write_bytes(content)
    monkeypatch.setattr(edition, "_PACKAGE", clone / "xares_bench")
    own_commit.cache_clear()
    assert own_commit() is None
    own_commit.cache_clear()


def test_an_installation_from_git_has_its_commit_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "xares_bench-0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: xares-bench\nVersion: 0\n", encoding="utf-8")
    (record / "direct_url.json").write_text(
        f'{{"url": "https://host/x.git", "vcs_info": {{"vcs": "git", "commit_id": "{COMMIT}"}}}}', encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for package, expected in ((tmp_path / "xares_bench", COMMIT), (tmp_path / "elsewhere" / "xares_bench", None)):
        monkeypatch.setattr(edition, "_PACKAGE", package)
        own_commit.cache_clear()
        assert own_commit() == expected
    own_commit.cache_clear()
