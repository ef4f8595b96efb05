"""A decoder from the hub, with the real client, against a hub on the loopback interface."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.machine import Machine
from tests.hub.server import Fault, Hub, Repository, serve_hub, sha256
from xares_bench.core.errors import DataError, UsageError
from xares_bench.core.progress import Progress
from xares_bench.hub import Model, fetch_model, survey_model
from xares_bench.hub.models import locate_decoder

NAME = "owner/decoder"
WEIGHTS = bytes(range(256)) * 1000
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "merges.txt": b"a b",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": WEIGHTS[::-1],
    "onnx/model.onnx": b"onnx",
    "onnx/config.json": b"{}",
    "README.md": b"# A decoder",
}
NEEDED = {"config.json", "tokenizer.json", "merges.txt", "model.safetensors"}
LARGE = f"/large/{sha256(WEIGHTS)}/model.safetensors"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        repository = hub.repository(f"models/{NAME}")
        repository.commit(FILES)
        repository.in_git |= {"config.json", "tokenizer.json", "merges.txt", "README.md"}
        yield hub


@pytest.fixture
def repository(hub: Hub) -> Repository:
    return hub.repository(f"models/{NAME}")


@pytest.fixture
def machine(tmp_path: Path, hub: Hub) -> Machine:
    return Machine(tmp_path, hub)


def assert_whole(folder: str, files: set[str]) -> None:
    found = {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
    assert found == files
    for path in found:
        assert (Path(folder) / path).read_bytes() == FILES[path]


@pytest.mark.versions
def test_config_tokeniser_and_safetensors_are_fetched_once(machine: Machine, hub: Hub) -> None:
    first = machine.run(model=NAME)
    assert_whole(first["model"], NEEDED)
    assert Path(first["model"]).is_relative_to(machine.folder.parent / "hf")
    assert first["commit"] == hub.repositories[f"models/{NAME}"].branches["main"]
    hub.requests.clear()
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        again = machine.run(model=NAME, **environment)
        assert (again["model"], again["commit"]) == (first["model"], first["commit"])
    assert hub.requests == []


def test_the_commit_is_pinned_until_another_revision_is_asked_for(machine: Machine, repository: Repository) -> None:
    first = machine.run(model=NAME)
    moved = repository.commit({**FILES, "tokenizer.json": b'{"new": 1}'})
    shutil.rmtree(machine.folder.parent / "hf")
    again = machine.run(model=NAME)
    assert again["commit"] == first["commit"]
    assert_whole(again["model"], NEEDED)
    asked = machine.run(model=NAME, revision="main")
    assert asked["commit"] == moved
    assert (Path(asked["model"]) / "tokenizer.json").read_bytes() == b'{"new": 1}'
    assert machine.run(model=NAME)["commit"] == moved
    assert machine.run(model=NAME, revision="main", HF_HUB_OFFLINE="1")["commit"] == moved


def test_safetensors_of_any_name_count_but_not_those_of_subfolders(machine: Machine, repository: Repository) -> None:
    repository.commit({"config.json": b"{}", "any.safetensors": b"any", "copy/other.safetensors": b"other"})
    folder = Path(machine.run(model=NAME)["model"])
    assert {path.name for path in folder.iterdir()} == {"config.json", "any.safetensors"}


def test_pickled_weights_are_fetched_only_where_there_are_no_others(machine: Machine, repository: Repository) -> None:
    repository.commit({path: data for path, data in FILES.items() if path != "model.safetensors"})
    assert_whole(machine.run(model=NAME)["model"], NEEDED - {"model.safetensors"} | {"pytorch_model.bin"})


@pytest.mark.parametrize(
    ("lacking", "expected"),
    [({"model.safetensors", "pytorch_model.bin"}, "has neither *.safetensors nor"), ({"config.json"}, "config.json")],
)
def test_a_repository_without_a_model_is_refused(
    machine: Machine, repository: Repository, lacking: set[str], expected: str
) -> None:
    repository.commit({path: data for path, data in FILES.items() if path not in lacking})
    error = machine.run(model=NAME)["error"]
    assert error.startswith(f"DataError: {NAME}: ")
    assert expected in error


def test_a_cache_that_others_filled_is_used_offline(machine: Machine, hub: Hub, repository: Repository) -> None:
    command = [str(Path(sys.executable).parent / "hf"), "download", NAME]
    subprocess.run(command, env=machine.environment, check=True, capture_output=True, timeout=900)
    hub.requests.clear()
    result = machine.run(model=NAME, HF_HUB_OFFLINE="1")
    assert result["commit"] == repository.branches["main"]
    assert (Path(result["model"]) / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.requests == []
    (Path(result["model"]) / "model.safetensors").unlink()
    (Path(result["model"]) / "pytorch_model.bin").unlink()
    assert "not in the cache" in machine.run(model=NAME, HF_HUB_OFFLINE="1")["error"]


def test_what_is_not_there_offline_is_named_with_the_command_that_fetches_it(machine: Machine, hub: Hub) -> None:
    error = machine.run(model=NAME, HF_HUB_OFFLINE="1")["error"]
    assert error.startswith(f"DataError: {NAME}: not in the cache ")
    assert f"python -m xares_bench download --decoder {NAME}" in error
    machine.run(model=NAME)
    shutil.rmtree(machine.folder.parent / "hf")
    hub.requests.clear()
    assert "HF_HUB_OFFLINE" in machine.run(model=NAME, HF_HUB_OFFLINE="1")["error"]
    assert hub.requests == []


@pytest.mark.parametrize(
    "faults",
    [[Fault(cut_after=100_000)], [Fault(cut_after=100_000, reset=True)], [Fault(status=503), Fault(status=429)]],
    ids=["cut", "reset", "busy"],
)
def test_transfers_that_go_wrong_are_tried_again(machine: Machine, hub: Hub, faults: list[Fault]) -> None:
    hub.faults[LARGE] = faults
    assert_whole(machine.run(model=NAME)["model"], NEEDED)


def test_weights_of_another_digest_do_not_count(machine: Machine, hub: Hub) -> None:
    hub.faults[LARGE] = [Fault(body=WEIGHTS[::-1])]
    error = machine.run(model=NAME)["error"]
    assert error.startswith("DataError: model.safetensors of owner/decoder at commit ")
    assert f"its listing says {sha256(WEIGHTS)[:12]}" in error
    assert_whole(machine.run(model=NAME)["model"], NEEDED)


def test_weights_of_another_size_do_not_count(machine: Machine, hub: Hub) -> None:
    hub.faults[LARGE] = [Fault(body=WEIGHTS[:-1])] * 10
    assert "Consistency check failed" in machine.run(model=NAME)["error"]
    hub.faults.clear()
    assert_whole(machine.run(model=NAME)["model"], NEEDED)


def test_too_little_free_disk_is_an_error_before_anything_is_fetched(
    machine: Machine, hub: Hub, repository: Repository
) -> None:
    repository.promised["model.safetensors"] = 10**17
    error = machine.run(model=NAME)["error"]
    assert error.startswith("UsageError: ")
    assert "100.0 PB to fetch" in error
    assert hub.num_sent == {}


def test_what_is_wrong_with_a_name_is_one_line(machine: Machine, repository: Repository) -> None:
    assert "has no such repository" in machine.run(model="owner/nothing")["error"]
    assert "has no such revision" in machine.run(model=NAME, revision="v9")["error"]
    assert machine.run(model="a/b/c")["error"].startswith("UsageError: --decoder=a/b/c: neither a folder nor")
    assert machine.run(model="a/b/c", HF_HUB_OFFLINE="1")["error"].startswith("UsageError: --decoder=a/b/c: ")
    repository.token = "hf_secret"
    assert "HF_TOKEN" in machine.run(model=NAME)["error"]
    assert_whole(machine.run(model=NAME, HF_TOKEN="hf_secret")["model"], NEEDED)


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    assert fetch_model(str(tmp_path), revision=None, data_home=tmp_path / "data") == Model(folder=tmp_path, commit=None)
    assert survey_model(str(tmp_path), revision=None, data_home=tmp_path / "data").num_files == 0
    with pytest.raises(UsageError, match="a folder, which has no revision"):
        fetch_model(str(tmp_path), revision="main", data_home=tmp_path / "data")


def test_a_folder_is_used_as_it_is_and_known_by_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "decoder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    found = locate_decoder(str(folder), tmp_path, Progress())
    assert (found.name, found.folder, found.commit) == (str(folder), str(folder), None)
    moved = folder.rename(tmp_path / "elsewhere")
    assert locate_decoder(str(moved), tmp_path, Progress()).digest == found.digest
    (moved / "model.safetensors").write_bytes(b"weights")
    assert locate_decoder(str(moved), tmp_path, Progress()).digest != found.digest


def test_a_model_that_is_nowhere_is_one_line(tmp_path: Path) -> None:
    for name in ("owner/absent", "owner/absent@v1"):
        with pytest.raises((DataError, UsageError), match=r"owner/absent") as raised:
            locate_decoder(name, tmp_path, Progress())
        assert "\n" not in str(raised.value)
