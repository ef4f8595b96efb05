"""Own data: the two published YAML forms are read as they stand; everything else is refused in one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xares_bench.catalogue import Catalogue, load_catalogue
from xares_bench.errors import CatalogueError
from xares_bench.own_data import OWN_TASK, read_own_evaluations, read_own_mix

# The forms that the benchmark's authors document, with their own placeholders.
PUBLISHED_TRAIN = """\
train_data:
  CustomDataName:
    prompt: My prompt
    data:
    - PATH_TO_MY_TARS{00..10}.tar
    key: DATAKEY
num_training_workers: 4
"""
PUBLISHED_EVAL = """\
eval_custom:
  data:
    data:
    - PATH_TO_MY_TARS{00..10}.tar
    key: DATAKEY # Inside the json
    prompt: My prompt
  batch_size: 4
  num_workers: 0
  metric: Accuracy
"""

# Shorter ones to break.
TRAIN = """\
train_data:
  mine: {prompt: What?, data: [one.tar], key: label}
"""
EVAL = """\
mine:
  data: {data: [one.tar], key: label, prompt: What?}
  metric: Accuracy
"""

Write = Callable[[str], Path]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load_catalogue("mini")


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes `own.yaml` into the working directory, which also holds a few (empty) shards."""
    names = [f"PATH_TO_MY_TARS{number:02}.tar" for number in range(11)]
    for name in ("one.tar", "two.tar", "sub/three.tar", "sub/deep/four.tar", "sub/notes.txt", *names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "folder.tar").mkdir()
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        path = Path("own.yaml")
        path.write_text(text, encoding="utf-8")
        return path

    return write


def shards_of(path: Path, catalogue: Catalogue) -> list[str]:
    split = read_own_mix(path, catalogue).datasets[0].train
    assert split is not None
    assert all(Path(shard).is_absolute() for shard in split.shards)
    return [Path(shard).relative_to(Path.cwd()).as_posix() for shard in split.shards]


def test_the_published_training_form_as_it_stands(write: Write, catalogue: Catalogue) -> None:
    mix = read_own_mix(write(PUBLISHED_TRAIN), catalogue)
    (dataset,) = mix.datasets
    assert mix.name == "own.yaml"
    assert mix.weights == (1.0,)
    assert mix.steps == catalogue.preset.steps["alone"]
    assert (dataset.name, dataset.task, dataset.prompt, dataset.eval) == ("CustomDataName", OWN_TASK, "My prompt", None)
    assert dataset.train is not None
    assert dataset.train.shards == tuple(str(Path.cwd() / f"PATH_TO_MY_TARS{number:02}.tar") for number in range(11))
    assert dataset.train.target_keys == ("DATAKEY",)
    assert dataset.train.num_workers == 4


def test_the_published_evaluation_form_as_it_stands(write: Write, catalogue: Catalogue) -> None:
    (dataset,) = read_own_evaluations(write(PUBLISHED_EVAL), catalogue)
    assert (dataset.name, dataset.task, dataset.prompt, dataset.train) == ("eval_custom", OWN_TASK, "My prompt", None)
    assert (dataset.metric, dict(dataset.metric_arguments)) == ("Accuracy", {})
    assert dataset.generation_batch_size == 4
    assert dataset.eval is not None
    assert dataset.eval.shards == tuple(str(Path.cwd() / f"PATH_TO_MY_TARS{number:02}.tar") for number in range(11))
    assert dataset.eval.target_keys == ("DATAKEY",)
    assert dataset.eval.num_workers == 0
    assert dataset.weight == 1.0


def test_what_may_be_left_out(write: Write, catalogue: Catalogue) -> None:
    (dataset,) = read_own_mix(write(TRAIN), catalogue).datasets
    assert dataset.train is not None
    assert dataset.train.num_workers == 0
    (dataset,) = read_own_evaluations(write(EVAL), catalogue)
    assert dataset.generation_batch_size is None


def test_steps_without_a_preset_for_a_single_dataset(write: Write) -> None:
    assert read_own_mix(write(TRAIN), load_catalogue("full")).steps == 100_000


def test_several_datasets_are_drawn_equally_often(write: Write, catalogue: Catalogue) -> None:
    mix = read_own_mix(
        write(TRAIN + "  other: {prompt: Who?, data: two.tar, key: a}\n  third: {prompt: W, data: one.tar, key: b}\n"),
        catalogue,
    )
    assert [dataset.name for dataset in mix.datasets] == ["mine", "other", "third"]
    assert mix.weights == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_several_evaluations(write: Write, catalogue: Catalogue) -> None:
    datasets = read_own_evaluations(write(EVAL + EVAL.replace("mine", "other").replace("Accuracy", "iWER")), catalogue)
    assert [(dataset.name, dataset.metric) for dataset in datasets] == [("mine", "Accuracy"), ("other", "iWER")]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("label", ("label",)),
        ("text;caption;captions", ("text", "caption", "captions")),
        ("' text ; caption;'", ("text", "caption")),
    ],
)
def test_keys_joined_by_semicolons(write: Write, catalogue: Catalogue, key: str, expected: tuple[str, ...]) -> None:
    (dataset,) = read_own_mix(write(TRAIN.replace("label", key)), catalogue).datasets
    assert dataset.train is not None
    assert dataset.train.target_keys == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("one.tar", ["one.tar"]),
        ("'{two,one}.tar'", ["two.tar", "one.tar"]),
        ("'sub/*.tar'", ["sub/three.tar"]),
        ("'sub/**/*.tar'", ["sub/three.tar", "sub/deep/four.tar"]),
        ("'PATH_TO_MY_TARS0[1-3].tar'", ["PATH_TO_MY_TARS01.tar", "PATH_TO_MY_TARS02.tar", "PATH_TO_MY_TARS03.tar"]),
        ("'{one,sub/thr*}.tar'", ["one.tar", "sub/three.tar"]),
        ("[two.tar, './sub/../one.tar']", ["two.tar", "one.tar"]),
    ],
)
def test_paths_with_braces_and_globs(write: Write, catalogue: Catalogue, data: str, expected: list[str]) -> None:
    assert sorted(shards_of(write(TRAIN.replace("[one.tar]", data)), catalogue)) == sorted(expected)
    if "**" not in data:
        assert shards_of(write(TRAIN.replace("[one.tar]", data)), catalogue) == expected


def test_absolute_paths_and_another_working_directory(
    write: Write, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(TRAIN.replace("one.tar", f"{tmp_path}/sub/t*.tar, '{tmp_path}/two.tar'")).absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    split = read_own_mix(path, catalogue).datasets[0].train
    assert split is not None
    assert split.shards == (str(tmp_path / "sub" / "three.tar"), str(tmp_path / "two.tar"))
    with pytest.raises(CatalogueError, match=rf"relative paths start at {tmp_path}/elsewhere"):
        read_own_mix(write(TRAIN), catalogue)


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("", "", "found nothing, expected a mapping"),
        ("- mine\n", "", "found ['mine'], expected a mapping"),
        ("train_data: {a: [b\n", "", "not a valid YAML file"),
        ("train_data: {mine: {data: [X{00..10}.tar]}}\n", "", "not a valid YAML file"),
        ("num_training_workers: 4\n", "train_data", "missing"),
        ("train_data:\n", "train_data", "found nothing, expected a mapping"),
        ("train_data: {}\n", "train_data", "found no dataset, expected at least one"),
        ("train_data: [one.tar]\n", "train_data", "expected a mapping"),
        (TRAIN + "  mine: {prompt: a, data: one.tar, key: b}\n", "", "the key 'mine' stands there twice"),
        (TRAIN.replace("train_data", "training_data"), "training_data", "unknown key; expected one of train_data"),
        (PUBLISHED_EVAL, "eval_custom", "unknown key; expected one of train_data, num_training_workers"),
        (TRAIN.replace("prompt: What?, ", ""), "train_data.mine.prompt", "missing"),
        (TRAIN.replace(", key: label", ""), "train_data.mine.key", "missing"),
        (TRAIN.replace("data: [one.tar], ", ""), "train_data.mine.data", "missing"),
        (TRAIN.replace("What?", "3"), "train_data.mine.prompt", "found 3, expected a non-empty text"),
        (TRAIN.replace("What?", "''"), "train_data.mine.prompt", "found '', expected a non-empty text"),
        (TRAIN.replace("label", "[a, b]"), "train_data.mine.key", "found ['a', 'b'], expected a non-empty text"),
        (TRAIN.replace("label", "';'"), "train_data.mine.key", "found ';', expected a JSON field"),
        (TRAIN.replace("[one.tar]", "[]"), "train_data.mine.data", "found [], expected a text or a list of texts"),
        (TRAIN.replace("[one.tar]", "{a: one.tar}"), "train_data.mine.data", "expected a text or a list of texts"),
        (TRAIN.replace("one.tar", "absent.tar"), "train_data.mine.data", "no file matches 'absent.tar'"),
        (TRAIN.replace("one.tar", "'one{0..1}.tar'"), "train_data.mine.data", "no file matches 'one0.tar'"),
        (TRAIN.replace("one.tar", "'none*.tar'"), "train_data.mine.data", "no file matches 'none*.tar'"),
        (TRAIN.replace("one.tar", "sub"), "train_data.mine.data", "no file matches 'sub'"),
        (TRAIN.replace("one.tar", "'sub/folder*'"), "train_data.mine.data", "no file matches 'sub/folder*'"),
        (TRAIN.replace("one.tar", "'one{0..1.tar'"), "train_data.mine.data", "bad brace pattern"),
        (TRAIN.replace("one.tar", "'one{0-1}.tar'"), "train_data.mine.data", "bad brace pattern"),
        (TRAIN.replace("one.tar", "one.tar, ./one.tar"), "train_data.mine.data", "one.tar twice"),
        (TRAIN.replace("one.tar", "one.tar, '*.tar'"), "train_data.mine.data", "one.tar twice"),
        (TRAIN.replace("mine", "gtzan"), "train_data.gtzan", "this is the name of a public dataset"),
        (TRAIN.replace("mine", "../mine"), "train_data.../mine", "found the name '../mine', expected letters, digits"),
        (TRAIN.replace("mine", "a b"), "train_data.a b", "expected letters, digits, - and _"),
        (TRAIN + "num_training_workers: -1\n", "num_training_workers", "found -1, expected a whole number"),
        (TRAIN + "num_training_workers: many\n", "num_training_workers", "found 'many'"),
        (TRAIN.replace("key: label", "key: label, prob: 0.5"), "train_data.mine.prob", "unknown key"),
        (TRAIN.replace("key: label", "key: label, repo_id: a/b"), "train_data.mine.repo_id", "unknown key"),
        (TRAIN + "max_steps: 10\n", "max_steps", "unknown key"),
    ],
)
def test_wrong_training_files(write: Write, catalogue: Catalogue, text: str, where: str, said: str) -> None:
    assert_refused(lambda: read_own_mix(write(text), catalogue), where, said)


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("", "", "found nothing, expected a mapping"),
        ("{}", "", "found no dataset, expected at least one"),
        ("3: word\n", "3", "found 'word', expected a mapping"),
        ("mine: one.tar\n", "mine", "found 'one.tar', expected a mapping"),
        (EVAL + EVAL, "", "the key 'mine' stands there twice"),
        (PUBLISHED_TRAIN, "train_data.CustomDataName", "unknown key; expected one of data, batch_size, num_workers"),
        (EVAL.replace("  metric: Accuracy\n", ""), "mine.metric", "missing"),
        (EVAL.replace("Accuracy", "accuracy"), "mine.metric", "unknown metric 'accuracy'; known are"),
        (EVAL.replace("Accuracy", "[Accuracy]"), "mine.metric", "expected a non-empty text"),
        (EVAL.replace("Accuracy", "mAP"), "mine.metric", "requires the argument 'num_classes'"),
        (EVAL.replace("Accuracy", "FENSE"), "mine.metric", "FENSE cannot be computed by this version; Accuracy"),
        (EVAL.replace("Accuracy", "DATE"), "mine.metric", "DATE cannot be computed by this version"),
        (EVAL.replace("data: {data: [one.tar],", "data: {"), "mine.data.data", "missing"),
        (EVAL.replace(", prompt: What?", ""), "mine.data.prompt", "missing"),
        (EVAL.replace("key: label, ", ""), "mine.data.key", "missing"),
        (EVAL.replace("one.tar", "absent.tar"), "mine.data.data", "no file matches 'absent.tar'"),
        (EVAL.replace("{data: [one.tar], key: label, prompt: What?}", "[one.tar]"), "mine.data", "expected a mapping"),
        (EVAL + "  batch_size: 0\n", "mine.batch_size", "found 0, expected a whole number of at least 1"),
        (EVAL + "  batch_size: 2.5\n", "mine.batch_size", "found 2.5"),
        (EVAL + "  num_workers: -1\n", "mine.num_workers", "found -1, expected a whole number of at least 0"),
        (EVAL + "  metric_args: {num_classes: 3}\n", "mine.metric_args", "unknown key"),
        (EVAL + "  weight: 2\n", "mine.weight", "unknown key"),
        (EVAL + "  prompt: Twice?\n", "mine.prompt", "unknown key"),
        (EVAL.replace("key: label", "key: label, repo_id: a/b"), "mine.data.repo_id", "unknown key"),
        (EVAL.replace("mine", "esc-50"), "esc-50", "this is the name of a public dataset; choose another one"),
        (EVAL.replace("mine", "my.set"), "my.set", "found the name 'my.set', expected letters, digits"),
    ],
)
def test_wrong_evaluation_files(write: Write, catalogue: Catalogue, text: str, where: str, said: str) -> None:
    assert_refused(lambda: read_own_evaluations(write(text), catalogue), where, said)


def test_missing_files(write: Write, catalogue: Catalogue) -> None:
    for read in (read_own_mix, read_own_evaluations):
        with pytest.raises(CatalogueError, match=r"^absent\.yaml: no such file$"):
            read(Path("absent.yaml"), catalogue)


def assert_refused(read: Callable[[], object], where: str, said: str) -> None:
    with pytest.raises(CatalogueError) as caught:
        read()
    message = str(caught.value)
    assert message.startswith(f"own.yaml: {where + ': ' if where else ''}")
    assert said in message
    assert "\n" not in message
    assert len(message) < 500
