"""CONTRIBUTING.md works as written: its examples are added to the benchmark and run through to the reports."""

from __future__ import annotations

import doctest
import json
import re
import shutil
import sys
import textwrap
import types
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.shard_factory import tone, write_shard
from xares_bench.config.catalogue import DATA_FOLDER, load_catalogue
from xares_bench.metrics import METRICS, Metric, evaluate
from xares_bench.reports.compare import compare, comparison_table
from xares_bench.reports.runs import read_run

ENCODER = REPOSITORY / "examples" / "logmel_encoder.py"


def example(heading: str) -> str:
    """The code block below a heading of CONTRIBUTING.md."""
    page = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^ *```\w+\n(.*?)^ *```$", section, flags=re.MULTILINE | re.DOTALL)
    return textwrap.dedent(block)


def add_dataset(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> str:
    """Add the example dataset, with changes, to a copy of the catalogue that sessions then use; return its name."""
    entry = yaml.safe_load(example("Add a dataset"))
    (name,) = entry
    entry[name].update(changes)
    file = folder / "datasets.yaml"
    text = (DATA_FOLDER / "datasets.yaml").read_text(encoding="utf-8")
    file.write_text(f"{text}\n{yaml.safe_dump(entry)}", encoding="utf-8")
    # The default file, wherever the function was imported to.
    monkeypatch.setattr(load_catalogue, "__defaults__", (file, DATA_FOLDER / "presets.yaml"))
    return str(name)


def add_metric(monkeypatch: pytest.MonkeyPatch) -> tuple[types.ModuleType, Metric]:
    """Add the example metric to the registry; return its module and its definition."""
    module = types.ModuleType("word_recall")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(example("Add a metric"), "CONTRIBUTING.md", "exec"), module.__dict__)
    (metric,) = (value for value in vars(module).values() if isinstance(value, Metric))
    monkeypatch.setitem(cast(dict[str, Metric], METRICS), metric.name, metric)
    return module, metric


def test_a_dataset_added_as_described_is_listed(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = add_dataset(tmp_path, monkeypatch)
    result = pytester.runpytest_inprocess(
        REPOSITORY / "bench", "--collect-only", "-q", "-p", "no:cacheprovider", "--preset=mini", f"--encoder={ENCODER}"
    )
    result.stdout.fnmatch_lines([f"*test_dataset?{name}?"])


def test_a_metric_added_as_described_reaches_every_report(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, metric = add_metric(monkeypatch)
    assert doctest.testmod(module) == (0, 1)  # failed, attempted
    name = add_dataset(tmp_path, monkeypatch, metric={"name": metric.name})
    for shard in ("train_00", "train_01", "test_00"):
        # The bird is in the test shard only, so that no LALM predicts all words.
        labels = ["a dog", "a dog", "a dog", "a bird" if shard == "test_00" else "a cat"]
        clips = [(f"{shard}-{i}", tone(0.2, 200 + 50 * i), {"label": label}) for i, label in enumerate(labels)]
        write_shard(tmp_path / "data" / name / f"{shard}.tar.gz", clips)
    result = pytester.runpytest_inprocess(
        *(REPOSITORY / "bench", "-p", "no:cacheprovider", "--preset=mini", f"--encoder={ENCODER}"),
        *(f"--data-home={tmp_path / 'data'}", f"--runs-dir={tmp_path}", f"--train={name}", "-k", f"dataset and {name}"),
        *("--set", "steps=30", "--set", "batch_size=4", "--set", "max_new_tokens=6", "--set", "warmup_steps=5"),
    )
    result.assert_outcomes(passed=1, deselected=41)
    *_, line = (line for line in result.outlines if line.startswith("results: "))
    folder = Path(line.removeprefix("results: "))

    (record,) = json.loads((folder / "results.json").read_text())["scores"]
    rows = [json.loads(row) for row in (folder / "predictions" / f"{name}.jsonl").read_text().splitlines()]
    expected = evaluate(metric.name, [row["reference"] for row in rows], [row["hypothesis"] for row in rows])
    assert (record["metric"], record["score"]) == (metric.name, expected.score)
    assert 0 < record["score"] < 1
    assert record["interval"][0] <= record["score"] <= record["interval"][1]
    assert f"{metric.name} {record['score']:.3f}" in (folder / "report.html").read_text(encoding="utf-8")
    (index,) = yaml.safe_load((folder / "model_card.yaml").read_text())["model-index"]
    (scored, *_) = index["results"]
    assert scored["task"]["type"] == metric.hub_task
    assert (scored["metrics"][0]["type"], scored["metrics"][0]["name"]) == (metric.hub_name, metric.description)

    copy = shutil.copytree(folder, tmp_path / "copy")
    comparison = compare([read_run(folder), read_run(copy)])
    row = comparison.rows["task1"][0]
    assert row.metric == metric.name
    assert row.differences[1] is not None
    assert metric.name in comparison_table(comparison)
