"""What enters an encoder's fingerprint, and what does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from tests.encoders.conftest import LEARNED, PLAIN, Loader, forward
from xares_bench.encoders.fingerprint import weight_digests


def test_place_and_time_do_not_enter_the_fingerprint(load: Loader, tmp_path: Path) -> None:
    for folder in ("here", "far/there"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a_helper.py").write_text("FACTOR = 1")
    source = "import a_helper\n" + LEARNED
    here, there = load(source, name="here/enc.py"), load(source, name="far/there/another_name.py")
    assert here.fingerprint == there.fingerprint
    assert len(here.fingerprint) == 64
    os.utime(tmp_path / "here/enc.py", (1, 1))
    assert load(source, name="here/enc.py").fingerprint == here.fingerprint


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        (LEARNED + "#", None),
        (LEARNED.replace("0.5", "0.4"), None),
        (LEARNED, '{"weight": 0.25}'),
        (LEARNED, '{"buffer": 0.0}'),
        (LEARNED, '{"buffer": 1.0}'),
    ],
)
def test_source_and_arguments_enter_the_fingerprint(load: Loader, source: str, arguments: str | None) -> None:
    assert load(source, arguments).fingerprint != load(LEARNED).fingerprint


@pytest.mark.parametrize("tensor", ["offset", "conv.weight", "norm.running_mean", "norm.num_batches_tracked", "plain"])
def test_every_tensor_enters_the_fingerprint(load: Loader, tmp_path: Path, tensor: str) -> None:
    """The values come from a file, so that neither source nor arguments differ."""
    source = LEARNED.replace(
        "if weight is not None:",
        "self.plain = torch.zeros(1)\n"
        "        state = {**dict(self.named_parameters()), **dict(self.named_buffers()), 'plain': self.plain}\n"
        "        for name, value in torch.load('values.pt').items():\n"
        "            state[name].data.add_(value)\n"
        "        if weight is not None:",
    )
    prints = []
    for value in (0, 0, 1):
        torch.save({tensor: torch.tensor(value)}, tmp_path / "values.pt")
        prints.append(load(source).fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    "use",
    [
        "import deep_helper",
        "from deep_helper import factor",
        "import via_helper",
        "from helper_package import part",
        "import helper_package.part",
    ],
)
@pytest.mark.parametrize("inside_forward", [False, True])
def test_helpers_enter_the_fingerprint(load: Loader, tmp_path: Path, use: str, inside_forward: bool) -> None:
    (tmp_path / "via_helper.py").write_text("from deep_helper import factor as f")
    (tmp_path / "helper_package").mkdir()
    (tmp_path / "helper_package/__init__.py").touch()
    (tmp_path / "helper_package/part.py").write_text("def f():\n    from .. import nothing\n    import deep_helper\n")
    source = forward(f"{use}; return None") if inside_forward else f"{use}\n{PLAIN}"
    prints = []
    for factor in (1, 1, 22):
        (tmp_path / "deep_helper.py").write_text(f"def factor():\n    return {factor}")
        prints.append(load(source).fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("held", ["self.settings", "self.child.settings"])
def test_settings_of_transformers_that_it_holds_enter_the_fingerprint(load: Loader, tmp_path: Path, held: str) -> None:
    """They come from a file, so that neither source nor arguments nor weights differ."""
    source = "from transformers import Wav2Vec2FeatureExtractor\n" + PLAIN.replace(
        "self.scale = scale",
        f"self.scale = scale; self.child = nn.Identity(); {held} = Wav2Vec2FeatureExtractor.from_pretrained('.')",
    )
    prints = []
    for do_normalize in (True, True, False):
        Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
        prints.append(load(source).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_our_own_modules_that_it_imports_enter_the_fingerprint(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from xares_bench.datasets.audio import SAMPLE_RATE_HZ\n" + PLAIN
    before, plain = load(source).fingerprint, load(PLAIN).fingerprint
    monkeypatch.setattr("xares_bench.encoders.fingerprint.code_digest", lambda name: "changed")
    assert load(source).fingerprint != before
    assert load(PLAIN).fingerprint == plain


def test_the_library_of_a_submodule_enters_the_fingerprint(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "1", "numpy": "1"}
    monkeypatch.setattr(
        "xares_bench.encoders.fingerprint.installed_editions", lambda names: {n: versions.get(n) for n in names}
    )
    plain, numpy = load(PLAIN).fingerprint, load("import numpy as np\n" + PLAIN).fingerprint
    versions["numpy"] = "2"
    assert load(PLAIN).fingerprint == plain
    assert load("import numpy as np\n" + PLAIN).fingerprint != numpy
    versions["torch"] = "2"
    assert load(PLAIN).fingerprint != plain


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3, 5).t(),
        torch.ones(()),
        torch.ones(0, 4),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(3, dtype=torch.bool),
        torch.ones(3, dtype=torch.complex64).conj(),
        torch.eye(3).to_sparse(),
        torch.ones(3, device="meta"),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tensor.layout}-{list(tensor.shape)}-{tensor.device}",
)
def test_any_tensor_has_a_digest(tensor: torch.Tensor) -> None:
    module = torch.nn.Module()
    module.register_buffer("buffer", tensor)
    first = weight_digests(module)
    assert first == weight_digests(module)
    if tensor.numel() and not tensor.is_meta:
        module.register_buffer("buffer", torch.zeros_like(tensor))
        assert weight_digests(module) != first
