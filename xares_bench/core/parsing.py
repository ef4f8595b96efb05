"""Reading YAML and JSON: every error names the file and the key."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from xares_bench.core.errors import UsageError

_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_MAX_FILE_BYTES = 4 << 20
_MAX_DEPTH = 100
_MAX_MESSAGE_LENGTH = 1000
_MAX_SHOWN_LENGTH = 80
_MAX_INTEGER = 2**63 - 1

# Shortens nested values for messages.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


@dataclass(frozen=True)
class Section:
    """A mapping in a YAML file, with its place in the file.

    Each method returns the value of a key in one type, or raises `error` with file, key, what was found and what was
    expected.
    """

    file: Path
    place: str
    values: Mapping[str, Any]
    error: type[UsageError]

    def fail(self, key: str | None, message: str) -> NoReturn:
        """Raise `error`, with file and key."""
        where = self.place if key is None else self._place_of(key)
        raise self.error(f"{self.file}: {where + ': ' if where else ''}{_cut(message)}")

    def only(self, *known: str) -> None:
        """Refuse unknown keys."""
        for key in self.values:
            if key not in known:
                self.fail(_name(key), f"unknown key; expected one of {', '.join(known)}")

    def has(self, key: str) -> bool:
        """Whether the key is present and not null."""
        return self.values.get(key) is not None

    def sections(self) -> Iterator[tuple[str, Section]]:
        """Every key with its mapping."""
        for key in self.values:
            yield key if isinstance(key, str) else _name(key), self.section(key)

    def section(self, key: str) -> Section:
        """The mapping under a key."""
        value = self._value(key)
        if not isinstance(value, Mapping):
            self.fail(key, f"found {shown(value)}, expected a mapping of keys to values")
        return Section(self.file, self._place_of(key), value, self.error)

    def text(self, key: str) -> str:
        """A non-empty string."""
        value = self._value(key)
        if not isinstance(value, str) or not value.strip():
            self.fail(key, f"found {shown(value)}, expected non-empty text")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A non-empty list of non-empty strings; a lone string counts as a list of one."""
        value = self._value(key)
        items = [value] if isinstance(value, str) else value
        if (
            not isinstance(items, list)
            or not items
            or not all(isinstance(item, str) and item.strip() for item in items)
        ):
            self.fail(key, f"found {shown(value)}, expected non-empty text or a list of it")
        return tuple(items)

    def integer(self, key: str, *, at_least: int) -> int:
        """A whole number of at least `at_least`."""
        value = self._value(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            self.fail(key, f"found {shown(value)}, expected a whole number of at least {at_least}")
        if value > _MAX_INTEGER:
            self.fail(key, f"found {shown(value)}, expected a whole number of at most {_MAX_INTEGER}")
        return value

    def number(self, key: str, *, above: float = -math.inf) -> float:
        """A finite number above `above`."""
        value = self._value(key)
        try:
            number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        except OverflowError:  # a whole number of more than 308 digits
            number = math.inf
        if not math.isfinite(number) or number <= above:
            bound = f" above {above:g}" if above > -math.inf else ""
            self.fail(key, f"found {shown(value)}, expected a finite number{bound}")
        return number

    def scalars(self) -> dict[str, Any]:
        """Every key with its value, which is text, a number, true or false."""
        for key, value in self.values.items():
            if not isinstance(value, str | int | float):
                self.fail(_name(key), f"found {shown(value)}, expected text, a number, true or false")
        return {key if isinstance(key, str) else _name(key): value for key, value in self.values.items()}

    def boolean(self, key: str) -> bool:
        """True or false."""
        value = self._value(key)
        if not isinstance(value, bool):
            self.fail(key, f"found {shown(value)}, expected true or false")
        return value

    def _place_of(self, key: object) -> str:
        return f"{self.place}.{_name(key)}" if self.place else _name(key)

    def _value(self, key: str) -> Any:
        if key not in self.values:
            self.fail(key, "missing")
        return self.values[key]


def read_yaml(path: Path, error: type[UsageError]) -> Section:
    """The mapping in a YAML file.

    Raises:
        UsageError: Of the given type: the file cannot be read, is not YAML, repeats a key or is not a mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{path}: cannot be read as UTF-8 text: {cause}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise error(f"{path}: larger than {_MAX_FILE_BYTES >> 20} MiB, expected a YAML file written by hand")
    try:
        _check_depth(text)
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, AttributeError) as cause:  # the last two are raised e.g. by the date 2024-99-99
        raise error(f"{path}: not a valid YAML file: {_cut(' '.join(str(cause).split()))}") from None
    if not isinstance(value, Mapping):
        raise error(f"{path}: found {shown(value)}, expected a mapping of keys to values")
    return Section(path, "", value, error)


def shown(value: object) -> str:
    """A value for a message: on one line, shortened, and quickly, however large it is.

    With aliases, a small file can describe a list of lists of ... of a billion words, which `repr` would write out.

    >>> shown(["a", None]), shown(None)
    ("['a', None]", 'nothing')
    """
    if value is None:
        return "nothing"
    try:
        return _SHORT.repr(value)[:_MAX_SHOWN_LENGTH]
    except ValueError:  # Python formats no number of more than 4300 digits
        return "a very long number"


class _Loader(_BaseLoader):  # type: ignore[misc]  # the base is chosen at run time
    """PyYAML's safe loader, but a repeated key is an error and merge keys cannot fill the memory."""

    def construct_document(self, node: yaml.Node) -> Any:
        """Check for repeated keys, then build the document."""
        _check_keys(node)
        return super().construct_document(node)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Resolve merge keys, each key once; the base class would keep all repetitions."""
        super().flatten_mapping(node)
        pairs: dict[object, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            pairs[(key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)] = (key, value)
        node.value = list(pairs.values())


def _name(key: object) -> str:
    """A key for messages; in YAML it can be text, a number, a date or null."""
    if isinstance(key, str) and key.isprintable() and len(key) <= _MAX_SHOWN_LENGTH:
        return key
    return "null" if key is None else shown(key)


def _check_depth(text: str) -> None:
    """Refuse deep nesting: the loader, a recursive C function, would crash the interpreter."""
    depth = 0
    for event in yaml.parse(text, Loader=_BaseLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {_MAX_DEPTH} levels deep")


def _check_keys(root: yaml.Node) -> None:
    """Refuse a repeated key, anywhere in a document."""
    nodes, seen = [root], {id(root)}
    for node in nodes:  # grows in the loop: recursion could overflow the stack
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            names = set()
            for key, value in node.value:
                children += (key, value)
                if not isinstance(key, yaml.ScalarNode):
                    continue  # a list or a mapping, which the base class refuses
                if key.value in names:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {shown(key.value)} is repeated", key.start_mark
                    )
                names.add(key.value)
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        for child in children:
            if id(child) not in seen:  # an alias is the same node object as its anchor
                seen.add(id(child))
                nodes.append(child)


def _cut(message: str) -> str:
    return message if len(message) <= _MAX_MESSAGE_LENGTH else f"{message[:_MAX_MESSAGE_LENGTH]}..."


def parse_json(text: str | bytes, **arguments: Any) -> Any:
    """The value of a JSON text; arguments are those of `json.loads`.

    Raises:
        ValueError: The text is not JSON, or is nested deeper than Python's stack.
    """
    try:
        return json.loads(text, **arguments)
    except RecursionError as cause:
        raise ValueError("nested too deeply") from cause
