"""The versions that pyproject.toml allows: the lowest are pinned together, and an installed torch stays.

`scripts/check lowest` runs the tests marked `versions` with the lowest versions; with the newest they always run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
USERS = [Requirement(text) for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["m4a"]]]


def pins(name: str) -> dict[str, str]:
    """The versions that a file of constraints pins, by package."""
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(package): version for package, version in pairs}


def bounds() -> dict[str, str]:
    """The lower bound of every dependency of users; there are no others."""
    found: dict[str, str] = {}
    for requirement in USERS:
        (bound,) = requirement.specifier
        assert bound.operator == ">=", requirement
        found[canonicalize_name(requirement.name)] = bound.version
    return found


def test_the_lowest_versions_that_are_tested_are_the_bounds() -> None:
    lowest = {package: version for package, version in bounds().items() if package != "torch"}
    assert pins("constraints-lowest.txt") == lowest


def test_the_bound_of_torch_is_the_oldest_that_is_said_to_have_been_tried() -> None:
    text = (REPOSITORY / "constraints-lowest.txt").read_text(encoding="utf-8")
    tried = re.findall(r"(\d+\.\d+)(?= and | have been tried)", text)
    assert min(tried, key=Version) == bounds()["torch"]


def test_the_newest_versions_that_are_tested_meet_the_bounds() -> None:
    newest = pins("constraints.txt")
    assert {package for package, bound in bounds().items() if Version(newest[package]) < Version(bound)} == set()


def install(folder: Path, torch: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Ask pip what installing the package would change, in an environment with this build of torch; it has no index."""
    pytest.importorskip("pip")
    information = folder / f"torch-{torch}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {torch}\n", encoding="utf-8")
    (information / "INSTALLER").write_text("pip\n", encoding="utf-8")
    (information / "RECORD").write_text("", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--disable-pip-version-check"]
    return subprocess.run(
        [*command, *options, *map(str, USERS)],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_installed_torch_is_left_alone(tmp_path: Path) -> None:
    torch = f"{bounds()['torch']}.0+cu126"
    result = install(tmp_path, torch)
    assert result.returncode == 0, result.stderr
    assert f"Requirement already satisfied: torch>={bounds()['torch']} in {tmp_path} ({torch})" in result.stdout
    assert "Would install" not in result.stdout


def test_constraints_txt_would_replace_it(tmp_path: Path) -> None:
    torch = f"{bounds()['torch']}.0+cu126"
    result = install(tmp_path, torch, "-c", str(REPOSITORY / "constraints.txt"))
    assert f"({torch})" not in result.stdout
