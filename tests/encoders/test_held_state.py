"""What a walk over an encoder finds, wherever it is kept, and what it leaves alone."""

from __future__ import annotations

import functools
import linecache
import logging
import types
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xares_bench.encoders.held_state import held_state


class Holder:
    """A plain object."""

    def __init__(self, value: object) -> None:
        self.value = value

    def method(self) -> None: ...


class Slotted:
    """An object without a `__dict__`."""

    __slots__ = ("empty", "value")

    def __init__(self, value: object) -> None:
        self.value = value


class Subclassed(dict[str, Any]):
    """A container of the user."""


def holding_function(value: object) -> Callable[[], object]:
    return lambda: value


def holding_default(value: object) -> Callable[..., object]:
    def function(held: object = value) -> object:
        return held

    return function


def holding_class(value: object) -> type:
    return type("Held", (), {"value": value, "__module__": __name__})


def holding_module(value: object) -> torch.nn.Module:
    module = torch.nn.Module()
    module.kept = value  # type: ignore[assignment]
    return module


def holding_slice(value: object) -> object:
    array = np.empty(1, dtype=object)
    array[0] = value
    return array


WRAPPERS: list[Callable[[Any], object]] = [
    lambda value: [value],
    lambda value: (value,),
    lambda value: {"key": value},
    lambda value: deque([value]),
    lambda value: Subclassed(key=value),
    lambda value: functools.partial(print, value),
    lambda value: types.SimpleNamespace(value=value),
    lambda value: Holder(value).method,
    Holder,
    Slotted,
    holding_function,
    holding_default,
    holding_class,
    holding_module,
    holding_slice,
]


def digests(value: object) -> dict[str, str]:
    return held_state({"": value}, lambda module: module == __name__, {})


@given(wrappers=st.lists(st.sampled_from(WRAPPERS), max_size=5), kind=st.sampled_from(["tensor", "array", "network"]))
def test_values_are_found_however_they_are_kept(wrappers: list[Callable[[Any], object]], kind: str) -> None:
    def build(number: float) -> object:
        value: object = torch.full((2, 3), number)
        if kind == "array":
            value = np.full((2, 3), number)
        elif kind == "network":
            value = torch.nn.Linear(2, 1)
            torch.nn.init.constant_(value.weight, number)
            torch.nn.init.zeros_(value.bias)
        for wrap in wrappers:
            value = wrap(value)
        return value

    assert digests(build(1.0)) == digests(build(1.0)) != digests(build(2.0))


@pytest.mark.parametrize("change", ["dtype", "shape", "order"])
def test_type_and_shape_count(change: str) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    other = {"dtype": array.view(np.int32), "shape": array.reshape(3, 2), "order": np.asfortranarray(array)}[change]
    assert (digests([array]) == digests([other])) == (change == "order")


def test_numbers_count_in_the_users_objects() -> None:
    assert digests(Holder(3)) != digests(Holder(4))
    assert digests(Holder([0.5, {"a": True}])) != digests(Holder([0.5, {"a": False}]))
    assert digests(types.SimpleNamespace(count=3)) == digests(types.SimpleNamespace(count=4))
    assert digests({"count": 3}) == digests({"count": 4})


def test_texts_do_not_count_because_many_are_paths() -> None:
    assert digests(Holder("here/model.pt")) == digests(Holder("there/model.pt"))


def test_circles_and_what_leads_to_the_process_end() -> None:
    circle: list[object] = [np.zeros(1)]
    circle.append(circle)
    assert list(digests(circle)) == ["[0]"]
    assert digests(Holder(logging.getLogger("x"))) == {}
    assert digests(Holder(np)) == {}


def test_no_property_is_called() -> None:
    class Guarded:
        __module__ = __name__

        @property
        def value(self) -> None:
            pytest.fail("called")

        def __iter__(self) -> None:
            pytest.fail("called")

    assert digests(Guarded()) == {}


def scripted(factor: float, folder: Path) -> torch.nn.Module:
    """TorchScript loaded from a file, as users have it."""
    source = folder / f"net{factor}.py"
    source.write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.bias = 3\n"
        f"    def forward(self, x: torch.Tensor):\n        return x * {factor} + self.bias\n"
    )
    linecache.checkcache(str(source))  # TorchScript reads the source from it
    namespace: dict[str, Any] = {"__name__": "net"}
    exec(compile(source.read_text(), str(source), "exec"), namespace)
    torch.jit.save(torch.jit.script(namespace["Net"]()), str(folder / f"{factor}.ts"))
    return torch.jit.load(str(folder / f"{factor}.ts"))  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_serialised_graphs_count_by_their_code(tmp_path: Path) -> None:
    one, same, other = scripted(1.5, tmp_path), scripted(1.5, tmp_path), scripted(2.5, tmp_path)
    assert digests([one]) == digests([same]) != digests([other])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_constants_of_traced_graphs_count() -> None:
    def traced(constant: float) -> object:
        return torch.jit.trace(lambda x: x + torch.full((3,), constant).data, torch.ones(3))  # type: ignore[no-untyped-call]

    assert digests([traced(1.0)]) == digests([traced(1.0)]) != digests([traced(2.0)])


def test_exported_programs_count() -> None:
    class Net(torch.nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

    def exported(factor: float) -> object:
        return torch.export.export(Net(factor), (torch.ones(3),))

    assert digests(Holder(exported(1.0))) == digests(Holder(exported(1.0))) != digests(Holder(exported(2.0)))
    symbolic = [torch.fx.symbolic_trace(Net(factor)) for factor in (1.0, 1.0, 2.0)]
    assert digests(symbolic[0]) == digests(symbolic[1]) != digests(symbolic[2])
