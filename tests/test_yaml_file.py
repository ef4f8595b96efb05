"""YAML files: whatever is wrong with one is said in one line with file, key, what was found and what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from xares_bench.errors import BaselineError, CatalogueError
from xares_bench.yaml_file import Section, read_yaml

Read = Callable[[str], Section]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(text: str) -> Section:
        path = tmp_path / "some.yaml"
        path.write_text(text, encoding="utf-8")
        return read_yaml(path, CatalogueError)

    return read


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(CatalogueError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_values_come_back_in_their_types(read: Read) -> None:
    section = read(
        "text: a word\ntexts: [a, b]\nlone: c\ninteger: 3\nnumber: 2\nsmall: 1.0e-4\nempty:\nin: {deep: {x: 1}}"
    )
    assert section.text("text") == "a word"
    assert section.texts("texts") == ("a", "b")
    assert section.texts("lone") == ("c",)
    assert section.integer("integer", at_least=3) == 3
    assert section.number("number", above=1) == 2.0
    assert isinstance(section.number("number"), float)
    assert section.number("small") == 1e-4
    assert section.section("in").section("deep").integer("x", at_least=0) == 1
    assert section.has("text")
    assert not section.has("empty")
    assert not section.has("absent")
    assert [key for key, _ in section.section("in").sections()] == ["deep"]


@pytest.mark.parametrize("value", ["3", "true", "[a]", "{a: b}", "''", "'  '", "", "2.5", "2024-01-31"])
def test_text_refuses(read: Read, value: str) -> None:
    message = message_of(lambda: read(f"outer: {{inner: {value}}}").section("outer").text("inner"))
    assert "some.yaml: outer.inner: found " in message
    assert "expected a non-empty text" in message


@pytest.mark.parametrize("value", ["3", "[]", "[a, 3]", "[a, '']", "''", "[[a]]", "{a: b}", "", "[a, null]"])
def test_texts_refuses(read: Read, value: str) -> None:
    message = message_of(lambda: read(f"key: {value}").texts("key"))
    assert "some.yaml: key: found " in message
    assert "expected a text or a list of texts" in message


@pytest.mark.parametrize("value", ["0", "-1", "1.0", "true", "'1'", "[1]", "", "1e3", ".nan"])
def test_integer_refuses(read: Read, value: str) -> None:
    message = message_of(lambda: read(f"key: {value}").integer("key", at_least=1))
    assert "some.yaml: key: found " in message
    assert "expected a whole number of at least 1" in message


@pytest.mark.parametrize("value", ["0", "-1.5", ".nan", ".inf", "-.inf", "true", "'1'", "[1]", "", "1e-3"])
def test_number_refuses(read: Read, value: str) -> None:
    message = message_of(lambda: read(f"key: {value}").number("key", above=0))
    assert "some.yaml: key: found " in message
    assert "expected a finite number above 0" in message


def test_number_without_bound(read: Read) -> None:
    assert read("key: -1.5").number("key") == -1.5
    assert message_of(lambda: read("key: .nan").number("key")).endswith("found nan, expected a finite number")


@pytest.mark.parametrize("value", ["3", "text", "[a]", "", "true"])
def test_section_refuses(read: Read, value: str) -> None:
    message = message_of(lambda: read(f"key: {value}").section("key"))
    assert "some.yaml: key: found " in message
    assert "expected a mapping of keys to values" in message


def test_the_value_found_is_shown_and_cut(read: Read) -> None:
    assert "found 'seven', expected" in message_of(lambda: read("key: seven").integer("key", at_least=1))
    assert "found nothing, expected" in message_of(lambda: read("key:").text("key"))
    assert len(message_of(lambda: read(f"key: [{'x' * 5000}]").text("key"))) < 300


@pytest.mark.parametrize(
    "call",
    [
        lambda section: section.text("absent"),
        lambda section: section.texts("absent"),
        lambda section: section.integer("absent", at_least=0),
        lambda section: section.number("absent"),
        lambda section: section.section("absent"),
    ],
    ids=["text", "texts", "integer", "number", "section"],
)
def test_a_missing_key_is_said_to_be_missing(read: Read, call: Callable[[Section], object]) -> None:
    assert message_of(lambda: call(read("outer: {x: 1}").section("outer"))).endswith("some.yaml: outer.absent: missing")


def test_unknown_keys_are_refused_with_the_known_ones(read: Read) -> None:
    section = read("outer: {prompt: a, promt: b}").section("outer")
    assert message_of(lambda: section.only("prompt", "key")).endswith(
        "some.yaml: outer.promt: unknown key; expected one of prompt, key"
    )
    section.only("prompt", "promt", "more")


@pytest.mark.parametrize("text", ["1: text", "true: text", "2.5: text", "2024-01-31: text", "null: text"])
def test_keys_that_are_no_text_are_named_too(read: Read, text: str) -> None:
    section = read(text)
    assert "found 'text', expected a mapping" in message_of(lambda: list(section.sections()))
    assert "unknown key; expected one of a, b" in message_of(lambda: section.only("a", "b"))


def test_the_error_is_of_the_type_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "base.yaml"
    path.write_text("scores: 3\n")
    with pytest.raises(BaselineError, match=r"base\.yaml: scores: found 3, expected a mapping"):
        read_yaml(path, BaselineError).section("scores")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", "the key 'a' stands there twice"),
        ("outer:\n  x: 1\n  y: 2\n  x: 1\n", "the key 'x' stands there twice"),
        ("outer: {x: 1, x: 2}\n", "line 1, column 15"),
        ("- {x: 1, x: 2}\n", "the key 'x' stands there twice"),
    ],
)
def test_a_repeated_key_is_an_error(read: Read, text: str, said: str) -> None:
    message = message_of(lambda: read(text))
    assert "some.yaml: not a valid YAML file" in message
    assert said in message


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, 2\n",
        "a: b: c\n",
        "a: 'open\n",
        "\ta: 1\n",
        "a: *unknown\n",
        "a: !!python/object/apply:os.getcwd []\n",
        "a: 1\n---\nb: 2\n",
        "? [a, b]\n: c\n",
        "{{a: b}: c}\n",
        "data: [PATH{00..10}.tar]\n",
        "a: 2024-99-99\n",
        "a: !!int x\n",
        f"a: {'9' * 5000}\n",
        "a: \x00\n",
        "[" * 2000,
    ],
    ids=range(15),
)
def test_what_is_not_yaml_is_said_in_one_line(read: Read, text: str) -> None:
    assert "some.yaml: not a valid YAML file: " in message_of(lambda: read(text))


@pytest.mark.parametrize(
    ("text", "found"),
    [("- a\n- b\n", "['a', 'b']"), ("word\n", "'word'"), ("", "nothing"), ("# a comment\n", "nothing")],
)
def test_a_file_that_holds_no_mapping(read: Read, text: str, found: str) -> None:
    message = message_of(lambda: read(text))
    assert message.endswith(f"some.yaml: found {found}, expected a mapping of keys to values")


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "absent.yaml"
    assert message_of(lambda: read_yaml(path, CatalogueError)) == f"{path}: no such file"


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    message = message_of(lambda: read_yaml(tmp_path, CatalogueError))
    assert message.startswith(f"{tmp_path}: cannot be read as UTF-8 text: ")


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("prompt: café\n".encode("latin-1"))
    message = message_of(lambda: read_yaml(path, CatalogueError))
    assert message.startswith(f"{path}: cannot be read as UTF-8 text: ")


def test_anchors_and_merges_are_fine(read: Read) -> None:
    section = read("one: &one {prompt: a, key: b}\ntwo: *one\nthree: {<<: *one, key: c}\n")
    assert section.section("two").values == {"prompt": "a", "key": "b"}
    assert section.section("three").values == {"prompt": "a", "key": "c"}
    assert math.isclose(read("x: &x 2.5\ny: *x\n").number("y"), 2.5)
