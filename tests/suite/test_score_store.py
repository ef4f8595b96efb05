"""Scores of clean and corrupted test clips in one store: what shares an entry, and what is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.suite.conftest import MakeSuite
from xares_bench.datasets.corruptions import Corruption, parse_corruptions
from xares_bench.scores.clip_sums import load_clip_sums
from xares_bench.suite.score_store import titled
from xares_bench.suite.suite import Suite

NOISE = Corruption(name="noise", level=0)


def entries(folder: Path, kind: str) -> set[str]:
    return {file.parent.name for file in folder.glob(f"runs/store/{kind}/*/manifest.json")}


def test_a_corruption_adds_a_score_and_features_of_test_shards_and_trains_nothing(
    make_suite: MakeSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = make_suite().evaluate("mine")
    before = {kind: entries(tmp_path, kind) for kind in ("scores", "lalms", "features")}
    suite = make_suite()
    monkeypatch.setattr(suite._pipeline, "train", lambda *_: pytest.fail("trained"))
    found = suite.robustness("mine", NOISE)
    assert (found.dataset, found.corruption, found.num_clips) == ("mine", "noise:0", 4)
    assert found.key == suite._keys.score("mine", 42, NOISE) != clean.key
    after = {kind: entries(tmp_path, kind) for kind in before}
    assert after["scores"] == before["scores"] | {found.key}
    assert after["lalms"] == before["lalms"]
    assert len(after["features"] - before["features"]) == 2, "two test shards, no training shard"
    assert suite.evaluate("mine").key == clean.key, "the clean score is the very same entry"
    again = make_suite()
    assert again.robustness("mine", NOISE) == found
    assert "_pipeline" not in vars(again)


def test_the_clean_score_is_computed_where_it_is_not_there(make_suite: MakeSuite, tmp_path: Path) -> None:
    suite = make_suite()
    suite.robustness("mine", NOISE)
    assert len(entries(tmp_path, "scores")) == 2
    assert make_suite().find_score("mine") is not None


def test_with_several_seeds_the_loss_is_that_of_the_means(make_suite: MakeSuite) -> None:
    suite = make_suite(num_seeds=2)
    found = suite.robustness("mine", NOISE)
    clean, noisy = suite.scores.clip_sums("mine"), suite.scores.clip_sums("mine", NOISE)
    assert clean.parts.shape == noisy.parts.shape
    assert noisy.parts.shape[0] == 2
    assert found.score == pytest.approx(noisy.scores_of_seeds().mean())
    assert found.loss == pytest.approx(noisy.scores_of_seeds().mean() - clean.scores_of_seeds().mean())
    assert suite.scores.predictions_file("mine", NOISE) != suite.scores.predictions_file("mine")


def test_every_corruption_has_a_key_of_its_own(make_suite: MakeSuite) -> None:
    suite = make_suite()
    keys = suite._keys
    texts = ("noise:10", "noise:11", "reverb", "lowpass:4000", "mp3:32", "speed:1.1")
    found = {keys.score("mine", 42, corruption) for corruption in (None, *parse_corruptions(texts))}
    assert len(found) == len(texts) + 1
    assert keys.scores("mine", NOISE) == [keys.score("mine", 42, NOISE)]


def test_parts_of_a_corrupted_test_set_are_shared_like_those_of_a_clean_one(
    make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("xares_bench.features.rows._PART_SAMPLES", 2)
    suite = make_suite()
    suite.evaluate("mine")
    generated: list[tuple[int, str]] = []

    def note(suite: Suite, number: int) -> None:
        generate = suite._pipeline.generate

        def generate_and_note(dataset: Any, lalm: Any, part: Any, title: str, corruption: Any) -> Any:
            generated.append((number, title))
            return generate(dataset, lalm, part, title, corruption)

        monkeypatch.setattr(suite._pipeline, "generate", generate_and_note)

    first, second = make_suite(), make_suite()
    note(first, 1)
    note(second, 2)
    first.scores.make_free("mine", 42, NOISE)
    assert generated == [(1, f"mine with noise:0, part {part} of 2") for part in (1, 2)]
    second.robustness("mine", NOISE)
    assert len(generated) == 2, "what the first has generated is only scored"
    assert not list(tmp_path.glob("runs/store/texts/*/*/texts.json"))
    first.scores.make_free("mine", 42, NOISE)
    assert len(generated) == 2


def test_a_damaged_score_of_corrupted_clips_is_computed_anew(make_suite: MakeSuite) -> None:
    suite = make_suite()
    found = suite.robustness("mine", NOISE)
    file = suite.scores.predictions_file("mine", NOISE)
    expected = load_clip_sums(file.parent / "clip_sums.npz").parts
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.warns(match="is damaged; it is recomputed"):
        assert make_suite().robustness("mine", NOISE) == found
    assert (make_suite().scores.clip_sums("mine", NOISE).parts == expected).all()


def test_titles_name_the_corruption() -> None:
    assert titled("mine", None) == "mine"
    assert titled("mine", NOISE) == "mine with noise:0"
