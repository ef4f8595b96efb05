from __future__ import annotations

from pathlib import Path

import pytest

from tests.shard_factory import tone, write_shard
from tests.suite.conftest import MakeSuite
from xares_bench.core.errors import DataError, UsageError
from xares_bench.core.progress import Progress
from xares_bench.suite import preflight
from xares_bench.suite.suite import Suite
from xares_bench.training.checkpoints import Checkpoint


def state(suite: Suite) -> str:
    (text,) = suite.preflight.reuse(["mine"]).mixes.values()
    return text


def test_reuse_tells_what_is_cached_before_and_after_a_run(make_suite: MakeSuite) -> None:
    before = make_suite().preflight.reuse(["mine"])
    assert before.mixes == {"train.yaml": "training from scratch"}
    assert (before.num_shards, before.num_shards_reused, before.feature_bytes) == (4, 0, 0)
    assert (before.num_scores, before.num_scores_reused) == (1, 0)
    make_suite().evaluate("mine")
    after = make_suite().preflight.reuse(["mine"])
    assert after.mixes == {"train.yaml": "cached"}
    assert (after.num_shards, after.num_scores, after.num_scores_reused) == (4, 1, 1)
    assert after.num_shards_reused >= 2, "a short training does not read all of its shards to their end"
    assert after.feature_bytes > 0


def test_with_a_limit_only_shards_that_are_known_to_be_needed_count(make_suite: MakeSuite) -> None:
    assert make_suite(limit=2).preflight.reuse(["mine"]).num_shards == 2, "the first of either split"
    make_suite(limit=2).evaluate("mine")
    reuse = make_suite(limit=2).preflight.reuse(["mine"])
    assert (reuse.num_shards, reuse.num_scores_reused) == (2, 1), "it has the two samples, so the second is not needed"


def test_an_unfinished_training_is_resumed_or_said_to_be_of_something_else(make_suite: MakeSuite) -> None:
    suite = make_suite()
    checkpoint = Checkpoint(num_steps=1, tensors={}, values={})
    suite.preflight.checkpoints(suite.plan.mix_for("mine"), suite.plan.seeds[0]).save(checkpoint)
    assert state(make_suite()) == "training resumes after step 1 of 2"
    assert state(make_suite("learning_rate=0.5")).startswith(
        "training from scratch; found a checkpoint at step 1, but recipe,"
    )


def test_a_missing_model_of_a_metric_is_refused_before_anything_else(
    make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(metric: str) -> dict[str, str]:
        raise UsageError(f"{metric} needs a model")

    monkeypatch.setattr(preflight, "metric_identity", missing)
    with pytest.raises(UsageError, match="Accuracy needs a model"):
        make_suite().preflight.check(["mine"], Progress())


def test_models_need_to_load_only_for_scores_that_are_not_cached(
    make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(preflight, "check_available", loaded.append)
    make_suite().preflight.check(["mine"], Progress())
    assert loaded == ["Accuracy"]
    make_suite().evaluate("mine")
    make_suite().preflight.check(["mine"], Progress())
    assert loaded == ["Accuracy"]


def test_shards_without_the_key_are_refused_before_any_training(make_suite: MakeSuite, tmp_path: Path) -> None:
    for number in range(2):
        write_shard(tmp_path / f"train_{number}.tar", [("clip", tone(0.2), {"labels": "w"})])
    suite = make_suite()
    (line,) = suite.fetch(["mine"])
    assert line.startswith("mine cannot be scored: mine: 2 of 2 samples are unusable")
    assert suite.preflight.fails("mine")
    with pytest.raises(DataError, match=r"\(clip of .*train_0\.tar: none of the keys label,"):
        suite.preflight.require("mine")
    for number in range(2):
        write_shard(tmp_path / f"train_{number}.tar", [("clip", tone(0.2), {"label": "w"})])
    assert make_suite().fetch(["mine"]) == []


def test_a_missing_shard_is_left_to_the_test_that_needs_it(make_suite: MakeSuite, tmp_path: Path) -> None:
    suite = make_suite()
    (tmp_path / "test_1.tar").unlink()
    suite.preflight.check(["mine"], Progress())
    suite.preflight.fetch(["mine"], Progress())
    with pytest.raises(DataError, match=r"test_1\.tar"):
        suite.preflight.reuse(["mine"])
    with pytest.raises(DataError, match=r"test_1\.tar"):
        suite.evaluate("mine")


def test_own_files_need_nothing_of_the_hub(make_suite: MakeSuite) -> None:
    suite = make_suite()
    assert suite.preflight.survey(["mine"]) is None
    assert suite.preflight.repositories(["mine"]) == ()
