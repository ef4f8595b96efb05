"""What an encoder of `__main__` reaches there: run in processes of their own, as a notebook and as a script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SOURCE = """
import functools
import math
import torch
SIZE = 4
TABLE = torch.ones(4)
OPTIONS = {"power": 2}
unrelated = 1

def louder(function):
    @functools.wraps(function)
    def call(x):
        return function(x) * 1.5
    return call

@louder
def helper(x):
    return inner(x) * SIZE

def inner(x):
    return x + 1

def not_used(x):
    return x

class Base(torch.nn.Module):
    def scaled(self, x):
        return x * 2

class MyEncoder(Base):
    output_dim = 4
    kind = "plain"

    @staticmethod
    def shift(x):
        return x - 1

    @property
    def floor(self):
        return -3

    def forward(self, audio, mask=None, *, power=OPTIONS):
        # a comment
        x = audio.unfold(1, 400, 160)[..., :4] * TABLE
        sums = [helper(part) for part in x]
        return self.shift(self.scaled(torch.stack(sums))) + math.pi, None
"""

PROGRAM = """
import json, torch
from xares_bench.config.encoder_spec import spec_of_instance
from xares_bench.encoders.loading import load_encoder
from xares_bench.encoders.main_code import reached_main_code

found = reached_main_code([*MyEncoder.__mro__])
encoder = load_encoder(spec_of_instance(MyEncoder()), torch.device("cpu"))
print(json.dumps([encoder.fingerprint, sorted(found.digests), sorted(found.values), sorted(found.modules)]))
"""


def run(source: str, folder: Path, hash_seed: int = 0) -> tuple[str, list[str], list[str], list[str]]:
    """Fingerprint and what is reached, of a program that has no file, as a notebook's cells."""
    done = subprocess.run(
        [sys.executable, "-c", source + PROGRAM],
        cwd=folder,
        env={"PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    fingerprint, digests, values, modules = json.loads(done.stdout)
    return fingerprint, digests, values, modules


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run(SOURCE, tmp_path_factory.mktemp("plain"))[0]


def test_what_is_named_is_reached_and_nothing_else(tmp_path: Path) -> None:
    _, digests, values, modules = run(SOURCE, tmp_path)
    assert digests == sorted(
        [
            "Base",
            "MyEncoder",
            "MyEncoder.forward.0",
            "MyEncoder.kind",
            "MyEncoder.output_dim",
            "SIZE",
            "helper",
            "inner",
        ]
    )
    assert values == ["MyEncoder.forward.power", "TABLE"]
    assert {"math", "torch"} <= {*modules}
    assert "__main__" not in modules


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x + 1", "x + 2"),
        ("(x) * 1.5", "(x) * 2.5"),
        ("inner(x) * SIZE", "inner(x) / SIZE"),
        ("    @staticmethod", "    @staticmethod\n    @louder"),
        ("SIZE = 4", "SIZE = 5"),
        ("torch.ones(4)", "torch.zeros(4)"),
        ("x * 2", "x * 3"),
        ("x - 1", "x - 2"),
        ("-3", "-4"),
        ('"plain"', '"other"'),
        ("[..., :4] *", "[..., 1:5] *"),
        ("for part in x", "for part in x[:]"),
        ("return x + 1", "return x in {1, 2, 3} or x + 1"),
    ],
)
def test_what_is_reached_changes_the_fingerprint(plain: str, old: str, new: str, tmp_path: Path) -> None:
    assert SOURCE.count(old) == 1
    assert run(SOURCE.replace(old, new), tmp_path)[0] != plain


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("unrelated = 1", "unrelated = 2"),
        ("# a comment", "# another\n"),
        ("def not_used(x):\n", "def not_used(x, y):\n"),
    ],
)
def test_what_is_not_reached_does_not(plain: str, old: str, new: str, tmp_path: Path) -> None:
    assert run(SOURCE.replace(old, new), tmp_path, hash_seed=1)[0] == plain


def test_sets_have_the_same_digest_in_every_process(tmp_path: Path) -> None:
    source = SOURCE.replace("return x + 1", "return x if 'a' in {'a', 'b', 'c', 'd'} else x + 1")
    assert run(source, tmp_path, hash_seed=1)[0] == run(source, tmp_path, hash_seed=2)[0]


def test_a_script_counts_as_a_notebook_does(plain: str, tmp_path: Path) -> None:
    """What else the script does is no part of the encoder."""
    for name, more in (("first.py", ""), ("second.py", "\nprint_nothing = [1, 2, 3]\n")):
        (tmp_path / name).write_text(SOURCE + more + PROGRAM)
        done = subprocess.run(
            [sys.executable, name],
            cwd=tmp_path,
            env={"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout)[0] == plain
