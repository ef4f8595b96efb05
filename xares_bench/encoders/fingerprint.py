"""The structure of an encoder, as a digest: its source, arguments, weights, settings, and the libraries it uses.

Location and time of the file do not count. Settings are the configurations and feature extractors of transformers among
the encoder's attributes. What an encoder does with all this, and with what it reads while it runs, is the other half of
its identity; see `identity`.

Source is followed statically, through all import statements, executed or not. What an encoder executes may depend on
the input, so a module that the constructor did not import may still change features later.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType

import torch
from torch import nn

from xares_bench.config.encoder_spec import EncoderSpec, find_module
from xares_bench.core.digests import code_digest, digest_of, file_digest, installed_editions
from xares_bench.encoders.held_state import held_state, tensor_digest
from xares_bench.encoders.main_code import MAIN, reached_main_code

# Values of a configuration that describe its origin, and not what is computed.
_UNSETTING_KEYS = frozenset({"_name_or_path", "name_or_path", "_commit_hash", "transformers_version"})


def structure_digest(
    spec: EncoderSpec, encoder_module: nn.Module, source_module: ModuleType, weights: Mapping[str, str], folder: Path
) -> str:
    """Return the SHA-256 of what an encoder is made of, as 64 hexadecimal digits.

    Args:
        spec: The class and its arguments.
        encoder_module: The constructed encoder.
        source_module: The Python module of the class.
        weights: Digest of each tensor, from `weight_digests`.
        folder: Folder in which imports of that module are looked up first.
    """
    main_code = reached_main_code(type(child) for child in encoder_module.modules())
    sources, libraries = _reached_sources(source_module, encoder_module, folder, main_code.modules)
    roots: dict[str, object] = {"": encoder_module}
    for name in sources:
        roots.update(_globals_of(name or source_module.__name__, name))
    roots.update((f"{MAIN}:{name}", value) for name, value in main_code.values.items())
    known = {id(tensor): weights[name] for name, tensor in _named_tensors(encoder_module)}
    return digest_of(
        {
            "class": spec.class_name,
            "arguments": dict(spec.arguments),
            "settings": _setting_digests(encoder_module),
            "sources": {**sources, **{f"{MAIN}:{name}": digest for name, digest in main_code.digests.items()}},
            "libraries": libraries,
            "held": held_state(roots, _is_users_module, known),
        }
    )


def weight_digests(module: nn.Module) -> dict[str, str]:
    """Return the SHA-256 of every parameter and buffer of a module, by name."""
    return {name: tensor_digest(tensor) for name, tensor in _named_tensors(module)}


@functools.cache
def is_library_file(file: str) -> bool:
    """Whether a source file belongs to the standard library or an installed package, and not to the user.

    >>> is_library_file(ast.__file__), is_library_file("my_encoder.py")
    (True, False)
    """
    path = Path(file).resolve()
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    return any(path.is_relative_to(folder) for folder in _standard_library_folders())


@functools.cache
def _standard_library_folders() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))


def _is_users_module(name: str) -> bool:
    if name == MAIN:
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is not None and name.partition(".")[0] != "xares_bench" and not is_library_file(file)


def _globals_of(module_name: str, prefix: str) -> Iterator[tuple[str, object]]:
    """Yield the globals of a loaded module of the user, by name."""
    if module_name != MAIN and _is_users_module(module_name):
        for name, value in list(vars(sys.modules[module_name]).items()):
            if not name.startswith("__"):
                yield f"{prefix}:{name}", value


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _setting_digests(module: nn.Module) -> dict[str, str]:
    """Return digests of all configurations and feature extractors of transformers among a module's attributes."""
    digests = {}
    for prefix, child in module.named_modules():
        for name, value in vars(child).items():
            origins = {cls.__module__.partition(".")[0] for cls in type(value).__mro__}
            if "transformers" in origins and hasattr(value, "to_dict"):
                settings = _without_place(value.to_dict())
                text = json.dumps(settings, sort_keys=True, default=repr)
                digests[f"{prefix}.{name}"] = hashlib.sha256(text.encode()).hexdigest()
    return digests


def _without_place(settings: object) -> object:
    if isinstance(settings, Mapping):
        # Keys as text: label names have numbers as keys, which cannot be sorted among names.
        return {str(key): _without_place(value) for key, value in settings.items() if key not in _UNSETTING_KEYS}
    return [_without_place(value) for value in settings] if isinstance(settings, list | tuple) else settings


def _reached_sources(
    source_module: ModuleType, encoder_module: nn.Module, folder: Path, further: Iterable[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return digests of the user's modules that the encoder reaches, and versions of the libraries, both by name.

    A module is reached if an import statement names it anywhere in a reached file, executed or not, if a global of a
    reached module comes from it, or if it defines the class of a submodule, and so are those of `further`. The
    encoder's own module has the name "". For modules of xares_bench the code counts without comments, as in all cache
    keys. `__main__` is left to `main_code`.
    """
    sources: dict[str, str] = {}
    libraries = {"torch"}
    seen: set[str] = {MAIN}
    pending = [source_module.__name__, *further]
    pending.extend(cls.__module__ for child in encoder_module.modules() for cls in type(child).__mro__)
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        package, _, tail = name.rpartition(".")
        if tail and package:
            pending.append(package)
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or name == "xares_bench":
            continue
        is_own = name == source_module.__name__
        if top == "xares_bench":
            file = _source_file(name, folder)
            if file is not None:
                sources["" if is_own else name] = code_digest(name)
                pending.extend(_imported_names(name, Path(file)))
            continue
        top_file = _source_file(top, folder)
        if not is_own and top_file is not None and is_library_file(top_file):
            libraries.update(_distributions().get(top, ()))
            continue
        file = _source_file(name, folder)
        if file is None or not Path(file).is_file():
            continue
        if not is_own and is_library_file(file):
            # Part of a namespace package, such as google.protobuf.
            libraries.update(_distributions().get(top, ()))
            continue
        sources["" if is_own else name] = file_digest(Path(file))
        pending.extend(_imported_names(name, Path(file)))
        pending.extend(_global_origins(name))
    if "transformers" in libraries:
        # Some of its feature extractors use torchaudio if it is installed, and numpy otherwise.
        libraries.add("torchaudio")
    return sources, installed_editions(sorted(libraries))


def _source_file(name: str, folder: Path) -> str | None:
    """Return the file of a module, loaded or not; None if it has none or is not found."""
    module = sys.modules.get(name)
    if module is not None:
        return getattr(module, "__file__", None)
    spec = find_module(name, folder)
    return spec.origin if spec is not None and spec.has_location else None


def _imported_names(name: str, file: Path) -> Iterator[str]:
    """Yield every module name that a file's import statements may mean, including those inside functions."""
    if file.suffix != ".py":
        return
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:
        # Only an import that is never executed can name such a file.
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                try:
                    base = importlib.util.resolve_name("." * node.level + base, package)
                except ImportError:
                    continue
            yield base
            # A name imported from a package may be a module.
            yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _global_origins(name: str) -> Iterator[str]:
    """Yield the names of the modules that a loaded module's globals come from."""
    module = sys.modules.get(name)
    for global_name, value in list(vars(module).items()) if module is not None else []:
        if global_name.startswith("__"):
            # Set by the import machinery, such as our loader.
            continue
        if isinstance(value, ModuleType):
            yield value.__name__
        else:
            origin = (value if isinstance(value, type | FunctionType) else type(value)).__module__
            if isinstance(origin, str):
                yield origin


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()
