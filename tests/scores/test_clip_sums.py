from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from xares_bench.core.errors import UsageError
from xares_bench.metrics import MetricResult, evaluate
from xares_bench.scores.clip_sums import ClipSums, gather, joined, load_clip_sums

WORDS = ["rain", "a dog barks", "bird song", "", "wind and rain", "今天 天气", "dog"]


def rows(seed: int, num_rows: int = 60) -> tuple[list[str], list[str], list[str]]:
    """References, predictions and clips of rows; most clips have several rows."""
    random_ = random.Random(seed)
    references = [random_.choice(WORDS) for _ in range(num_rows)]
    hypotheses = [random_.choice((text, random_.choice(WORDS))) for text in references]
    clips = [f"clip{random_.randrange(num_rows // 3)}" for _ in range(num_rows)]
    return references, hypotheses, clips


def clip_sums_of(metric: str, references: list[str], hypotheses: list[str], clips: list[str]) -> ClipSums:
    arguments = {"num_classes": 9} if metric == "mAP" else {}
    result = evaluate(metric, references, hypotheses, **arguments)
    return gather([result], metric=metric, arguments=arguments, row_clips=clips)


METRICS = ["Accuracy", "iWER", "iCER", "chrF", "mAP"]


@pytest.mark.parametrize("metric", METRICS)
def test_the_sums_of_all_clips_give_the_score(metric: str) -> None:
    references, hypotheses, clips = rows(1)
    arguments = {"num_classes": 9} if metric == "mAP" else {}
    expected = evaluate(metric, references, hypotheses, **arguments).score
    assert clip_sums_of(metric, references, hypotheses, clips).scores() == pytest.approx([expected], abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_weights_give_the_score_of_clips_repeated_that_often(metric: str) -> None:
    references, hypotheses, clips = rows(2)
    clip_sums = clip_sums_of(metric, references, hypotheses, clips)
    generator = np.random.default_rng(0)
    weights_BC = generator.integers(0, 3, (4, len(clip_sums.clips))).astype(float)
    arguments = {"num_classes": 9} if metric == "mAP" else {}
    expected = []
    for weights in weights_BC:
        count = dict(zip(clip_sums.clips, weights.astype(int), strict=True))
        drawn = [row for row in zip(references, hypotheses, clips, strict=True) for _ in range(count[row[2]])]
        expected.append(evaluate(metric, [r for r, _, _ in drawn], [h for _, h, _ in drawn], **arguments).score)
    assert clip_sums.scores(weights_BC) == pytest.approx(expected, abs=1e-12)


def test_no_clip_at_all_scores_nan() -> None:
    references, hypotheses, clips = rows(3)
    for metric in METRICS:
        clip_sums = clip_sums_of(metric, references, hypotheses, clips)
        assert np.isnan(clip_sums.scores(np.zeros((1, len(clip_sums.clips))))).all(), metric


def test_several_seeds_give_the_mean_of_their_scores() -> None:
    references, hypotheses, clips = rows(4)
    first = clip_sums_of("chrF", references, hypotheses, clips)
    second = clip_sums_of("chrF", references, list(reversed(hypotheses)), clips)
    both = joined([first, second])
    assert both.scores() == pytest.approx((first.scores() + second.scores()) / 2)


def test_clips_are_selected_by_name_and_in_order() -> None:
    clip_sums = gather(
        [MetricResult(score=0.5, row_values=(1.0, 0.0), row_parts=np.array([[1.0, 1.0], [0.0, 1.0]]))],
        metric="Accuracy",
        arguments={},
        row_clips=["a", "b"],
    )
    assert clip_sums.select(["b"]).scores() == [0.0]
    assert clip_sums.select(["b", "a"]).clips == ("b", "a")
    with pytest.raises(KeyError):
        clip_sums.select(["c"])


@pytest.mark.parametrize("metric", METRICS)
def test_a_saved_file_is_read_back_the_same(metric: str, tmp_path: Path) -> None:
    clip_sums = clip_sums_of(metric, *rows(5))
    clip_sums.save(tmp_path / "e.npz")
    found = load_clip_sums(tmp_path / "e.npz")
    assert (found.metric, found.arguments, found.clips) == (clip_sums.metric, clip_sums.arguments, clip_sums.clips)
    assert np.array_equal(found.parts, clip_sums.parts)
    assert clip_sums.to_bytes() == found.to_bytes()


def test_a_damaged_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "e.npz"
    with pytest.raises(UsageError, match=r"cannot read .*e\.npz as clip sums: .*run the suite again"):
        load_clip_sums(path)
    content = clip_sums_of("iWER", *rows(6)).to_bytes()
    for damaged in (content[: len(content) // 2], b"", content.replace(b"about.json", b"above.json")):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"cannot read .* as clip sums"):
            load_clip_sums(path)


def test_a_file_with_an_unknown_metric_or_wrong_sums_is_an_error(tmp_path: Path) -> None:
    whole = clip_sums_of("Accuracy", *rows(7))
    path = tmp_path / "e.npz"
    for changed in (
        ClipSums(metric="Mood", arguments={}, clips=whole.clips, parts=whole.parts),
        ClipSums(metric="Accuracy", arguments={}, clips=whole.clips[1:], parts=whole.parts),
        ClipSums(metric="mAP", arguments={}, clips=whole.clips, parts=whole.parts),
    ):
        changed.save(path)
        with pytest.raises(UsageError, match=r"cannot read .* as clip sums"):
            load_clip_sums(path)
