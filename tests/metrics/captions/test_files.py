"""The judges' files: located, downloaded from loopback servers, and rejected if they have other content."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from tests.hub.server import Hub, serve_hub
from tests.metrics.captions.factory import DETECTOR_BASE, write_checkpoint, write_hub_cache, write_judges
from xares_bench.core.digests import file_digest
from xares_bench.core.errors import UsageError
from xares_bench.metrics.captions import files, judges
from xares_bench.metrics.captions.files import CHECKPOINT, FOLDER_VARIABLE, SENTENCE_MODEL, deviations, identity, locate

SENTENCE_FOLDER = "paraphrase-TinyBERT-L6-v2"


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder named by the user, with all three downloads."""
    folder = write_judges(tmp_path / "given")
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    return folder


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline machine after the downloads; its checkpoint counts as the published one."""
    cache, fense_data = write_hub_cache(tmp_path / "cached")
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("FENSE_DATA", str(fense_data))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(files, "CHECKPOINT_SHA256", file_digest(fense_data / CHECKPOINT))
    return tmp_path / "cached"


def error_message() -> str:
    with pytest.raises(UsageError) as caught:
        judges.check_available()
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- located


def test_the_users_folder_comes_first(given: Path) -> None:
    files = locate()
    assert files.sentence_model == given / SENTENCE_FOLDER
    assert files.checkpoint == given / CHECKPOINT
    assert files.detector_base == given / DETECTOR_BASE
    assert files.max_length == 24
    judges.check_available()


def test_the_cache_serves_a_machine_without_network(cached: Path) -> None:
    files = locate()
    assert files.sentence_model.is_relative_to(cached / "hub")
    assert files.checkpoint == cached / "fense_data" / CHECKPOINT
    judges.check_available()


def test_older_weights_are_read_too(given: Path) -> None:
    folder = given / SENTENCE_FOLDER
    before = judges.load_judges().embeddings(["a dog"])
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    judges._load.cache_clear()
    files._digests.cache_clear()
    assert (judges.load_judges().embeddings(["a dog"]) == before).all()
    assert f"{SENTENCE_FOLDER}/pytorch_model.bin" in identity()


def test_weights_in_a_subfolder_are_found(given: Path) -> None:
    folder = given / SENTENCE_FOLDER
    below = folder / "0_Transformer"
    below.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).rename(below / name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert locate().transformer == below
    judges.check_available()


# --- hashed


def test_identity_depends_on_the_bytes_and_not_on_the_folder(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = identity()
    assert known[CHECKPOINT] == file_digest(given / CHECKPOINT)
    assert known[f"{SENTENCE_FOLDER}/model.safetensors"] == file_digest(given / SENTENCE_FOLDER / "model.safetensors")
    assert any(name.endswith("tokenizer.json") for name in known)
    copy = given.parent / "elsewhere"
    shutil.copytree(given, copy)
    monkeypatch.setenv(FOLDER_VARIABLE, str(copy))
    assert identity() == known


@pytest.mark.parametrize(
    "changed",
    [
        f"{SENTENCE_FOLDER}/model.safetensors",
        f"{SENTENCE_FOLDER}/tokenizer.json",
        f"{SENTENCE_FOLDER}/sentence_bert_config.json",
        f"{SENTENCE_FOLDER}/1_Pooling/config.json",
        f"{DETECTOR_BASE}/config.json",
    ],
)
def test_identity_changes_with_every_file_that_matters(
    given: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = identity()
    copy = given.parent / "elsewhere"
    shutil.copytree(given, copy)
    with (copy / changed).open("ab") as file:
        file.write(b" ")
    monkeypatch.setenv(FOLDER_VARIABLE, str(copy))
    assert identity() != known
    assert identity().keys() == known.keys()


def test_the_published_detector_is_not_a_deviation(cached: Path) -> None:
    assert deviations() == ()


def test_another_detector_is_a_deviation(given: Path) -> None:
    (deviation,) = deviations()
    assert file_digest(given / CHECKPOINT) in deviation


# --- rejected


@pytest.mark.parametrize(
    ("absent", "named"),
    [
        (SENTENCE_FOLDER, "modules.json"),
        (f"{SENTENCE_FOLDER}/model.safetensors", "model.safetensors"),
        (f"{SENTENCE_FOLDER}/config.json", "config.json"),
        (f"{SENTENCE_FOLDER}/1_Pooling", "1_Pooling/config.json"),
        (DETECTOR_BASE, f"{DETECTOR_BASE}/config.json"),
        (CHECKPOINT, CHECKPOINT),
    ],
)
def test_a_file_missing_from_the_users_folder_is_named(given: Path, absent: str, named: str) -> None:
    path = given / absent
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    message = error_message()
    assert named in message
    assert f"{FOLDER_VARIABLE}={given}" in message


def test_a_model_missing_from_the_cache_is_named_with_what_to_do(cached: Path) -> None:
    shutil.rmtree(cached / "hub" / f"models--{DETECTOR_BASE}")
    message = error_message()
    for word in (DETECTOR_BASE, str(cached / "hub"), "HF_HUB_OFFLINE", f"hf download {DETECTOR_BASE}", FOLDER_VARIABLE):
        assert word in message


def test_a_partly_downloaded_model_is_not_used(cached: Path) -> None:
    (locate().sentence_model / "model.safetensors").unlink()
    files._locate.cache_clear()
    assert f"{SENTENCE_MODEL} is not in the Hugging Face cache" in error_message()


def test_a_missing_checkpoint_is_named_with_its_path_and_url(cached: Path) -> None:
    path = cached / "fense_data" / CHECKPOINT
    path.unlink()
    message = error_message()
    for word in (str(path), files.CHECKPOINT_URL, "HF_HUB_OFFLINE", FOLDER_VARIABLE):
        assert word in message


def test_a_truncated_checkpoint_is_detected_by_its_sha_256(cached: Path) -> None:
    path = cached / "fense_data" / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-100])
    assert "SHA-256" in error_message()


def test_a_truncated_checkpoint_in_the_users_folder_is_unusable(given: Path) -> None:
    path = given / CHECKPOINT
    path.write_bytes(path.read_bytes()[:5000])
    assert f"the fluency detector {path} is unusable" in error_message()


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_code_in_a_checkpoint_is_not_executed(given: Path, tmp_path: Path) -> None:
    target = tmp_path / "executed"
    torch.save({"model_type": Harmful(target), "num_classes": 6, "state_dict": {}}, given / CHECKPOINT)
    assert "is unusable" in error_message()
    assert not target.exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda content: content.pop("num_classes"), "num_classes"),
        (lambda content: content["state_dict"].pop("clf.weight"), "clf.weight"),
        (lambda content: content["state_dict"].update({"encoder.more": torch.ones(1)}), "encoder.more"),
        (lambda content: content.update(num_classes=5), "size mismatch"),
    ],
)
def test_a_checkpoint_with_other_content_is_an_error(given: Path, change: Any, named: str) -> None:
    content = torch.load(given / CHECKPOINT, weights_only=True)
    change(content)
    torch.save(content, given / CHECKPOINT)
    assert named in error_message()


def test_a_sentence_encoder_with_missing_weights_is_an_error(given: Path) -> None:
    path = given / SENTENCE_FOLDER / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    assert "encoder.layer.1.output.dense.weight" in error_message()


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("modules.json", [{"type": "x.Transformer", "path": ""}], "expected ['Transformer', 'Pooling']"),
        ("modules.json", "broken", f"{SENTENCE_FOLDER} is unusable"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
            "expected the mean over tokens",
        ),
    ],
)
def test_a_sentence_encoder_of_another_kind_is_an_error(given: Path, file: str, content: Any, named: str) -> None:
    (given / SENTENCE_FOLDER / file).write_text(json.dumps(content))
    assert named in error_message()


# --- downloaded


class CheckpointServer:
    """Serves one file, complete or truncated."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.cut_after: int | None = None
        self.status = 200
        self.num_requests = 0
        self.url = ""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CheckpointServer]:
    write_checkpoint(tmp_path / "published.ckpt", base=f"google-bert/{DETECTOR_BASE}")
    state = CheckpointServer((tmp_path / "published.ckpt").read_bytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.num_requests += 1
            self.send_response(state.status)
            self.send_header("Content-Length", str(len(state.content)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(state.content[: state.cut_after])

        def log_message(self, *_arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}/{CHECKPOINT}"
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield state
        http.shutdown()
        thread.join()


def test_a_checkpoint_is_downloaded_once_and_complete(server: CheckpointServer, tmp_path: Path) -> None:
    path = tmp_path / "new" / CHECKPOINT
    for _ in range(2):
        files._download(server.url, path)
    assert path.read_bytes() == server.content
    assert server.num_requests == 1


@pytest.mark.parametrize("fault", ["cut", "404", "nobody"])
def test_a_failed_download_leaves_no_file(
    server: CheckpointServer, cached: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(files, "CHECKPOINT_URL", server.url if fault != "nobody" else "http://127.0.0.1:1/x")
    server.cut_after = 1000 if fault == "cut" else None
    server.status = 404 if fault == "404" else 200
    path = cached / "fense_data" / CHECKPOINT
    path.unlink()
    message = error_message()
    assert {"cut": "ended after 1000", "404": "404", "nobody": "refused"}[fault] in message
    assert str(path) in message
    assert not path.exists()


_STEP = """
import json, sys
from xares_bench.metrics import registry
from xares_bench.metrics.captions import files
files.CHECKPOINT_URL, files.CHECKPOINT_SHA256 = sys.argv[1:]
registry.check_available("DATE")
print(json.dumps(registry.metric_identity("FENSE")))
"""


def test_everything_is_downloaded_once_and_then_used_offline(server: CheckpointServer, tmp_path: Path) -> None:
    source = write_judges(tmp_path / "source")
    with serve_hub() as hub:
        _publish(hub, SENTENCE_MODEL, source / SENTENCE_FOLDER)
        _publish(hub, f"google-bert/{DETECTOR_BASE}", source / DETECTOR_BASE)
        fetched = _check(tmp_path, server, HF_ENDPOINT=hub.endpoint)
        num_requests = len(hub.requests)
        again = _check(tmp_path, server, HF_ENDPOINT=hub.endpoint)
        assert len(hub.requests) == num_requests  # the hub is not asked again, although it is reachable
        assert not any(request.path.endswith(("model.onnx", "pytorch_model.bin")) for request in hub.requests)
    assert f"{SENTENCE_FOLDER}/model.safetensors" in fetched
    assert again == fetched
    assert _check(tmp_path, server, HF_HUB_OFFLINE="1") == fetched
    assert server.num_requests == 1


def test_older_weights_are_downloaded_if_there_are_no_others(server: CheckpointServer, tmp_path: Path) -> None:
    source = write_judges(tmp_path / "source")
    folder = source / SENTENCE_FOLDER
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with serve_hub() as hub:
        _publish(hub, SENTENCE_MODEL, folder)
        _publish(hub, f"google-bert/{DETECTOR_BASE}", source / DETECTOR_BASE)
        assert f"{SENTENCE_FOLDER}/pytorch_model.bin" in _check(tmp_path, server, HF_ENDPOINT=hub.endpoint)


def _publish(hub: Hub, name: str, folder: Path) -> None:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files = {"onnx/model.onnx": b"not needed", **files}
    if "model.safetensors" in files:
        files["pytorch_model.bin"] = b"not needed"
    hub.repository(f"models/{name}").commit(files)


def _check(home: Path, server: CheckpointServer, **environment: str) -> dict[str, str]:
    """The identity in a new process, because huggingface_hub reads its environment when it is imported."""
    command = [sys.executable, "-c", _STEP, server.url, hashlib.sha256(server.content).hexdigest()]
    places = {"HOME": str(home), "HF_HOME": str(home / "hf"), "PATH": os.environ["PATH"], "NO_PROXY": "*"}
    done = subprocess.run(command, env={**places, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return result
