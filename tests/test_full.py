"""The full preset as users run it: shards and decoder from a (loopback) hub, LoRA, features made at every draw."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

from tests.conftest import REPOSITORY, last_wins
from tests.hub.machine import Machine
from tests.hub.server import Hub, serve_hub
from tests.metrics.captions.factory import write_judges
from tests.shard_factory import tone, write_shard
from xares_bench.config.catalogue import load_catalogue

DATA = "mispeech/xares_llm_data"
DECODER = "HuggingFaceTB/SmolLM2-135M"
ENCODER = REPOSITORY / "examples" / "logmel_encoder.py"
# Everything as published, but for the length.
BRIEFLY = ["--set", "steps=4", "--set", "shuffle_buffer=8", "--set", "sort_window=8", "--set", "max_new_tokens=4"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, decoder_folder: str) -> Iterator[Hub]:
    """A hub with all shards of three datasets, three tones each, and a small decoder under the preset's name."""
    folder = tmp_path_factory.mktemp("hub")
    shards = {}
    catalogue = load_catalogue("full")
    for dataset in map(catalogue.datasets.__getitem__, ("esc-50", "gtzan", "clotho")):
        for split in (dataset.train, dataset.eval):
            assert split is not None
            for path in split.shards:
                clips = [
                    (f"clip-{i}", tone(0.2 + 0.05 * i, 150 + 40 * i), {split.target_keys[0]: _targets(dataset.name, i)})
                    for i in range(3)
                ]
                shards[path] = write_shard(folder / path, clips).read_bytes()
    model = folder / "decoder"
    torch.manual_seed(0)
    LlamaForCausalLM(AutoConfig.from_pretrained(decoder_folder)).save_pretrained(model)
    AutoTokenizer.from_pretrained(decoder_folder).save_pretrained(model)
    with serve_hub() as hub:
        hub.repository(f"datasets/{DATA}").commit(shards)
        hub.repository(f"models/{DECODER}").commit({path.name: path.read_bytes() for path in model.iterdir()})
        yield hub


def _targets(dataset: str, number: int) -> str | list[str]:
    """One label, or several captions."""
    return [f"a dog {number}", f"dog number {number}"] if dataset == "clotho" else f"word {number}"


@pytest.fixture
def machine(tmp_path: Path, hub: Hub) -> Machine:
    return Machine(tmp_path, hub)


def bench(machine: Machine, *options: object, status: int = 0, **environment: str) -> str:
    """Run `pytest bench` on the machine; its output."""
    command = [sys.executable, "-m", "pytest", str(REPOSITORY / "bench"), "-p", "no:cacheprovider"]
    command += last_wins([*BRIEFLY, f"--encoder={ENCODER}", *options])
    environment |= {"XARES_DATA_HOME": str(machine.folder), "OMP_NUM_THREADS": "1"}
    process = machine.spawn(command, prepare=None, **environment)
    output, errors = process.communicate(timeout=900)
    assert process.returncode == status, output + errors
    assert "Traceback" not in output + errors
    return output + errors


def results_of(machine: Machine) -> list[dict[str, Any]]:
    """The results of every run of the machine, the newest first."""
    files = sorted(machine.folder.parent.glob("runs/*/results.json"), key=lambda path: -path.stat().st_mtime_ns)
    return [json.loads(file.read_text()) for file in files]


def test_one_dataset_is_fetched_trained_scored_and_found_again_without_the_hub(machine: Machine, hub: Hub) -> None:
    output = bench(machine, "--allow-cpu", "--train=esc-50", "-k", "esc-50")
    commit = hub.repository(f"datasets/{DATA}").branches["main"]
    assert f"data: {DATA} at {commit}" in output
    assert f"decoder: {DECODER} at {hub.repository(f'models/{DECODER}').branches['main']}" in output
    assert "data: 5 files, " in output
    assert "5 to fetch" in output
    fetched = {path.relative_to(machine.folder).as_posix() for path in machine.folder.rglob("*.tar.gz")}
    dataset = load_catalogue("full").datasets["esc-50"]
    assert dataset.train is not None
    assert dataset.eval is not None
    assert fetched == {*dataset.train.shards, *dataset.eval.shards}

    (results,) = results_of(machine)
    run = results["run"]
    assert run["data"]["repositories"] == {DATA: commit}
    assert run["data"]["test_repositories"] == {"esc-50": DATA}
    (file,) = machine.folder.parent.glob("runs/*/eval_results.yaml")
    entries = yaml.safe_load(file.read_text())
    assert [entry["dataset"] for entry in entries] == [{"id": DATA, "task_id": "esc-50", "revision": commit}]
    assert run["decoder"]["commit"] == hub.repository(f"models/{DECODER}").branches["main"]
    assert run["preset"] == "full"
    assert run["recipe"]["adaptation"] == "lora"
    assert set(run["deviations"]) == {"steps", "shuffle_buffer", "sort_window", "max_new_tokens"}
    assert results["scores"][0]["num_rows"] == 3
    # The buffer is filled before the first batch, so that more is drawn than is trained on.
    assert results["lalms"][0]["num_samples"] == {"esc-50": 12}

    num_requests = len(hub.requests)
    again = bench(machine, "--allow-cpu", "--train=esc-50", "-k", "esc-50", HF_HUB_OFFLINE="1")
    assert "LALM esc-50: cached\ncached: features of 2 of 2 shards, 1 of 1 scores;" in again
    anew = bench(machine, "--allow-cpu", "--train=esc-50", "-k", "esc-50", "--seed=1", HF_HUB_OFFLINE="1")
    assert "LALM esc-50: training from scratch" in anew
    assert "all present" in anew
    assert len(hub.requests) == num_requests, "offline, nothing is asked"


def test_the_same_command_gives_the_same_bytes_whatever_the_workers(machine: Machine, hub: Hub) -> None:
    text = (
        "train_data:\n  mine: {prompt: [What?, Which?], data: ['ESC-50/train/esc50_fold_{1..4}_0000000.tar.gz'], "
        f"key: label, repo_id: {DATA}}}\nnum_training_workers: "
    )
    folder = machine.folder.parent
    (folder / "eval.yaml").write_text(
        "mine: {data: {data: ESC-50/test/esc50_fold_5_0000000.tar.gz, key: text;label, prompt: What?, "
        f"repo_id: {DATA}}}, metric: iWER, num_workers: 0, weight: 2}}\n"
    )
    for num_workers in (0, 2):
        (folder / f"train{num_workers}.yaml").write_text(f"{text}{num_workers}\nmax_steps: 5\n")
        options = [f"--train=train{num_workers}.yaml", "--eval=eval.yaml", "-k", "mine", "--set", "steps=3"]
        bench(machine, "--allow-cpu", *options, f"--runs-dir=runs{num_workers}")
    weights = [next(folder.glob(f"runs{number}/store/lalms/*/trained.safetensors")) for number in (0, 2)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    curves = [file.with_name("loss.tsv").read_text() for file in weights]
    assert curves[0] == curves[1]
    scores = [next(folder.glob(f"runs{number}/*/scores.tsv")).read_text() for number in (0, 2)]
    assert scores[0] == scores[1]
    assert "mine\t" in scores[0]
    assert scores[0].splitlines()[1].endswith("\t2")


def test_without_a_gpu_it_is_refused_before_anything_is_fetched(machine: Machine, hub: Hub) -> None:
    num_requests = len(hub.requests)
    output = bench(machine, "-k", "esc-50", status=4)
    assert "--preset=full needs a GPU and none was found: " in output
    assert ". Use --preset=mini, or force it with --allow-cpu" in output
    assert "no score for" not in output
    assert len(hub.requests) == num_requests
    assert not machine.folder.exists()


def test_shards_that_the_hub_lacks_are_errors_of_the_datasets_that_need_them(machine: Machine, hub: Hub) -> None:
    options = ["--allow-cpu", "--train=gtzan", "-k", "gtzan"]
    repository = hub.repository(f"datasets/{DATA}")
    files = dict(repository.files[repository.branches["main"]])
    lost = next(path for path in files if path.startswith("GTZAN/test"))
    del files[lost]
    repository.commit(files, branch="poorer")
    output = bench(machine, *options, "--data-revision=poorer", status=1)
    assert f"{lost}: {DATA} has no such file at commit {repository.branches['poorer']}" in output
    assert "no score for gtzan: the run fails" in output
    output = bench(machine, *options, status=1)
    assert repository.branches["poorer"] in output, "the revision that was named stays"
    bench(machine, *options, f"--data-revision={DATA}@main")


def test_an_unreachable_hub_is_one_line(machine: Machine, hub: Hub) -> None:
    output = bench(machine, "--allow-cpu", "--train=esc-50", "-k", "esc-50", status=1, HF_HUB_OFFLINE="1")
    assert f"{DECODER}" in output
    assert "no score for esc-50: the run fails" in output


def test_mixed_precision_through_the_launcher(machine: Machine, hub: Hub) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=1"]
    options = [str(REPOSITORY / "bench"), "-p", "no:cacheprovider", *BRIEFLY, "--allow-cpu", f"--encoder={ENCODER}"]
    options += ["--train=esc-50", "-k", "esc-50"]
    for precision in ("bf16", "fp16"):
        command = [*launch, f"--mixed-precision={precision}", "-m", "pytest", *options]
        process = machine.spawn(command, XARES_DATA_HOME=str(machine.folder), OMP_NUM_THREADS="1")
        output, errors = process.communicate(timeout=900)
        if precision == "bf16":
            assert process.returncode == 0, output + errors
            assert "on cpu in bf16" in output
            (results,) = results_of(machine)
            assert results["run"]["environment"]["precision"] == "bf16"
        else:
            assert process.returncode != 0
            assert "--mixed-precision=fp16: " in errors
            assert "fp16 needs a GPU, found the device cpu" in errors


def test_captions_are_generated_once_a_clip_and_judged_against_each_reference(machine: Machine, tmp_path: Path) -> None:
    options = ["--allow-cpu", "--train=clotho", "-k", "clotho"]
    refused = bench(machine, *options, status=4, XARES_CAPTION_MODELS=str(tmp_path / "nowhere"))
    assert "FENSE and DATE need" in refused
    assert not list(machine.folder.rglob("*.tar.gz")), "before anything is fetched"
    judges = write_judges(tmp_path / "judges")
    output = bench(machine, *options, XARES_CAPTION_MODELS=str(judges))
    assert "captions: the fluency detector" in output, "that these are not the published models is said"
    (results,) = results_of(machine)
    (record,) = results["scores"]
    assert (record["metric"], record["num_clips"], record["num_rows"]) == ("FENSE", 15, 30)
    (file,) = machine.folder.parent.glob("runs/*/predictions/clotho.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["reference"] for row in rows[:2]] == ["a dog 0", "dog number 0"]
    assert all(one["hypothesis"] == other["hypothesis"] for one, other in zip(rows[::2], rows[1::2], strict=True))
    assert sum(row["value"] for row in rows) / 30 == pytest.approx(record["score"])
    assert results["run"]["environment"]["judges"]["FENSE"]
