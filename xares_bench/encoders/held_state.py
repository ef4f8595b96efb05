"""What an encoder holds besides its parameters: digests of tensors, arrays, numbers and graphs, wherever they are kept.

A network in a list, a table in a plain object, weights in a global of a module or in a closure are as much a part of an
encoder as its `state_dict`. The walk starts at the encoder and at the globals of the user's modules, and follows
containers, objects and functions. It calls no code of theirs: only `vars()` and slots are read, never a property.

Numbers count only as attributes of the user's own objects: those of libraries count clocks, handles and calls. Texts do
not count, as many of them are paths, and an encoder is the same wherever its files are.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

_CHUNK_ELEMENTS = 1 << 22
# Far more than any model has. A walk that gets here has left the encoder; what it has found counts.
_MAX_OBJECTS = 200_000
# What torch keeps in every module for itself; parameters, buffers and children are read from it by name.
_MODULE_BOOKKEEPING = frozenset(vars(nn.Module()))
# Objects of the standard library and of torch lead to the whole process: loggers to handlers, handlers to streams.
_NOT_FOLLOWED = frozenset({*sys.stdlib_module_names, "torch"})
_FOLLOWED_TYPES = (torch.export.ExportedProgram, types.SimpleNamespace)
_CONTAINERS = (dict, list, tuple, deque, set, frozenset, np.ndarray)
# Printed TorchScript names files, objects, and classes by the place of their file.
_NAMES_IN_SCRIPTS = re.compile(r"__torch__\.[\w.]+|0x[0-9a-f]+| # .+:\d+:\d+$", re.MULTILINE)
# Keys whose `repr` is the same in every process.
_KEY_TYPES = (str, int, float, bool, bytes, tuple, types.NoneType)


def held_state(
    roots: Mapping[str, object], is_users: Callable[[str], bool], known: Mapping[int, str]
) -> dict[str, str]:
    """Return the SHA-256 of every value that the roots lead to, by the path that leads there.

    Args:
        roots: Where the walk starts, by name: the encoder, and globals of modules.
        is_users: Whether a module, by name, is the user's: only its functions and classes are followed, and numbers
            count only in objects of its classes.
        known: Digests of tensors that need not be computed again, by `id`.
    """
    return _Walk(is_users, known).run(roots)


def tensor_digest(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and values."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if not tensor.is_meta:
        for chunk in torch.split(tensor.reshape(-1), _CHUNK_ELEMENTS):
            digest.update(chunk.cpu().resolve_conj().resolve_neg().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Walk:
    """A walk over objects, each visited once, in an order that depends on the objects alone."""

    def __init__(self, is_users: Callable[[str], bool], known: Mapping[int, str]) -> None:
        self._is_users = is_users
        self._known = dict(known)
        self._seen: dict[int, object] = {}  # the objects stay alive, so that no identity is used twice

    def run(self, roots: Mapping[str, object]) -> dict[str, str]:
        digests: dict[str, str] = {}
        # A stack, and so reversed: what was added last is visited first. The flag: whether numbers count.
        pending = [(name, root, False) for name, root in reversed(list(roots.items()))]
        while pending and len(self._seen) < _MAX_OBJECTS:
            path, value, numbers_count = pending.pop()
            digest = self._digest(value, numbers_count)
            if digest is not None:
                digests[path] = digest
            elif id(value) not in self._seen:
                self._seen[id(value)] = value
                is_container = isinstance(value, _CONTAINERS)
                inner_numbers_count = numbers_count if is_container else self._is_users(type(value).__module__)
                parts = [(f"{path}{step}", part, inner_numbers_count) for step, part in self._parts(value)]
                pending.extend(reversed(parts))
        return digests

    def _digest(self, value: object, numbers_count: bool) -> str | None:
        """Return the digest of a value without parts, or None."""
        if isinstance(value, bool | int | float | complex):
            return _text_digest(repr(value)) if numbers_count else None
        if isinstance(value, bytes | bytearray):
            return _text_digest("bytes", bytes(value))
        if not isinstance(value, torch.Tensor | np.ndarray | np.generic) or value.dtype == object:
            return None
        if id(value) not in self._known:
            self._seen[id(value)] = value
            self._known[id(value)] = tensor_digest(value) if isinstance(value, torch.Tensor) else _array_digest(value)
        return self._known[id(value)]

    def _parts(self, value: object) -> Iterator[tuple[str, object]]:
        """Yield what an object holds, each with a step of its path."""
        if isinstance(value, types.ModuleType):
            return
        if isinstance(value, type | types.FunctionType) and not self._is_users(str(value.__module__)):
            return
        yield from _items(value)
        if isinstance(value, type):
            yield from ((f".{name}", part) for name, part in vars(value).items() if not name.startswith("__"))
        elif isinstance(value, torch.jit.ScriptModule):
            yield from _script_parts(value)
        elif isinstance(value, torch.jit.ScriptFunction):
            yield ".code", _without_names(str(value.inlined_graph))
        elif isinstance(value, torch.fx.GraphModule):
            yield ".code", value.code.encode()
            yield from _module_parts(value)
        elif isinstance(value, nn.Module):
            yield from _module_parts(value)
            yield from ((f".{name}", part) for name, part in _attributes(value) if name not in _MODULE_BOOKKEEPING)
        elif isinstance(value, _FOLLOWED_TYPES) or type(value).__module__.partition(".")[0] not in _NOT_FOLLOWED:
            yield from ((f".{name}", part) for name, part in _attributes(value))


def _items(value: object) -> Iterator[tuple[str, object]]:
    """Yield what a container or a function holds."""
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in value.items() if isinstance(key, _KEY_TYPES))
    elif isinstance(value, list | tuple | deque):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, set | frozenset):
        keys = sorted((part for part in value if isinstance(part, _KEY_TYPES)), key=repr)
        yield from ((f"[{index}]", part) for index, part in enumerate(keys))
    elif isinstance(value, np.ndarray):
        yield from ((f"[{index}]", part) for index, part in enumerate(value.flat))
    elif isinstance(value, types.MethodType):
        yield from ((".__self__", value.__self__), (".__func__", value.__func__))
    elif isinstance(value, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif isinstance(value, types.FunctionType):
        yield from ((".__defaults__", value.__defaults__), (".__kwdefaults__", value.__kwdefaults__))
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not assigned yet
                yield f".{name}", cell.cell_contents
        # What a decorator wraps, and attributes that were set on the function.
        yield from ((f".{name}", part) for name, part in vars(value).items())
    elif isinstance(value, staticmethod | classmethod):
        yield ".__func__", value.__func__
    elif isinstance(value, property):
        yield ".fget", value.fget


def _attributes(value: object) -> Iterator[tuple[str, Any]]:
    """Yield the attributes in an object's `__dict__` and slots."""
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            slot = vars(kind).get(name)
            if isinstance(slot, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):  # not assigned
                    yield name, slot.__get__(value, kind)


def _module_parts(module: nn.Module) -> Iterator[tuple[str, object]]:
    for kind in ("_parameters", "_buffers", "_modules"):
        yield from ((f".{name}", part) for name, part in vars(module)[kind].items())


def _script_parts(module: torch.jit.ScriptModule) -> Iterator[tuple[str, object]]:
    """Yield the tensors of TorchScript, its code and attributes as text, and the constants of its code."""
    yield from ((f".{name}", part) for name, part in module.named_parameters(remove_duplicate=False))
    yield from ((f".{name}", part) for name, part in module.named_buffers(remove_duplicate=False))
    for prefix, child in module.named_modules():
        script = child._c
        attributes = script.dump_to_str(code=False, attrs=True, params=False)
        yield f".{prefix}.attributes", _without_names(attributes)
        for name in script._method_names():
            code, constants = script._get_method(name).code_with_constants
            yield f".{prefix}.{name}", _without_names(code)
            yield f".{prefix}.{name}.constants", constants


def _without_names(script: str) -> bytes:
    return _NAMES_IN_SCRIPTS.sub("", script).encode()


def _array_digest(array: np.ndarray[Any, Any] | np.generic) -> str:
    return _text_digest(f"{array.dtype} {array.shape}", np.ascontiguousarray(array).tobytes())


def _text_digest(kind: str, content: bytes = b"") -> str:
    digest = hashlib.sha256(kind.encode())
    digest.update(content)
    return digest.hexdigest()
