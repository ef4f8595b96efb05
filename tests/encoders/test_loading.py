from __future__ import annotations

import inspect
import os
import pickle
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.core.errors import EncoderError
from xares_bench.encoders.fingerprint import weight_digests
from xares_bench.encoders.loading import FrozenEncoder, load_encoder

CPU = torch.device("cpu")
AUDIO = torch.linspace(-1, 1, 3200).reshape(2, 1600)
MASK = torch.ones(2, 1600, dtype=torch.long)

PLAIN = """
import torch
from torch import nn

class PlainEncoder(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.output_dim = 4
        self.scale = scale

    def forward(self, audio, mask=None):
        return self.scale * audio.unfold(1, 400, 160)[..., :4], None
"""

LEARNED = """
import torch
from torch import nn

class LearnedEncoder(nn.Module):
    def __init__(self, weight=None, buffer=0.0):
        super().__init__()
        self.output_dim = 4
        self.conv = nn.Conv1d(1, 4, 400, 160)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("offset", torch.tensor(buffer), persistent=False)
        if weight is not None:
            nn.init.constant_(self.conv.weight, weight)

    def forward(self, audio, mask=None):
        features = self.drop(self.norm(self.conv(audio[:, None]))) + self.offset
        return features.transpose(1, 2), None
"""

Loader = Callable[..., FrozenEncoder]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """Write a source to a file and load it."""
    monkeypatch.chdir(tmp_path)

    def load(source: str, arguments: str | None = None, name: str = "enc.py") -> FrozenEncoder:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        return load_encoder(parse_encoder_spec(str(path), arguments), CPU)

    return load


def forward(body: str) -> str:
    """A source whose forward has this body."""
    return PLAIN.replace("return self.scale * audio.unfold(1, 400, 160)[..., :4], None", body)


def test_an_encoder_without_weights_encodes(load: Loader) -> None:
    encoder = load(PLAIN, '{"scale": 2.0}')
    features, mask = encoder(AUDIO)
    torch.testing.assert_close(features, 2 * AUDIO.unfold(1, 400, 160)[..., :4])
    assert mask is None
    assert (encoder.name, encoder.output_dim, encoder.device) == ("PlainEncoder", 4, CPU)


def test_it_stays_frozen_whoever_calls_train(load: Loader) -> None:
    encoder = load(LEARNED)
    assert not any(module.training for module in encoder.module.modules())
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())
    before, _ = encoder(AUDIO)
    encoder.module.train()
    after, _ = encoder(AUDIO)
    assert torch.equal(before, after)
    assert weight_digests(encoder.module) == encoder.weights
    assert not encoder.module.training


def test_features_may_enter_a_training_graph(load: Loader) -> None:
    features, _ = load(LEARNED)(AUDIO)
    assert not features.is_inference()
    assert not features.requires_grad
    torch.nn.Linear(4, 1)(features).sum().backward()


def test_autocast_outside_does_not_reach_it(load: Loader) -> None:
    encoder = load(LEARNED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, _ = encoder(AUDIO)
    assert features.dtype == torch.float32


def test_features_keep_the_encoders_dtype(load: Loader) -> None:
    features, _ = load(forward("return audio.unfold(1, 400, 160)[..., :4].half(), None"))(AUDIO)
    assert features.dtype == torch.float16


@pytest.mark.parametrize("mask", ["[[1, 1], [1, 0]]", "[[1.0, 1.0], [1.0, 0.0]]", "[[True, True], [True, False]]"])
def test_its_mask_becomes_bool(load: Loader, mask: str) -> None:
    _, frame_mask = load(forward(f"return audio[:, :8].reshape(2, 2, 4), torch.tensor({mask})"))(AUDIO, MASK)
    assert frame_mask is not None
    assert frame_mask.dtype == torch.bool
    assert frame_mask.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("handed_back", ["mask", "mask.clone()", "None if mask is None else mask.bool()"])
def test_the_audios_own_mask_counts_as_none(load: Loader, handed_back: str) -> None:
    _, frame_mask = load(forward(f"return audio[:, :8].reshape(2, 2, 4), {handed_back}"))(AUDIO, MASK)
    assert frame_mask is None


def test_it_is_given_an_integer_mask(load: Loader) -> None:
    load(forward("assert mask.dtype == torch.long; return audio[:, :8].reshape(2, 2, 4), None"))(AUDIO, MASK.bool())


@pytest.mark.parametrize(
    ("body", "clause"),
    [
        ("return [audio[:, :8].reshape(2, 2, 4), None, None]", "two-results"),
        ("return None", "two-results"),
        ("return None, None", "features-float"),
        ("return audio[:, :8].reshape(2, 2, 4).to_sparse(), None", "features-float"),
        ("return audio[:, :8].reshape(1, 4, 4), None", "features-shape"),
        ("return audio[:, :8].reshape(2, 2, 4) / 0, None", "features-finite"),
        ("return audio[:, :8].reshape(2, 2, 4), torch.ones(2, 3)", "mask-shape"),
        ("return audio[:, :8].reshape(2, 2, 4), torch.ones(2, 2, device='meta')", "device"),
        ("return audio[:, :8].reshape(2, 2, 4), [[1, 1], [1, 1]]", "mask-shape"),
        ("return audio[:, :8].reshape(2, 2, 4), torch.eye(2).flip(1) * torch.tensor([[1], [0]])", "mask-shape"),
        ("raise StopIteration", "no-mask"),
    ],
)
def test_every_result_is_looked_at(load: Loader, body: str, clause: str) -> None:
    encoder = load(forward(body))
    with pytest.raises(EncoderError) as caught:
        encoder(AUDIO)
    assert caught.value.clause == clause
    assert "\n" not in str(caught.value)


def test_what_it_raises_is_told_with_the_users_own_line(load: Loader) -> None:
    encoder = load(forward("return torch.nn.functional.linear(\n            audio, torch.ones(3, 3)), None"))
    with pytest.raises(EncoderError) as caught:
        encoder(AUDIO, MASK)
    assert caught.value.clause == "with-mask"
    assert "RuntimeError: " in str(caught.value)
    assert " at enc.py:12; " in str(caught.value)


@pytest.mark.parametrize("interruption", ["KeyboardInterrupt", "GeneratorExit"])
def test_an_interruption_passes_through(load: Loader, interruption: str) -> None:
    encoder = load(forward(f"raise {interruption}"))
    with pytest.raises(BaseException, match=r"^$") as caught:
        encoder(AUDIO)
    assert type(caught.value).__name__ == interruption


def test_untrained_weights_are_the_same_on_every_load(load: Loader) -> None:
    source = LEARNED.replace("self.drop =", "self.noise = torch.tensor(__import__('random').random()); self.drop =")
    draws = []
    for is_loading in (False, True):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        if is_loading:
            assert load(source).fingerprint == load(source).fingerprint
        draws.append((float(torch.rand(())), random.random(), np.random.random()))
    assert draws[0] == draws[1]


# How files are found and loaded.


def test_helpers_beside_the_file_are_importable_meanwhile(load: Loader, tmp_path: Path) -> None:
    for folder, factor in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my_helper.py").write_text(f"FACTOR = {factor}")
    source = "from my_helper import FACTOR\n" + PLAIN.replace("self.scale = scale", "self.scale = FACTOR")
    path_before, cwd = list(sys.path), Path.cwd()
    first, second = load(source, name="one/enc.py"), load(source, name="two/enc.py")
    assert [first.module.scale, second.module.scale] == [1, 2]
    assert sys.path == path_before
    assert Path.cwd() == cwd


def test_an_edited_file_is_loaded_anew(load: Loader, tmp_path: Path) -> None:
    source = "import my_other_helper\n" + PLAIN.replace("self.scale = scale", "self.scale = my_other_helper.FACTOR")
    (tmp_path / "my_other_helper.py").write_text("FACTOR = 1")
    assert load(source).module.scale == 1
    (tmp_path / "my_other_helper.py").write_text("FACTOR = 2000")
    assert load(source).module.scale == 2000
    # The same size within the same second: byte code kept by the interpreter would be taken for that of the new text.
    assert load(source.replace("my_other_helper.FACTOR", "3000 + 0.0 * 00000000")).module.scale == 3000
    assert load(source.replace("my_other_helper.FACTOR", "4000 + 0.0 * 00000000")).module.scale == 4000


def test_the_module_is_a_proper_one(load: Loader) -> None:
    source = "from __future__ import annotations\nimport dataclasses\n\n@dataclasses.dataclass\nclass C:\n    x: int\n"
    encoder = load(source + PLAIN + "        # the end\n")
    assert "# the end" in inspect.getsource(type(encoder.module))
    assert pickle.loads(pickle.dumps(encoder.module)).output_dim == 4


def test_a_dotted_path_is_loaded_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "parts.py").write_text("FACTOR = 3.0")
    (package / "enc.py").write_text("from .parts import FACTOR\n" + PLAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    encoder = load_encoder(parse_encoder_spec("my_package.enc.PlainEncoder", '{"scale": 2.0}'), CPU)
    assert encoder.module.scale == 2.0
    assert str(tmp_path) not in sys.path
    (package / "parts.py").write_text("FACTOR = 4.00")
    again = load_encoder(parse_encoder_spec("my_package.enc.PlainEncoder", '{"scale": 2.0}'), CPU)
    assert again.fingerprint != encoder.fingerprint
    assert type(again.module).forward.__globals__["FACTOR"] == 4.0


def test_an_error_while_importing_leaves_nothing_behind(load: Loader) -> None:
    modules, path = set(sys.modules), list(sys.path)
    with pytest.raises(EncoderError, match=r"RuntimeError: too early at enc\.py:1; "):
        load("raise RuntimeError('too early')\n" + PLAIN)
    assert set(sys.modules) <= modules
    assert sys.path == path


def test_a_long_error_is_cut_and_kept_on_one_line(load: Loader) -> None:
    with pytest.raises(EncoderError) as caught:
        load(forward("pass").replace("self.scale = scale", "raise ValueError('missing\\n' * 1000)"))
    assert caught.value.clause == "arguments"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


# The fingerprint.


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
        "xares_bench.encoders.fingerprint.library_versions", lambda names: {n: versions.get(n) for n in names}
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
