"""The bench tests as users run them: whole pytest sessions over tiny data and a handful of steps."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from tensorboardX.proto.event_pb2 import Event

from tests.conftest import NUM_BENCH_TESTS, REPOSITORY, last_wins
from tests.shard_factory import Waveform, tone, write_shard
from xares_bench.config.catalogue import load_catalogue
from xares_bench.metrics import MetricResult, evaluate
from xares_bench.scores.clip_sums import load_clip_sums

Run = Callable[..., pytest.RunResult]

ENCODER = REPOSITORY / "examples" / "logmel_encoder.py"
FEW_STEPS = ["--set", "steps=3", "--set", "batch_size=4", "--set", "max_new_tokens=3"]


def write_data(folder: Path) -> Path:
    """A data folder with all 20 datasets, three tones a shard."""
    for number, dataset in enumerate(load_catalogue("mini").datasets.values()):
        assert dataset.train is not None
        assert dataset.eval is not None
        for split in (dataset.train, dataset.eval):
            for shard in split.shards:
                stem = shard.replace("/", "-").partition(".")[0]
                clips = [
                    (f"{stem}-{i}", tone(0.2 + 0.05 * i, 150 + 40 * i + number), {split.target_keys[0]: f"word {i}"})
                    for i in range(3)
                ]
                write_shard(folder / shard, clips)
    return folder


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a runs folder that the tests share, so that a LALM is trained once for all of them."""
    folder = tmp_path_factory.mktemp("shared")
    write_data(folder / "data")
    return folder


@pytest.fixture
def run(pytester: pytest.Pytester, shared: Path) -> Run:
    """Runs `pytest bench` in this process with the options given."""

    def run_bench(*options: object, data: Path = shared / "data", runs: Path = shared / "runs") -> pytest.RunResult:
        return pytester.runpytest_inprocess(
            REPOSITORY / "bench",
            *("-p", "no:cacheprovider"),
            *last_wins(["--preset=mini", f"--data-home={data}", f"--runs-dir={runs}", *FEW_STEPS, *options]),
        )

    return run_bench


def run_folder(result: pytest.RunResult) -> Path:
    """The run's folder, as the summary names it."""
    lines = [line for line in result.outlines if line.startswith("results: ")]
    return Path(lines[-1].removeprefix("results: "))


def cached(result: pytest.RunResult) -> str:
    """The header's lines on what is cached, without the sizes on disk."""
    lines = (line for line in result.outlines if line.startswith(("LALM ", "cached: ")))
    return ", ".join(line.partition("; ")[0] for line in lines)


@pytest.mark.versions
def test_the_whole_suite_trains_scores_and_reports(run: Run, pytester: pytest.Pytester) -> None:
    result = run(f"--encoder={ENCODER}", "--junitxml=junit.xml")
    assert result.ret == 0, result.stdout.str()
    result.assert_outcomes(passed=NUM_BENCH_TESTS)
    folder = run_folder(result)

    results = json.loads((folder / "results.json").read_text())
    catalogue = load_catalogue("mini")
    assert results["schema"] == 2
    assert [record["dataset"] for record in results["scores"]] == list(catalogue.datasets)
    assert all(0 <= record["score"] <= 1 and record["num_rows"] == 3 for record in results["scores"])
    assert [(overall["task"], overall["complete"]) for overall in results["overall"]] == [
        ("task1", True),
        ("task2", True),
    ]
    assert {lalm["mix"]: lalm["num_steps"] for lalm in results["lalms"]} == {"task1": 3, "task2": 3}
    assert {lalm["reused"] for lalm in results["lalms"]} == {False}
    assert results["run"]["deviations"]["steps"] == [None, 3]

    rows = [line.split("\t") for line in (folder / "scores.tsv").read_text().splitlines()]
    assert rows[0] == ["Task", "score", "weight"]
    assert [row[0] for row in rows].count("Overall") == 2
    assert rows[16][0] == rows[-1][0] == "Overall"
    task1 = [float(row[1]) for row in rows[1:16]]
    assert float(rows[16][1]) == pytest.approx(math.fsum(task1) / 15, abs=1e-6)

    predictions = [json.loads(line) for line in (folder / "predictions" / "esc-50.jsonl").read_text().splitlines()]
    assert [row["clip"] for row in predictions] == [f"esc-50-test_00-{i}" for i in range(3)]
    assert [row["reference"] for row in predictions] == ["word 0", "word 1", "word 2"]
    assert sum(row["value"] for row in predictions) / 3 == results["scores"][2]["score"]

    cases = ET.parse(pytester.path / "junit.xml").getroot().iter("testcase")
    properties = {
        case.attrib["name"]: {item.attrib["name"]: item.attrib["value"] for item in case.iter("property")}
        for case in cases
    }
    assert float(properties["test_dataset[esc-50]"]["score"]) == results["scores"][2]["score"]
    result.stdout.fnmatch_lines(["*Overall*", "compute time, cached results included: features *"])


def test_the_same_command_again_does_nothing_anew(run: Run) -> None:
    first = run(f"--encoder={ENCODER}", "-k", "task2")
    text = (run_folder(first) / "scores.tsv").read_text()
    (run_folder(first) / "scores.tsv").unlink()
    again = run(f"--encoder={ENCODER}", "-k", "task2")
    assert again.ret == 0
    assert cached(again) == "LALM task2: cached, cached: features of 15 of 15 shards, 5 of 5 scores"
    assert run_folder(again) == run_folder(first)
    assert (run_folder(again) / "scores.tsv").read_text() == text
    assert json.loads((run_folder(again) / "results.json").read_text())["lalms"][0]["reused"] is True


def test_a_fresh_runs_folder_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    first = run(f"--encoder={ENCODER}", "-k", "task2")
    second = run(f"--encoder={ENCODER}", "-k", "task2", runs=tmp_path)
    assert "LALM task2: training from scratch" in cached(second)
    for name in ("scores.tsv", "predictions/clotho.jsonl"):
        assert (run_folder(first) / name).read_bytes() == (run_folder(second) / name).read_bytes()


def test_a_run_killed_in_its_training_leaves_nothing_to_trust_and_ends_the_same(
    run: Run, shared: Path, tmp_path: Path
) -> None:
    options = [f"--encoder={ENCODER}", "--train=clotho", "-k", "clotho", "--set", "steps=300"]
    runs = tmp_path / "killed"
    command = [sys.executable, "-m", "pytest", str(REPOSITORY / "bench"), "-p", "no:cacheprovider", "--preset=mini"]
    command += [f"--data-home={shared / 'data'}", f"--runs-dir={runs}", *last_wins([*FEW_STEPS, *options])]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not any(path.is_dir() for path in (runs / "store").glob("lalms/*")):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    assert not list(runs.glob("store/lalms/*/manifest.json"))

    resumed = run(*options, runs=runs)
    assert "LALM clotho: training from scratch" in cached(resumed)
    undisturbed = run(*options, runs=tmp_path / "undisturbed")
    for name in ("scores.tsv", "predictions/clotho.jsonl"):
        assert (run_folder(resumed) / name).read_bytes() == (run_folder(undisturbed) / name).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_outside_a_training_ends_with_a_word_and_what_is_finished(
    shared: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """It comes while the encoder works on the second dataset."""
    encoder = tmp_path / "enc.py"
    encoder.write_text(
        "import pathlib, time\n"
        + CHANGING_ENCODER.format(
            file="",
            forward="here = pathlib.Path(__file__).parent\n"
            "        scored = list(here.glob('runs/store/scores/*/manifest.json'))\n"
            "        while scored: (here / 'waiting').touch(); time.sleep(0.02)",
        )
    )
    command = [sys.executable, "-m", "pytest", str(REPOSITORY / "bench"), "-p", "no:cacheprovider", "--preset=mini"]
    command += [f"--encoder={encoder}", f"--data-home={shared / 'data'}", f"--runs-dir={tmp_path / 'runs'}"]
    command += [*FEW_STEPS, "--train=clotho", "--eval", str(tmp_path / "eval.yaml"), "-k", "clotho or mine"]
    test_shard = shared / "data" / "mecat" / "test_00.tar.gz"
    (tmp_path / "eval.yaml").write_text(
        f"mine:\n  data:\n    data: {next(test_shard.parent.glob('test_*'))}\n    key: long\n    prompt: p\n"
        "  metric: chrF\n"
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        start_s = time.monotonic()
        while process.poll() is None and not (tmp_path / "waiting").exists() and time.monotonic() - start_s < 120:
            time.sleep(0.05)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert f"{number.name}; the same command continues from what is finished" in output
    (results,) = tmp_path.glob("runs/*/results.json")
    assert [record["dataset"] for record in json.loads(results.read_text())["scores"]] == ["mine"]


def test_whatever_is_changed_is_made_anew_with_all_that_depends_on_it(run: Run, shared: Path, tmp_path: Path) -> None:
    options = ["-k", "clotho or mecat"]
    data = shutil.copytree(shared / "data", tmp_path / "data")
    encoder = tmp_path / "logmel_encoder.py"
    shutil.copy(ENCODER, encoder)
    run(f"--encoder={encoder}", *options, data=data)
    everything = "LALM task2: cached, cached: features of 12 of 12 shards, 2 of 2 scores"
    assert cached(run(f"--encoder={encoder}", *options, data=data)) == everything

    test_shard = data / "clotho" / "test_00.tar.gz"
    write_shard(test_shard, [("other", tone(0.2), {"caption": "word 1"})])
    changed = run(f"--encoder={encoder}", *options, data=data)
    assert cached(changed) == "LALM task2: cached, cached: features of 11 of 12 shards, 1 of 2 scores"

    train_shard = data / "songdescriber" / "train_00.tar.gz"
    write_shard(train_shard, [("other", tone(0.2), {"caption": "word 1"})])
    changed = run(f"--encoder={encoder}", *options, data=data)
    assert cached(changed) == "LALM task2: training from scratch, cached: features of 11 of 12 shards, 0 of 2 scores"

    changed = run(f"--encoder={encoder}", *options, "--set", "learning_rate=0.001", data=data)
    assert cached(changed) == "LALM task2: training from scratch, cached: features of 12 of 12 shards, 0 of 2 scores"
    changed = run(f"--encoder={encoder}", *options, "--set", "repetition_penalty=1.5", data=data)
    assert cached(changed) == "LALM task2: cached, cached: features of 12 of 12 shards, 0 of 2 scores"

    encoder.write_text(encoder.read_text() + "#")
    changed = run(f"--encoder={encoder}", *options, data=data)
    assert cached(changed) == "LALM task2: training from scratch, cached: features of 0 of 12 shards, 0 of 2 scores"


def test_an_encoder_that_behaves_differently_gets_scores_of_its_own(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Source, arguments and weights are the same; a variable decides what it computes."""
    encoder = tmp_path / "enc.py"
    encoder.write_text(
        "import os, torch\n"
        "class GainEncoder(torch.nn.Module):\n"
        "    output_dim = 4\n"
        "    def forward(self, audio, mask=None):\n"
        "        frames = torch.nn.functional.pad(audio, (0, 400)).unfold(1, 400, 160)[..., :4]\n"
        "        return frames * float(os.environ['GAIN']), None\n"
    )
    line, found = "encoder: same source, arguments and weights as an earlier encoder, but other features", []
    for gain in ("1", "2", "1"):
        monkeypatch.setenv("GAIN", gain)
        result = run(f"--encoder={encoder}", "-k", "clotho", "--limit=2")
        assert result.ret == 0, result.stdout.str()
        found.append((line in result.stdout.str(), "1 of 1 scores" in cached(result), run_folder(result)))
    assert [entry[:2] for entry in found] == [(False, False), (True, False), (False, True)]
    assert found[0][2] == found[2][2] != found[1][2]


CHANGING_ENCODER = """
import os, threading, torch
{file}

class ChangingEncoder(torch.nn.Module):
    output_dim = 4

    def forward(self, audio, mask=None):
        {forward}
        frames = torch.nn.functional.pad(audio, (0, 400)).unfold(1, 400, 160)[..., :4]
        return frames.float().contiguous(), None
"""


SETTINGS = """
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(3)
    torch.use_deterministic_algorithms(True)
    os.chdir('/')
"""
PATCHES = """
    torch.nn.Linear.forward = lambda self, x: 2 * torch.nn.functional.linear(x, self.weight, self.bias)
    torch.nn.functional.silu = torch.nn.functional.gelu
    torch.nn.functional.scaled_dot_product_attention = lambda query, *_, **__: query
    torch.nn.modules.module.register_module_forward_hook(lambda _, __, y: 2 * y if torch.is_tensor(y) else y)
"""


@pytest.mark.parametrize("code", [SETTINGS, PATCHES], ids=["settings", "patches"])
def test_settings_of_an_encoder_do_not_reach_the_lalm(run: Run, tmp_path: Path, code: str) -> None:
    """The features are the same, so the loss of every step must be."""
    losses, code = [], "; ".join(line.strip() for line in code.split("\n") if line)
    for number, changes in enumerate([{}, {"file": code}, {"forward": code}]):
        encoder = tmp_path / f"enc{number}.py"
        encoder.write_text(CHANGING_ENCODER.format(**{"file": "", "forward": "pass", **changes}))
        runs = tmp_path / f"runs{number}"
        result = run(f"--encoder={encoder}", "-k", "clotho", "--limit=2", runs=runs)
        assert result.ret == 0, result.stdout.str()
        assert ("encoder: sets " in result.stdout.str()) == bool(changes)
        (loss,) = (runs / "store" / "lalms").glob("*/loss.tsv")
        losses.append(loss.read_bytes())
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("place", ["file", "forward", "thread"])
def test_an_encoder_that_ends_the_process_is_no_pass(tmp_path: Path, shared: Path, place: str) -> None:
    call = "os._exit(0)"
    changes = {
        "file": {"file": call},
        "forward": {"forward": call},
        "thread": {"file": "threading.Timer(0.5, os._exit, [0]).start()"},
    }[place]
    encoder = tmp_path / "enc.py"
    encoder.write_text(CHANGING_ENCODER.format(**{"file": "", "forward": "pass", **changes}))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", str(REPOSITORY / "bench"), "-q", "-p", "no:cacheprovider"),
            *("--preset=mini", f"--encoder={encoder}", f"--data-home={shared / 'data'}", *FEW_STEPS),
            f"--runs-dir={tmp_path / 'runs'}",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode not in (0, None)
    assert "os._exit(0)" in done.stdout + done.stderr


@pytest.mark.parametrize("options", [(), ("-n2",)], ids=["", "-n2"])
def test_half_a_character_in_a_sample_loses_no_result(
    pytester: pytest.Pytester, shared: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    data = shutil.copytree(shared / "data", tmp_path / "data")
    shard = data / "clotho" / "test_00.tar.gz"
    half = {"\ud83d": "x", "other": "\udcff"}
    write_shard(shard, [*((f"a{i}", tone(0.2), {"caption": "x"}) for i in range(3)), ("\udcff", tone(0.2), half)])
    result = pytester.runpytest_subprocess(
        *(REPOSITORY / "bench", "-p", "no:cacheprovider", "--preset=mini", f"--encoder={ENCODER}", "-k", "clotho"),
        *(f"--data-home={data}", f"--runs-dir={tmp_path}/runs", *FEW_STEPS, "--set", "max_dropped_share=0.5", *options),
    )
    assert result.ret == 0, result.stdout.str()
    folder = run_folder(result)
    (record,) = json.loads((folder / "results.json").read_text(encoding="utf-8"))["scores"]
    assert len(record["dropped"]) == 1
    assert "\\ud83d" in record["dropped"][0]["reason"]
    for name in ("scores.tsv", "scores.md", "report.html", "model_card.yaml"):
        (folder / name).read_text(encoding="utf-8")


def test_one_dataset_needs_its_tasks_mix_only(run: Run, tmp_path: Path) -> None:
    result = run(f"--encoder={ENCODER}", "-k", "esc-50", runs=tmp_path)
    result.assert_outcomes(passed=1, deselected=NUM_BENCH_TESTS - 1)
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "store" / "lalms").glob("*/manifest.json")]
    assert [manifest["mix"] for manifest in manifests] == ["task1"]
    assert "Overall (incomplete: 1 of 15 datasets)" in (run_folder(result) / "scores.tsv").read_text()


def test_a_named_mix_deselects_what_it_does_not_train_for(run: Run) -> None:
    result = run(f"--encoder={ENCODER}", "--train=clotho", "-k", "dataset")
    result.assert_outcomes(passed=1, deselected=NUM_BENCH_TESTS - 1)
    assert json.loads((run_folder(result) / "results.json").read_text())["scores"][0]["mix"] == "clotho"


def test_limited_runs_are_marked(run: Run) -> None:
    result = run(f"--encoder={ENCODER}", "--limit=2", "-k", "task2")
    result.assert_outcomes(passed=5, skipped=1, deselected=NUM_BENCH_TESTS - 6)
    result.stdout.fnmatch_lines(["*(incomplete: --limit left clips out)*"])
    records = json.loads((run_folder(result) / "results.json").read_text())["scores"]
    assert all(record["partial"] and record["num_clips"] == 2 for record in records)


@pytest.fixture
def baseline(run: Run, tmp_path: Path) -> Path:
    """A baseline of task 2, made by the suite itself."""
    file = tmp_path / "base.yaml"
    assert run(f"--encoder={ENCODER}", "-k", "task2", f"--save-baseline={file}").ret == 0
    return file


def raise_scores(file: Path, by: float) -> dict[str, float]:
    """Make a baseline's scores better, as far as scores go."""
    data = yaml.safe_load(file.read_text())
    data["scores"] = {name: min(1.0, held["score"] + by) for name, held in data["scores"].items()}
    file.write_text(yaml.safe_dump(data))
    scores: dict[str, float] = data["scores"]
    return scores


def test_a_run_passes_its_own_baseline_and_fails_a_better_one(run: Run, baseline: Path) -> None:
    options = [f"--encoder={ENCODER}", "-k", "task2", f"--baseline={baseline}"]
    passed = run(*options)
    assert passed.ret == 0
    passed.assert_outcomes(passed=6, deselected=NUM_BENCH_TESTS - 6)
    scores = raise_scores(baseline, 0.1)
    failed = run(*options, "--tolerance=0.02")
    assert failed.ret == 1
    failed.assert_outcomes(failed=6, deselected=NUM_BENCH_TESTS - 6)
    message = (
        f"*clotho: score {scores['clotho'] - 0.1:.4f} is 0.1000 below the baseline {scores['clotho']:.4f} "
        "(*base.yaml), tolerance 0.02; predictions: *clotho.jsonl*"
    )
    failed.stdout.fnmatch_lines([message, "*task2 overall: score * is 0.1000 below the baseline*"])
    assert "Traceback" not in failed.stdout.str()
    assert (run_folder(failed) / "predictions" / "clotho.jsonl").exists()
    assert run(*options, "--tolerance=0.1001").ret == 0


def test_noise_decides_unless_a_number_is_given(run: Run, baseline: Path) -> None:
    options = [f"--encoder={ENCODER}", "-k", "task2", f"--baseline={baseline}"]
    passed = run(*options)
    passed.stdout.fnmatch_lines(["baseline: *, tolerance ci", "*dataset*metric*score*95 % CI*baseline*difference*"])
    assert passed.ret == 0
    raise_scores(baseline, 0.9)
    failed = run(*options, "--tolerance=ci:0.01")
    assert failed.ret == 1
    failed.stdout.fnmatch_lines(
        ["*librispeech: score * below the baseline *, tolerance ci:0.01; two-sided 95 % confidence interval*"]
    )


def test_a_baseline_is_overwritten_by_force_only(run: Run, baseline: Path) -> None:
    options = [f"--encoder={ENCODER}", "-k", "clotho", f"--save-baseline={baseline}"]
    assert run(*options).ret == pytest.ExitCode.USAGE_ERROR
    assert run(*options, "--force").ret == 0
    assert list(yaml.safe_load(baseline.read_text())["scores"]) == ["clotho"]


def test_several_seeds_give_means_and_their_spread(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "seeds.yaml"
    options = [f"--encoder={ENCODER}", "-k", "task2", "--seeds=2"]
    result = run(*options, f"--save-baseline={file}")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*steps: task2 3, each with the seeds 42 to 43", "*score*95 % CI*over seeds*"])
    results = json.loads((run_folder(result) / "results.json").read_text())
    assert results["run"]["seeds"] == [42, 43]
    assert sorted(lalm["seed"] for lalm in results["lalms"]) == [42, 43]
    for record in results["scores"]:
        assert record["score"] == pytest.approx(sum(record["seed_scores"]) / 2)
        assert load_clip_sums(run_folder(result) / "clip_sums" / f"{record['dataset']}.npz").parts.shape[0] == 2
    held = yaml.safe_load(file.read_text())["scores"]["clotho"]
    assert (held["seeds"], held["rows"]) == (2, 3)
    again = run(*options, f"--baseline={file}")
    assert again.ret == 0
    again.stdout.fnmatch_lines(["LALM task2: cached", "cached: *5 of 5 scores; *"])


def test_a_baseline_is_never_passed_for_want_of_a_score(run: Run, baseline: Path) -> None:
    data = yaml.safe_load(baseline.read_text())
    del data["scores"]["mecat"]
    baseline.write_text(yaml.safe_dump(data))
    result = run(f"--encoder={ENCODER}", "-k", "task2", f"--baseline={baseline}")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*no score for mecat*"])
    assert run(f"--encoder={ENCODER}", "-k", "task2 and not mecat", f"--baseline={baseline}").ret == 0


def test_a_score_that_is_no_number_never_passes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_number(name: str, references: list[str], hypotheses: list[str]) -> MetricResult:
        result = evaluate(name, references, hypotheses)
        none = (None,) * len(references)
        return MetricResult(score=math.nan, row_values=none, row_parts=result.row_parts * math.nan)

    monkeypatch.setattr("xares_bench.suite.pipeline.evaluate", no_number)
    save = f"--save-baseline={tmp_path / 'b.yaml'}"
    result = run(f"--encoder={ENCODER}", "-k", "task2", save, runs=tmp_path / "runs")
    assert result.ret == 1
    result.assert_outcomes(failed=6, deselected=NUM_BENCH_TESTS - 6)
    result.stdout.fnmatch_lines(["*clotho: the score is NaN, so the test fails; predictions: *clotho.jsonl"])
    results = json.loads((run_folder(result) / "results.json").read_text())
    assert [record["score"] for record in results["scores"]] == [None] * 5
    assert not (tmp_path / "b.yaml").exists()


def test_an_encoder_that_breaks_its_contract_skips_the_datasets_and_fails_the_run(run: Run, tmp_path: Path) -> None:
    encoder = tmp_path / "enc.py"
    encoder.write_text(
        "import torch\nclass NanEncoder(torch.nn.Module):\n    output_dim = 4\n"
        "    def forward(self, audio, mask=None):\n        return torch.full((len(audio), 5, 4), torch.nan), None\n"
    )
    result = run(f"--encoder={encoder}", "-k", "task2")
    assert result.ret == 1
    result.assert_outcomes(skipped=6, deselected=NUM_BENCH_TESTS - 6)
    result.stdout.fnmatch_lines(
        ["encoder: breaks its contract, clause features-finite: *", "*no score for aishell-1, *"]
    )
    both = run(f"--encoder={encoder}", "-k", "encoder or clotho", "-rfs")
    both.stdout.fnmatch_lines(["*clause features-finite*", "FAILED*features-finite*"])
    assert both.ret == 1


@pytest.mark.parametrize("damage", ["truncated", "missing", "unusable"])
def test_damaged_data_is_an_error_of_the_datasets_that_need_it(
    damage: str, run: Run, shared: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(shared / "data", tmp_path / "data")
    shard = data / "clotho" / "test_00.tar.gz"
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-40])
    elif damage == "missing":
        shard.unlink()
    else:
        write_shard(shard, [("a", b"no audio", {"caption": "x"}), ("b", tone(0.2), {"caption": "x"})])
    result = run(f"--encoder={ENCODER}", "-k", "clotho or mecat", data=data)
    assert result.ret == 1
    result.assert_outcomes(passed=1, failed=1, deselected=NUM_BENCH_TESTS - 2)
    assert "Traceback" not in result.stdout.str()
    expected = {
        "truncated": "test_00.tar.gz: damaged archive",
        "missing": "test_00.tar.gz: this shard is missing",
        "unusable": "clotho: 1 of 2 samples are unusable, more than the allowed share of 1.0% (a of clotho/test_00",
    }
    line = next(line for line in result.outlines if line.startswith("xares-bench: clotho cannot be scored: "))
    assert expected[damage] in line
    assert result.outlines.index(line) < next(i for i, line in enumerate(result.outlines) if "FAILURES" in line)
    results = json.loads((run_folder(result) / "results.json").read_text())
    assert (results["missing"], [record["dataset"] for record in results["scores"]]) == (["clotho"], ["mecat"])


@pytest.mark.parametrize("options", [(), ("-n2",), ("-p", "no:terminal"), ("-s",)], ids=" ".join)
def test_a_test_tar_that_is_cut_is_said_and_nothing_is_trained(
    options: tuple[str, ...], shared: Path, tmp_path: Path, pytester: pytest.Pytester
) -> None:
    """The training would take a day."""
    data = shutil.copytree(shared / "data", tmp_path / "data")
    shard = data / "clotho" / "test_00.tar.gz"
    shard.write_bytes(shard.read_bytes()[:-40])
    result = pytester.runpytest_subprocess(
        *(REPOSITORY / "bench", "-p", "no:cacheprovider", "--preset=mini", f"--encoder={ENCODER}", "-k", "clotho"),
        *(f"--data-home={data}", f"--runs-dir={tmp_path}/runs", "--train=clotho", *FEW_STEPS, *options),
        timeout=300,
    )
    assert result.ret == 1
    lines = [line for line in (*result.outlines, *result.errlines) if "clotho cannot be scored" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"xares-bench: clotho cannot be scored: {shard}: damaged archive: ")
    assert not list(tmp_path.glob("runs/store/lalms/*"))


def test_a_tar_in_training_and_in_test_is_said_in_the_header(run: Run, shared: Path, tmp_path: Path) -> None:
    data = shutil.copytree(shared / "data", tmp_path / "data")
    shutil.copy(data / "clotho" / "train_00.tar.gz", data / "clotho" / "test_00.tar.gz")
    result = run(f"--encoder={ENCODER}", "-k", "clotho", "--train=clotho", data=data)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["data: the same tar is in training and in test: clotho (train_00.tar.gz) and clotho (test_00.tar.gz); *"]
    )


def test_a_few_unusable_samples_are_counted_where_they_are_allowed(run: Run, shared: Path, tmp_path: Path) -> None:
    data = shutil.copytree(shared / "data", tmp_path / "data")
    clips: list[tuple[str, Waveform | bytes, dict[str, object]]] = [
        ("bad", b"no audio", {"caption": "x"}),
        ("good", tone(0.2), {"caption": "x"}),
        ("dumb", tone(0.2), {"x": 1}),
    ]
    write_shard(data / "clotho" / "test_00.tar.gz", clips)
    result = run(f"--encoder={ENCODER}", "-k", "clotho", "--set", "max_dropped_share=0.7", data=data)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["clotho (2 dropped) *"])
    (record,) = json.loads((run_folder(result) / "results.json").read_text())["scores"]
    assert [(sample["clip"], sample["shard"]) for sample in record["dropped"]] == [
        ("bad", "clotho/test_00.tar.gz"),
        ("dumb", "clotho/test_00.tar.gz"),
    ]
    assert record["num_clips"] == 1


def test_own_data_trains_and_scores(run: Run, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        clips = [(f"{number}-{i}", tone(0.2, 200 + 50 * i), {"word": f"w{i}"}) for i in range(3)]
        write_shard(tmp_path / f"tars{number}.tar", clips)
    monkeypatch.chdir(tmp_path)
    Path("train.yaml").write_text(
        "train_data:\n  CustomDataName:\n    prompt: My prompt\n    data:\n    - tars{0..1}.tar\n    key: word\n"
        "num_training_workers: 4\n"
    )
    Path("eval.yaml").write_text(
        "eval_custom:\n  data:\n    data:\n    - tars{0..1}.tar\n    key: word\n    prompt: My prompt\n"
        "  batch_size: 4\n  num_workers: 0\n  metric: Accuracy\n"
    )
    result = run(f"--encoder={ENCODER}", "--train=train.yaml", "--eval=eval.yaml", "-k", "not encoder")
    result.assert_outcomes(passed=1, deselected=NUM_BENCH_TESTS)
    (record,) = json.loads((run_folder(result) / "results.json").read_text())["scores"]
    assert (record["dataset"], record["task"], record["num_rows"]) == ("eval_custom", "custom", 6)


def test_scores_of_xdists_workers_reach_the_table(pytester: pytest.Pytester, shared: Path, tmp_path: Path) -> None:
    result = pytester.runpytest_subprocess(
        REPOSITORY / "bench",
        *("-n", "2", "-k", "task2", "-p", "no:cacheprovider", "--preset=mini", f"--encoder={ENCODER}"),
        *(f"--data-home={shared / 'data'}", f"--runs-dir={tmp_path}", "--train=task2", *FEW_STEPS),
    )
    result.assert_outcomes(passed=6)
    (lalm,) = (tmp_path / "store" / "lalms").glob("*/manifest.json")
    assert json.loads(lalm.read_text())["mix"] == "task2"
    scores = (run_folder(result) / "scores.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in scores[1:]] == [*load_catalogue("mini").tasks["task2"], "Overall"]


# Every training waits until as many are at it as AT_ONCE says: one that waits for another's end would never begin.
TOGETHER = """
import os, time
from pathlib import Path
from xares_bench.suite.pipeline import Pipeline

train = Pipeline.train

def train_together(self, mix, seed, *arguments):
    folder = Path(os.environ["FOLDER"])
    (folder / f"{mix.name} {seed}").touch()
    until = time.monotonic() + 120
    while len(list(folder.iterdir())) < int(os.environ["AT_ONCE"]):
        assert time.monotonic() < until, "the others are not trained meanwhile"
        time.sleep(0.05)
    return train(self, mix, seed, *arguments)

Pipeline.train = train_together
"""


@pytest.mark.parametrize(
    ("options", "trainings"),
    [(["-k", "task1 or task2"], ["task1 42", "task2 42"]), (["-k", "task2", "--seeds=2"], ["task2 42", "task2 43"])],
    ids=["two mixes", "two seeds"],
)
def test_two_workers_train_two_lalms_at_once_with_the_bytes_of_one(
    shared: Path, tmp_path: Path, options: list[str], trainings: list[str]
) -> None:
    (tmp_path / "together.py").write_text(TOGETHER)
    found: list[dict[str, bytes]] = []
    for name, more, at_once in (("one", [], 1), ("two", ["-n", "2"], 2)):
        started = tmp_path / f"started by {name}"
        started.mkdir()
        finished = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", REPOSITORY / "bench", "-p", "no:cacheprovider", "-p", "together"),
                *("--preset=mini", f"--encoder={ENCODER}", f"--data-home={shared / 'data'}", *FEW_STEPS),
                *(f"--runs-dir={tmp_path / name}", *options, *more),
            ],
            env={
                **os.environ,
                "PYTHONPATH": f"{tmp_path}:{REPOSITORY}",
                "FOLDER": str(started),
                "AT_ONCE": str(at_once),
            },
            capture_output=True,
            text=True,
            timeout=900,
        )
        output = finished.stdout + finished.stderr
        assert finished.returncode == 0, output
        assert ("trainings: up to 2 at once, one in each worker (-n 2), all on cpu" in output) == (name == "two")
        assert output.count("recipe: steps=3") == 1
        assert sorted(path.name for path in started.iterdir()) == trainings
        patterns = ("store/lalms/*/trained.safetensors", "store/lalms/*/loss.tsv", "*/predictions/*", "*/clip_sums/*")
        paths = [path for pattern in patterns for path in (tmp_path / name).glob(pattern)]
        found.append({str(path.relative_to(tmp_path / name)): path.read_bytes() for path in paths})
    assert found[0] == found[1]
    assert len([path for path in found[0] if path.endswith(".safetensors")]) == 2


def test_with_workers_too_what_cannot_work_is_said_before_it_is_tried(shared: Path, tmp_path: Path) -> None:
    finished = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                REPOSITORY / "bench",
                "-p",
                "no:cacheprovider",
                "-n",
                "2",
                "-k",
                "clotho",
            ),
            *("--preset=mini", f"--encoder={ENCODER}", f"--data-home={shared / 'data'}", f"--runs-dir={tmp_path}"),
            *("--decoder=no/such-decoder", *FEW_STEPS),
        ],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert finished.returncode == 1
    assert "not ready: " in finished.stderr
    assert "no/such-decoder" in finished.stdout


def test_tests_of_others_in_the_same_session_are_left_alone(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import pytest\n@pytest.mark.parametrize('dataset', ['theirs'])\ndef test_theirs(dataset):\n    pass"
    )
    result = run(pytester.path, f"--encoder={ENCODER}", "--train=clotho", "-k", "theirs or clotho")
    result.assert_outcomes(passed=2, deselected=NUM_BENCH_TESTS - 1)
    assert json.loads((run_folder(result) / "results.json").read_text())["run"]["datasets"] == ["clotho"]


WRONG_COMMANDS = {
    "no encoder": ([], "the bench tests need an encoder"),
    "full preset": ([f"--encoder={ENCODER}", "--preset=full"], "Use --preset=mini"),
    "unknown preset": ([f"--encoder={ENCODER}", "--preset=huge"], "expected one of full, mini"),
    "missing encoder": (["--encoder=nowhere.py"], "nowhere.py"),
    "bad arguments": ([f"--encoder={ENCODER}", "--encoder-args=[1]"], "--encoder-args"),
    "unknown mix": ([f"--encoder={ENCODER}", "--train=esc50"], "--train=esc50: no such mix"),
    "missing mix file": ([f"--encoder={ENCODER}", "--train=a.yaml"], "a.yaml: no such file"),
    "eval alone": ([f"--encoder={ENCODER}", "--eval=a.yaml"], "a.yaml: no such file"),
    "unknown value": ([f"--encoder={ENCODER}", "--set", "lr=1"], "--set: lr: unknown key"),
    "bad value": ([f"--encoder={ENCODER}", "--set", "batch_size=0"], "batch_size: found 0, expected a whole number"),
    "bad tolerance": ([f"--encoder={ENCODER}", "--tolerance=-1"], "found '-1', expected ci, ci:FLOOR or a number"),
    "bad limit": ([f"--encoder={ENCODER}", "--limit=0"], "found '0', expected a whole number of at least 1"),
    "bad budget": ([f"--encoder={ENCODER}", "--feature-budget=abc"], "found 'abc', expected a size, e.g. 50GB, 300MB"),
    "missing baseline": ([f"--encoder={ENCODER}", "--baseline=b.yaml"], "no baseline 'b.yaml'"),
    "other preset's baseline": ([f"--encoder={ENCODER}", "--baseline=whisper-base"], "measured with --preset=full"),
    "baseline there already": ([f"--encoder={ENCODER}", f"--save-baseline={ENCODER}"], "cannot be a baseline"),
    "tolerance of nothing": ([f"--encoder={ENCODER}", "--tolerance=0.1"], "--tolerance needs --baseline"),
    "limited gate": ([f"--encoder={ENCODER}", "--limit=2", "--baseline=b.yaml"], "--limit leaves clips out"),
    "limited baseline": ([f"--encoder={ENCODER}", "--limit=2", "--save-baseline=b.yaml"], "--limit leaves clips out"),
    "two pools": (
        [f"--encoder={ENCODER}", "--pool=2", "--set", "frame_pool=4"],
        "--pool=2 and --set frame_pool=4 both set",
    ),
    "two seeds": ([f"--encoder={ENCODER}", "--seed=1", "--set", "seed=2"], "both set seed"),
    "no seeds": ([f"--encoder={ENCODER}", "--seeds=0"], "found '0', expected a whole number of at least 1"),
    "force of nothing": ([f"--encoder={ENCODER}", "--force"], "--force needs --save-baseline"),
    "missing decoder": ([f"--encoder={ENCODER}", "--decoder=./x"], "--decoder=./x: found neither a folder"),
    "runs in a file": ([f"--encoder={ENCODER}", f"--runs-dir={ENCODER}"], "logmel_encoder.py is a file, expected a"),
    "runs below a file": ([f"--encoder={ENCODER}", f"--runs-dir={ENCODER}/runs"], "logmel_encoder.py is a file"),
    "runs nowhere": ([f"--encoder={ENCODER}", "--runs-dir="], "--runs-dir=: found nothing, expected a folder"),
    "a long name of runs": ([f"--encoder={ENCODER}", f"--runs-dir={'r' * 300}"], "File name too long"),
    "a very long path": ([f"--encoder={ENCODER}", f"--runs-dir={'r/' * 3000}"], "File name too long"),
    "runs where nobody writes": ([f"--encoder={ENCODER}", "--runs-dir=/proc/runs"], "/proc cannot be written to"),
    "data in a file": (
        [f"--encoder={ENCODER}", f"--data-home={ENCODER}"],
        "is a file, expected the folder of the data",
    ),
    "a long encoder": ([f"--encoder={'e' * 300}.py"], ".py"),
    "a long mix": ([f"--encoder={ENCODER}", f"--train={'t' * 300}.yaml"], "File name too long"),
    "a long evaluation": ([f"--encoder={ENCODER}", f"--eval={'t' * 300}.yaml"], "File name too long"),
    "a long baseline": ([f"--encoder={ENCODER}", f"--baseline={'t' * 300}.yaml"], "File name too long"),
    "a long new baseline": ([f"--encoder={ENCODER}", f"--save-baseline={'t' * 300}.yaml"], "File name too long"),
    "a long decoder": ([f"--encoder={ENCODER}", f"--decoder={'t' * 300}"], "File name too long"),
    "a decoder that is a file": ([f"--encoder={ENCODER}", f"--decoder={ENCODER}"], "--decoder"),
    "a mix that is a folder": ([f"--encoder={ENCODER}", "--train=/tmp/.yaml"], "/tmp/.yaml"),
    "bad revision": ([f"--encoder={ENCODER}", "--data-revision=@"], "--data-revision=@"),
}


@pytest.mark.parametrize("name", WRONG_COMMANDS)
def test_a_wrong_command_line_is_a_usage_error(name: str, run: Run) -> None:
    options, message = WRONG_COMMANDS[name]
    result = run(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr.str()
    assert "Traceback" not in result.stderr.str() + result.stdout.str()


def test_listing_needs_no_encoder_no_data_and_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys, pytest\n"
        f"code = pytest.main([{str(REPOSITORY / 'bench')!r}, '--collect-only', '-q', '-p', 'no:cacheprovider'])\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'webdataset', 'peft', 'jiwer', 'numpy'} & {*sys.modules}\n"
        "print('loaded', sorted(heavy)); sys.exit(code)"
    )
    listed = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "loaded []" in listed.stdout
    assert "test_task1.py::test_dataset[esc-50]" in listed.stdout
    assert f"{NUM_BENCH_TESTS} tests collected" in listed.stdout
    assert "mixes (--train): auto, task1, task2, all, " in listed.stdout
    assert "metrics: Accuracy, DATE, FENSE, chrF, iCER, iWER, mAP" in listed.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("options", [[], ["-p", "no:xares_bench"]])
def test_a_foreign_project_is_left_alone(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\ndef test_it():\n    assert not {'torch', 'yaml', 'xares_bench.session'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir=.", *options]
    ran = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={"PYTHONDONTWRITEBYTECODE": "1"}
    )
    assert ran.returncode == 0, ran.stdout
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["test_it.py"]


def test_losses_and_scores_reach_a_tracker(run: Run, tmp_path: Path) -> None:
    result = run(f"--encoder={ENCODER}", "-k", "clotho", "--track=tensorboard", runs=tmp_path / "runs")
    assert result.ret == 0
    events = list((run_folder(result) / "tracking" / "xares-bench").glob("events.out.tfevents.*"))
    assert len(events) == 1
    found: dict[str, list[float]] = {}
    data = events[0].read_bytes()
    while data:  # records of length, checksum, event, checksum
        (length,) = struct.unpack_from("<Q", data)
        for value in Event.FromString(data[12 : 12 + length]).summary.value:
            found.setdefault(value.tag, []).append(value.simple_value)
        data = data[16 + length :]
    losses = found["loss/training_task2"]
    assert len(losses) == 3
    score = json.loads((run_folder(result) / "results.json").read_text())["scores"][0]["score"]
    assert found["scores/clotho"] == [pytest.approx(score)]


def test_a_tracker_whose_package_is_not_there_is_a_usage_error(run: Run) -> None:
    result = run(f"--encoder={ENCODER}", "-k", "clotho", "--track=trackio")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--track=trackio needs a package that is not installed: pip install trackio"])


def test_what_numbers_depend_on_is_written_down(run: Run, shared: Path, tmp_path: Path) -> None:
    """Where the LALM was trained, and where it was evaluated; threads are given by nobody but the machine."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        run(f"--encoder={ENCODER}", "-k", "clotho", runs=tmp_path)
        torch.set_num_threads(2)
        result = run(f"--encoder={ENCODER}", "-k", "clotho", runs=tmp_path)
    finally:
        torch.set_num_threads(threads)
    results = json.loads((run_folder(result) / "results.json").read_text())
    here, there = results["run"]["environment"], results["lalms"][0]["environment"]
    assert (here["threads"], there["threads"]) == (2, 1)
    assert {name for name in here if here[name] != there.get(name)} == {"threads", "judges"}
    assert here["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert {"device", "gpu", "precision", "processes", "processor", "platform", "python", "torch"} <= here.keys()
