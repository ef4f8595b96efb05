"""docs/results.md and docs/python.md describe the files and tables of a run: every field, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xares_bench
from examples.dummy_encoder import DummyEncoder
from tests.conftest import REPOSITORY
from tests.test_bench import write_data
from xares_bench.reports.runs import Run
from xares_bench.scores import clip_sums
from xares_bench.scores.records import RESULTS_SCHEMA

PAGE = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
KINDS: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "text": (str,),
    "bool": (bool,),
    "list": (list,),
    "object": (dict,),
    "null": (type(None),),
}
# This run has none of these.
ABSENT = {
    "failures.WHAT",
    *("run.environment.judges.METRIC", "run.data.repositories.REPOSITORY", "run.data.test_repositories.DATASET"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    return xares_bench.run(
        REPOSITORY / "examples" / "dummy_encoder.py",
        preset="mini",
        tasks=["esc-50", "fsd50k", "clotho"],
        data_home=write_data(folder / "data"),
        runs_dir=folder / "runs",
        seeds=2,
        corrupt=["noise:0"],
        set={"steps": 2, "batch_size": 4, "max_new_tokens": 3},
    )


def documented(heading: str) -> dict[str, str]:
    """The fields of a section's tables, with their types."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([\w.\[\]]+)` \| ([^|]+?) \|", section, flags=re.MULTILINE))


def fields(value: Any, path: str, known: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """The fields below a value with their documented paths; those of a mapping with free keys have one path."""
    if path in known:
        yield path, value
    elif isinstance(value, dict):
        inner = [name for name in known if name.startswith(f"{path}." if path else "")]
        names = {name[len(path) + 1 if path else 0 :].split(".")[0].partition("[")[0] for name in inner}
        for key, item in value.items():
            free = [name for name in names if name.isupper()]
            name = key if key in names or not free else free[0]
            yield from fields(item, f"{path}.{name}" if path else name, known)
    elif isinstance(value, list):
        for item in value:
            yield from fields(item, f"{path}[]", known)
    else:
        yield path, value


def fits(value: object, kind: str) -> bool:
    """Whether a value is of a type as the page names it."""
    if kind == "any":
        return True
    words = [word for word in KINDS if re.search(rf"\b{word}\b", re.sub(r"list of (two )?\w+", "list", kind))]
    assert words, kind
    allowed = tuple(found for word in words for found in KINDS[word])
    return isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))


def test_results_json_has_the_fields_of_the_page_and_no_others(run: Run) -> None:
    known = documented("results.json")
    assert len(known) > 80
    found: dict[str, list[Any]] = {}
    for path, value in fields(json.loads((run.folder / "results.json").read_text(encoding="utf-8")), "", known):
        found.setdefault(path, []).append(value)
    assert {*found} - {*known} == set()
    assert {*known} - {*found} == ABSENT
    for path, values in found.items():
        for value in values:
            assert fits(value, known[path]), f"{path} is {value!r}, the page says {known[path]}"


def test_predictions_have_the_fields_of_the_page(run: Run) -> None:
    known = documented("predictions/DATASET.jsonl")
    for dataset in run.records:
        lines = (run.folder / "predictions" / f"{dataset}.jsonl").read_text(encoding="utf-8").splitlines()
        for row in map(json.loads, lines):
            assert [*row] == [*known]
            assert all(fits(value, known[name]) for name, value in row.items())


def test_clip_sums_have_the_members_of_the_page(run: Run) -> None:
    section = PAGE.partition("\n## clip_sums/DATASET.npz\n")[2]
    for dataset, record in run.records.items():
        with np.load(run.folder / "clip_sums" / f"{dataset}.npz") as members:
            assert [*members] == [name.removesuffix(".npy") for name in re.findall(r"^\| `([\w.]+)` ", section, re.M)]
            about, clips = json.loads(members["about.json"]), json.loads(members["clips.json"])
            assert [*about] == ["schema", "metric", "arguments"]
            assert members["parts"].shape[:2] == (2, len(clips))
            assert members["parts"].dtype == np.float64
            assert (about["metric"], len(clips)) == (record.metric, record.num_clips)


def test_the_versions_on_the_page_are_those_of_the_code() -> None:
    assert f"in `schema`, now {RESULTS_SCHEMA}, and `clip_sums` has its own, now {clip_sums._SCHEMA}." in PAGE
    assert f"`schema` ({clip_sums._SCHEMA})" in PAGE
    assert f"| `schema` | integer | {RESULTS_SCHEMA} |" in PAGE


def test_the_tables_have_the_columns_of_the_page(run: Run) -> None:
    page = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    tables = {"scores": run.scores, "overall": run.overall, "robustness": run.robustness}
    tables["predictions"] = run.predictions
    for name, table in tables.items():
        (columns,) = re.findall(rf"^\| `{name}` \| [^|]+ \| ([^|]+) \|", page, flags=re.MULTILINE)
        assert [*table[0]] == re.findall(r"`(\w+)`", columns)


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One behind the other, on small data and in two steps."""
    monkeypatch.chdir(tmp_path)
    few = "--set=steps=2 --set=batch_size=4 --set=max_new_tokens=3"
    monkeypatch.setenv("PYTEST_ADDOPTS", f"--data-home={write_data(tmp_path / 'data')} {few}")
    page = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    first, second, third = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    known: dict[str, Any] = {"encoder": DummyEncoder()}
    exec(first, known)
    assert len(known["run"].scores) == 15
    assert second.count("LogMelEncoder-mini-3d2ecd6cf6") == 1
    exec(second.replace("LogMelEncoder-mini-3d2ecd6cf6", known["run"].name), known)
    assert [run.name for run in known["runs"]] == [known["run"].name]
    exec(third, known)
    assert len(known["scores"]) == 15


def test_the_call_of_the_page_is_that_of_the_code() -> None:
    page = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    assert '`xares_bench.run(encoder, *, preset="full", tasks=None, pytest_options=(), **options)`' in page
    code = xares_bench.run.__code__
    assert code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] == (
        "encoder",
        "preset",
        "tasks",
        "pytest_options",
    )
    assert xares_bench.run.__kwdefaults__ == {"preset": "full", "tasks": None, "pytest_options": ()}


def test_a_file_that_is_no_run_has_no_fields(tmp_path: Path) -> None:
    assert [*fields({"new": 1, "run": {"name": "x"}}, "", documented("results.json"))] == [
        ("new", 1),
        ("run.name", "x"),
    ]
