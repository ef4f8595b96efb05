"""Do other projects' tests notice that xares-bench is installed? Their suites, without and with it, and pytest's start.

    python -m benchmarks.foreign_suites

Needs the package index, and an environment that has xares-bench. Each suite runs in three new environments. All have
pytest, the project at a fixed version and what its tests need. The second also has the dependencies of xares-bench that
are plugins of pytest, and the third xares-bench on top, as a wheel. Other dependencies are left out: torch alone takes
gigabytes, and a foreign run imports none. All tests must end alike in all three, and the third must print what the
second does, times, places and the names of plugins in the header aside. (Plugins that come along add fixtures, which
pytest lists where a fixture is missing, so the first may print other lists.)

Start-up is measured on an empty folder, in whole processes of the three in turn, as processor time, which other
programs on the machine change less than the time on the clock. Nothing is asserted about it.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import os
import re
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement
from tabulate import tabulate

_REPOSITORY = Path(__file__).parent.parent
_OURS = "xares-bench"
_NUM_SHOWN = 20  # lines of a difference


@dataclass(frozen=True, kw_only=True)
class Project:
    """A plugin of pytest whose source distribution has its tests.

    Attributes:
        name: Its name on the package index.
        version: The version that is fetched.
        needs: What its tests import on top.
    """

    name: str
    version: str
    needs: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        """How pip names it."""
        return f"{self.name}=={self.version}"


PROJECTS = (
    Project(name="pytest-mock", version="3.17.0", needs=("pytest-asyncio==1.5.0",)),
    Project(name="pytest-rerunfailures", version="16.7"),
    Project(name="pytest-env", version="1.8.5", needs=("pytest-mock==3.17.0",)),
)


@dataclass(frozen=True, kw_only=True)
class SuiteRun:
    """How a suite ended.

    Attributes:
        outcomes: `passed`, `failed`, `error` or `skipped` by the test's name.
        text: What was printed.
    """

    outcomes: dict[str, str]
    text: str

    @property
    def counts(self) -> str:
        """For example `88 passed, 3 skipped`."""
        return ", ".join(f"{number} {outcome}" for outcome, number in sorted(Counter(self.outcomes.values()).items()))


def outcomes_of(junit: str) -> dict[str, str]:
    """Return how each test of a JUnit report ended, by its name."""
    outcomes = {}
    for case in ElementTree.fromstring(junit).iter("testcase"):
        tags = {child.tag for child in case}
        ended = next((word for tag, word in _ENDINGS.items() if tag in tags), "passed")
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = ended
    return outcomes


_ENDINGS = {"error": "error", "failure": "failed", "skipped": "skipped"}
# What differs from run to run, or because plugins are named that are installed.
_VARYING = (
    (re.compile(r"^plugins: .*\n", re.MULTILINE), ""),
    (re.compile(r"^benchmark: .*\n", re.MULTILINE), ""),
    (re.compile(r"\b\d+(\.\d+)?(e-\d+)? ?(s|seconds)\b(?: \([\d:]+\))?"), "TIME"),
    (re.compile(r"pytest-of-\w+/pytest-\d+"), "TEMPORARY"),
    (re.compile(r"0x[0-9a-f]+"), "ADDRESS"),
    (re.compile(r"^([=-])\1*( .* )\1+$", re.MULTILINE), r"\1\2\1"),  # as long as leaves room for what is in them
)


def comparable(text: str, *places: str) -> str:
    """Return what a suite printed, without what may differ, such as the places of its environment."""
    for place in places:
        text = text.replace(place, "ENVIRONMENT")
    for pattern, replacement in _VARYING:
        text = pattern.sub(replacement, text)
    return text


def differences(alone: SuiteRun, plugins: SuiteRun, ours: SuiteRun) -> list[str]:
    """Return lines that say what a suite noticed; none if nothing."""
    lines = []
    for name in sorted(alone.outcomes.keys() | plugins.outcomes.keys() | ours.outcomes.keys()):
        ended = [one.outcomes.get(name, "not run") for one in (alone, plugins, ours)]
        if len(set(ended)) > 1:
            lines.append(f"{name}: {ended[0]} alone, {ended[1]} with the plugins, {ended[2]} with xares-bench")
    printed = difflib.unified_diff(plugins.text.splitlines(), ours.text.splitlines(), "plugins", "ours", lineterm="")
    return [*lines, *printed]


def brought_plugins() -> list[str]:
    """Return the dependencies of xares-bench that are plugins of pytest, at the versions of this environment."""
    plugins = {
        entry.dist.name.lower().replace("_", "-"): entry.dist.version
        for entry in importlib.metadata.entry_points(group="pytest11")
        if entry.dist is not None
    }
    seen: set[str] = set()
    waiting = [_OURS]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for text in importlib.metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                waiting.append(needed.name.lower().replace("_", "-"))
    return [f"{name}=={version}" for name, version in sorted(plugins.items()) if name in seen and name != _OURS]


def _run(*command: str | Path) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stdout}{done.stderr}")


def _pip(*arguments: str | Path, into: Path | None = None) -> None:
    place = () if into is None else ("--python", into / "bin" / "python")
    _run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *place, *arguments)


def new_environments(folder: Path, wheel: Path, *packages: str) -> tuple[Path, Path, Path]:
    """Make environments with pytest and packages: alone, with the plugins that we bring, and with ours on top."""
    alone, plugins, ours = (folder / name for name in ("alone", "plugins", "ours"))
    pytest_itself = f"pytest=={importlib.metadata.version('pytest')}"
    for place, more in ((alone, []), (plugins, brought_plugins()), (ours, brought_plugins())):
        _run(sys.executable, "-m", "venv", "--without-pip", place)
        _pip("install", pytest_itself, *packages, *more, into=place)
    _pip("install", "--no-deps", wheel, into=ours)
    return alone, plugins, ours


def fetch(project: Project, folder: Path) -> Path:
    """Download a project's source distribution; return the folder with its files."""
    _pip("download", "--no-deps", "--no-binary", project.name, "--dest", folder / "sdist", project.requirement)
    (sdist,) = (folder / "sdist").iterdir()
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    return source


def run_suite(source: Path, environment: Path) -> SuiteRun:
    """Run the tests of a project."""
    junit = environment / "junit.xml"
    done = subprocess.run(
        [environment / "bin" / "python", "-m", "pytest", "-rA", "-p", "no:cacheprovider", f"--junitxml={junit}"],
        cwd=source,
        # Some suites start pytest by its name.
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON", "CI"))},
            "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if not junit.exists():
        raise RuntimeError(f"{source.name}: no test ran, exit status {done.returncode}\n{done.stdout}")
    places = (str(environment), os.path.relpath(environment, source))
    return SuiteRun(outcomes=outcomes_of(junit.read_text(encoding="utf-8")), text=comparable(done.stdout, *places))


def startup_s(environments: Sequence[Path], folder: Path, rounds: int) -> list[list[float]]:
    """Return the processor seconds of pytest on an empty folder, a list per round with a figure per environment."""
    folder.mkdir()
    measured = []
    for _ in range(rounds + 1):
        figures = []
        for environment in environments:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [environment / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", folder],
                cwd=folder,
                stdout=subprocess.DEVNULL,
                check=False,
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            figures.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        measured.append(figures)
    return measured[1:]  # the first one reads from disk


def _suites(folder: Path, wheel: Path) -> bool:
    """Run all suites and show a table; whether none noticed anything."""
    rows, found = [], []
    for project in PROJECTS:
        home = folder / project.name
        home.mkdir()
        source = fetch(project, home)
        environments = new_environments(home, wheel, project.requirement, *project.needs)
        alone, plugins, ours = (run_suite(source, environment) for environment in environments)
        differing = differences(alone, plugins, ours)
        found += [f"{project.name}: {line}" for line in differing[:_NUM_SHOWN]]
        if not alone.outcomes:
            found.append(f"{project.name}: no test ran")
        same = "no" if differing else "yes"
        rows.append((project.requirement, alone.counts, plugins.counts, ours.counts, same))
    _print(tabulate(rows, headers=("project", "alone", ", ".join(brought_plugins()), "and xares-bench", "same")))
    for line in found:
        _print(line)
    return not found


def _startup(folder: Path, wheel: Path, rounds: int) -> None:
    """Show what pytest's start costs more: by the plugins that come along, and by ours beside them."""
    folder.mkdir()
    alone, plugins, ours = zip(*startup_s(new_environments(folder, wheel), folder / "empty", rounds), strict=True)
    brought = " and ".join(brought_plugins())
    for name, before, after in ((brought, alone, plugins), ("xares-bench beside them", plugins, ours)):
        # Whatever else the machine does only adds to a figure, so the smallest is nearest to the cost.
        first, second = 1000 * min(before), 1000 * min(after)
        middle = statistics.median(1000 * (more - less) for less, more in zip(before, after, strict=True))
        _print(
            f"start of pytest with {name}: {second:.1f} ms instead of {first:.1f} ms, {second - first:.1f} ms more "
            f"(smallest of {rounds}; median difference of a pair: {middle:.1f} ms)"
        )


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suites and measure the start; return 1 if a suite noticed anything, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.foreign_suites", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help="pairs of starts; 0: none are measured; default: 100")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _pip("wheel", "--no-deps", "--wheel-dir", folder / "wheel", _REPOSITORY)
        (wheel,) = (folder / "wheel").iterdir()
        is_same = _suites(folder, wheel)
        if options.rounds > 0:
            _startup(folder / "start", wheel, options.rounds)
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
