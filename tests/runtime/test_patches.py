"""Functions of libraries that code has replaced are found, and put back."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from xares_bench.runtime.patches import Snapshot, core, foreign_functions, libraries

LIBRARY = """
import functools

class Base:
    def forward(self): return "base"
    @staticmethod
    def make(): return "made"
    @property
    def width(self): return 1

class Layer(Base):
    def call(self): return self.forward()

def loss(): return "loss"

factory = dict
table = {}
limit = 3

def improve():
    # What some libraries do to themselves when a part of them is imported.
    global loss
    before = loss
    @functools.wraps(before)
    def better(): return before() + "!"
    loss = better
    Layer.width = property(lambda self: 2)
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "a_library.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("a_library")
    del sys.modules["a_library"]


def replace_function(library: Any) -> None:
    library.loss = lambda: "mine"


def replace_class(library: Any) -> None:
    library.Base = library.Layer


def replace_method(library: Any) -> None:
    library.Base.forward = lambda self: "mine"


def override_inherited_method(library: Any) -> None:
    library.Layer.forward = lambda self: "mine"


def replace_static_method(library: Any) -> None:
    library.Base.make = staticmethod(lambda: "mine")


def replace_property(library: Any) -> None:
    library.Base.width = property(lambda self: 7)


def delete_method(library: Any) -> None:
    del library.Layer.call


def use_its_own_function_elsewhere(library: Any) -> None:
    library.Layer.call = library.Base.forward


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (replace_function, "loss"),
        (replace_class, "Base"),
        (replace_method, "Base.forward"),
        (override_inherited_method, "Layer.forward"),
        (replace_static_method, "Base.make"),
        (replace_property, "Base.width"),
        (delete_method, "Layer.call"),
        (use_its_own_function_elsewhere, "Layer.call"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_replaced_function_is_named_put_back_and_replaced_again(
    change: Callable[[Any], None], name: str, library: Any
) -> None:
    owners = [("a_library", library), ("a_library.Base", library.Base), ("a_library.Layer", library.Layer)]
    snapshot = Snapshot(owners)
    before = {place: dict(vars(owner)) for place, owner in owners}
    change(library)
    after = {place: dict(vars(owner)) for place, owner in owners}
    (patch,) = snapshot.patches()
    assert patch.name == f"a_library.{name}"
    patch.undo()
    assert {place: dict(vars(owner)) for place, owner in owners} == before
    assert not snapshot.patches()
    patch.apply()
    assert {place: dict(vars(owner)) for place, owner in owners} == after


def test_what_is_no_function_or_new_or_the_librarys_own_is_no_patch(library: Any) -> None:
    snapshot = Snapshot([("a_library", library), ("a_library.Layer", library.Layer)])
    library.limit = 4
    library.table["key"] = 1
    library.another = lambda: None
    library.improve()
    assert not snapshot.patches()


@pytest.mark.parametrize("owners", [core, libraries])
def test_what_a_decoder_computes_with_is_looked_at(owners: Callable[[], Iterator[tuple[str, Any]]]) -> None:
    names = {name for name, _ in owners()}
    assert names >= {"torch", "torch.Tensor", "torch.nn.functional", "torch.nn.modules.linear.Linear"}
    assert Snapshot(owners()).patches() == []


def test_importing_torchs_compiler_is_no_patch() -> None:
    """It replaces functions of torch, and its own, and so does not work if they are put back."""
    code = """
import torch
from xares_bench.runtime.patches import Snapshot, libraries
snapshot = Snapshot(libraries())
import torch._dynamo
assert not snapshot.patches(), [patch.name for patch in snapshot.patches()]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_values_that_cannot_be_compared_are_looked_at_one_by_one() -> None:
    module: Any = ModuleType("arrays")
    module.array, module.function = torch.zeros(3), print
    snapshot = Snapshot([("arrays", module)])
    module.array, module.function = torch.zeros(3), len
    assert [patch.name for patch in snapshot.patches()] == ["arrays.function"]


def test_functions_of_others_in_a_library_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    modeling = importlib.import_module("transformers.models.llama.modeling_llama")
    classes = (modeling.LlamaForCausalLM, modeling.LlamaAttention, modeling.LlamaRMSNorm)
    assert not list(foreign_functions(classes))
    monkeypatch.setattr(modeling.LlamaRMSNorm, "forward", lambda self, states: states)
    assert list(foreign_functions(classes)) == [
        f"transformers.models.llama.modeling_llama.LlamaRMSNorm.forward ({__name__})"
    ]
