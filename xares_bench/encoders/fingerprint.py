"""The identity of an encoder: source, constructor's arguments, weights, settings, and the libraries it stands on.

Two encoders with one fingerprint give the same features, so features are filed under it. Where the file lies and when
it was written do not enter. Settings are the configurations and feature extractors of transformers that the encoder
holds; other files that it reads and that change neither source nor weights cannot be seen from outside.
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType

import torch
from torch import nn

from xares_bench.config.encoder_spec import EncoderSpec, find_module
from xares_bench.core.digests import code_digest, digest_of, file_digest, library_versions

_CHUNK_ELEMENTS = 1 << 22

# What a configuration says about itself, rather than about what is computed.
_UNSETTING_KEYS = frozenset({"_name_or_path", "name_or_path", "_commit_hash", "transformers_version"})


def fingerprint(
    spec: EncoderSpec, encoder_module: nn.Module, source_module: ModuleType, weights: Mapping[str, str], folder: Path
) -> str:
    """SHA-256 of all that makes the encoder's features, as 64 hexadecimal digits.

    Args:
        spec: Names the class and carries the constructor's arguments.
        encoder_module: The constructed encoder.
        source_module: The Python module the class was found in.
        weights: Digest of each tensor, from `weight_digests`.
        folder: Where imports of that module are looked up first.
    """
    sources, libraries = _reached_sources(source_module, encoder_module, folder)
    return digest_of(
        {
            "class": spec.class_name,
            "arguments": dict(spec.arguments),
            "settings": _setting_digests(encoder_module),
            "sources": sources,
            "libraries": libraries,
            "weights": dict(weights),
        }
    )


def weight_digests(module: nn.Module) -> dict[str, str]:
    """SHA-256 of every tensor of a module, by name: parameters, buffers (also non-persistent) and plain attributes."""
    return {name: _tensor_digest(tensor) for name, tensor in _named_tensors(module)}


@functools.cache
def is_library_file(file: str) -> bool:
    """Whether a source file belongs to the standard library or an installed distribution, not to the user.

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


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
    for prefix, child in module.named_modules():
        for name, value in vars(child).items():
            if isinstance(value, torch.Tensor):
                yield f"{prefix}.{name} (attribute)", value


def _setting_digests(module: nn.Module) -> dict[str, str]:
    """Digest of every configuration and feature extractor of transformers that a module or a child of it holds."""
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
        # Keys as text, since labels are numbered and numbers do not sort among names.
        return {str(key): _without_place(value) for key, value in settings.items() if key not in _UNSETTING_KEYS}
    return [_without_place(value) for value in settings] if isinstance(settings, list | tuple) else settings


def _tensor_digest(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if not tensor.is_meta:
        for chunk in torch.split(tensor.reshape(-1), _CHUNK_ELEMENTS):
            digest.update(chunk.cpu().resolve_conj().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _reached_sources(
    source_module: ModuleType, encoder_module: nn.Module, folder: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of the user's own modules that the encoder reaches, by name, and versions of the libraries, by name.

    Reached is what an import statement names anywhere in a reached file, executed or not, what a module's globals come
    from, and where the classes of submodules are defined. The encoder's own module has the name "". Of our own modules
    it is the code that counts, as everywhere in keys, not its comments.
    """
    sources: dict[str, str] = {}
    libraries = {"torch"}
    seen: set[str] = set()
    pending = [source_module.__name__]
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
            # A part of a namespace package, such as google.protobuf.
            libraries.update(_distributions().get(top, ()))
            continue
        sources["" if is_own else name] = file_digest(Path(file))
        pending.extend(_imported_names(name, Path(file)))
        pending.extend(_global_origins(name))
    if "transformers" in libraries:
        # Some of its feature extractors compute with torchaudio where that is installed, and with numpy elsewhere.
        libraries.add("torchaudio")
    return sources, library_versions(sorted(libraries))


def _source_file(name: str, folder: Path) -> str | None:
    """The file of a module, loaded or not; None if there is none or it cannot be found."""
    module = sys.modules.get(name)
    if module is not None:
        return getattr(module, "__file__", None)
    spec = find_module(name, folder)
    return spec.origin if spec is not None and spec.has_location else None


def _imported_names(name: str, file: Path) -> Iterator[str]:
    """Every module name that a file's import statements may mean, also inside functions."""
    if file.suffix != ".py":
        return
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:
        # Named by an import that is not executed; it cannot be imported either.
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
            # What is imported from a package may be a module or a name in it.
            yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _global_origins(name: str) -> Iterator[str]:
    """Names of the modules that a loaded module's globals come from."""
    module = sys.modules.get(name)
    for global_name, value in list(vars(module).items()) if module is not None else []:
        if global_name.startswith("__"):
            # What the import machinery leaves there, such as a loader of ours.
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
