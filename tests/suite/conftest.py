"""A plan over two small shards of one own dataset, trained for two steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.config.test_plan import plan
from tests.conftest import REPOSITORY
from tests.shard_factory import tone, write_shard
from xares_bench.config.plan import Plan
from xares_bench.core.progress import Progress
from xares_bench.suite.suite import Suite

MakePlan = Callable[..., Plan]
MakeSuite = Callable[..., Suite]

# Two shards that use the same keys for different clips.
TRAIN = "train_data: {mine: {prompt: What?, data: 'train_*.tar', key: label}}\n"
EVAL = "mine: {data: {data: 'test_*.tar', key: label, prompt: [What?, Which?]}, metric: Accuracy}\n"


@pytest.fixture
def make_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePlan:
    """Makes plans over the dataset, with these changes to the recipe and these options."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XARES_DATA_HOME", raising=False)
    for split in ("train", "test"):
        for number in range(2):
            clips = [(f"clip-{i}", tone(0.2, 150 + 90 * number + 40 * i), {"label": f"w{i}"}) for i in range(2)]
            write_shard(tmp_path / f"{split}_{number}.tar", clips)
    (tmp_path / "train.yaml").write_text(TRAIN)
    (tmp_path / "eval.yaml").write_text(EVAL)

    def make(*changes: str, **options: object) -> Plan:
        defaults = {
            "encoder": str(REPOSITORY / "examples" / "logmel_encoder.py"),
            "train": "train.yaml",
            "evaluate": "eval.yaml",
        }
        few = ("steps=2", "batch_size=2", "shuffle_buffer=4", "sort_window=4", "max_new_tokens=2")
        by_key = {change.partition("=")[0]: change for change in (*few, *changes)}
        return plan(*by_key.values(), **{**defaults, **options})

    return make


@pytest.fixture
def make_suite(make_plan: MakePlan) -> MakeSuite:
    """Makes suites of such plans; those of one test share the cache."""
    return lambda *changes, **options: Suite(make_plan(*changes, **options), Progress())
