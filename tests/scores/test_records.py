"""Records: results come back from JSON as they went, and an average says what it is over."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from xares_bench.scores.records import (
    DroppedSample,
    Overall,
    Prediction,
    RunManifest,
    ScoreRecord,
    overall_of,
    predictions_to_jsonl,
)


def made(dataset: str = "gtzan", score: float = 0.5, **values: Any) -> ScoreRecord:
    """A record with everything that a test does not care about filled in."""
    defaults: dict[str, Any] = {
        "task": "task1",
        "metric": "Accuracy",
        "weight": 1.0,
        "num_rows": 12,
        "num_clips": 10,
        "duration_s": 31.5,
        "features_s": 1.5,
        "generation_s": 2.25,
        "dropped": (),
        "mix": "task1",
        "key": "a" * 64,
        "lalm_key": "b" * 64,
        "reused": False,
        "partial": False,
    }
    return ScoreRecord(dataset=dataset, score=score, **{**defaults, **values})


def through_json(data: Any) -> Any:
    """What a strict JSON parser gets of what is written."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(json.dumps(data, allow_nan=False), parse_constant=refuse)


RUN = RunManifest(
    name="logmel-abc",
    datasets=("gtzan", "clotho"),
    encoder={"name": "LogMel", "spec": "enc.py", "arguments": {"layer": 6}, "fingerprint": "f" * 64, "findings": []},
    preset="mini",
    decoder={"name": "mini-decoder", "fingerprint": "d" * 64},
    recipe={"seed": 42, "steps": None, "learning_rate": 1.5e-3},
    deviations={"seed": [42, 7]},
    data={"folder": "fixtures/mini", "revision": "r" * 64},
    tasks={"task1": ("gtzan", "esc-50"), "task2": ("clotho",)},
    environment={"device": "cpu"},
)


def test_a_record_comes_back_from_json() -> None:
    dropped = (
        DroppedSample(shard="a.tar", clip="k1", reason="no audio member"),
        DroppedSample(shard="b.tar", clip="é", reason="unreadable audio: …"),
    )
    for record in (made(), made(dropped=dropped, reused=True, partial=True, score=1.0 / 3, weight=0.5)):
        assert ScoreRecord.from_json(through_json(record.to_json())) == record


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_nan_or_infinite_is_null(score: float) -> None:
    data = through_json(made(score=score).to_json())
    assert data["score"] is None
    assert math.isnan(ScoreRecord.from_json(data).score)


def test_reading_a_record_leaves_its_json_alone() -> None:
    data = made(dropped=(DroppedSample(shard="a", clip="b", reason="c"),)).to_json()
    before = json.dumps(data)
    ScoreRecord.from_json(data)
    assert json.dumps(data) == before


def test_a_run_comes_back_from_json() -> None:
    assert RunManifest.from_json(through_json(RUN.to_json())) == RUN
    back = RunManifest.from_json(through_json(RUN.to_json()))
    assert back.tasks["task1"] == ("gtzan", "esc-50")
    assert back.datasets == ("gtzan", "clotho")


@pytest.mark.parametrize(
    ("datasets", "found"),
    [
        (["a"], ("owner/data", "c1")),
        (["a", "b"], ("owner/data", "c1")),
        (["c"], ("owner/more", None)),
        (["a", "c"], None),
        (["a", "mine"], None),
        (["mine"], None),
        ([], None),
    ],
)
def test_data_have_a_repository_if_all_of_them_come_from_one(
    datasets: list[str], found: tuple[str, str | None] | None
) -> None:
    data = {
        "repositories": {"owner/data": "c1", "owner/more": None},
        "test_repositories": {"a": "owner/data", "b": "owner/data", "c": "owner/more"},
    }
    assert dataclasses.replace(RUN, data=data).test_repository(datasets) == found
    assert RUN.test_repository(datasets) is None


def test_records_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        made().score = 1.0  # type: ignore[misc]


def test_overall_is_the_weighted_mean() -> None:
    records = [made("a", 0.2, weight=1.0), made("b", 0.8, weight=3.0), made("c", 0.9, task="task2")]
    overall = overall_of("task1", records, ["a", "b"])
    assert overall.score == pytest.approx((0.2 + 3 * 0.8) / 4)
    assert (overall.num_datasets, overall.num_expected, overall.partial) == (2, 2, False)
    assert overall.complete
    assert overall_of("task2", records, ["c"]) == Overall(
        task="task2", score=0.9, num_datasets=1, num_expected=1, partial=False
    )


def test_overall_does_not_depend_on_the_order() -> None:
    records = [made(name, score) for name, score in zip("abcdefg", [0.1, 0.7, 1e-9, 0.3, 0.9, 1.0, 0.2], strict=True)]
    scores = {
        overall_of("task1", order, "abcdefg").score for order in (records, records[::-1], sorted(records, key=hash))
    }
    assert len(scores) == 1


@pytest.mark.parametrize(
    ("records", "expected", "counts"),
    [
        ([made("a")], ["a", "b"], (1, 2)),
        ([made("a"), made("b")], ["a", "b", "c"], (2, 3)),
        ([made("a"), made("c")], ["a", "b"], (2, 3)),
        ([made("a"), made("a", 0.9)], ["a", "b"], (1, 2)),
    ],
    ids=["one missing", "two of three", "a stranger for one that is missing", "one of them twice"],
)
def test_overall_over_fewer_datasets_is_incomplete(
    records: list[ScoreRecord], expected: list[str], counts: tuple[int, int]
) -> None:
    overall = overall_of("task1", records, expected)
    assert (overall.num_datasets, overall.num_expected) == counts
    assert not overall.complete


def test_overall_over_fewer_clips_is_incomplete() -> None:
    overall = overall_of("task1", [made("a"), made("b", partial=True)], ["a", "b"])
    assert overall.num_datasets == overall.num_expected == 2
    assert overall.partial
    assert not overall.complete


def test_the_interval_of_an_overall_score_begins_at_zero_and_never_at_minus_zero() -> None:
    records = [made(name, score, deviation=0.1, interval=(0.0, 0.3)) for name, score in (("a", 0.0), ("b", 0.1))]
    interval = overall_of("task1", records, ["a", "b"]).interval
    assert interval is not None
    assert f"{interval[0]:.3f}" == "0.000"


def test_overall_of_a_nan_is_nan() -> None:
    assert math.isnan(overall_of("task1", [made("a", 0.5), made("b", math.nan)], ["a", "b"]).score)


def test_overall_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^no score of task 'task2' to average$"):
        overall_of("task2", [made("a")], ["b"])


def test_predictions_are_a_json_object_a_line() -> None:
    predictions = [
        Prediction(clip="k1", reference="狗叫", hypothesis='a "dog"\nbarks', value=0.25),
        Prediction(clip="sub/k0", reference="", hypothesis="", value=None),
        Prediction(clip="k1", reference="second caption", hypothesis="line separator \u2028 inside", value=1.0),
    ]
    text = predictions_to_jsonl(predictions)
    lines = text.split("\n")
    assert lines.pop() == ""
    assert [Prediction(**json.loads(line)) for line in lines] == predictions
    assert "狗叫" in text, "readable as it is"
    assert predictions_to_jsonl([]) == ""
