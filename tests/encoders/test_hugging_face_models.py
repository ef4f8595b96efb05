from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save

from tests.audio_models import save_waveform_model
from tests.hub.server import Hub, serve_hub

# huggingface_hub reads its environment when it is imported, so each step is a process of its own.
STEP = """
import json, sys
import torch
from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.encoders.loading import load_encoder
from xares_bench.core.errors import EncoderError

results = {}
for text in sys.argv[1:]:
    try:
        encoder = load_encoder(parse_encoder_spec(text), torch.device("cpu"))
        features, _ = encoder(torch.linspace(-0.1, 0.1, 16000)[None])
        results[text] = [encoder.name, encoder.module.commit, encoder.fingerprint, float(features.sum())]
    except EncoderError as error:
        results[text] = f"{error.clause}: {error}"
print(json.dumps(results))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


class Machine:
    """A machine with a cache, that runs one step after the other."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder = folder
        self.hub = hub

    def load(self, *texts: str, **environment: str) -> dict[str, Any]:
        """What comes of loading encoders: name, commit, fingerprint, a sum of features; or the error."""
        done = subprocess.run(
            [sys.executable, "-c", STEP, *texts],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "HF_HOME": str(self.folder / "hf"),
                "HF_ENDPOINT": self.hub.endpoint,
                "NO_PROXY": "*",
                "OMP_NUM_THREADS": "1",
                **environment,
            },
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
        results: dict[str, Any] = json.loads(done.stdout)
        assert all("\n" not in result for result in results.values())
        return results


@pytest.fixture
def machine(tmp_path: Path, hub: Hub) -> Machine:
    folder = tmp_path / "machine"
    folder.mkdir()
    return Machine(folder, hub)


@pytest.fixture
def model_files(tmp_path: Path) -> dict[str, bytes]:
    folder = save_waveform_model(tmp_path / "model", "wavlm with group norm")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def with_other_weights(files: dict[str, bytes]) -> dict[str, bytes]:
    weights = load(files["model.safetensors"])
    return {**files, "model.safetensors": save({name: 1.01 * tensor for name, tensor in weights.items()})}


def put(hub: Hub, name: str, files: dict[str, bytes], branch: str = "main") -> str:
    repository = hub.repository(f"models/{name}")
    repository.in_git.update({"config.json", "preprocessor_config.json"})
    return repository.commit(files, branch)


def test_a_model_of_the_hub_is_one_of_a_commit_and_is_kept(
    hub: Hub, machine: Machine, model_files: dict[str, bytes], tmp_path: Path
) -> None:
    old = put(hub, "owner/tiny-wavlm", model_files, "v1")
    new = put(hub, "owner/tiny-wavlm", with_other_weights(model_files))
    texts = ["hf:owner/tiny-wavlm", "hf:owner/tiny-wavlm@v1", f"hf:owner/tiny-wavlm@{old}", f"hf:{tmp_path / 'model'}"]
    first = machine.load(*texts)
    newest, tagged, pinned, local = (first[text] for text in texts)
    assert newest[:2] == ["tiny-wavlm", new]
    assert tagged == pinned == ["tiny-wavlm", old, *pinned[2:]]
    assert local == ["model", None, *pinned[2:]]
    assert newest[2] != pinned[2]
    assert newest[3] != pinned[3]

    hub.requests.clear()
    assert machine.load(*texts, HF_HUB_OFFLINE="1") == first
    assert hub.requests == []


def test_what_the_hub_refuses_is_told_in_one_line(hub: Hub, machine: Machine, model_files: dict[str, bytes]) -> None:
    put(hub, "owner/there", model_files)
    hub.repository("models/owner/gated").gated = True
    put(hub, "owner/data", {"README.md": b"no model"})
    texts = [f"hf:owner/{name}" for name in ("gone", "there@v9", "gated", "data")]
    gone, revision, gated, data = machine.load(*texts).values()
    assert gone.startswith("loads: hf:owner/gone is not on the hub, or is private, and is no folder here; ")
    assert revision.startswith("loads: hf:owner/there@v9 has no revision 'v9'; name one of its branches")
    assert gated.startswith("loads: hf:owner/gated is gated; accept its terms on its page and set HF_TOKEN")
    assert data.startswith("loads: hf:owner/data has no config.json, so it is no model that transformers can load; ")


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_model_out_of_reach_is_told_in_one_line(machine: Machine, environment: dict[str, str]) -> None:
    (result,) = machine.load("hf:openai/whisper-base", **environment).values()
    assert result.startswith(
        "loads: hf:openai/whisper-base is not in the cache, and the hub is out of reach; go online"
    )


def test_a_model_that_is_only_half_there_is_told_in_one_line(
    hub: Hub, machine: Machine, model_files: dict[str, bytes]
) -> None:
    put(hub, "owner/half", {name: data for name, data in model_files.items() if name != "model.safetensors"})
    (result,) = machine.load("hf:owner/half").values()
    assert result.startswith("loads: hf:owner/half gives no model that transformers can load: OSError: ")
