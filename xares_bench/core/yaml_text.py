"""YAML text to values, by rules that leave no word open: keys are text and unique, no number is octal or base 60.

PyYAML follows YAML 1.1, where `no:` is the key false, `010` is 8, `1:30` is 90 and `1e-1` is text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What PyYAML takes for text, though YAML 1.2 and Python take it for a number: an exponent without a point or a sign.
_EXPONENT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")
_FLOAT = "tag:yaml.org,2002:float"
_INTEGER = "tag:yaml.org,2002:int"
_TEXT = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"
_VALUE = "tag:yaml.org,2002:value"
_KINDS = {
    "tag:yaml.org,2002:bool": "true or false",
    "tag:yaml.org,2002:null": "null",
    "tag:yaml.org,2002:timestamp": "a date",
    _FLOAT: "a number",
    _INTEGER: "a number",
}
_RARE_BREAKS = re.compile(r"[\x85\u2028\u2029]")
# 010, which is 8 to YAML 1.1.
_OCTAL = re.compile(r"[-+]?0[0-7_]+$")

_MAX_DEPTH = 100
_MAX_SHOWN_LENGTH = 60
_MAX_MESSAGE_LENGTH = 1000


class MisreadWord(ValueError):
    """A word that YAML takes for something else than its writer probably does."""


def load_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: It is not YAML; a `MisreadWord` where it is, but probably means something else.
    """
    try:
        _check_depth(text)
        return yaml.load(text, Loader=_Loader)
    except MisreadWord:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as cause:  # e.g. of the date 2024-99-99
        raise ValueError(" ".join(str(cause).split())[:_MAX_MESSAGE_LENGTH]) from None
    except (AttributeError, LookupError):  # PyYAML's own, e.g. of !!bool x
        raise ValueError("found a value that is not of the type that its tag names") from None


def dump_yaml(value: object) -> str:
    """YAML that `read_yaml` reads back: text that it takes for a number is in quotes."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(_BaseLoader):  # type: ignore[misc]  # the base is chosen at run time
    """PyYAML's safe loader, but keys are text and unique, and merges cannot fill the memory."""

    def construct_document(self, node: yaml.Node) -> Any:
        """Check keys and numbers, then build the document."""
        _check_words(node)
        return super().construct_document(node)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Resolve merge keys, each key once; the base class would keep all repetitions."""
        super().flatten_mapping(node)
        pairs: dict[object, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            pairs[(key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)] = (key, value)
        node.value = list(pairs.values())


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, but text that `_Loader` takes for a number is in quotes, and rare line breaks are kept."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Put text with line breaks that YAML reads as blanks in double quotes, where they are escaped."""
        return self.represent_scalar(_TEXT, data, style='"' if _RARE_BREAKS.search(data) else None)


_Dumper.add_representer(str, _Dumper.represent_str)

for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))
for _tag in (_MERGE, _VALUE):  # the words << and =, which PyYAML has no value for
    _Loader.add_constructor(_tag, _Loader.construct_yaml_str)


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


def _check_words(root: yaml.Node) -> None:
    """Refuse keys that are repeated or not text, and octal and base-60 numbers, anywhere in a document."""
    nodes, seen = [root], {id(root)}
    for node in nodes:  # grows in the loop: recursion could overflow the stack
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        elif node.tag in (_INTEGER, _FLOAT) and (":" in node.value or _OCTAL.match(node.value)):
            kind = "base 60" if ":" in node.value else "octal"
            raise MisreadWord(
                f"{_place(node.start_mark)}: found {_short(node.value)}, which is a number in {kind} to YAML; write "
                "it in decimal without leading zeros, or put it in quotes if it is text"
            )
        for child in children:
            if id(child) not in seen:  # an alias is the same node object as its anchor
                seen.add(id(child))
                nodes.append(child)


def _check_keys(mapping: yaml.MappingNode) -> None:
    """Refuse keys that are repeated or not text."""
    places: dict[str, yaml.Mark] = {}
    for key, _ in mapping.value:
        if not isinstance(key, yaml.ScalarNode):
            continue  # a list or a mapping, which the base class refuses
        if key.tag not in (_TEXT, _MERGE, _VALUE):
            kind = _KINDS.get(key.tag, "no text")
            raise MisreadWord(
                f"{_place(key.start_mark)}: found the key {_short(key.value)}, which is {kind} to YAML, expected text; "
                "put it in quotes"
            )
        if key.value in places:
            raise yaml.YAMLError(
                f"the key {_short(key.value)} is repeated: {_place(places[key.value])} and {_place(key.start_mark)}"
            )
        places[key.value] = key.start_mark


def _place(mark: yaml.Mark) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _short(word: str) -> str:
    return repr(word[:_MAX_SHOWN_LENGTH])
