"""Reading `--encoder` and `--encoder-args`: which class, from where, with which arguments.

No code of the user is imported here, so mistakes are reported at once and without importing torch. A file is parsed to
find its class; of a dotted path only the module is looked up.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import NoReturn

from xares_bench.core.errors import EncoderSpecError
from xares_bench.core.parsing import RepeatedKeyError, did_you_mean, local_path, parse_json

_FORMS = "path/to/file.py, path/to/file.py::ClassName, package.module.ClassName or hf:NAME"

_HUB_PREFIX = "hf:"
_HUB_EXAMPLE = "as in --encoder=hf:openai/whisper-base, hf:openai/whisper-base@REVISION or hf:path/to/folder"
# What a model on the hub may be called: a name, or an owner and a name.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """Which class is the encoder, and with which arguments.

    Attributes:
        text: The value of `--encoder`.
        file: The Python file that defines the class, absolute, or None for a dotted path.
        module: The module of the class, or None for a file.
        class_name: Name of the class.
        name: The encoder's name in results; it can be part of a folder's name.
        arguments: Keyword arguments for the constructor, from `--encoder-args`.
        place: Further keyword arguments that only locate a model. They are not part of the fingerprint; the model is.
        instance: The encoder itself, where a program has made it; None: the class is to be constructed.
    """

    text: str
    file: Path | None
    module: str | None
    class_name: str
    name: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    place: Mapping[str, object] = field(default_factory=dict)
    instance: object = None


def parse_encoder_spec(text: str, arguments_json: str | None = None) -> EncoderSpec:
    """Read `--encoder=text` and `--encoder-args=arguments_json`.

    A file needs one top-level class whose name ends in `Encoder`, or `::ClassName`; classes merely imported there do
    not count. Modules of a dotted path may lie in the current directory. `hf:NAME_OR_FOLDER[@REVISION]` is our own
    wrapper of Hugging Face audio models; the hub is not asked here.

    Raises:
        EncoderSpecError: The text names no file, no findable module or no single class, or the arguments are no JSON
            object.
    """
    arguments = _parse_arguments(arguments_json)
    text = text.strip()
    if not text:
        raise EncoderSpecError(f"--encoder is empty: give {_FORMS}")
    if text.startswith(_HUB_PREFIX):
        return _parse_hub_text(text, arguments)
    path_text, separator, class_name = text.partition("::")
    path = local_path(path_text)
    if not (separator or path.suffix == ".py" or ".py:" in text or {"/", os.sep} & set(path_text) or path.exists()):
        module, class_name = _parse_dotted_path(text)
        return EncoderSpec(
            text=text, file=None, module=module, class_name=class_name, name=class_name, arguments=arguments
        )
    classes = _parse_file(path, text)
    class_name = classes.named(class_name) if separator else classes.only_encoder()
    return EncoderSpec(
        text=text, file=path.absolute(), module=None, class_name=class_name, name=class_name, arguments=arguments
    )


def spec_of_instance(instance: object) -> EncoderSpec:
    """Return the specification of an encoder that a program has made."""
    kind = type(instance)
    return EncoderSpec(
        text=f"{kind.__module__}.{kind.__qualname__}",
        file=None,
        module=kind.__module__,
        class_name=kind.__name__,
        name=kind.__name__,
        instance=instance,
    )


def find_module(name: str, folder: Path) -> ModuleSpec | None:
    """Find the module that `import name` would import with `folder` first on the path, without importing anything.

    >>> find_module("json.decoder", Path()).origin.endswith("decoder.py")
    True
    """
    first, *rest = name.split(".")
    spec = PathFinder.find_spec(first, [str(folder), *sys.path])
    if spec is None:
        # Finders of editable installations; a module without a __spec__ (__main__) is a ValueError.
        with contextlib.suppress(ValueError):
            spec = importlib.util.find_spec(first)
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return spec


@dataclass(frozen=True, kw_only=True)
class _FileClasses:
    """The names that a Python file binds at its top level.

    Attributes:
        spec_text: The specification as the user wrote it.
        classes: Names of the classes defined there, in order.
        assigned: Names that are assigned to; one may be another name of a class.
        imported: Names that are merely imported.
    """

    spec_text: str
    classes: tuple[str, ...]
    assigned: tuple[str, ...]
    imported: tuple[str, ...]

    def only_encoder(self) -> str:
        """Return the only class whose name ends in `Encoder`."""
        encoders = [name for name in self.classes if name.endswith("Encoder")]
        if len(encoders) > 1:
            choices = " or ".join(f"{self.spec_text}::{name}" for name in encoders)
            _fail(self.spec_text, f"defines {len(encoders)} classes whose names end in Encoder; choose one: {choices}")
        if not encoders:
            _fail(
                self.spec_text,
                f"defines no class whose name ends in Encoder ({self._found()}; imported classes do not count); "
                "rename the class or write file.py::ClassName",
            )
        return encoders[0]

    def named(self, name: str) -> str:
        """Return the name if the file may define such a class."""
        if name in self.classes or name in self.assigned:
            return name
        if name in self.imported:
            _fail(
                self.spec_text,
                f"{name} is only imported in this file; give its dotted path, package.module.{name}, "
                "or define a subclass of it in the file",
            )
        _fail(
            self.spec_text,
            f"the file defines no class {name!r} at its top level ({self._found()}); name one of its classes"
            f"{did_you_mean(name, self.classes)}",
        )

    def _found(self) -> str:
        return f"found {', '.join(self.classes)}" if self.classes else "found no class"


def _fail(text: str, problem: str) -> NoReturn:
    raise EncoderSpecError(f"--encoder={text}: {problem}")


def _parse_file(path: Path, text: str) -> _FileClasses:
    if path.is_dir():
        _fail(text, "this is a directory; give the Python file in it, as in path/to/file.py")
    if not path.exists():
        _fail(text, f"there is no file {path} (looked in {Path.cwd()}); {_hint_of_missing(path, text)}")
    if path.suffix != ".py":
        _fail(text, f"{path.name} is not a Python file; give {_FORMS}")
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        _fail(text, f"syntax error in line {error.lineno}: {error.msg}; fix the file")
    except (OSError, ValueError) as error:
        _fail(text, f"the file cannot be read as Python: {error}; fix the file")
    # One within `try` may have another in its place.
    relative = next((node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level), None)
    if relative is not None:
        module = ".".join((*path.absolute().parent.relative_to(Path.cwd()).parts, path.stem)) if _is_below(path) else ""
        _fail(
            text,
            f"line {relative.lineno} has a relative import, and a file alone is in no package; give the dotted path of "
            f"the class instead, as in --encoder={module or f'package.{path.stem}'}.ClassName",
        )
    return _names_of(tree, text)


def _is_below(path: Path) -> bool:
    """Whether a file lies in a folder below the current one, where a dotted path finds it."""
    return path.absolute().is_relative_to(Path.cwd()) and path.absolute().parent != Path.cwd()


def _names_of(tree: ast.Module, text: str) -> _FileClasses:
    classes: list[str] = []
    assigned: list[str] = []
    imported: list[str] = []
    _collect_names(tree.body, classes, assigned, imported)
    # A class defined in both branches of a condition is one class.
    return _FileClasses(
        spec_text=text,
        classes=tuple(dict.fromkeys(classes)),
        assigned=tuple(assigned),
        imported=tuple(imported),
    )


def _hint_of_missing(path: Path, text: str) -> str:
    """Say what may be meant by a path that does not exist."""
    with_suffix = path.with_name(f"{path.name}.py")
    if with_suffix.is_file():
        return f"did you mean {with_suffix}?"
    file, separator, class_name = text.rpartition(":")
    if separator and local_path(file).is_file():
        return f"a class follows two colons: --encoder={file}::{class_name}"
    if path.suffix != ".py" and _HUB_NAME.fullmatch(text.partition("@")[0]):
        return f"a model of the hub has a prefix: --encoder={_HUB_PREFIX}{text}"
    return "check the path"


def _collect_names(body: Iterable[ast.AST], classes: list[str], assigned: list[str], imported: list[str]) -> None:
    """Add the names that statements bind at module level, also under `if`, `try` and `with`."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            classes.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            assigned.extend(target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imported.extend(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            _collect_names(ast.iter_child_nodes(node), classes, assigned, imported)


def _parse_dotted_path(text: str) -> tuple[str, str]:
    module, _, class_name = text.rpartition(".")
    if not module or not all(part.isidentifier() for part in text.split(".")):
        _fail(text, f"neither a Python file nor a dotted path to a class; give {_FORMS}")
    importlib.invalidate_caches()
    if find_module(module, Path.cwd()) is None:
        _fail(
            text,
            f"there is no module {module!r} in {Path.cwd()} or on the import path; "
            "check the spelling, install its package, or give the file: path/to/file.py",
        )
    _refuse_module(text, module, class_name)
    return module, class_name


def _refuse_module(text: str, parent: str, name: str) -> None:
    """Refuse a dotted path that ends with a module, where its parent has no class of that name.

    Raises:
        EncoderSpecError: It does; its classes are named.
    """
    found, package = find_module(text, Path.cwd()), find_module(parent, Path.cwd())
    trees = [_tree(spec) for spec in (found, package)]
    if found is None or trees[0] is None:
        return
    if trees[1] is not None:
        bound = _names_of(trees[1], text)
        if {name, "*"} & {*bound.classes, *bound.assigned, *bound.imported}:
            return
    encoders = [one for one in _names_of(trees[0], text).classes if one.endswith("Encoder")]
    choices = " or ".join(f"--encoder={text}.{one}" for one in encoders) or "it defines none that ends in Encoder"
    _fail(text, f"this is a module, not a class; name a class in it: {choices}")


def _tree(spec: ModuleSpec | None) -> ast.Module | None:
    """Return the source of a module as a tree; None if it has none that can be read."""
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        return ast.parse(Path(spec.origin).read_bytes())
    except (OSError, ValueError, SyntaxError):
        return None


def _parse_hub_text(text: str, arguments: Mapping[str, object]) -> EncoderSpec:
    target = text.removeprefix(_HUB_PREFIX)
    clashing = sorted({"model", "revision"} & set(arguments))
    if clashing:
        _fail(text, f"--encoder-args gives {clashing[0]!r}, which --encoder already sets; leave it out")
    folder = local_path(target)
    # A folder's name may hold an @, so folders come first.
    if target and folder.is_dir():
        model, revision, name = str(folder.absolute()), None, folder.resolve().name
    else:
        model, separator, revision_text = target.partition("@")
        before_last = target.rpartition("@")[0]
        if before_last and local_path(before_last).is_dir():
            _fail(
                text, f"{before_last} is a folder, and folders have no revisions; leave out the last @ and what follows"
            )
        if folder.is_file():
            _fail(text, f"{target!r} is a file, not a folder; for a Python file give --encoder={target}")
        if not _HUB_NAME.fullmatch(model):
            _fail(
                text,
                f"{model!r} is neither a folder (looked in {Path.cwd()}) nor a valid name on the hub; "
                f"name a model, {_HUB_EXAMPLE}",
            )
        if separator and not revision_text:
            _fail(text, "found no revision after the @; give a branch, a tag or a commit, or leave out the @")
        revision, name = revision_text or None, model.rpartition("/")[2]
    return EncoderSpec(
        text=text,
        file=None,
        module="xares_bench.encoders.hugging_face",
        class_name="HubEncoder",
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "HubEncoder",
        arguments=arguments,
        place={"model": model, "revision": revision},
    )


def _parse_arguments(arguments_json: str | None) -> dict[str, object]:
    if arguments_json is None:
        return {}
    example = """as in --encoder-args='{"layer": 6}'"""
    try:
        arguments = parse_json(arguments_json, parse_constant=_refuse_constant, parse_float=_finite)
    except RepeatedKeyError as error:
        raise EncoderSpecError(f"--encoder-args={arguments_json}: {error}; give each key once") from None
    except ValueError as error:
        raise EncoderSpecError(
            f"--encoder-args={arguments_json}: not JSON ({error}); give an object, {example}"
        ) from None
    if not isinstance(arguments, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(arguments), "a bare value")
        raise EncoderSpecError(f"--encoder-args={arguments_json}: found {kind}, expected a JSON object, {example}")
    return arguments


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is larger than any number")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
