from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from xares_bench import __main__, __version__


def files(folder: Path) -> dict[str, str]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_a_repository_gets_an_encoder_a_workflow_and_ignored_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(["init", str(tmp_path / "new")]) == 0
    found = files(tmp_path / "new")
    assert set(found) == {"encoder.py", ".github/workflows/xares-bench.yml", ".gitignore"}
    assert found[".gitignore"].splitlines() == ["/runs/", "/xares_data/"]
    assert capsys.readouterr().out.splitlines()[-1] == "next: xares-bench --preset=mini --encoder=encoder.py"
    steps = yaml.safe_load(found[".github/workflows/xares-bench.yml"])["jobs"]["bench"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands == [f"pip install xares-bench=={__version__}", "xares-bench --preset=mini --encoder=encoder.py"]
    assert "pytest bench" not in found["encoder.py"]


def test_its_encoder_keeps_the_contract(tmp_path: Path) -> None:
    __main__.main(["init", str(tmp_path)])
    command = [sys.executable, "-m", "xares_bench", "--preset=mini", "--encoder=encoder.py", "-k", "contract", "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lines_are_added_once_to_what_is_ignored(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*.o\n/runs/", encoding="utf-8")
    for _ in range(2):
        assert __main__.main(["init", str(tmp_path)]) == 0
        assert files(tmp_path)[".gitignore"] == "*.o\n/runs/\n/xares_data/\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "is_replaced"), [("y\n", True), ("\n", False), ("no\n", False)])
def test_it_asks_before_it_replaces_a_file(
    answer: str, is_replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "encoder.py").write_text("mine", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert __main__.main(["init", str(tmp_path)]) == 0
    assert (files(tmp_path)["encoder.py"] != "mine") == is_replaced
    assert ".github/workflows/xares-bench.yml" in files(tmp_path)


def test_where_nobody_can_answer_it_replaces_only_by_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "encoder.py").write_text("mine", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert __main__.main(["init", str(tmp_path)]) == 2
    assert "is there with other contents; move it, or replace it with --force" in capsys.readouterr().err
    assert files(tmp_path) == {"encoder.py": "mine"}
    assert __main__.main(["init", str(tmp_path), "--force"]) == 0
    assert files(tmp_path)["encoder.py"] != "mine"
