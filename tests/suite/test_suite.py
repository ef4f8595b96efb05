from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.encoders.conftest import PLAIN
from tests.shard_factory import tone, write_shard
from tests.suite.conftest import MakeSuite
from xares_bench.core.errors import CacheWarning, DataError, EncoderError, TrainingError, UsageError, XaresError
from xares_bench.datasets.corruptions import Corruption
from xares_bench.suite.keys import Keys
from xares_bench.suite.preflight import Preflight
from xares_bench.suite.score_store import titled
from xares_bench.suite.suite import Suite

BROKEN = """
import torch

class BrokenEncoder(torch.nn.Module):
    output_dim = 4

    def forward(self, audio, mask=None):
        return torch.full((len(audio), 10, 4), float("nan")), None
"""


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_second_suite_finds_lalm_and_score_cached_and_needs_no_pipeline(make_suite: MakeSuite) -> None:
    first, second = make_suite(), make_suite()
    computed = first.evaluate("mine")
    assert not computed.reused
    cached = second.evaluate("mine")
    assert cached == dataclasses.replace(computed, reused=True)
    (lalm,) = second.lalms(second.plan.mix_for("mine"))
    assert lalm.reused
    assert lalm.folder.name == cached.lalm_key
    assert "_pipeline" in vars(first)
    assert "_pipeline" not in vars(second)


@pytest.mark.parametrize("file", ["predictions.jsonl", "clip_sums.npz"])
def test_a_score_is_found_only_while_it_is_intact_and_nothing_is_computed(make_suite: MakeSuite, file: str) -> None:
    assert make_suite().find_score("mine") is None
    computed = make_suite().evaluate("mine")
    suite = make_suite()
    found = suite.find_score("mine")
    assert found is not None
    assert found[0] == dataclasses.replace(computed, reused=True)
    path = suite.scores.predictions_file("mine").with_name(file)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    suite = make_suite()
    with pytest.warns(CacheWarning, match=f"{file} is damaged"):
        assert suite.find_score("mine") is None
    assert "_pipeline" not in vars(suite)


def test_the_score_is_the_mean_over_the_seeds_and_its_clip_sums_are_of_all(make_suite: MakeSuite) -> None:
    suite = make_suite(num_seeds=2)
    record = suite.evaluate("mine")
    assert len(record.seed_scores) == 2
    assert record.score == sum(record.seed_scores) / 2
    clip_sums = suite.scores.clip_sums("mine")
    assert clip_sums.parts.shape[0] == 2
    assert float(clip_sums.scores()[0]) == pytest.approx(record.score)
    alone = make_suite().evaluate("mine")
    assert alone.reused, "a seed's score is the same alone and among others"
    assert alone.key != record.key
    assert alone.score == record.seed_scores[0]
    predictions = suite.scores.predictions_file("mine").read_text().splitlines()
    assert suite.scores.predictions_file("mine").parent.name == alone.key
    assert [set(json.loads(line)) for line in predictions] == [{"clip", "reference", "hypothesis", "value"}] * 4


def test_checkpoints_are_removed_once_the_lalm_is_cached(
    make_suite: MakeSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = make_suite(checkpoint_steps=1)
    mix = suite.plan.mix_for("mine")
    kept: list[str] = []
    train = suite._pipeline.train

    def train_and_look(*arguments: Any) -> dict[str, Any]:
        manifest = train(*arguments)
        kept.extend(name for name in files(tmp_path / "runs" / "store") if name.startswith("checkpoints"))
        return manifest

    monkeypatch.setattr(suite._pipeline, "train", train_and_look)
    suite.lalms(mix)
    assert kept, "a checkpoint was saved"
    assert not [name for name in files(tmp_path / "runs" / "store") if "step-" in name]


def test_a_run_is_named_after_all_that_it_depends_on(make_suite: MakeSuite) -> None:
    run = make_suite().open_run(["mine"])
    assert run.name.startswith("LogMelEncoder-mini-")
    assert run.datasets == ("mine",)
    assert run.data["folder"] == "own tar files"
    assert make_suite().open_run(["mine"]) == dataclasses.replace(run, encoder={**run.encoder, "contract_reused": True})
    assert run.data["licences"] == {"mine": "unknown"}
    assert run.data["test_repositories"] == {}
    assert make_suite("learning_rate=0.5").open_run(["mine"]).name != run.name
    assert make_suite(limit=1).open_run(["mine"]).name != run.name


def test_a_licence_changes_no_key(make_suite: MakeSuite) -> None:
    suite = make_suite()
    plan = suite.plan
    assert plan.mix is not None
    mix = dataclasses.replace(
        plan.mix, datasets=tuple(dataclasses.replace(dataset, licence="CC0-1.0") for dataset in plan.mix.datasets)
    )
    own = {name: dataclasses.replace(dataset, licence="CC0-1.0") for name, dataset in plan.own_datasets.items()}
    licensed = dataclasses.replace(plan, mix=mix, own_datasets=own)
    assert set(licensed.licences(["mine"]).values()) == {"CC0-1.0"}
    keys = dataclasses.replace(suite._keys, plan=licensed)
    assert keys.scores("mine") == suite._keys.scores("mine")
    assert keys.run(["mine"]) == suite._keys.run(["mine"])
    assert keys.mix(mix) == suite._keys.mix(plan.mix)


def test_an_encoder_that_breaks_its_contract_is_not_used(make_suite: MakeSuite, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    suite = make_suite(encoder="broken.py")
    assert suite.contract.failure is not None
    with pytest.raises(EncoderError):
        suite.evaluate("mine")
    assert not [name for name in files(tmp_path / "runs") if name.startswith(("store/lalms", "store/features"))]


def test_a_preset_for_a_gpu_is_refused_on_a_cpu(make_suite: MakeSuite) -> None:
    suite = make_suite()
    preset = dataclasses.replace(suite.plan.catalogue.preset, needs_gpu=True)
    needy = dataclasses.replace(suite.plan, catalogue=dataclasses.replace(suite.plan.catalogue, preset=preset))
    suite.plan = needy
    if suite.device.type == "cpu":
        with pytest.raises(UsageError, match="--preset=mini needs a GPU and none was found"):
            suite.check(["mine"])
    suite.plan = dataclasses.replace(needy, allow_cpu=True)
    suite.check(["mine"])


def test_more_processes_than_samples_in_a_batch_are_refused(
    make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = make_suite()
    monkeypatch.setattr(Suite, "num_processes", 3)
    with pytest.raises(UsageError, match="3 processes cannot share batches of 2 samples; start at most 2 processes"):
        suite.check(["mine"])


def test_of_several_processes_each_begins_elsewhere_and_leaves_errors_to_the_tests(
    make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = make_suite(num_seeds=2)
    done: list[str] = []

    noise = Corruption(name="noise", level=10)

    def make_free(name: str, seed: int, corruption: Corruption | None) -> None:
        done.append(f"texts of {titled(name, corruption)}, {seed}")
        raise UsageError(titled(name, corruption))

    def record(name: str, corruption: Corruption | None = None) -> None:
        done.append(f"score of {titled(name, corruption)}")

    scores = SimpleNamespace(make_free=make_free, record=record)
    suite.__dict__["scores"] = scores
    one_of_many = SimpleNamespace(num_processes=1, process_index=1, is_main_process=False, mixed_precision="no")
    monkeypatch.setattr(suite, "_accelerator", one_of_many)
    suite.evaluate_share(["a", "b"])
    assert done == [], "alone, every test evaluates its own dataset"
    monkeypatch.setattr(Suite, "num_processes", 3)
    suite.evaluate_share(["a", "b", "c"], [("a", noise), ("b", noise)])
    order = ("b", "b with noise:10", "c", "a", "a with noise:10")
    seeds = suite.plan.seeds
    assert done == [f"texts of {name}, {seed}" for seed in seeds for name in order]
    assert capsys.readouterr().err.splitlines() == [f"xares-bench: process 1 of 3: {name}: {name}" for name in order]
    for name in order:
        plain = name.partition(" ")[0]
        with pytest.raises(UsageError, match=f"^{name}$"):
            suite.evaluate(name) if plain == name else suite.robustness(plain, noise)
    done.clear()
    scores.make_free = lambda name, _, corruption: done.append(f"texts of {titled(name, corruption)}")
    suite.evaluate_share(["f"], [("f", noise)])
    noisy = "f with noise:10"
    assert done == [f"texts of {noisy}", "texts of f"] * len(seeds) + [f"score of {noisy}"]


def test_a_score_of_another_process_of_the_session_was_not_cached_before(make_suite: MakeSuite) -> None:
    ours, theirs, next_session = make_suite(), make_suite(), make_suite()
    assert ours.fetch(["mine"]) == []
    theirs.evaluate("mine")
    assert not ours.evaluate("mine").reused
    assert not ours.evaluate("mine").reused, "nor is one that is asked for again"
    next_session.fetch(["mine"])
    assert next_session.evaluate("mine").reused


def test_nothing_is_opened_before_it_is_needed(make_suite: MakeSuite, tmp_path: Path) -> None:
    suite = make_suite(decoder="no/such-decoder")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(XaresError, match="no/such-decoder"):
        suite.evaluate("mine")


def test_a_clip_shorter_than_the_encoder_takes_is_an_unusable_sample(make_suite: MakeSuite, tmp_path: Path) -> None:
    """In training and in evaluation; for the encoder alone it would be an error."""
    short = ("short", tone(0.005), {"label": "w"})
    for split in ("train", "test"):
        clips = [(f"clip-{i}", tone(0.2, 150 + 40 * i), {"label": f"w{i}"}) for i in range(2)]
        write_shard(tmp_path / f"{split}_0.tar", [clips[0], short, clips[1]])
    (tmp_path / "enc.py").write_text(PLAIN)
    encoder = str(tmp_path / "enc.py")
    suite = make_suite("max_dropped_share=0.3", "steps=6", encoder=encoder)
    assert suite.contract.min_samples == 400
    record = suite.evaluate("mine")
    (dropped,) = record.dropped
    assert (dropped.clip, record.num_clips) == ("short", 4)
    assert dropped.reason == "audio of 5 ms; the encoder takes clips of 25 ms and more"
    (lalm,) = suite.lalms(suite.plan.mix_for("mine"))
    assert [sample["reason"] for sample in lalm.manifest["dropped"]] == [dropped.reason]
    with pytest.raises(DataError, match=r"1 of 5 samples are unusable, .*\(short of .*: audio of 5 ms; the encoder"):
        make_suite("max_dropped_share=0.1", "steps=1", encoder=encoder).evaluate("mine")


class Trainings:
    """Stands for the pipeline of a session: notes what it trains, and can be held up."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self._log = name, log
        self.begun, self.go_on = threading.Event(), threading.Event()

    def train(self, mix: Any, seed: int, *_: object) -> dict[str, Any]:
        self._log.append(f"{self.name}: {mix.name} {seed}")
        self.begun.set()
        assert self.go_on.wait(60)
        if mix.name == "broken":
            raise TrainingError("the loss is nan")
        return {}


@pytest.fixture
def trainings(make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Suite, Trainings]]:
    monkeypatch.setattr(Keys, "lalm", lambda _, mix, seed: f"{mix.name} {seed}")
    monkeypatch.setattr(Preflight, "checkpoints", lambda *_: SimpleNamespace(remove=lambda: None))

    def make(name: str, log: list[str], num_seeds: int = 1) -> tuple[Suite, Trainings]:
        suite, pipeline = make_suite(num_seeds=num_seeds), Trainings(name, log)
        assert suite._keys, "made by the thread of the test"
        suite.__dict__["_pipeline"] = pipeline
        return suite, pipeline

    return make


def mix(name: str) -> Any:
    return SimpleNamespace(name=name)


@pytest.mark.parametrize(
    ("num_seeds", "others", "expected"),
    [
        (1, [mix("a"), mix("broken"), mix("b"), mix("c")], ["1: a 42", "2: broken 42", "2: b 42", "2: c 42"]),
        (2, [mix("a")], ["1: a 42", "2: a 43"]),
    ],
)
def test_sessions_at_once_train_different_lalms(
    num_seeds: int,
    others: list[Any],
    expected: list[str],
    trainings: Callable[..., tuple[Suite, Trainings]],
) -> None:
    log: list[str] = []
    (first, slow), (second, quick) = (trainings(name, log, num_seeds) for name in ("1", "2"))
    results: list[list[str]] = []

    def obtain(suite: Suite) -> None:
        results.append([entry.folder.name for entry in suite.lalms(mix("a"), others)])

    threads = [threading.Thread(target=obtain, args=(suite,)) for suite in (first, second)]
    threads[0].start()
    assert slow.begun.wait(60)
    threads[1].start()
    assert quick.begun.wait(60), "it waits for the first"
    quick.go_on.set()
    while len(log) < len(expected):
        time.sleep(0.01)
    slow.go_on.set()
    for thread in threads:
        thread.join(60)
    assert log == expected
    assert results == [[f"a {seed}" for seed in first.plan.seeds]] * 2


def test_a_session_alone_trains_what_it_is_asked_for_in_order(
    trainings: Callable[..., tuple[Suite, Trainings]],
) -> None:
    log: list[str] = []
    suite, pipeline = trainings("1", log, 2)
    pipeline.go_on.set()
    for _ in range(2):
        assert [entry.reused for entry in suite.lalms(mix("b"), [mix("a"), mix("b")])] == [False, False]
    assert log == ["1: b 42", "1: b 43"]
    with pytest.raises(TrainingError, match="the loss is nan"):
        suite.lalms(mix("broken"))


def test_no_more_is_trained_in_advance_than_the_others_leave_time_for(
    trainings: Callable[..., tuple[Suite, Trainings]],
) -> None:
    log: list[str] = []
    (first, slow), (second, quick) = (trainings(name, log) for name in ("1", "2"))
    thread = threading.Thread(target=first.lalms, args=(mix("a"),))
    thread.start()
    assert slow.begun.wait(60)
    other = threading.Thread(target=second.lalms, args=(mix("a"), [mix("b"), mix("c")]))
    other.start()
    assert quick.begun.wait(60)
    slow.go_on.set()
    thread.join(60)
    quick.go_on.set()
    other.join(60)
    assert log == ["1: a 42", "2: b 42"]
