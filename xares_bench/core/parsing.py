"""Reading what users write: YAML, JSON and paths. Every error names the file and the key."""

from __future__ import annotations

import datetime
import difflib
import json
import math
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from xares_bench.core.errors import UsageError
from xares_bench.core.yaml_text import MisreadWord, load_yaml

_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]')
_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]+)\})", re.ASCII)

_MAX_FILE_BYTES = 4 << 20
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
                self.fail(key, f"unknown key; expected one of {', '.join(known)}{did_you_mean(key, known)}")

    def has(self, key: str) -> bool:
        """Whether the key is present and not null."""
        return self.values.get(key) is not None

    def sections(self) -> Iterator[tuple[str, Section]]:
        """Every key with its mapping."""
        for key in self.values:
            yield key, self.section(key)

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
            self.fail(key, f"found {shown(value)}, expected non-empty text{_quotes(value)}")
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
            hint = next(filter(None, map(_quotes, items if isinstance(items, list) else [value])), "")
            self.fail(key, f"found {shown(value)}, expected non-empty text or a list of it{hint}")
        return tuple(items)

    def integer(self, key: str, *, at_least: int) -> int:
        """A whole number of at least `at_least`."""
        value = self._value(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            hint = f"; write {int(value)}" if isinstance(value, float) and value.is_integer() else ""
            self.fail(key, f"found {shown(value)}, expected a whole number of at least {at_least}{hint}")
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
                self.fail(key, f"found {shown(value)}, expected text, a number, true or false")
        return dict(self.values)

    def boolean(self, key: str) -> bool:
        """True or false."""
        value = self._value(key)
        if not isinstance(value, bool):
            self.fail(key, f"found {shown(value)}, expected true or false")
        return value

    def _place_of(self, key: str) -> str:
        return f"{self.place}.{_name(key)}" if self.place else _name(key)

    def _value(self, key: str) -> Any:
        if key not in self.values:
            self.fail(key, "missing")
        return self.values[key]


def read_yaml(path: Path, error: type[UsageError]) -> Section:
    """The mapping in a YAML file.

    Raises:
        UsageError: Of the given type: the file cannot be read, is not YAML, repeats a key, is not a mapping, or has a
            word that YAML takes for something else than its writer probably does.
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
        value = load_yaml(text)
    except MisreadWord as cause:
        raise error(f"{path}: {cause}") from None
    except ValueError as cause:
        raise error(f"{path}: not a valid YAML file: {cause}") from None
    if not isinstance(value, Mapping):
        raise error(f"{path}: found {shown(value)}, expected a mapping of keys to values")
    return Section(path, "", value, error)


def parse_json(text: str | bytes, *, unique_keys: bool = True, **arguments: Any) -> Any:
    """The value of a JSON text.

    Args:
        text: The text.
        unique_keys: Whether a repeated key is an error; if not, the last one counts.
        arguments: Those of `json.loads`.

    Raises:
        ValueError: The text is not JSON, or is nested deeper than Python's stack; a `RepeatedKeyError` where it repeats
            a key.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique_keys else None, **arguments)
    except RecursionError as cause:
        raise ValueError("nested too deeply") from cause
    except RepeatedKeyError:
        decoded = text if isinstance(text, str) else text.decode(json.detect_encoding(text), "surrogatepass")
        raise RepeatedKeyError(_repeated_in_json(decoded)) from None


def local_path(text: str) -> Path:
    """The path that a user names, in an option, an environment variable or a YAML file.

    `$NAME`, `${NAME}` and a `~` at the beginning are expanded. A relative path starts at the current directory.

    Raises:
        UsageError: An environment variable in it is not set.
    """
    for found in _VARIABLE.finditer(text):
        if (found[1] or found[2]) not in os.environ:
            raise UsageError(
                f"{text}: the environment variable {found[1] or found[2]} is not set; set it, or write it out"
            )
    return Path(os.path.expanduser(os.path.expandvars(text)))  # noqa: PTH111  # fails for an unknown user


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """A hint at the end of a message on an unknown name; empty if nothing known is like it.

    >>> did_you_mean("promt", ["prompt", "key"]), did_you_mean("lr", ["learning_rate"]), did_you_mean("x", ["prompt"])
    ('; did you mean prompt?', '; did you mean learning_rate?', '')
    """
    names = {name.lower(): name for name in known}
    alike = difflib.get_close_matches(found.lower(), names, n=1)
    alike = alike or [name for name in names if "".join(part[:1] for part in name.split("_")) == found.lower()]
    return f"; did you mean {names[alike[0]]}?" if alike else ""


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


class RepeatedKeyError(ValueError):
    """A JSON object has a key twice."""


def _name(key: str) -> str:
    """A key for messages."""
    return key if key.isprintable() and len(key) <= _MAX_SHOWN_LENGTH else shown(key)


def _quotes(value: object) -> str:
    """A hint for a value that should be text, but is a number, a date, true or false to YAML."""
    return "; put it in quotes if it is text" if isinstance(value, int | float | datetime.date) else ""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; for `json.loads`."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RepeatedKeyError
    return found


def _repeated_in_json(text: str) -> str:
    """Say which key a JSON text repeats, and where; `json` tells no places."""
    objects: list[dict[str, int] | None] = []  # places of the keys of every open object; None: a list
    before = ""
    for found in _JSON_TOKEN.finditer(text):
        token = found[0]
        keys = objects[-1] if objects else None
        if token in "{[":
            objects.append({} if token == "{" else None)
        elif token in "}]":
            objects.pop()
        elif token[0] == '"' and before in "{," and keys is not None:
            key = json.loads(token, strict=False)
            if key in keys:
                first, second = (_line_and_column(text, place) for place in (keys[key], found.start()))
                return f"the key {shown(key)} is repeated: {first} and {second}"
            keys[key] = found.start()
        before = token[0]
    raise AssertionError(text)


def _line_and_column(text: str, place: int) -> str:
    return f"line {text.count(chr(10), 0, place) + 1}, column {place - text.rfind(chr(10), 0, place)}"


def _cut(message: str) -> str:
    return message if len(message) <= _MAX_MESSAGE_LENGTH else f"{message[:_MAX_MESSAGE_LENGTH]}..."
