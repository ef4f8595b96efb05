"""The code of an encoder that is defined in a notebook, at a prompt or in the script that runs.

The module `__main__` has no file there, or one with much that is no part of the encoder. So what counts is what the
encoder reaches: the code of its classes and of the functions that they name, and the variables that they name. It is
compiled code, as a notebook keeps no source of a class; comments and layout make no difference.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from xares_bench.core.digests import digest_of

MAIN = "__main__"
_CONSTANTS = (bool, int, float, complex, str, bytes, types.NoneType)


@dataclass(frozen=True, kw_only=True)
class MainCode:
    """What an encoder reaches in `__main__`.

    Attributes:
        digests: SHA-256 of every function, class and constant, by its name.
        values: Other values of global variables, by name, such as tensors.
        modules: Modules that its functions, values and classes come from.
    """

    digests: dict[str, str] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)


def reached_main_code(classes: Iterable[type]) -> MainCode:
    """Return what the classes that are defined in `__main__` reach there; nothing if there are none."""
    found = MainCode()
    seen: list[object] = []  # by identity: a decorated function and the one that it calls have the same name
    pending: list[type | types.FunctionType] = [cls for cls in classes if cls.__module__ == MAIN]
    while pending:
        owner = pending.pop()
        if any(owner is other for other in seen):
            continue
        seen.append(owner)
        functions = [owner] if isinstance(owner, types.FunctionType) else [*_functions_of(owner)]
        named = [pair for function in functions for pair in _named_values(function)]
        if isinstance(owner, type):
            pending.extend(base for base in owner.__mro__ if base.__module__ == MAIN)
            named += [(f"{owner.__qualname__}.{name}", value) for name, value in _attributes_of(owner)]
        described = [_described(function) for function in functions]
        found.digests[owner.__qualname__] = digest_of([found.digests.get(owner.__qualname__), *described])
        for name, value in named:
            if isinstance(value, _CONSTANTS):
                found.digests[name] = digest_of(repr(value))
            elif isinstance(value, types.ModuleType):
                found.modules.add(value.__name__)
            elif isinstance(value, type | types.FunctionType):
                if value.__module__ == MAIN:
                    pending.append(value)
                found.modules.add(str(value.__module__))
            else:
                found.values[name] = value
                found.modules.add(type(value).__module__)
    found.modules.discard(MAIN)
    return found


def _functions_of(owner: type) -> Iterator[types.FunctionType]:
    """Yield the functions that a class defines, in their order."""
    for value in vars(owner).values():
        parts = (value.fget, value.fset, value.fdel) if isinstance(value, property) else (value,)
        for part in parts:
            function = getattr(part, "__func__", part)
            if isinstance(function, types.FunctionType):
                yield function


def _attributes_of(owner: type) -> Iterator[tuple[str, object]]:
    """Yield the attributes of a class that are neither functions nor made by Python."""
    for name, value in vars(owner).items():
        if not name.startswith("__") and not isinstance(
            value, types.FunctionType | property | classmethod | staticmethod
        ):
            yield name, value


def _named_values(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """Yield the global variables, the default values and the enclosed variables of a function, by name."""
    for code in _codes(function.__code__):
        for name in code.co_names:
            if name in function.__globals__:
                yield name, function.__globals__[name]
    for number, value in enumerate(function.__defaults__ or ()):
        yield f"{function.__qualname__}.{number}", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f"{function.__qualname__}.{name}", value
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"{function.__qualname__}.{name}", cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield a function's code, and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _described(function: types.FunctionType) -> list[object]:
    """What a function computes, as plain values."""
    return [function.__qualname__, *([code.co_code.hex(), *_names(code)] for code in _codes(function.__code__))]


def _names(code: types.CodeType) -> Iterator[object]:
    yield [*code.co_names]
    yield [*code.co_varnames]
    for constant in code.co_consts:
        if not isinstance(constant, types.CodeType):
            # The order of a set is another one in every process.
            yield sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant)
