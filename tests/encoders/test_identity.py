"""An encoder is what it is made of and what it does: changes that its structure does not show."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.encoders.conftest import CPU, Loader
from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.core.errors import EncoderError
from xares_bench.core.store import Store
from xares_bench.encoders.contract import check_contract
from xares_bench.encoders.identity import KIND, identified
from xares_bench.encoders.loading import FrozenEncoder

# What an encoder can get a factor from, as lines of its constructor and of its `forward`.
SOURCES = {
    "an array from np.load": ("self.factor = np.load(HERE / 'factor.npy')", "self.factor.item()"),
    "a tensor in a list": ("self.kept = [torch.load(HERE / 'factor.pt')]", "self.kept[0]"),
    "a tensor in a dict": ("self.kept = {'factor': torch.load(HERE / 'factor.pt')}", "self.kept['factor']"),
    "a network in a plain object": ("self.kept = Plain(); self.kept.net = network()", "self.kept.net.weight"),
    "a network in a global": ("global NET; NET = network()", "NET.weight"),
    "a network in a closure": ("net = network(); self.kept = lambda: net", "self.kept().weight"),
    "a class attribute": ("type(self).net = [network()]", "self.net[0].weight"),
    "a checkpoint read at the first call": (
        "self.net = None",
        "(self.__dict__.update(net=[network()]) or self.net[0].weight) if self.net is None else self.net[0].weight",
    ),
    "a file read at every call": ("pass", "float((HERE / 'factor.txt').read_text())"),
    "a number from a file": ("self.factor = float((HERE / 'factor.txt').read_text())", "self.factor"),
    "a text from a file": ("self.factor = (HERE / 'factor.txt').read_text()", "float(self.factor)"),
    "an environment variable": ("pass", "float(os.environ['FACTOR'])"),
    "a variable read at the start": ("self.factor = os.environ['FACTOR']", "float(self.factor)"),
    "pickled data": ("self.factor = pickle.loads((HERE / 'factor.pickle').read_bytes())['x']", "float(self.factor)"),
    "a module by name": (
        "pass",
        "importlib.reload(importlib.import_module('fac' + 'tor_' + os.environ['FACTOR'].replace('.', '_'))).FACTOR",
    ),
    "another process": (
        "pass",
        "float(subprocess.run(['cat', str(HERE / 'factor.txt')], capture_output=True, check=True).stdout)",
    ),
    "a database": ("pass", "sqlite3.connect(HERE / 'factor.db').execute('select x from f').fetchone()[0]"),
    "a mapped file": ("self.kept = np.memmap(HERE / 'factor.bin', dtype=np.float64, mode='r')", "float(self.kept[0])"),
}
TEMPLATE = """
import importlib, os, pickle, sqlite3, subprocess
from pathlib import Path
import numpy as np
import torch

HERE = Path(__file__).parent

class Plain:
    pass

def network():
    net = torch.nn.Linear(1, 1, bias=False)
    net.load_state_dict({{"weight": torch.load(HERE / "factor.pt").reshape(1, 1)}})
    return net.requires_grad_(False)

class ChangingEncoder(torch.nn.Module):
    output_dim = 4

    def __init__(self):
        super().__init__()
        {init}

    def forward(self, audio, mask=None):
        frames = torch.nn.functional.pad(audio, (0, 400)).unfold(1, 400, 160)[..., :4]
        return frames * ({factor}), None
"""


def set_factor(folder: Path, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the factor everywhere an encoder may get it from."""
    import pickle
    import sqlite3

    monkeypatch.setenv("FACTOR", str(factor))
    np.save(folder / "factor.npy", np.array(factor))
    np.array([factor]).tofile(folder / "factor.bin")
    torch.save(torch.tensor(factor), folder / "factor.pt")
    (folder / "factor.txt").write_text(str(factor))
    (folder / "factor.pickle").write_bytes(pickle.dumps({"x": factor}))
    (folder / f"factor_{str(factor).replace('.', '_')}.py").write_text(f"FACTOR = {factor}")
    (folder / "factor.db").unlink(missing_ok=True)
    with sqlite3.connect(folder / "factor.db") as database:
        database.execute("create table f (x real)")
        database.execute("insert into f values (?)", (factor,))
    database.close()


@pytest.fixture
def identify(load: Loader, tmp_path: Path) -> Callable[..., FrozenEncoder]:
    store = Store(root=tmp_path / "store")
    return lambda source, **names: identified(load(source, **names), store)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_an_encoder_that_changed_is_another_one(
    identify: Callable[..., FrozenEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: tuple[str, str]
) -> None:
    text = TEMPLATE.format(init=source[0], factor=source[1])
    prints = []
    for factor in (0.5, 0.5, 2.0, 0.5):
        set_factor(tmp_path, factor, monkeypatch)
        prints.append(identify(text).fingerprint)
    assert prints[0] == prints[1] == prints[3] != prints[2]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    factors=st.lists(st.floats(0.1, 10).map(lambda x: round(x, 2)), min_size=2, max_size=5),
    source=st.sampled_from(sorted(SOURCES)),
)
def test_every_behaviour_keeps_its_own_fingerprint(
    load: Loader, tmp_path_factory: pytest.TempPathFactory, factors: list[float], source: str
) -> None:
    folder = tmp_path_factory.mktemp("drawn")
    store = Store(root=folder / "store")
    text = TEMPLATE.replace("Path(__file__).parent", f"Path({str(folder)!r})")
    init, factor_of = SOURCES[source]
    found: dict[float, str] = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(folder)
        for factor in factors:
            set_factor(folder, factor, monkeypatch)
            fingerprint = identified(load(text.format(init=init, factor=factor_of)), store).fingerprint
            assert found.setdefault(factor, fingerprint) == fingerprint
    assert len(set(found.values())) == len(found)


def test_the_header_line_counts_those_before(
    identify: Callable[..., FrozenEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEMPLATE.format(init="pass", factor="float(os.environ['FACTOR'])")
    numbers = []
    for factor in (1.0, 2.0, 3.0, 2.0, 1.0):
        set_factor(tmp_path, factor, monkeypatch)
        numbers.append(identify(text).num_before)
    assert numbers == [0, 1, 2, 1, 0]


@pytest.mark.parametrize(("factor", "is_same"), [(1.0, True), (1 + 1e-6, True), (1 - 2e-5, True), (1.001, False)])
def test_rounding_is_no_other_encoder(
    identify: Callable[..., FrozenEncoder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    is_same: bool,
) -> None:
    text = TEMPLATE.format(init="pass", factor="float(os.environ['FACTOR'])")
    set_factor(tmp_path, 1.0, monkeypatch)
    first = identify(text)
    set_factor(tmp_path, factor, monkeypatch)
    assert (identify(text).fingerprint == first.fingerprint) == is_same


@pytest.mark.parametrize("condition", ["audio.shape[1] < 12_000", "mask is not None", "audio.abs().max() < 0.2"])
def test_a_change_for_short_quiet_or_masked_clips_alone_is_seen(
    identify: Callable[..., FrozenEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, condition: str
) -> None:
    text = TEMPLATE.format(init="pass", factor=f"float(os.environ['FACTOR']) if {condition} else 1")
    prints = []
    for factor in (1.0, 2.0):
        set_factor(tmp_path, factor, monkeypatch)
        prints.append(identify(text).fingerprint)
    assert prints[0] != prints[1]


def test_one_channel_of_many_that_changed_is_seen(identify: Callable[..., FrozenEncoder], tmp_path: Path) -> None:
    text = TEMPLATE.format(init="pass", factor="torch.tensor(np.load(HERE / 'factors.npy'))").replace(
        "[..., :4]", "[..., :400]"
    )
    text, prints = text.replace("output_dim = 4", "output_dim = 400"), []
    for last in (1.0, 1.01):
        np.save(tmp_path / "factors.npy", np.array([1.0] * 399 + [last], dtype=np.float32))
        prints.append(identify(text).fingerprint)
    assert prints[0] != prints[1]


def test_an_encoder_that_is_never_the_same_has_one_fingerprint(identify: Callable[..., FrozenEncoder]) -> None:
    text = TEMPLATE.format(init="pass", factor="int.from_bytes(os.urandom(2), 'big')")
    assert len({identify(text).fingerprint for _ in range(3)}) == 1


def test_random_numbers_from_seeds_are_the_same_in_every_session(identify: Callable[..., FrozenEncoder]) -> None:
    text = TEMPLATE.format(init="pass", factor="torch.rand(1) + np.random.rand()")
    first = identify(text)
    torch.rand(3)
    np.random.rand(3)
    assert identify(text).fingerprint == first.fingerprint


def test_the_structure_still_counts_where_the_behaviour_is_the_same(identify: Callable[..., FrozenEncoder]) -> None:
    text = TEMPLATE.format(init="pass", factor="1")
    assert identify(text).fingerprint != identify(text + "#").fingerprint


def test_damaged_features_of_the_first_use_are_made_again(
    identify: Callable[..., FrozenEncoder], tmp_path: Path
) -> None:
    text = TEMPLATE.format(init="pass", factor="1")
    first = identify(text).fingerprint
    (file,) = (tmp_path / "store" / KIND).glob("*/0.npy")
    file.write_bytes(bytes(len(file.read_bytes())))
    with pytest.warns(Warning, match="damaged; it is recomputed"):
        assert identified(load_plain(tmp_path), Store(root=tmp_path / "store")).fingerprint == first


def load_plain(folder: Path) -> FrozenEncoder:
    report = check_contract(parse_encoder_spec(str(folder / "enc.py")), CPU)
    assert report.encoder is not None
    return report.encoder


def test_half_precision_has_the_tolerance_of_half_precision(
    identify: Callable[..., FrozenEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEMPLATE.format(init="pass", factor="float(os.environ['FACTOR'])").replace(
        "return frames * (", "frames = frames.half(); return frames * ("
    )
    prints = []
    for factor in (1.0, 1.0008, 1.1):
        set_factor(tmp_path, factor, monkeypatch)
        prints.append(identify(text).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_an_encoder_that_fails_has_no_identity_but_its_clause(load: Loader, tmp_path: Path) -> None:
    text = TEMPLATE.format(init="pass", factor="1 / 0")
    store = Store(root=tmp_path / "store")
    with pytest.raises(EncoderError, match="ZeroDivisionError"):
        identified(load(text), store)
    report = check_contract(parse_encoder_spec(str(tmp_path / "enc.py")), CPU, store)
    assert report.failure is not None
    assert report.failure[0] == "no-mask"


def test_the_contract_of_another_behaviour_is_checked_again(
    load: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(root=tmp_path / "store")
    reused = []
    for factor in (1.0, 1.0, 2.0):
        set_factor(tmp_path, factor, monkeypatch)
        load(TEMPLATE.format(init="pass", factor="float(os.environ['FACTOR'])"))
        reused.append(check_contract(parse_encoder_spec(str(tmp_path / "enc.py")), CPU, store).reused)
    assert reused == [False, True, False]


def test_identifying_calls_the_encoder_twice_and_for_less_than_two_seconds_of_audio(
    load: Loader, tmp_path: Path
) -> None:
    text = TEMPLATE.format(init="self.heard = []", factor="self.heard.append(audio.shape) or 1")
    encoder = load(text)
    identified(encoder, Store(root=tmp_path / "store"))
    shapes: list[torch.Size] = encoder.module.heard  # type: ignore[assignment]
    assert len(shapes) == 2
    assert sum(batch * samples for batch, samples in shapes) < 2 * 16_000


def test_a_slow_encoder_is_run_on_one_clip_also_where_it_is_faster_later(
    load: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, text = (
        Store(root=tmp_path / "store"),
        TEMPLATE.format(init="self.heard = []", factor="self.heard.append(0) or 1"),
    )
    monkeypatch.setattr("xares_bench.encoders.identity._SLOW_S", 0.0)
    slow = load(text)
    first = identified(slow, store)
    monkeypatch.undo()
    fast = load(text)
    assert identified(fast, store).fingerprint == first.fingerprint
    assert [slow.module.heard, fast.module.heard] == [[0], [0]]


def test_processes_that_were_fast_and_slow_agree(load: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process stores one clip after this one has looked, and before it stores its two."""
    store = Store(root=tmp_path / "store")
    encoder = load(TEMPLATE.format(init="pass", factor="1"))
    find, prints = Store.use, []

    def use_late(self: Store, kind: str, key: str) -> object:
        monkeypatch.undo()
        with monkeypatch.context() as slow:
            slow.setattr("xares_bench.encoders.identity._SLOW_S", 0.0)
            prints.append(identified(encoder, store).fingerprint)
        return None

    monkeypatch.setattr(Store, "use", use_late)
    assert identified(encoder, store).fingerprint == prints[0]
    assert Store.use is find


def test_only_the_fingerprint_and_the_count_are_new(load: Loader, tmp_path: Path) -> None:
    encoder = load(TEMPLATE.format(init="pass", factor="1"))
    found = identified(encoder, Store(root=tmp_path / "store"))
    assert dataclasses.replace(found, fingerprint=encoder.fingerprint).__dict__ == encoder.__dict__
    assert len(found.fingerprint) == 64
