"""Reading YAML so that whatever is wrong with it is said with file and key."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from xares_bench.errors import UsageError

_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Section:
    """A mapping of a YAML file that knows where it stands.

    Its methods return a key's value in the type asked for, or raise the file's error naming file, key, what was found
    and what was expected.
    """

    file: Path
    place: str
    values: Mapping[str, Any]
    error: type[UsageError]

    def fail(self, key: str | None, message: str) -> NoReturn:
        """Raise the file's error, naming file and key."""
        where = ".".join(part for part in (self.place, "" if key is None else str(key)) if part)
        raise self.error(f"{self.file}: {where + ': ' if where else ''}{message}")

    def only(self, *known: str) -> None:
        """Refuse keys that are not known here."""
        for key in self.values:
            if key not in known:
                self.fail(str(key), f"unknown key; expected one of {', '.join(known)}")

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(key) is not None

    def sections(self) -> Iterator[tuple[str, Section]]:
        """Every key with its mapping."""
        for key in self.values:
            yield str(key), self.section(key)

    def section(self, key: str) -> Section:
        """The mapping under a key."""
        value = self._value(key)
        if not isinstance(value, Mapping):
            self.fail(key, f"found {_found(value)}, expected a mapping of keys to values")
        place = f"{self.place}.{key}" if self.place else str(key)
        return Section(self.file, place, value, self.error)

    def text(self, key: str) -> str:
        """A non-empty string."""
        value = self._value(key)
        if not isinstance(value, str) or not value.strip():
            self.fail(key, f"found {_found(value)}, expected a non-empty text")
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
            self.fail(key, f"found {_found(value)}, expected a text or a list of texts")
        return tuple(items)

    def integer(self, key: str, *, at_least: int) -> int:
        """A whole number, no less than the bound."""
        value = self._value(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            self.fail(key, f"found {_found(value)}, expected a whole number of at least {at_least}")
        return value

    def number(self, key: str, *, above: float = -math.inf) -> float:
        """A finite number above the bound."""
        value = self._value(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= above:
            bound = f" above {above:g}" if above > -math.inf else ""
            self.fail(key, f"found {_found(value)}, expected a finite number{bound}")
        return float(value)

    def _value(self, key: str) -> Any:
        if key not in self.values:
            self.fail(key, "missing")
        return self.values[key]


def read_yaml(path: Path, error: type[UsageError]) -> Section:
    """The mapping that a YAML file holds.

    Raises:
        UsageError: Of the given type: the file cannot be read, is not YAML, repeats a key or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{path}: cannot be read as UTF-8 text: {cause}") from None
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as cause:  # e.g. of the date 2024-99-99
        raise error(f"{path}: not a valid YAML file: {' '.join(str(cause).split())}") from None
    if not isinstance(value, Mapping):
        raise error(f"{path}: found {_found(value)}, expected a mapping of keys to values")
    return Section(path, "", value, error)


class _UniqueKeyLoader(_BaseLoader):  # type: ignore[misc]  # the base is chosen at run time
    """The safe loader, except that a repeated key is an error and not a silent replacement."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping from keys that all differ."""
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # a list or a mapping: the base class refuses it
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands there twice", key_node.start_mark
                )
            seen.add(key_node.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _found(value: Any) -> str:
    return "nothing" if value is None else f"{value!r}"[:80]
