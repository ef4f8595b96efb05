"""The wheel: built, installed beside nothing else of ours, and used from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SHORT_RUN = ("--preset=mini", "--encoder=enc.py", "-k", "esc-50", "--set", "steps=4", "--limit=8", "-q")


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, and a wheel that is built from that, as an index has them."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, folder=REPOSITORY)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, folder=source)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own, for PYTHONPATH; what it depends on is there already."""
    folder = tmp_path_factory.mktemp("site")
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", folder, wheel, folder=folder)
    return folder


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A folder with nothing but an encoder."""
    (tmp_path / "enc.py").write_bytes((REPOSITORY / "examples" / "logmel_encoder.py").read_bytes())
    return tmp_path


def test_the_wheel_has_the_suite_the_miniature_and_the_examples_once(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert len(names) == len(set(names))
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"xares_bench"}
    for folder in ("bench", "examples", "fixtures/mini", "fixtures/mini-decoder"):
        ours = {path.name for path in (REPOSITORY / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"}
        theirs = {Path(name).name for name in names if name.startswith(f"xares_bench/{folder}/")}
        assert theirs == ours
    assert "xares_bench/py.typed" in names
    assert wheel.stat().st_size < 15e6


def test_from_an_empty_folder_it_gives_the_scores_of_the_clone(installed: Path, empty: Path) -> None:
    command = (sys.executable, "-m", "xares_bench", *SHORT_RUN)
    path = {"PYTHONPATH": str(installed)}
    shown = run(*command, "--runs-dir=theirs", folder=empty, **path)
    where = run(sys.executable, "-c", "import xares_bench; print(*xares_bench.__path__)", folder=empty, **path)
    assert where.split() == [str(installed / "xares_bench")]
    assert "\ndecoder: fixtures/mini-decoder of xares-bench " in shown
    assert "\ndata: fixtures/mini of xares-bench, " in shown
    assert str(installed) not in shown
    assert sorted(path.name for path in empty.iterdir()) == [".pytest_cache", "enc.py", "theirs"], "it leaves its runs"
    run(sys.executable, "-m", "pytest", REPOSITORY / "bench", *SHORT_RUN, "--runs-dir=ours", folder=empty)
    (theirs,), (ours,) = ((empty / name).glob("*/scores.tsv") for name in ("theirs", "ours"))
    assert theirs.read_bytes() == ours.read_bytes()
    as_module = (sys.executable, "-m", "pytest", "--pyargs", "xares_bench.bench", *SHORT_RUN, "--runs-dir=theirs")
    assert "1 of 1 scores" in run(*as_module, folder=empty, **path)


def test_a_strangers_type_checker_sees_types(installed: Path, empty: Path) -> None:
    (empty / "use.py").write_text("from xares_bench.metrics import evaluate\nreveal_type(evaluate)\n", encoding="utf-8")
    shown = run(
        sys.executable, "-m", "mypy", "--follow-imports=silent", "use.py", folder=empty, MYPYPATH=str(installed)
    )
    assert "Revealed type is" in shown
    assert "Any" not in shown.partition("def")[0]
    (empty / "use.py").write_text(
        "import xares_bench\nreveal_type(xares_bench.run)\nreveal_type(xares_bench.read_runs('runs')[0].scores)\n",
        encoding="utf-8",
    )
    shown = run(
        sys.executable, "-m", "mypy", "--follow-imports=silent", "use.py", folder=empty, MYPYPATH=str(installed)
    )
    assert "-> xares_bench.reports.runs.Run" in shown
    assert "list[dict[str, Any]]" in shown.replace("builtins.", "")


def test_the_command_says_its_version(installed: Path, empty: Path) -> None:
    shown = run(sys.executable, "-m", "xares_bench", "--version", folder=empty, PYTHONPATH=str(installed))
    assert shown.startswith("xares-bench ")
