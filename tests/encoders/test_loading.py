from __future__ import annotations

import inspect
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.encoders.conftest import CPU, LEARNED, PLAIN, Loader, forward
from xares_bench.config.encoder_spec import parse_encoder_spec, spec_of_instance
from xares_bench.core.errors import EncoderError
from xares_bench.encoders.fingerprint import weight_digests
from xares_bench.encoders.loading import load_encoder

AUDIO = torch.linspace(-1, 1, 3200).reshape(2, 1600)
MASK = torch.ones(2, 1600, dtype=torch.long)


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


def test_it_is_given_an_integer_mask(load: Loader) -> None:
    load(forward("assert mask.dtype == torch.long; return audio[:, :8].reshape(2, 2, 4), None"))(AUDIO, MASK.bool())


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


@pytest.mark.parametrize("first", ["one", "two"])
def test_helpers_are_importable_while_the_encoder_runs(load: Loader, tmp_path: Path, first: str) -> None:
    """Each encoder has its own `lazy_helper`, whichever ran before, and the path is as before."""
    for folder, factor in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "lazy_helper.py").write_text("from lazy_deeper import FACTOR")
        (tmp_path / folder / "lazy_deeper.py").write_text(f"FACTOR = {factor}")
    path_before = list(sys.path)
    source = forward("from lazy_helper import FACTOR; return torch.full((len(audio), 3, 4), float(FACTOR)), None")
    found = {}
    for folder in (first, "one", "two"):
        features_BTD, _ = load(source, name=f"{folder}/enc.py")(torch.zeros(1, 16_000))
        found[folder] = float(features_BTD.mean())
    assert found == {"one": 1, "two": 2}
    assert sys.path == path_before


@pytest.mark.parametrize("place", ["file", "constructor", "forward"])
@pytest.mark.parametrize(
    "call", ["os._exit(0)", "sys.exit(0)", "os.execv('/bin/true', ['true'])", "raise SystemExit", "pytest.exit('', 0)"]
)
def test_an_encoder_that_ends_the_process_is_an_error(load: Loader, place: str, call: str) -> None:
    source = "import os, sys, pytest\n" + PLAIN
    source = {
        "file": f"import os, sys, pytest\n{call}\n{PLAIN}",
        "constructor": source.replace("self.output_dim = 4", f"self.output_dim = 4; {call}"),
        "forward": source.replace("        return self.scale", f"        {call}\n        return self.scale"),
    }[place]
    with pytest.raises(EncoderError, match=r"raised (SystemExit|Exit).* at enc.py:\d"):
        load(source)(torch.zeros(1, 16_000))


@pytest.mark.parametrize("outcome", ["pytest.skip('no')", "pytest.fail('no')", "pytest.xfail('no')"])
def test_an_outcome_of_pytest_raised_by_an_encoder_is_an_error(load: Loader, outcome: str) -> None:
    with pytest.raises(EncoderError, match=r"raised .*: no"):
        load("import pytest\n" + forward(outcome))(torch.zeros(1, 16_000))


def test_what_an_encoder_sets_holds_for_its_calls_alone(load: Loader) -> None:
    source = "import torch\ntorch.set_default_dtype(torch.float64)\n" + forward(
        "torch.set_num_threads(3); return torch.zeros(len(audio), 3, 4), None"
    )
    threads = torch.get_num_threads()
    encoder = load(source)
    features_BTD, _ = encoder(torch.zeros(1, 16_000))
    assert features_BTD.dtype == torch.float64, "as its author has tested it"
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_num_threads() == threads != 3
    assert encoder.settings.values == {"default dtype": torch.float64}
    assert encoder.settings.later == {"threads": 3}


def test_a_call_does_not_depend_on_the_one_before(load: Loader) -> None:
    encoder = load(
        "import torch\n"
        + forward(
            "features = torch.zeros(len(audio), 3, 4); torch.set_default_dtype(torch.float64); return features, None"
        )
    )
    assert [encoder(torch.zeros(1, 16_000))[0].dtype for _ in range(2)] == [torch.float32] * 2


@pytest.mark.parametrize("place", ["file", "forward"])
def test_what_cannot_be_undone_is_refused(place: str, load: Loader) -> None:
    change = "torch.autograd.graph.save_on_cpu().__enter__()"
    source = "import torch\n" + (f"{change}\n{PLAIN}" if place == "file" else forward(f"{change}; return audio"))
    try:
        with pytest.raises(EncoderError, match=r"it changes hooks of saved tensors .* cannot be undone") as caught:
            load(source)(torch.zeros(1, 16_000))
    finally:
        torch._C._autograd._pop_saved_tensors_default_hooks()
    assert caught.value.clause == "process"


@pytest.mark.parametrize("value", [None, ":16:8"])
def test_cublas_is_reproducible_from_the_first_forward(
    value: str | None, load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the variable at the process's first product, which may be an encoder's, on a GPU."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if value is not None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", value)
    encoder = load(
        "import os\nimport torch\nSEEN = [os.environ.get('CUBLAS_WORKSPACE_CONFIG')]\n"
        + forward(
            "self.seen = [*SEEN, os.environ.get('CUBLAS_WORKSPACE_CONFIG')]; return torch.zeros(len(audio), 3, 4), None"
        )
    )
    encoder(AUDIO)
    assert encoder.module.seen == [value or ":4096:8"] * 2


def test_variables_that_libraries_read_once_are_read_before_an_encoder_can_set_them(tmp_path: Path) -> None:
    """MKL and oneDNN round in another way with these."""
    (tmp_path / "enc.py").write_text(
        "import os\nos.environ.update(MKL_CBWR='COMPATIBLE', ONEDNN_MAX_CPU_ISA='SSE41', "
        f"ONEDNN_DEFAULT_FPMATH_MODE='BF16')\n{PLAIN}"
    )
    code = f"""
import hashlib
from pathlib import Path
import torch
from xares_bench.config.encoder_spec import parse_encoder_spec, spec_of_instance
from xares_bench.encoders.loading import load_encoder
if LOADS:
    load_encoder(parse_encoder_spec("{tmp_path}/enc.py"), torch.device("cpu"))
torch.manual_seed(0)
audio, kernel = torch.randn(2, 64, 500), torch.randn(64, 64, 5)
results = (torch.randn(300, 700) @ torch.randn(700, 500), torch.nn.functional.conv1d(audio, kernel))
print(*(hashlib.sha256(result.numpy().tobytes()).hexdigest() for result in results))
"""
    printed = [
        subprocess.run(
            [sys.executable, "-c", code.replace("LOADS", loads)],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
        for loads in ("True", "False")
    ]
    assert printed[0] == printed[1]


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


class OwnEncoder(torch.nn.Module):
    """An encoder that a program has made."""

    output_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.utils.weight_norm(torch.nn.Conv1d(1, 4, 400, 160))
        self.cache: torch.Tensor | None = None

    def forward(self, audio: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, None]:
        self.cache = torch.ones(1)
        return self.norm(audio[:, None]).transpose(1, 2) * self.cache, None


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_of_an_object_a_copy_is_frozen_and_the_object_can_go_on_training() -> None:
    own = OwnEncoder()
    own(AUDIO)[0].sum().backward()  # its weight is now the result of a computation
    assert not own.norm.weight.is_leaf
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    own.cache = None
    encoder = load_encoder(spec_of_instance(own), CPU)
    features, _ = encoder(AUDIO)
    assert torch.equal(features, own(AUDIO)[0])
    assert encoder.name == "OwnEncoder"
    assert own.training
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in own.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())
    assert own.cache is not None
    assert not own.cache.is_inference()
    assert not encoder.module.training
    own(AUDIO)[0].sum().backward()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_the_fingerprint_of_an_object_covers_weights_and_attributes_and_is_the_same_for_equal_ones() -> None:
    own = OwnEncoder()

    def fingerprint() -> str:
        return load_encoder(spec_of_instance(own), CPU).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    own.scale = 2  # type: ignore[assignment]
    assert (second := fingerprint()) != first
    with torch.no_grad():
        own.norm.weight_g += 0.5  # type: ignore[operator, assignment]
    assert fingerprint() not in (first, second)


@pytest.mark.parametrize(
    ("make", "clause", "said"),
    [
        (lambda: 3, "is-module", "found an object of type int, expected a torch.nn.Module"),
        (lambda: torch.nn.Linear(1, 1), "output-dim", "Linear has no output_dim"),
        (lambda: holding(threading.Lock()), "loads", "copying the OwnEncoder raised TypeError: cannot pickle"),
    ],
    ids=["no module", "no encoder", "cannot be copied"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_an_object_that_is_no_encoder_is_refused(make: Callable[[], object], clause: str, said: str) -> None:
    with pytest.raises(EncoderError, match=said) as caught:
        load_encoder(spec_of_instance(make()), CPU)
    assert caught.value.clause == clause


def holding(value: object) -> OwnEncoder:
    own = OwnEncoder()
    own.held = value  # type: ignore[assignment]
    return own
