"""Digests: the same for the same, another for anything else, whatever the order, layout or size."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xares_bench.core import digests
from xares_bench.core.digests import code_digest, digest_of, file_digest, installed_editions, library_versions

PLAIN = '''\
"""A module."""

import math


class Shape:
    """A shape."""

    def area(self, radius):
        """Area of it."""
        return math.pi * radius**2

    async def later(self):
        """Later."""
        return "a # is no comment here"
'''

SAME_BEHAVIOUR = {
    "comments": PLAIN.replace("import math", "import math  # for pi") + "\n# the end\n",
    "docstrings": PLAIN.replace("A module.", "Another sentence.")
    .replace("A shape.", "A round one.")
    .replace("Area of it.", "pi r^2")
    .replace("Later.", "Not now."),
    "no docstrings": PLAIN.replace('"""A module."""', "")
    .replace('    """A shape."""\n', "")
    .replace('        """Area of it."""\n', "")
    .replace('        """Later."""\n', ""),
    "layout": PLAIN.replace("radius**2", "(\n            radius ** 2\n        )").replace("\n\n\n", "\n\n"),
    "quotes": PLAIN.replace('"a # is no comment here"', "'a # is no comment here'"),
}

OTHER_BEHAVIOUR = {
    "number": PLAIN.replace("radius**2", "radius**3"),
    "operator": PLAIN.replace("* radius", "+ radius"),
    "string": PLAIN.replace("a # is no comment here", "a # is no comment"),
    "name": PLAIN.replace("def area", "def surface"),
    "default": PLAIN.replace("self, radius", "self, radius=1"),
    "import": PLAIN.replace("import math", "import cmath as math"),
    "order": PLAIN.replace("import math", "math = 1; import math"),
    "a string that is no docstring": PLAIN.replace('"""Area of it."""', 'radius = "Area of it."'),
}


@pytest.fixture
def digest_of_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The code digest of a module `someones_module` with the given source."""

    def digest(source: str) -> str:
        folder = tmp_path / hashlib.sha256(source.encode()).hexdigest()[:8]
        folder.mkdir(exist_ok=True)
        (folder / "someones_module.py").write_text(source, encoding="utf-8")
        with monkeypatch.context() as patched:
            patched.syspath_prepend(str(folder))
            code_digest.cache_clear()
            digests._syntax_digest.cache_clear()
            return code_digest("someones_module")

    return digest


def test_key_order_does_not_count() -> None:
    assert digest_of({"b": {"y": 1, "x": 2}, "a": [1, None]}) == digest_of({"a": [1, None], "b": {"x": 2, "y": 1}})


def test_digest_is_sha256_of_canonical_json() -> None:
    assert digest_of({"b": [1.5, True, None], "a": "é"}) == (
        hashlib.sha256(b'{"a":"\\u00e9","b":[1.5,true,null]}').hexdigest()
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": True}),
        ({"a": None}, {}),
        ({"a": "1"}, {"a": 1}),
        ("ab", ["a", "b"]),
        (0.1, 0.1 + 2**-56),
        ({"a": {"b": 1}}, {"a": {}, "b": 1}),
    ],
)
def test_different_values_have_different_digests(one: Any, other: Any) -> None:
    assert digest_of(one) != digest_of(other)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_of({"learning_rate": [value]})


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", Path("x"), np.float32(1.0)])
def test_what_json_has_no_form_for_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        digest_of({"value": value})


def test_digest_is_the_same_in_another_process() -> None:
    program = "from xares_bench.core.digests import digest_of; print(digest_of({'b': 1, 'a': ['x', 2.5]}))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == digest_of({"a": ["x", 2.5], "b": 1})


@pytest.mark.parametrize("size_bytes", [0, 1, (1 << 20) - 1, 1 << 20, 3 * (1 << 20) + 17])
def test_file_digest_is_that_of_all_bytes(tmp_path: Path, size_bytes: int) -> None:
    data = np.random.default_rng(size_bytes).bytes(size_bytes)
    path = tmp_path / "file"
    path.write_bytes(data)
    assert file_digest(path) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("change", SAME_BEHAVIOUR)
def test_code_digest_ignores(digest_of_source: Callable[[str], str], change: str) -> None:
    assert SAME_BEHAVIOUR[change] != PLAIN
    assert digest_of_source(SAME_BEHAVIOUR[change]) == digest_of_source(PLAIN)


@pytest.mark.parametrize("change", OTHER_BEHAVIOUR)
def test_code_digest_sees(digest_of_source: Callable[[str], str], change: str) -> None:
    assert OTHER_BEHAVIOUR[change] != PLAIN
    assert digest_of_source(OTHER_BEHAVIOUR[change]) != digest_of_source(PLAIN)


def test_code_digest_sees_a_body_that_became_empty(digest_of_source: Callable[[str], str]) -> None:
    assert digest_of_source('def f():\n    """Do."""\n    return 1\n') != digest_of_source('def f():\n    """Do."""\n')


def test_code_digest_is_over_a_set_of_modules() -> None:
    both = code_digest("xares_bench.core.errors", "xares_bench.core.store")
    assert both == code_digest("xares_bench.core.store", "xares_bench.core.errors")
    assert both != code_digest("xares_bench.core.errors")
    assert both != code_digest("xares_bench.core.errors", "xares_bench.core.digests")


def test_code_digest_does_not_run_the_module(digest_of_source: Callable[[str], str]) -> None:
    assert len(digest_of_source("raise SystemExit('it ran')\n")) == 64


def test_library_versions_name_what_is_absent() -> None:
    assert library_versions(["numpy", "no-such-distribution"]) == {
        "numpy": np.__version__,
        "no-such-distribution": "absent",
    }


def test_a_version_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def version(name: str) -> str:
        asked.append(name)
        return "1.0"

    monkeypatch.setattr("importlib.metadata.version", version)
    for _ in range(3):
        assert library_versions(["asked-for-once"]) == {"asked-for-once": "1.0"}
    assert asked == ["asked-for-once"]


def test_an_edition_is_a_version_and_the_files_that_were_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without scripts, byte code and the folder of the metadata, which differ from one environment to another."""
    monkeypatch.syspath_prepend(tmp_path)

    def edition(name: str, record: str | None) -> str:
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        if record is not None:
            (folder / "RECORD").write_text(record)
        return installed_editions([name])[name]

    files = "a.py,sha256=AAA,1\nb.py,sha256=BBB,2\n"
    first = edition("first", files)
    assert first.startswith("1.0 ")
    noise = "../../bin/a,sha256=X,1\n__pycache__/a.pyc,,\nnoise-1.0.dist-info/direct_url.json,sha256=Y,3\n"
    assert edition("noise", noise + files) == first
    assert edition("order", "b.py,sha256=BBB,2\na.py,sha256=AAA,1\n") == first
    assert edition("other", files.replace("BBB", "CCC")) != first
    assert edition("unrecorded", None) == "1.0"
    assert installed_editions(["no-such-distribution"]) == {"no-such-distribution": "absent"}
