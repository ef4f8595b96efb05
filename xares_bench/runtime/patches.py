"""Patches: functions and classes of libraries that code has replaced, such as `torch.nn.Linear.forward`."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import (
    BuiltinFunctionType,
    FunctionType,
    GetSetDescriptorType,
    MethodDescriptorType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import torch

# What a patch may put in the place of what.
_PATCHABLE = (
    FunctionType,
    BuiltinFunctionType,
    MethodDescriptorType,
    WrapperDescriptorType,
    GetSetDescriptorType,
    functools.partial,
    staticmethod,
    classmethod,
    property,
    type,
)
_MISSING = object()

# What a session computes with. Of torch, not its compiler and its many tools, which are ten times as large.
_LIBRARIES = (
    *(
        f"torch.{name}."
        for name in ("nn", "autograd", "optim", "amp", "cuda", "linalg", "fft", "special", "functional")
    ),
    *(f"torch.{name}." for name in ("_tensor", "random", "serialization", "storage", "utils.checkpoint", "utils.data")),
    *("transformers.", "accelerate.", "safetensors.", "numpy.", "soundfile.", "webdataset.", "xares_bench."),
    *("builtins.", "math.", "random.", "json.", "os.", "io.", "time.", "tarfile.", "gzip.", "pathlib.", "hashlib."),
)

# The libraries of decoders, and those whose decorators are around their functions.
_OWN = ("torch", "transformers")
_USED = ("huggingface_hub", "typing_extensions", "accelerate")

# Where nearly every patch of a network's arithmetic goes.
_CORE_MODULES = ("torch", "torch.nn", "torch.nn.functional", "torch.linalg", "torch.autograd")
_CORE_MODULES_OF_CLASSES = (
    *(f"torch.nn.modules.{name}" for name in ("module", "linear", "sparse", "normalization", "activation", "dropout")),
    *("torch.autograd.function", "torch.optim.optimizer", "torch.optim.adam"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Patch:
    """One attribute of a module or a class, before and after it was replaced.

    Attributes:
        name: Its dotted name.
        owner: The module or class.
        attribute: The attribute's name.
        before: Its value before; a class may only have inherited it.
        after: Its value after; it may be gone.
    """

    name: str
    owner: Any
    attribute: str
    before: object
    after: object

    def apply(self) -> None:
        """Replace the attribute."""
        self._set(self.after)

    def undo(self) -> None:
        """Put back what was there before."""
        self._set(self.before)

    def _set(self, value: object) -> None:
        if value is not _MISSING:
            setattr(self.owner, self.attribute, value)
        elif self.attribute in vars(self.owner):
            delattr(self.owner, self.attribute)


class Snapshot:
    """The attributes of modules and their classes, to be compared with later.

    What a library replaces in itself, as torch does when its compiler is imported, is no patch.
    """

    def __init__(self, owners: Iterable[tuple[str, Any]]) -> None:
        """Take the snapshot of modules and classes, given with their names: `core()` or `libraries()`."""
        self._content = [(name, owner, dict(vars(owner))) for name, owner in owners]

    def patches(self) -> list[Patch]:
        """Return what has been replaced since, and methods that classes have got in place of inherited ones."""
        found: list[Patch] = []
        for place, owner, before in self._content:
            if _is_equal(now := vars(owner), before):
                continue
            names = [*before, *(now.keys() - before.keys() if isinstance(owner, type) else ())]
            for name in names:
                old, new = before.get(name, _MISSING), now.get(name, _MISSING)
                if old is new or not (isinstance(new, _PATCHABLE) or new is _MISSING):
                    continue
                inherited = inspect.getattr_static(owner.__mro__[1], name, None) if old is _MISSING else old
                if isinstance(inherited, _PATCHABLE):
                    found.append(Patch(name=f"{place}.{name}", owner=owner, attribute=name, before=old, after=new))
        if not found:
            return []
        existing = {id(value) for *_, before in self._content for value in before.values()}
        return [
            patch
            for patch in found
            if patch.after is _MISSING
            or id(patch.after) in existing
            or _library(patch.after) != patch.name.partition(".")[0]
        ]


def foreign_functions(classes: Iterable[type]) -> Iterator[str]:
    """Yield the methods of torch's and transformers' classes whose code is somebody else's.

    These are patches of a time before any snapshot, with the module that has their code: `PLACE (MODULE)`.
    """
    for owner in sorted({base for found in classes for base in found.__mro__}, key=repr):
        if owner.__module__.partition(".")[0] in _OWN:
            for name, value in vars(owner).items():
                if isinstance(value, FunctionType) and _library(value) not in {*_OWN, *_USED, *sys.stdlib_module_names}:
                    yield f"{owner.__module__}.{owner.__qualname__}.{name} ({value.__globals__.get('__name__')})"


def _library(value: object) -> str:
    """Return the package whose code has made a function, a class or the like."""
    if isinstance(value, functools.partial):
        value = value.func
    elif isinstance(value, staticmethod | classmethod):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget or value.fset
    # Not `__module__`, which functools.wraps copies.
    module = (
        value.__globals__.get("__name__") if isinstance(value, FunctionType) else getattr(value, "__module__", None)
    )
    return str(module).partition(".")[0]


def core() -> Iterator[tuple[str, Any]]:
    """Yield the modules and classes of torch that nearly every network uses; comparing them takes 0.1 ms."""
    yield "torch.Tensor", torch.Tensor
    for name in _CORE_MODULES:
        yield name, sys.modules[name]
    for name in _CORE_MODULES_OF_CLASSES:
        yield from _with_classes(name, sys.modules[name])


def libraries() -> Iterator[tuple[str, Any]]:
    """Yield the loaded modules that a session computes with, and their classes; comparing them takes milliseconds."""
    yield from (("torch", torch), ("torch.Tensor", torch.Tensor))
    for name, module in tuple(sys.modules.items()):
        if f"{name}.".startswith(_LIBRARIES) and isinstance(module, ModuleType):
            yield from _with_classes(name, module)


def _with_classes(name: str, module: ModuleType) -> Iterator[tuple[str, Any]]:
    yield name, module
    for value in tuple(vars(module).values()):
        # Not isinstance, which asks the value, and some warn of that.
        if issubclass(type(value), type) and value.__module__ == name and value is not object:
            yield f"{name}.{value.__qualname__}", value


def _is_equal(now: Any, before: dict[str, object]) -> bool:
    """Whether two mappings hold the same objects; compared by identity first, in C, and so in microseconds."""
    try:
        return bool(now == before)
    except Exception:  # of objects with a comparison of their own, such as arrays
        return False
