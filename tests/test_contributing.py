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
import torch
import yaml

from tests.audio_models import noise, padded, save_wav2vec2_bert
from tests.conftest import NUM_BENCH_TESTS, REPOSITORY
from tests.reports.test_report import COMPLETE
from tests.shard_factory import tone, write_shard
from xares_bench.config.catalogue import DATA_FOLDER, load_catalogue
from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.encoders import hugging_face_families as families
from xares_bench.encoders.loading import load_encoder
from xares_bench.metrics import METRICS, Metric, evaluate
from xares_bench.reports import report
from xares_bench.reports.compare import compare, comparison_table
from xares_bench.reports.runs import read_run

CPU = torch.device("cpu")
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
    result.assert_outcomes(passed=1, deselected=NUM_BENCH_TESTS)
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


def test_an_encoder_family_added_as_described_encodes_a_batch_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_wav2vec2_bert(tmp_path)
    clips = [noise(1.0), noise(0.4), noise(0.7)]
    spec = parse_encoder_spec(f"hf:{folder}")
    expected = [load_encoder(spec, CPU)(*padded([clip]))[0][0] for clip in clips]

    before = set(vars(families))
    exec(compile(example("Add an encoder family to `hf:`"), "CONTRIBUTING.md", "exec"), families.__dict__)
    (name,) = set(vars(families)) - before
    monkeypatch.setattr(families, "FAMILIES", {**families.FAMILIES, "wav2vec2-bert": getattr(families, name)})
    monkeypatch.delattr(families, name)
    encoder = load_encoder(spec, CPU)
    wrapper: Any = encoder.module.wrapper
    batch_sizes: list[int] = []
    wrapper.model.register_forward_pre_hook(
        lambda module, args, kwargs: batch_sizes.append(len(kwargs["input_features"])), with_kwargs=True
    )
    features_BTD, mask_BT = encoder(*padded(clips))
    assert batch_sizes == [3]
    assert mask_BT is not None
    for found_TD, mask_T, alone_TD in zip(features_BTD, mask_BT, expected, strict=True):
        torch.testing.assert_close(found_TD[mask_T], alone_TD, rtol=1e-3, atol=1e-4)


def test_a_report_added_as_described_is_in_the_folder_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("latex")
    exec(compile(example("Add a report"), "CONTRIBUTING.md", "exec"), module.__dict__)
    page = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (entry,) = re.findall(r"`(Report\(file=.*\))`", page)
    added = eval(entry, {**module.__dict__, "Report": report.Report})
    monkeypatch.setattr(report, "REPORTS", (added, *report.REPORTS))
    assert report.write_run(tmp_path, COMPLETE) == []
    text = (tmp_path / "scores.tex").read_text(encoding="utf-8")
    assert text.splitlines()[0] == r"esc-50 & 0.250 \\"
    assert r"\textbf{task2} & \textbf{0.125} \\" in text
