from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.suite.conftest import MakeSuite
from xares_bench.core.store import Entry
from xares_bench.features.encoding import Clip, StoredFrames
from xares_bench.features.feature_store import FeatureStore
from xares_bench.features.rows import Part
from xares_bench.scores.clip_sums import CLIP_SUMS_FILE, load_clip_sums
from xares_bench.scores.records import PREDICTIONS_FILE
from xares_bench.suite.pipeline import LOSS_FILE, Pipeline, _prompt_for, _TrainingClock, _unique_name
from xares_bench.suite.suite import Suite
from xares_bench.training.checkpoints import Checkpoint


@pytest.fixture
def suite(make_suite: MakeSuite) -> Suite:
    return make_suite()


@pytest.fixture
def lalm(suite: Suite) -> Entry:
    (entry,) = suite.lalms(suite.plan.mix_for("mine"))
    return entry


def scored(pipeline: Pipeline, lalm: Entry, folder: Path) -> Any:
    folder.mkdir()
    dataset = pipeline.plan.dataset("mine")
    assert dataset.eval is not None
    parts = [Part(shards=(shard,), limit=None) for shard in pipeline.shards.locate(dataset.eval, None)]
    texts = [pipeline.generate(dataset, lalm, part, "mine") for part in parts]
    return pipeline.score(dataset, pipeline.plan.mix_for("mine"), lalm, texts, folder, "a key")


def test_a_training_leaves_weights_losses_and_what_is_to_be_known_of_it(lalm: Entry) -> None:
    lines = (lalm.folder / LOSS_FILE).read_text().splitlines()
    assert lines[0] == "step\tloss"
    assert [line.split("\t")[0] for line in lines[1:]] == ["1", "2"]
    assert all(float(line.split("\t")[1]) > 0 for line in lines[1:])
    assert {"mix": "train.yaml", "num_steps": 2, "dropped": [], "continued_after": 0}.items() <= lalm.manifest.items()
    assert lalm.manifest["num_samples"].keys() == {"mine"}
    assert lalm.manifest["features_s"] >= 0
    assert lalm.manifest["training_s"] > 0


def test_a_training_resumes_after_the_step_of_its_checkpoint(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mix, pipeline = suite.plan.mix_for("mine"), suite._pipeline
    checkpoints = suite.preflight.checkpoints(mix, 1)
    save, saved = checkpoints.save, []

    def save_and_stop(checkpoint: Checkpoint) -> None:
        save(checkpoint)
        saved.append(checkpoint)
        raise KeyboardInterrupt

    pipeline.checkpoint_steps = 1
    monkeypatch.setattr(checkpoints, "save", save_and_stop)
    folders = [tmp_path / name for name in ("interrupted", "resumed", "undisturbed")]
    for folder in folders:
        folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        pipeline.train(mix, 1, folders[0], checkpoints)
    resumed = pipeline.train(mix, 1, folders[1], suite.preflight.checkpoints(mix, 1))
    undisturbed = pipeline.train(mix, 1, folders[2], suite.preflight.checkpoints(mix, 2))
    assert (resumed["continued_after"], undisturbed["continued_after"]) == (1, 0)
    assert saved[0].values["seconds"]["all"] > 0
    assert (folders[1] / LOSS_FILE).read_text() == (folders[2] / LOSS_FILE).read_text()


def test_clips_of_two_shards_with_the_same_key_stay_two_clips(
    suite: Suite, lalm: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(_: object, prompts: Sequence[Any], **__: object) -> list[str]:
        return [f"{Path(prompt.clip.shard).name} {prompt.clip.key}" for prompt in prompts]

    monkeypatch.setattr("xares_bench.suite.pipeline.generate", generate)
    record = scored(suite._pipeline, lalm, tmp_path / "score")
    assert (record.num_rows, record.num_clips) == (4, 4)
    assert record.duration_s == pytest.approx(0.8)
    clip_sums = load_clip_sums(tmp_path / "score" / CLIP_SUMS_FILE)
    assert clip_sums.clips == ("clip-0", "clip-1", "clip-0#2", "clip-1#2")
    assert float(clip_sums.scores()[0]) == record.score
    rows = [json.loads(line) for line in (tmp_path / "score" / PREDICTIONS_FILE).read_text().splitlines()]
    assert [(row["clip"], row["reference"], row["hypothesis"]) for row in rows] == [
        (f"clip-{clip}", f"w{clip}", f"test_{shard}.tar clip-{clip}") for shard in range(2) for clip in range(2)
    ]


def test_a_lalm_that_was_just_trained_scores_as_it_does_from_its_file(
    suite: Suite, make_suite: MakeSuite, lalm: Entry, tmp_path: Path
) -> None:
    files = []
    for number, pipeline in enumerate((suite._pipeline, make_suite()._pipeline)):
        scored(pipeline, lalm, tmp_path / f"{number}")
        files.append((tmp_path / f"{number}" / PREDICTIONS_FILE).read_bytes())
    assert files[0] == files[1]


def test_the_lalm_makes_room_only_for_metrics_with_models(suite: Suite, lalm: Entry) -> None:
    pipeline = suite._pipeline
    moved: list[str] = []
    pipeline._lalms = {lalm.folder: cast(Any, SimpleNamespace(to=moved.append))}
    pipeline._make_room("Accuracy")
    assert moved == []
    pipeline._make_room("FENSE")
    assert moved == ["cpu"]


def test_a_clip_is_always_asked_the_same_of_the_datasets_prompts(suite: Suite, tmp_path: Path) -> None:
    dataset = dataclasses.replace(suite.plan.dataset("mine"), prompts=("What?", "Which?"))
    frames = StoredFrames(file=tmp_path / "none", start=0, num_frames=1)
    clips = [
        Clip(key=f"{number}", shard="s", duration_s=1.0, num_frames=1, fields={}, features=frames)
        for number in range(20)
    ]
    asked = [_prompt_for(clip, dataset) for clip in clips]
    assert set(asked) == {"What?", "Which?"}
    assert asked == [_prompt_for(dataclasses.replace(clip, shard="other"), dataset) for clip in clips]


def test_names_of_clips_are_numbered_from_the_second_on() -> None:
    names: Counter[str] = Counter()
    assert [_unique_name(key, names) for key in ("a", "b", "a", "a")] == ["a", "b", "a#2", "a#3"]


def test_the_clock_goes_on_from_what_earlier_sessions_took(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    features = SimpleNamespace(seconds=100.0)
    clock = _TrainingClock(cast(FeatureStore, features))
    now[0], features.seconds = 15.0, 102.0
    assert clock.seconds() == {"all": 5.0, "features": 2.0}
    clock.resume({"all": 60.0, "features": 30.0})
    assert clock.seconds() == {"all": 65.0, "features": 32.0}


def test_unfinished_features_are_given_up_when_a_training_fails(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, mix = suite._pipeline, suite.plan.mix_for("mine")

    def fail(*_: object, **__: object) -> list[float]:
        raise RuntimeError("broken")

    monkeypatch.setattr("xares_bench.suite.pipeline.train", fail)
    with contextlib.suppress(RuntimeError):
        pipeline.train(mix, 1, tmp_path, suite.preflight.checkpoints(mix, 1))
    assert pipeline.features._writers == []
