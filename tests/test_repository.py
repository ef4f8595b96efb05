"""Files that services read: what they say is true of this repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import xares_bench
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def read_yaml(file: str) -> Any:
    return yaml.safe_load((REPOSITORY / file).read_text(encoding="utf-8"))


def test_the_citation_has_what_its_format_requires_and_is_of_this_version(pyproject: dict[str, Any]) -> None:
    citation = read_yaml("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert (citation["title"], citation["license"]) == (pyproject["project"]["name"], pyproject["project"]["license"])
    assert citation["version"] == xares_bench.__version__
    for work in (citation, *citation["references"]):
        assert all(author["name"] for author in work["authors"])


def test_the_version_has_one_source(pyproject: dict[str, Any]) -> None:
    assert "version" in pyproject["project"]["dynamic"]
    source = REPOSITORY / pyproject["tool"]["hatch"]["version"]["path"]
    assert f'\n__version__ = "{xares_bench.__version__}"\n' in source.read_text(encoding="utf-8")


def test_the_changelog_has_this_version_on_top_and_every_version_has_a_date() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased, *versions = re.findall(r"^## (.*)$", changelog, flags=re.MULTILINE)
    assert unreleased == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version) for version in versions)
    assert versions[0].startswith(f"[{xares_bench.__version__}] ")


def script(name: str, **inputs: str) -> tuple[str, dict[str, str]]:
    """The commands of a step of the action, and its environment with these inputs."""
    action = read_yaml("action.yml")
    (step,) = (step for step in action["runs"]["steps"] if step.get("name") == name)
    values = {f"inputs.{key}": str(value.get("default", "")) for key, value in action["inputs"].items()}
    values |= {f"inputs.{key.replace('_', '-')}": value for key, value in inputs.items()}
    values["github.action_path"] = str(REPOSITORY)
    expression = re.compile(r"\$\{\{ (\S+) \}\}")
    environment = {key: expression.sub(lambda found: values[found[1]], value) for key, value in step["env"].items()}
    return step["run"], environment


def test_the_action_gets_its_inputs_through_variables_and_uses_all_of_them() -> None:
    action = read_yaml("action.yml")
    text = (REPOSITORY / "action.yml").read_text(encoding="utf-8")
    used = set(re.findall(r"inputs\.([\w-]+)", text))
    assert used == action["inputs"].keys()
    scripts = [step["run"] for step in action["runs"]["steps"] if "run" in step]
    assert len(scripts) == 2
    assert "${{" not in "".join(scripts), "an expression in a script is code"


@pytest.mark.parametrize("name", ["Install", "Score"])
def test_the_scripts_of_the_action_are_bash(name: str) -> None:
    commands, _ = script(name, encoder="enc.py")
    subprocess.run(["bash", "-n"], input=commands, text=True, check=True)


@pytest.mark.parametrize("torch_index", ["", "https://index.example/cpu"])
@pytest.mark.parametrize(("has_torch", "install"), [(True, ""), (False, "-e '.[my extra]'")])
def test_the_action_installs_a_torch_only_if_there_is_none(
    has_torch: bool, install: str, torch_index: str, tmp_path: Path
) -> None:
    commands, environment = script("Install", encoder="enc.py", install=install, torch_index=torch_index)
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/bash\nif [ $1 = -c ]; then exit {int(not has_torch)}; fi\nprintf '<%s>' \"$@\"\necho\n",
        encoding="utf-8",
    )
    python.chmod(0o755)
    variables = {**environment, "RUNNER_TEMP": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    found = subprocess.run(["bash", "-eo", "pipefail", "-c", commands], env=variables, capture_output=True, text=True)
    *torch, own = found.stdout.splitlines()
    assert found.returncode == 0, found.stderr
    assert len(torch) == (not has_torch)
    index = f"<--index-url><{torch_index}>" if torch_index else ""
    assert all(re.search(rf"<install>{index}<torch==[\d.]+>$", line) for line in torch)
    assert own.endswith(f"<-c><{tmp_path / 'constraints.txt'}><-e><{REPOSITORY}>" + "<-e><.[my extra]>" * bool(install))
    constraints = (tmp_path / "constraints.txt").read_text(encoding="utf-8")
    assert "\ntorch==" not in constraints
    assert "\ntransformers==" in constraints


def test_the_action_runs_the_suite_on_an_encoder_of_another_repository(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "examples" / "logmel_encoder.py", tmp_path / "enc.py")
    commands, environment = script(
        "Score", encoder="enc.py", baseline="logmel-mini", args="--collect-only -q -k 'task1 and not gtzan'"
    )
    variables = {**os.environ, **environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    found = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", commands], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "test_dataset[esc-50]" in found.stdout
    assert "test_dataset[gtzan]" not in found.stdout


def test_the_page_names_every_input_of_the_action_and_its_workflow_uses_them() -> None:
    page = (REPOSITORY / "docs" / "ci.md").read_text(encoding="utf-8")
    inputs = read_yaml("action.yml")["inputs"]
    assert re.findall(r"^\| `([\w-]+)` \|", page, flags=re.MULTILINE) == list(inputs)
    (workflow,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    *_, step = yaml.safe_load(workflow)["jobs"]["gate"]["steps"]
    assert "encoder" in step["with"]
    assert step["with"].keys() <= inputs.keys()


def test_the_hooks_are_the_parts_of_scripts_check() -> None:
    check = (REPOSITORY / "scripts" / "check").read_text(encoding="utf-8")
    (parts,) = re.findall(r'"\$\{@:-(.*)\}"; do', check)
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    hooks = repository["hooks"]
    assert [hook["id"] for hook in hooks] == parts.split()
    assert [hook["entry"] for hook in hooks] == [f"scripts/check {part}" for part in parts.split()]
    assert {hook["language"] for hook in hooks} == {"system"}


def test_the_dockerfile_copies_what_is_there_and_what_is_not_ignored() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", dockerfile, flags=re.MULTILINE) for name in line.split()}
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert all((REPOSITORY / name).exists() for name in copied)


def test_the_dockerfile_copies_what_the_package_and_the_presets_need(pyproject: dict[str, Any]) -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    project = pyproject["project"]
    presets = read_yaml("xares_bench/config/presets.yaml")
    wheel = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [project["readme"], *project["license-files"], *wheel["packages"], "hatch_build.py"]
    needed += [Path(presets["mini"]["data"]["folder"]).parts[0], Path(presets["mini"]["own_decoder"]).parts[0], "bench"]
    for name in needed:
        assert re.search(rf"^COPY .*\b{re.escape(name)}\b", dockerfile, flags=re.MULTILINE), name


def test_the_dockerfile_has_a_python_and_extras_that_the_package_takes(pyproject: dict[str, Any]) -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    (base,) = re.findall(r"^ARG BASE=python:(3\.\d+)-slim$", dockerfile, flags=re.MULTILINE)
    assert pyproject["project"]["requires-python"] == f">={base}"
    (extras,) = re.findall(r"-e '\.\[(.*)\]'", dockerfile)
    assert set(extras.split(",")) <= pyproject["project"]["optional-dependencies"].keys()
    assert re.search("^torch==", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
