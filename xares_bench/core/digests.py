"""Digests: what a stored result is keyed by.

Everything that is cached (features, a trained LALM, a score) is stored under a digest of all that made it, the code
included. The same digest means the same result; a file's name means nothing.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20
# Libraries whose versions are part of the keys of what was trained, and of what was scored.
TRAINING_LIBRARIES = ("accelerate", "numpy", "tokenizers", "torch", "transformers", "webdataset")
SCORING_LIBRARIES = ("jiwer", "numpy", "sacrebleu", "tokenizers", "torch", "transformers")


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON-like value (mappings in key order), as 64 hexadecimal digits.

    >>> digest_of({"b": 1, "a": [2.5, None]}) == digest_of({"a": [2.5, None], "b": 1})
    True

    Raises:
        TypeError: The value holds something that JSON has no form for.
        ValueError: The value holds NaN or an infinity.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@functools.cache
def code_digest(*modules: str) -> str:
    """Digest of what some of our own modules do: their syntax trees without docstrings, comments and layout.

    It is the edition of the code in every key: a change of behaviour can never meet a result of the code before it,
    and nobody has to remember to raise a number.

    >>> code_digest("xares_bench.core.errors") == code_digest("xares_bench.core.digests")
    False
    """
    return digest_of({name: _syntax_digest(name) for name in modules})


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of distributions, by name; a missing one is `"absent"`."""
    return {name: _version(name) for name in names}


@functools.cache  # a reading parses the distribution's whole metadata, and every key asks for the same few
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def installed_editions(names: Iterable[str]) -> dict[str, str]:
    """Version of each distribution, with a digest of its files as its installer recorded them; see `library_versions`.

    A library that is installed again under the same version, from a branch of its repository for example, has another
    digest. Scripts are left out: their first line names the environment.
    """
    return {name: f"{_version(name)} {_recorded_files(name)}".strip() for name in names}


@functools.cache
def _recorded_files(name: str) -> str:
    try:
        record = importlib.metadata.distribution(name).read_text("RECORD") or ""
    except importlib.metadata.PackageNotFoundError:
        return ""
    lines = [
        line
        for line in record.splitlines()
        if ",sha256=" in line and ".dist-info/" not in line and not line.startswith("..")
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16] if lines else ""


@functools.cache  # the lists of modules behind different keys share many
def _syntax_digest(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return digest_of(ast.dump(tree))
