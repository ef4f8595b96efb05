"""YAML files: every error is one line with file, key, what was found and what was expected."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xares_bench.core.errors import BaselineError, CatalogueError, UsageError
from xares_bench.core.parsing import RepeatedKeyError, Section, did_you_mean, local_path, parse_json, read_yaml

Read = Callable[[str], Section]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(text: str) -> Section:
        path = tmp_path / "some.yaml"
        path.write_text(text, encoding="utf-8")
        return read_yaml(path, CatalogueError)

    return read


def message_of(call: Callable[[], object], *, at_most: int = 400) -> str:
    with pytest.raises(CatalogueError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < at_most
    return message


def test_values_come_back_in_their_types(read: Read) -> None:
    section = read(
        "text: a word\ntexts: [a, b]\nlone: c\ninteger: 3\nnumber: 2\nsmall: 1.0e-4\nempty:\nin: {deep: {x: 1}}\n"
        "'false': no\nmixed: {a: b, c: 3, '4': true}"
    )
    assert section.text("text") == "a word"
    assert section.texts("texts") == ("a", "b")
    assert section.texts("lone") == ("c",)
    assert section.integer("integer", at_least=3) == 3
    assert section.number("number", above=1) == 2.0
    assert isinstance(section.number("number"), float)
    assert section.number("small") == 1e-4
    assert section.section("in").section("deep").integer("x", at_least=0) == 1
    assert section.boolean("false") is False
    assert section.section("mixed").scalars() == {"a": "b", "c": 3, "4": True}
    assert section.has("text")
    assert not section.has("empty")
    assert not section.has("absent")
    assert [key for key, _ in section.section("in").sections()] == ["deep"]


@pytest.mark.parametrize("value", ["3", "true", "[a]", "{a: b}", "''", "'  '", "", "2.5", "2024-01-31"])
def test_text_refuses(read: Read, value: str) -> None:
    message = message_of(lambda: read(f"outer: {{inner: {value}}}").section("outer").text("inner"))
    assert "some.yaml: outer.inner: found " in message
    assert "expected non-empty text" in message


@pytest.mark.parametrize("value", ["3", "[]", "[a, 3]", "[a, '']", "''", "[[a]]", "{a: b}", "", "[a, null]"])
def test_texts_refuses(read: Read, value: str) -> None:
    message = message_of(lambda: read(f"key: {value}").texts("key"))
    assert "some.yaml: key: found " in message
    assert "expected non-empty text or a list of it" in message


@pytest.mark.parametrize("value", ["0", "'no'", "[true]", ""])
def test_boolean_refuses(read: Read, value: str) -> None:
    message = message_of(lambda: read(f"key: {value}").boolean("key"))
    assert "some.yaml: key: found " in message
    assert message.endswith(", expected true or false")


@pytest.mark.parametrize("value", ["[3]", "{b: 3}", "", "2024-01-31"])
def test_scalars_refuses(read: Read, value: str) -> None:
    message = message_of(lambda: read(f"outer: {{good: 3, bad: {value}}}").section("outer").scalars())
    assert "some.yaml: outer.bad: found " in message
    assert message.endswith(", expected text, a number, true or false")


@pytest.mark.parametrize("value", ["0", "-1", "1.0", "true", "'1'", "[1]", "", "1e3", ".nan"])
def test_integer_refuses(read: Read, value: str) -> None:
    message = message_of(lambda: read(f"key: {value}").integer("key", at_least=1))
    assert "some.yaml: key: found " in message
    assert "expected a whole number of at least 1" in message


@pytest.mark.parametrize("value", ["0", "-1.5", ".nan", ".inf", "-.inf", "true", "'1'", "[1]", "", "one"])
def test_number_refuses(read: Read, value: str) -> None:
    message = message_of(lambda: read(f"key: {value}").number("key", above=0))
    assert "some.yaml: key: found " in message
    assert "expected a finite number above 0" in message


@pytest.mark.parametrize("value", ["9" * 400, "0x" + "f" * 5000, "-0x" + "f" * 5000], ids=["decimal", "hex", "minus"])
def test_numbers_beyond_every_range_are_refused_too(read: Read, value: str) -> None:
    section = read(f"key: {value}")
    assert "some.yaml: key: found " in message_of(lambda: section.number("key"))
    assert "some.yaml: key: found " in message_of(lambda: section.integer("key", at_least=0))
    assert "some.yaml: key: found " in message_of(lambda: section.text("key"))


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
def test_a_missing_key_is_reported_as_missing(read: Read, call: Callable[[Section], object]) -> None:
    assert message_of(lambda: call(read("outer: {x: 1}").section("outer"))).endswith("some.yaml: outer.absent: missing")


def test_unknown_keys_are_refused_with_the_known_ones(read: Read) -> None:
    section = read("outer: {prompt: a, promt: b}").section("outer")
    assert message_of(lambda: section.only("prompt", "key")).endswith(
        "some.yaml: outer.promt: unknown key; expected one of prompt, key; did you mean prompt?"
    )
    section.only("prompt", "promt", "more")


def test_the_error_is_of_the_type_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "base.yaml"
    path.write_text("scores: 3\n")
    with pytest.raises(BaselineError, match=r"base\.yaml: scores: found 3, expected a mapping"):
        read_yaml(path, BaselineError).section("scores")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\na: 2\n", "the key 'a' is repeated"),
        ("outer:\n  x: 1\n  y: 2\n  x: 1\n", "the key 'x' is repeated"),
        ("outer: {x: 1, x: 2}\n", "line 1, column 15"),
        ("- {x: 1, x: 2}\n", "the key 'x' is repeated"),
    ],
)
def test_a_repeated_key_is_an_error(read: Read, text: str, expected: str) -> None:
    message = message_of(lambda: read(text))
    assert "some.yaml: not a valid YAML file" in message
    assert expected in message


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
        "[" * 200_000,
        "- " * 2000,
        "{a: " * 101 + "}" * 101,
        f"*{'a' * 5000}",
        f"a: 1\n? '{'b' * 5000}'\n: 2\n? '{'b' * 5000}'\n: 3\n",
    ],
    ids=range(20),
)
def test_what_is_not_yaml_is_said_in_one_line(read: Read, text: str) -> None:
    assert "some.yaml: not a valid YAML file: " in message_of(lambda: read(text), at_most=1200)


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


def test_a_shard_given_for_a_yaml_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "large.tar"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole, which takes no room
    assert message_of(lambda: read_yaml(path, CatalogueError)) == (
        f"{path}: larger than 4 MiB, expected a YAML file written by hand"
    )


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "notepad.yaml"
    path.write_bytes(b"\xef\xbb\xbftrain_data: here\r\n")
    assert read_yaml(path, CatalogueError).text("train_data") == "here"


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


def test_a_merge_may_come_before_what_it_merges_is_built(read: Read) -> None:
    section = read("outer:\n  inner: &inner\n    <<: &base {x: 1, y: 2}\n    x: 3\nlast: {<<: [*inner, *base], z: 4}\n")
    assert section.section("outer").section("inner").values == {"x": 3, "y": 2}
    assert section.section("last").values == {"x": 3, "y": 2, "z": 4}


def test_a_repeated_key_is_found_behind_an_alias_too(read: Read) -> None:
    text = "outer: {inner: &inner {x: 1, x: 2}}\nlast: {<<: *inner}\n"
    assert "the key 'x' is repeated" in message_of(lambda: read(text))


def test_aliases_that_stand_for_billions_of_words_cost_nothing(read: Read) -> None:
    lists = ["a0: &a0 [word, word]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))]
    section = read("\n".join(lists))
    for refuse in (section.text, section.texts, section.number, section.boolean, section.section):
        assert "some.yaml: a11: found [" in message_of(lambda refuse=refuse: refuse("a11"))  # type: ignore[misc]
    assert "some.yaml: a0: unknown key" in message_of(lambda: section.only("b"))
    assert message_of(section.scalars).endswith("expected text, a number, true or false")


def test_merges_that_stand_for_billions_of_keys_cost_nothing(read: Read) -> None:
    merges = ["a0: &a0 {x: 1, y: 2}"]
    merges += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}], z: {n}}}" for n in range(1, 12)]
    assert read("\n".join(merges)).section("a11").values == {"x": 1, "y": 2, "z": 11}


def test_what_holds_itself_is_refused_like_anything_else(read: Read) -> None:
    assert "found [[" in message_of(lambda: read("a: &a [*a]").texts("a"))
    assert read("a: &a {<<: *a, x: 1}").section("a").values == {"x": 1}


@pytest.mark.parametrize("key", [r'"a\nb"', "k" * 5000, r'"\e[31m"'])
def test_odd_keys_are_named_on_one_line(read: Read, key: str) -> None:
    message = message_of(lambda: read(f"outer:\n  ? {key}\n  : 1\n").section("outer").only("a"))
    assert "unknown key; expected one of a" in message
    assert message.isprintable()


def test_a_path_has_its_home_and_its_variables_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("CORPUS", "/data")
    assert local_path("~/runs") == Path("/home/somebody/runs")
    assert local_path("$CORPUS/a") == local_path("${CORPUS}/a") == Path("/data/a")
    assert local_path("a/~/b") == Path("a/~/b")


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    for text in ("$NOWHERE/a", "${NOWHERE}/a", "~/$NOWHERE"):
        with pytest.raises(UsageError, match=re.escape(f"{text}: the environment variable NOWHERE is not set")):
            local_path(text)


@pytest.mark.parametrize("text", ["a$", "a$$", "${}", "a$ b", "a b", "~nobody-of-this-name/a"])
def test_what_names_no_variable_and_no_home_stays(text: str) -> None:
    assert local_path(text) == Path(text)


def test_examples_of_hints() -> None:
    assert did_you_mean("promt", ["prompt", "key"]) == "; did you mean prompt?"
    assert did_you_mean("lr", ["seed", "learning_rate"]) == "; did you mean learning_rate?"
    assert did_you_mean("STEPS", ["steps"]) == "; did you mean steps?"
    assert did_you_mean("entirely other", ["prompt"]) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' is repeated: line 1, column 2 and line 1, column 10"),
        ('{"x": [{"b": 1,\n  "b": 2}]}', "the key 'b' is repeated: line 1, column 9 and line 2, column 3"),
        ('{"a": 1, "\\u0061": 2}', "the key 'a' is repeated: line 1, column 2 and line 1, column 10"),
        ('{"}": "{", "a": {"a": 1}, "}": 2}', "the key '}' is repeated: line 1, column 2 and line 1, column 27"),
    ],
)
def test_a_repeated_key_of_json_names_both_places(text: str, said: str) -> None:
    for form in (text, text.encode()):
        with pytest.raises(RepeatedKeyError) as caught:
            parse_json(form)
        assert str(caught.value) == said
    assert parse_json(text, unique_keys=False) == json.loads(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, min_size=1, max_size=4), st.data())
def test_a_repeated_key_of_json_is_found_at_any_place(value: dict[str, Any], data: st.DataObject) -> None:
    assert parse_json(json.dumps(value)) == value
    pairs = [(key, json.dumps(value[key])) for key in value]
    key = data.draw(st.sampled_from(list(value)))
    pairs.insert(data.draw(st.integers(0, len(pairs))), (key, "null"))
    text = "[{" + ", ".join(f"{json.dumps(name)}: {content}" for name, content in pairs) + "}]"
    with pytest.raises(RepeatedKeyError) as caught:
        parse_json(text)
    columns = [int(column) for column in re.findall(r"line 1, column (\d+)", str(caught.value))]
    assert [text[column - 1 :].startswith(f"{json.dumps(key)}: ") for column in columns[-2:]] == [True, True]
