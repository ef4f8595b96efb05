"""`python -m xares_bench download`, against a hub on the loopback interface."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.hub.machine import Machine
from tests.hub.server import Fault, Hub, Repository, serve_hub
from tests.metrics.captions.factory import write_judges
from tests.run_factory import write_finished_run
from xares_bench.__main__ import main
from xares_bench.config.catalogue import Catalogue, load_catalogue

SHARDS = "mispeech/xares_llm_data"
DECODER = "HuggingFaceTB/SmolLM2-135M"


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load_catalogue("full")


@pytest.fixture
def hub(catalogue: Catalogue) -> Iterator[Hub]:
    """A hub with all shards of the published benchmark, small ones, and a decoder."""
    with serve_hub() as hub:
        files: dict[str, dict[str, bytes]] = {}
        for dataset in catalogue.datasets.values():
            for split in (dataset.train, dataset.eval):
                assert split is not None
                for path in split.shards:
                    files.setdefault(f"datasets/{dataset.repository}", {})[path] = path.encode() * 10
        for key, shards in files.items():
            hub.repository(key).commit(shards)
        hub.repository(f"models/{DECODER}").commit({"config.json": b"{}", "model.safetensors": b"weights"})
        yield hub


@pytest.fixture
def repository(hub: Hub) -> Repository:
    return hub.repository(f"datasets/{SHARDS}")


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judges(tmp_path_factory.mktemp("judges"))


@pytest.fixture
def machine(tmp_path: Path, hub: Hub, judges: Path) -> Machine:
    machine = Machine(tmp_path, hub)
    machine.environment["XARES_CAPTION_MODELS"] = str(judges)
    return machine


def download(machine: Machine, *arguments: str, **environment: str) -> tuple[int, list[str], list[str]]:
    """Exit status, lines of output, lines of errors."""
    command = [sys.executable, "-m", "xares_bench", "download", *arguments]
    process = machine.spawn(command, prepare=None, XARES_DATA_HOME=str(machine.folder), **environment)
    output, errors = process.communicate(timeout=900)
    return process.returncode, output.splitlines(), errors.splitlines()


def shards_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.tar.gz")}


def test_a_dry_run_says_how_much_it_is_and_leaves_no_trace(machine: Machine, hub: Hub, catalogue: Catalogue) -> None:
    status, output, errors = download(machine, "--dry-run")
    assert (status, errors) == (0, [])
    num_shards = sum(len(repository.files[repository.branches["main"]]) for repository in hub.repositories.values()) - 2
    assert output[0].startswith(f"shards   {num_shards} files, ")
    assert f"; 0 present, {num_shards} to fetch (" in output[0]
    assert output[1] == f"         in {machine.folder}"
    assert output[2:4] == [
        f"         from {name} at commit {hub.repositories[f'datasets/{name}'].branches['main']}"
        for name in dict.fromkeys(dataset.repository for dataset in catalogue.datasets.values())
    ]
    assert output[4].startswith(f"decoder  {DECODER}: 2 files, 9 bytes; 0 present, 2 to fetch (9 bytes); ")
    assert len(output) == 5
    assert not machine.folder.exists()
    assert hub.num_sent == {}


def test_the_shards_of_a_split_of_a_dataset_and_the_decoder_are_fetched(
    machine: Machine, hub: Hub, catalogue: Catalogue
) -> None:
    dataset = catalogue.datasets["esc-50"]
    assert dataset.eval is not None
    status, output, errors = download(machine, "esc-50", "--split", "eval")
    assert (status, errors) == (0, [])
    assert output[-1] == "all present"
    assert shards_in(machine.folder) == set(dataset.eval.shards)
    for path in dataset.eval.shards:
        assert (machine.folder / path).read_bytes() == path.encode() * 10
    assert len(list((machine.folder.parent / "hf").rglob("model.safetensors"))) == 1
    hub.requests.clear()
    status, output, errors = download(machine, "esc-50", "--split", "eval", HF_HUB_OFFLINE="1")
    assert (status, errors) == (0, [])
    assert "; all present; " in output[0]
    assert hub.requests == []


def test_tasks_and_datasets_add_up_and_nothing_is_fetched_twice(
    machine: Machine, hub: Hub, catalogue: Catalogue
) -> None:
    arguments = ("task2", "esc-50", "esc-50", "--no-models", "--data-home", "elsewhere")
    status, output, errors = download(machine, *arguments)
    assert (status, errors) == (0, [])
    wanted = {
        path
        for name in (*catalogue.tasks["task2"], "esc-50")
        for split in (catalogue.datasets[name].train, catalogue.datasets[name].eval)
        if split is not None
        for path in split.shards
    }
    assert shards_in(machine.folder.parent / "elsewhere") == wanted
    assert len([request for request in hub.requests if request.path.startswith("/large/")]) == len(wanted)
    assert not any("models" in request.path for request in hub.requests)
    assert "decoder" not in " ".join(output)


def test_another_decoder_and_another_revision_of_the_data(machine: Machine, hub: Hub, repository: Repository) -> None:
    hub.repository("models/owner/other").commit({"config.json": b"{}", "model.safetensors": b"others"}, "v1")
    commit = repository.commit(repository.files[repository.branches["main"]] | {"new": b"new"}, "v2")
    status, output, errors = download(
        machine, "esc-50", "--decoder", "owner/other@v1", "--data-revision", f"{SHARDS}@v2", "--dry-run"
    )
    assert (status, errors) == (0, [])
    assert f"from {SHARDS} at commit {commit}" in output[2]
    assert output[3].startswith("decoder  owner/other: 2 files, ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["esc50"], "esc50: no such task or dataset; expected some of task1, task2, all, aishell-1"),
        (["gtza"], "gtza: no such task or dataset; expected some of task1, task2, all, aishell-1"),
        (["gtzan", "--data-home", "$NOWHERE/data"], "$NOWHERE/data: the environment variable NOWHERE is not set"),
        (["gtzan", "--data-revision", "a@b"], "--data-revision=a@b: expected"),
        (["gtzan", "--data-revision", "a/b@c"], "--data-revision=a/b@c: no dataset to download is in this repository"),
        (["gtzan", "--no-models", "--decoder", "x"], "--decoder=x and --no-models contradict each other"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(machine: Machine, hub: Hub, arguments: list[str], said: str) -> None:
    status, output, errors = download(machine, *arguments)
    assert (status, output, len(errors)) == (2, [], 1)
    assert errors[0].startswith(f"xares-bench: {said}")
    assert hub.requests == []


def test_a_file_as_the_data_folder_is_refused_in_one_line(machine: Machine, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, output, errors = download(
        machine, "gtzan", "--data-home", str(tmp_path / "file"), PYTHONPATH=str(REPOSITORY)
    )
    assert (status, output) == (2, [])
    assert errors == [
        f"xares-bench: {tmp_path / 'file'} is a file, expected the folder of the data; choose another --data-home"
    ]
    assert hub.requests == []


def test_a_misspelt_name_has_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "gtza", "--dry-run"]) == 2
    assert capsys.readouterr().err.endswith("; did you mean gtzan?\n")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["download", "gtzan", "--data-home", "a", "--data-home=a"], "--data-home"),
        (["download", "gtzan", "--split=eval", "--split", "train"], "--split"),
        (["compare", "a", "b", "--clips=1", "--clips=2"], "--clips"),
        (["leaderboard", "a", "--output=b", "--output=c"], "--output"),
    ],
)
def test_an_option_given_twice_is_refused(
    arguments: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: {option} is given twice; give it once\n")


def test_home_and_variables_are_expanded_in_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_finished_run(tmp_path / "runs" / "one", {"gtzan": [("clip", "rock", "rock")]})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    assert main(["compare", "~/runs/one", "$RUNS/one/results.json"]) == 0
    assert main(["leaderboard", "~/runs"]) == 0
    assert main(["leaderboard", "$RUNS", "--output=~/runs/board.html"]) == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "runs" / "leaderboard.html").read_bytes() == (tmp_path / "runs" / "board.html").read_bytes()
    (tmp_path / "file").touch()
    for name, arguments in (("~/file", []), ("~/nowhere", ["--data-home", "~/file"])):
        monkeypatch.setenv("XARES_DATA_HOME", name)
        assert main(["download", "gtzan", *arguments, "--dry-run"]) == 2
        assert f"{tmp_path / 'file'} is a file, expected the folder of the data" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_without_a_letter_of_a_name_shows_it_escaped(tmp_path: Path, encoding: str) -> None:
    name = "über-音"
    write_finished_run(tmp_path / name, {"gtzan": [("clip", "rock", "rock"), ("other", "pop", "rock")]})
    for arguments in (["compare", name], ["leaderboard", ".", f"--output={name}.html"]):
        found = subprocess.run(
            [sys.executable, "-m", "xares_bench", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            timeout=120,
        )
        assert (found.returncode, found.stderr) == (0, b"")
        assert name.encode(encoding, "backslashreplace") in found.stdout


def test_what_cannot_be_had_is_one_line_and_status_1(machine: Machine, hub: Hub, repository: Repository) -> None:
    hub.faults[".tar.gz"] = [Fault(status=404, headers={"X-Error-Code": "EntryNotFound"})] * 2
    status, _, errors = download(machine, "esc-50", "--no-models")
    assert (status, len(errors)) == (1, 1)
    assert "has no such file" in errors[0]
    assert errors[0].endswith(" (and 1 more)")
    repository.gated = True
    status, _, errors = download(machine, "gtzan")
    assert (status, len(errors)) == (1, 1)
    assert "accept its terms" in errors[0]


def test_too_little_disk_is_one_line_and_status_2(machine: Machine, hub: Hub, repository: Repository) -> None:
    repository.promised = dict.fromkeys(repository.files[repository.branches["main"]], 10**15)
    status, _, errors = download(machine, "esc-50")
    assert (status, len(errors)) == (2, 1)
    assert "5.0 PB to fetch" in errors[0]
    assert hub.num_sent == {}


def test_help_says_what_an_offline_machine_needs(machine: Machine) -> None:
    status, output, errors = download(machine, "--help")
    assert (status, errors) == (0, [])
    assert "HF_HUB_OFFLINE=1" in " ".join(output)


def test_it_takes_no_torch(machine: Machine) -> None:
    code = (
        "import sys; from xares_bench.__main__ import main; main(['download', 'esc-50', '--dry-run']); "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    process = machine.spawn([sys.executable, "-c", code])
    process.communicate(timeout=900)
    assert process.returncode == 0


def test_models_that_judge_captions_are_fetched_with_their_test_sets(machine: Machine) -> None:
    status, output, errors = download(machine, "clotho", "mecat", "--split=eval", HF_HUB_DISABLE_XET="1")
    assert (status, errors) == (0, [])
    assert [line for line in output if line.startswith("judges")] == [
        "judges   of DATE: present",
        "judges   of FENSE: present",
    ]
    machine.environment["XARES_CAPTION_MODELS"] = str(machine.folder)
    for arguments in (["clotho", "--split=train"], ["gtzan"], ["clotho", "--no-models"]):
        assert download(machine, *arguments)[0] == 0
    status, _, errors = download(machine, "clotho")
    assert status == 2
    assert len(errors) == 1
    assert str(machine.folder) in errors[0]


def test_a_reader_that_has_had_enough_is_no_error(tmp_path: Path) -> None:
    """As `| head -1` is, here before the first line."""
    run = write_finished_run(tmp_path / "runs" / "one", {"gtzan": [("clip", "rock", "rock")]})
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "xares_bench", "compare", str(run), str(run)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, cwd=REPOSITORY)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
