"""What the check of the data finds, with plans over two shards of one own dataset."""

from __future__ import annotations

import bz2
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.config.test_plan import plan
from tests.conftest import REPOSITORY
from tests.shard_factory import encode, tone, write_members, write_shard
from tests.suite.conftest import MakeSuite
from xares_bench.core.digests import file_digest
from xares_bench.core.errors import DataError
from xares_bench.core.progress import Progress
from xares_bench.datasets.inventory import Inventories
from xares_bench.suite.data_check import splits_by_path

GOOD = ("good", tone(0.2), {"label": "w"})


def lines_of(make_suite: MakeSuite, *changes: str, **options: object) -> list[str]:
    """What is said before anything is trained."""
    return make_suite(*changes, **options).fetch(["mine"])


def test_whole_data_are_no_problem(make_suite: MakeSuite) -> None:
    suite = make_suite()
    assert suite.fetch(["mine"]) == []
    assert not suite.preflight.fails("mine")
    suite.preflight.require("mine")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda data: data[: len(data) // 2], "damaged archive: "),
        (lambda data: b"", "an empty file (0 bytes), expected a tar or tar.gz archive"),
        (lambda data: bz2.compress(data), "a file compressed with bzip2, expected a tar or tar.gz archive"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d", "a Git LFS pointer, "),
        (lambda data: b"<!DOCTYPE html><title>404</title>", "a web page (HTML), "),
        (lambda data: b'{"error":"not found"}', "a JSON text ("),
    ],
    ids=["cut", "empty", "bzip2", "pointer", "page", "JSON"],
)
def test_a_damaged_shard_is_named_and_nothing_is_trained(
    make_suite: MakeSuite, tmp_path: Path, split: str, damage: Callable[[bytes], bytes], expected: str
) -> None:
    path = tmp_path / f"{split}_1.tar"
    path.write_bytes(damage(path.read_bytes()))
    suite = make_suite()
    (line,) = suite.fetch(["mine"])
    assert line.startswith(f"mine cannot be scored: {path}: {expected}")
    assert suite.preflight.fails("mine")
    with pytest.raises(DataError) as caught:
        suite.evaluate("mine")
    assert str(caught.value) == line.removeprefix("mine cannot be scored: ")
    assert not list(tmp_path.glob("runs/store/lalms/*"))


def test_a_missing_shard_is_said_too(make_suite: MakeSuite, tmp_path: Path) -> None:
    suite = make_suite()
    (tmp_path / "train_0.tar").unlink()
    assert suite.fetch(["mine"])[0].startswith(f"mine cannot be scored: {tmp_path}/train_0.tar: this shard is missing")


def test_several_damaged_shards_are_counted(make_suite: MakeSuite, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"test_{number}.tar").write_bytes(b"PK\x03\x04")
    (line,) = lines_of(make_suite)
    assert f"{tmp_path}/test_0.tar: a zip archive" in line
    assert line.endswith(" (so are 1 more shards of mine)")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_usable_samples_is_a_problem(make_suite: MakeSuite, tmp_path: Path, split: str) -> None:
    for number in range(2):
        write_shard(tmp_path / f"{split}_{number}.tar", [("clip", tone(0.2), {"labels": "w"})])
    (line,) = lines_of(make_suite)
    assert "mine: 2 of 2 samples are unusable" in line
    assert f"(clip of {tmp_path}/{split}_0.tar: none of the keys label," in line
    assert line.endswith("; fix the shards, or name their key")


@pytest.mark.parametrize("name", ["clip.aac", "clip.wav"], ids=["no audio by its name", "no audio by its bytes"])
def test_a_split_without_audio_is_a_problem(make_suite: MakeSuite, tmp_path: Path, name: str) -> None:
    for number in range(2):
        write_members(tmp_path / f"test_{number}.tar", [(name, b"no audio"), ("clip.json", b'{"label": "w"}')])
    (line,) = lines_of(make_suite)
    assert "mine: 2 of 2 samples are unusable" in line


def test_a_split_without_samples_is_a_problem_and_an_empty_shard_beside_others_is_none(
    make_suite: MakeSuite, tmp_path: Path
) -> None:
    write_members(tmp_path / "test_0.tar", [])
    assert lines_of(make_suite) == []
    write_members(tmp_path / "test_1.tar", [("README.md", b"nothing")])
    (line,) = lines_of(make_suite)
    assert "1 of 1 samples are unusable" in line
    write_members(tmp_path / "test_1.tar", [("README", b"nothing")])
    (line,) = lines_of(make_suite)
    assert f"mine: {tmp_path}/test_0.tar and 1 more shards: an archive without samples" in line


def test_unusable_samples_count_up_to_the_allowed_share(make_suite: MakeSuite, tmp_path: Path) -> None:
    for number in range(2):
        write_shard(
            tmp_path / f"test_{number}.tar", [("bad", tone(0.2), {}), GOOD, ("last", tone(0.2), {"label": "v"})]
        )
    assert "mine: 2 of 6 samples are unusable" in lines_of(make_suite)[0]
    assert lines_of(make_suite, "max_dropped_share=0.4") == []


def test_with_a_limit_only_the_first_samples_count(make_suite: MakeSuite, tmp_path: Path) -> None:
    write_shard(tmp_path / "test_0.tar", [GOOD, ("bad", tone(0.2), {})])
    (tmp_path / "test_1.tar").write_bytes(b"PK\x03\x04")
    assert "test_1.tar: a zip archive" in lines_of(make_suite)[0]
    assert "1 of 2 samples are unusable" in lines_of(make_suite, limit=2)[0]
    write_shard(tmp_path / "test_0.tar", [("bad", tone(0.2), {}), GOOD, ("worse", tone(0.2), {})])
    (line,) = lines_of(make_suite, limit=2)
    assert "bad of" in line
    assert "worse of" not in line, "it is not used"
    write_shard(tmp_path / "test_0.tar", [GOOD, ("bad", tone(0.2), {})])
    assert lines_of(make_suite, limit=1) == []
    assert "a zip archive" in lines_of(make_suite, "max_dropped_share=0.5", limit=3)[0]


def test_a_missing_extra_is_named_with_the_shard(
    make_suite: MakeSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("suite.data_check", "datasets.inventory"):
        monkeypatch.setattr(f"xares_bench.{module}.missing_extra", {"m4a": "install it"}.get)
    members = [
        ("a.wav", encode(tone(0.2))),
        ("a.json", b'{"label": "w"}'),
        ("b.m4a", b"1"),
        ("b.json", b'{"label": "w"}'),
    ]
    write_members(tmp_path / "test_0.tar", members)
    (line,) = lines_of(make_suite)
    assert line == f"mine cannot be scored: mine: clips of {tmp_path}/test_0.tar: install it"


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("mAP, metric_args: {num_classes: 2}", "the references contain 3 different labels, more than num_classes=2"),
        ("iWER", "none of the 1 references contains a word, so iWER is undefined"),
        ("chrF", "none of the 1 references contains a character, so chrF is undefined"),
    ],
)
def test_targets_that_the_metric_cannot_score_are_a_problem(
    make_suite: MakeSuite, tmp_path: Path, metric: str, expected: str
) -> None:
    (tmp_path / "eval.yaml").write_text(
        f"mine: {{data: {{data: 'test_*.tar', key: label, prompt: What?}}, metric: {metric}}}\n"
    )
    assert lines_of(make_suite, "steps=3") == []
    # An empty text is not corrupt, and has no word.
    for number, label in enumerate(("a;b", "c") if metric.startswith("mAP") else ("", "")):
        write_shard(tmp_path / f"test_{number}.tar", [(key, tone(0.2), {"label": label}) for key in ("one", "two")])
    for limit in (None, 4):
        (line,) = lines_of(make_suite, limit=limit)
        assert line.startswith(f"mine cannot be scored: mine: {expected}")
    assert lines_of(make_suite, limit=3) == []


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_whose_targets_are_all_corrupt_is_a_problem(make_suite: MakeSuite, tmp_path: Path, split: str) -> None:
    def write(number: int, *labels: object) -> None:
        clips = [(f"clip-{i}", tone(0.2), {"label": label}) for i, label in enumerate(labels)]
        write_shard(tmp_path / f"{split}_{number}.tar", clips)

    corrupt = "mine cannot be scored: mine: none of {} samples has a usable target: all are corrupt"
    write(0, "?!", ["--", "aaaaaaaaaaa"], "w")
    write(1, "...")
    assert lines_of(make_suite, limit=3) == [], "one target is whole"
    (line,) = lines_of(make_suite, limit=2)
    assert line.startswith(corrupt.format(2))
    write(0, "?!", "--")
    (line,) = lines_of(make_suite)
    assert line.startswith(corrupt.format(3))
    write(1, "")
    assert lines_of(make_suite) == [], "an empty text is not corrupt"
    (line,) = lines_of(make_suite, limit=2)
    assert line.startswith(corrupt.format(2)), "the shard after those that the limit needs does not count"


def test_what_is_cached_is_not_walked_again(make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = make_suite()
    suite.fetch(["mine"])
    suite.evaluate("mine")

    def refuse(*arguments: object) -> None:
        raise AssertionError("a shard is walked")

    monkeypatch.setattr(Inventories, "_walk", refuse)
    assert lines_of(make_suite) == [], "nothing is needed"
    assert lines_of(make_suite, "steps=3") == [], "all is known"


def test_own_shards_are_digested_and_walked_with_a_bar(make_suite: MakeSuite, tmp_path: Path) -> None:
    bars: list[tuple[str, int]] = []

    class Bars(Progress):
        def bar(self, description: str, total: int, *arguments: object, **named: object) -> object:  # type: ignore[override]
            bars.append((description, total))
            return super().bar(description, total)

    suite = make_suite()
    total = sum(path.stat().st_size for path in tmp_path.glob("t*_*.tar"))
    suite.preflight.check(["mine"], Bars())
    assert bars == [("checking shards", total)]
    suite.preflight.fetch(["mine"], Bars())
    make_suite().preflight.check(["mine"], Bars())
    assert bars == [("checking shards", total)], "once"


@pytest.fixture
def distinct(make_suite: MakeSuite, tmp_path: Path) -> None:
    """Test shards that are not those of the training."""
    for number in range(2):
        write_shard(tmp_path / f"test_{number}.tar", [("clip", tone(0.3, 200 + 10 * number), {"label": "w"})])


@pytest.mark.usefixtures("distinct")
def test_a_tar_in_training_and_in_test_is_said(make_suite: MakeSuite, tmp_path: Path) -> None:
    assert make_suite().preflight.shared(["mine"]) == []
    shutil.copy(tmp_path / "train_1.tar", tmp_path / "test_0.tar")
    assert make_suite().preflight.shared(["mine"]) == [
        "the same tar is in training and in test: mine (train_1.tar) and mine (test_0.tar); "
        "the test measures memory, too"
    ]
    shutil.copy(tmp_path / "train_0.tar", tmp_path / "test_1.tar")
    (line,) = make_suite().preflight.shared(["mine"])
    assert line.startswith("2 tars are the same in training and in test: mine (train_0.tar) and mine (test_1.tar)")


@pytest.mark.usefixtures("distinct")
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_tar_twice_in_a_split_is_said(make_suite: MakeSuite, tmp_path: Path, split: str) -> None:
    shutil.copy(tmp_path / f"{split}_0.tar", tmp_path / f"{split}_1.tar")
    kind = "training" if split == "train" else "test"
    assert make_suite().preflight.shared(["mine"]) == [
        f"the same tar is twice in {kind}: mine ({split}_0.tar) and mine ({split}_1.tar)"
    ]


@pytest.mark.usefixtures("distinct")
def test_a_tar_in_two_tests_is_said_and_one_that_two_datasets_are_trained_on_is_not(
    make_suite: MakeSuite, tmp_path: Path
) -> None:
    same = "{prompt: What?, data: train_0.tar, key: label}"
    (tmp_path / "two.yaml").write_text(f"train_data: {{a: {same}, b: {same}}}\n")
    test = "{data: {data: test_0.tar, key: label, prompt: What?}, metric: Accuracy}"
    (tmp_path / "tests.yaml").write_text(f"c: {test}\nd: {test}\n")
    suite = make_suite(train="two.yaml", evaluate="tests.yaml")
    assert suite.preflight.shared(["c", "d"]) == ["the same tar is twice in test: c (test_0.tar) and d (test_0.tar)"]
    shutil.copy(tmp_path / "train_0.tar", tmp_path / "copy.tar")
    (tmp_path / "two.yaml").write_text(f"train_data: {{a: {same}, b: {same.replace('train_0', 'copy')}}}\n")
    suite = make_suite(train="two.yaml", evaluate="tests.yaml")
    assert suite.preflight.shared(["c"]) == ["the same tar is twice in training: a (train_0.tar) and b (copy.tar)"]


def test_one_dataset_that_cannot_be_scored_costs_the_others_nothing(make_suite: MakeSuite, tmp_path: Path) -> None:
    good = "{data: {data: test_0.tar, key: label, prompt: What?}, metric: Accuracy}"
    (tmp_path / "tests.yaml").write_text(f"bad: {good.replace('test_0', 'test_1')}\ngood: {good}\n")
    (tmp_path / "test_1.tar").write_bytes(b"PK\x03\x04")
    suite = make_suite(evaluate="tests.yaml")
    (line,) = suite.fetch(["bad", "good"])
    assert line.startswith("bad cannot be scored: ")
    assert suite.evaluate("good").num_clips == 2


def test_a_training_shard_fails_all_that_need_it(make_suite: MakeSuite, tmp_path: Path) -> None:
    test = "{data: {data: test_0.tar, key: label, prompt: What?}, metric: Accuracy}"
    (tmp_path / "tests.yaml").write_text("".join(f"{name}: {test}\n" for name in "abcde"))
    (tmp_path / "train_1.tar").write_bytes(b"PK\x03\x04")
    suite = make_suite(evaluate="tests.yaml")
    (line,) = suite.fetch(list("abcde"))
    assert line.startswith(f"a, b, c and 2 more cannot be scored: {tmp_path}/train_1.tar: a zip archive")
    assert all(map(suite.preflight.fails, "abcde"))


def test_the_mini_corpus_has_no_tar_twice() -> None:
    digests = [file_digest(path) for path in (REPOSITORY / "fixtures" / "mini").rglob("*.tar*")]
    assert len(digests) == len(set(digests)) == 60


def test_an_interruption_stops_the_walks(make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Inventories, *arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Inventories, "_walk", interrupt)
    suite = make_suite()
    with pytest.raises(KeyboardInterrupt):
        suite.check(["mine"])
    assert suite.preflight.data.inventories.stop.is_set()


def test_the_splits_that_need_a_file_of_the_hub_are_known_by_its_path() -> None:
    full = plan(preset="full")
    found = splits_by_path(full)
    dataset = full.catalogue.datasets["esc-50"]
    assert found[full.data_home / "ESC-50/test/esc50_fold_5_0000000.tar.gz"] == [dataset.eval]
    assert found[full.data_home / "ESC-50/train/esc50_fold_1_0000000.tar.gz"] == [dataset.train]
