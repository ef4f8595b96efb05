"""Own data: the two published YAML forms are read as they stand; everything else is refused in one clear line."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from tests.shard_factory import shard_at
from xares_bench.config.catalogue import Catalogue, load_catalogue
from xares_bench.config.own_data import OWN_TASK, check_places, read_own_evaluations, read_own_mix
from xares_bench.core.errors import CatalogueError
from xares_bench.core.parsing import shown
from xares_bench.datasets.shards import read_samples
from xares_bench.metrics.registry import METRICS

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"

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

ON_HUB = """\
train_data:
  mine: {prompt: What?, data: ["train/0.tar"], key: label, repo_id: me/corpus}
"""
WITH_ARGUMENT = EVAL.replace("Accuracy", "mAP") + "  metric_args: {num_classes: 3}\n"

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


def test_words_and_paths(write: Write, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in quotes is text, 1e-1 is a number, and braces are expanded after variables."""
    monkeypatch.setenv("CORPUS", str(Path.cwd()))
    monkeypatch.setenv("HOME", str(Path.cwd()))
    text = (
        "train_data:\n"
        "  'no': {prompt: What?, data: ['${CORPUS}/{one,two}.tar', '~/sub/three.tar'], key: label, prob: 1e-1}\n"
        '  "off": {prompt: What?, data: $CORPUS/o*.tar, key: label, prob: 3E-1}\n'
    )
    mix = read_own_mix(write(text), catalogue)
    assert [dataset.name for dataset in mix.datasets] == ["no", "off"]
    assert mix.weights == pytest.approx((0.25, 0.75))
    assert shards_of(Path("own.yaml"), catalogue) == ["one.tar", "two.tar", "sub/three.tar"]


def test_the_published_training_form_as_it_stands(write: Write, catalogue: Catalogue) -> None:
    mix = read_own_mix(write(PUBLISHED_TRAIN), catalogue)
    (dataset,) = mix.datasets
    assert mix.name == "own.yaml"
    assert mix.weights == (1.0,)
    assert mix.steps == catalogue.preset.steps["alone"]
    assert (dataset.name, dataset.task, dataset.eval) == ("CustomDataName", OWN_TASK, None)
    assert dataset.prompts == ("My prompt",)
    assert dataset.repository is None
    assert dataset.train is not None
    assert dataset.train.shards == tuple(str(Path.cwd() / f"PATH_TO_MY_TARS{number:02}.tar") for number in range(11))
    assert dataset.train.target_keys == ("DATAKEY",)
    assert mix.num_workers == dataset.train.num_workers == 4


def test_the_published_evaluation_form_as_it_stands(write: Write, catalogue: Catalogue) -> None:
    (dataset,) = read_own_evaluations(write(PUBLISHED_EVAL), catalogue)
    assert (dataset.name, dataset.task, dataset.train) == ("eval_custom", OWN_TASK, None)
    assert dataset.prompts == ("My prompt",)
    assert dataset.repository is None
    assert (dataset.metric, dict(dataset.metric_arguments)) == ("Accuracy", {})
    assert dataset.generation_batch_size == 4
    assert dataset.eval is not None
    assert dataset.eval.shards == tuple(str(Path.cwd() / f"PATH_TO_MY_TARS{number:02}.tar") for number in range(11))
    assert dataset.eval.target_keys == ("DATAKEY",)
    assert dataset.eval.num_workers == 0
    assert dataset.weight == 1.0


def test_what_may_be_left_out(write: Write, catalogue: Catalogue) -> None:
    mix = read_own_mix(write(TRAIN), catalogue)
    assert mix.datasets[0].train is not None
    assert mix.num_workers is mix.datasets[0].train.num_workers is None
    (dataset,) = read_own_evaluations(write(EVAL), catalogue)
    assert dataset.eval is not None
    assert dataset.eval.num_workers is dataset.generation_batch_size is None
    assert dataset.licence == mix.datasets[0].licence == "unknown"


def test_everything_that_a_training_may_say(write: Write, catalogue: Catalogue) -> None:
    text = """\
train_data:
  local:
    prompt: [What?, Which word?]
    data: one.tar
    key: [label, "text; caption"]
    prob: 3
    licence: CC0-1.0
  hub:
    prompt: Who?
    data: ["train/{00..02}.tar.gz", extra.tar]
    key: speaker
    prob: 0.5
    repo_id: some-one/some.corpus_2
num_training_workers: 0
max_steps: 20
"""
    mix = read_own_mix(write(text), catalogue)
    local, hub = mix.datasets
    assert mix.weights == pytest.approx((6 / 7, 1 / 7))
    assert (mix.steps, mix.num_workers) == (20, 0)
    assert local.prompts == ("What?", "Which word?")
    assert local.train is not None
    assert hub.train is not None
    assert local.train.target_keys == ("label", "text", "caption")
    assert (local.repository, hub.repository) == (None, "some-one/some.corpus_2")
    assert (local.licence, hub.licence) == ("CC0-1.0", "unknown")
    assert hub.train.shards == ("train/00.tar.gz", "train/01.tar.gz", "train/02.tar.gz", "extra.tar")


def test_everything_that_an_evaluation_may_say(write: Write, catalogue: Catalogue) -> None:
    text = """\
labels:
  data:
    data: ["test/{a,b}.tar"]
    key: label;labels
    prompt:
    - Which?
    - Which ones?
    repo_id: me/corpus
  batch_size: 1
  num_workers: 3
  metric: mAP
  metric_args: {num_classes: 7}
  weight: 2.5
  licence: Ours, for research
"""
    (dataset,) = read_own_evaluations(write(text), catalogue)
    assert dataset.licence == "Ours, for research"
    assert dataset.eval is not None
    assert dataset.eval.shards == ("test/a.tar", "test/b.tar")
    assert dataset.eval.target_keys == ("label", "labels")
    assert dataset.eval.num_workers == 3
    assert dataset.prompts == ("Which?", "Which ones?")
    assert dataset.repository == "me/corpus"
    assert (dataset.metric, dataset.metric_arguments) == ("mAP", {"num_classes": 7})
    assert (dataset.weight, dataset.generation_batch_size) == (2.5, 1)


@pytest.mark.parametrize("metric", sorted(set(METRICS) - {"mAP"}))
def test_every_metric_may_be_asked_for(write: Write, catalogue: Catalogue, metric: str) -> None:
    (dataset,) = read_own_evaluations(write(EVAL.replace("Accuracy", metric)), catalogue)
    assert (dataset.metric, dataset.metric_arguments) == (metric, {})


def test_a_key_without_value_counts_as_left_out(write: Write, catalogue: Catalogue) -> None:
    mix = read_own_mix(
        write(TRAIN.replace("label", "label, prob: , repo_id: ") + "max_steps:\nnum_training_workers:\n"), catalogue
    )
    assert (mix.weights, mix.num_workers, mix.datasets[0].repository) == ((1.0,), None, None)
    assert mix.steps == catalogue.preset.steps["alone"]
    read_own_evaluations(write(EVAL + "  metric_args:\n  weight:\n  batch_size:\n  num_workers:\n"), catalogue)


@pytest.mark.parametrize("pattern", ["/**/*.tar", "/home/../**/*.tar", "~/**/*.tar", "/**"])
def test_a_pattern_that_walks_the_whole_disk_is_refused(write: Write, catalogue: Catalogue, pattern: str) -> None:
    text = f"train_data:\n  mine: {{prompt: What?, data: [{pattern}], key: label}}\n"
    with pytest.raises(CatalogueError, match=r"would walk the whole of .*; name a folder before \*\*"):
        read_own_mix(write(text), catalogue)


def test_a_pattern_follows_no_links_and_finds_no_hidden_files(
    write: Write, catalogue: Catalogue, tmp_path: Path
) -> None:
    folder = tmp_path / "tars"
    for name in ("deep/a.tar", "deep/.hidden.tar", ".cache/b.tar"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "loop").symlink_to("/")
    text = f"train_data:\n  mine: {{prompt: What?, data: [{folder}/**/*.tar], key: label}}\n"
    (dataset,) = read_own_mix(write(text), catalogue).datasets
    assert dataset.train is not None
    assert dataset.train.shards == (str(folder / "deep" / "a.tar"),)


def test_a_file_whose_name_looks_like_a_glob_is_that_file(write: Write, catalogue: Catalogue) -> None:
    path = write(TRAIN.replace("one.tar", "'corpus[1].tar'"))
    Path("corpus1.tar").touch()
    assert shards_of(path, catalogue) == ["corpus1.tar"]
    Path("corpus[1].tar").touch()
    assert shards_of(path, catalogue) == ["corpus[1].tar"]


@pytest.mark.parametrize("repository", ["a/b", "A_1/b-c.d", f"{'o' * 96}/{'n' * 96}", "0/0"])
def test_repositories(write: Write, catalogue: Catalogue, repository: str) -> None:
    validate_repo_id(repository)
    text = TRAIN.replace("label", f"label, repo_id: {repository}")
    assert read_own_mix(write(text), catalogue).datasets[0].repository == repository


@pytest.mark.parametrize(
    "repository",
    [
        "a--b/c",
        "a/b..c",
        "a/b.git",
        "-a/b",
        "a/b-",
        ".a/b",
        "a/b.",
        "a/b/c",
        "a b/c",
        "é/b",
        f"a/{'n' * 97}",
        "/b",
        "a/",
    ],
)
def test_what_is_no_repository(write: Write, catalogue: Catalogue, repository: str) -> None:
    with pytest.raises(HFValidationError):
        validate_repo_id(repository)
    text = TRAIN.replace("label", f"label, repo_id: '{repository}'")
    said = ", expected OWNER/NAME of a dataset repository on the hub"
    assert_refused(lambda: read_own_mix(write(text), catalogue), "train_data.mine.repo_id", said)


def test_shards_of_two_repositories_may_not_share_a_path(write: Write, catalogue: Catalogue) -> None:
    text = "train_data:\n" + "".join(
        f"  {name}: {{prompt: What?, data: {data}, key: label, repo_id: {repository}}}\n"
        for name, data, repository in (
            ("first", "train/0.tar", "a/b"),
            ("second", "[train/0.tar, train/1.tar]", "a/b"),
            ("third", "[train/2.tar, train/1.tar]", "a/c"),
        )
    )
    first, second, third = read_own_mix(write(text), catalogue).datasets
    check_places([first, second])
    check_places([first, third])
    with pytest.raises(CatalogueError, match=r"^second of a/b and third of a/c both have a shard 'train/1\.tar', but"):
        check_places([first, second, third])


def test_public_and_local_shards_are_in_nobodys_way(write: Write, catalogue: Catalogue) -> None:
    full = load_catalogue("full")
    check_places([*full.datasets.values(), *catalogue.datasets.values(), *read_own_mix(write(TRAIN), full).datasets])
    name = "GTZAN/test/gtzan_fold_9_0000000.tar.gz"
    for repository in ("mispeech/xares_llm_data", "me/corpus"):
        text = EVAL.replace("one.tar", name).replace("What?", f"What?, repo_id: {repository}")
        datasets = [*full.datasets.values(), *read_own_evaluations(write(text), full)]
        if repository == "me/corpus":
            with pytest.raises(CatalogueError, match=r"^gtzan of mispeech/xares_llm_data and mine of me/corpus both"):
                check_places(datasets)
        else:
            check_places(datasets)


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
        ("[text, 'caption;captions', label]", ("text", "caption", "captions", "label")),
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
        ("'sub/deep/**'", ["sub/deep/four.tar"]),
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
        (TRAIN + "  mine: {prompt: a, data: one.tar, key: b}\n", "", "the key 'mine' is repeated"),
        (TRAIN.replace("train_data", "training_data"), "training_data", "unknown key; expected one of train_data"),
        (PUBLISHED_EVAL, "eval_custom", "expected one of train_data, num_training_workers, max_steps"),
        (TRAIN.replace("prompt: What?, ", ""), "train_data.mine.prompt", "missing"),
        (TRAIN.replace(", key: label", ""), "train_data.mine.key", "missing"),
        (TRAIN.replace("data: [one.tar], ", ""), "train_data.mine.data", "missing"),
        (TRAIN.replace("What?", "3"), "train_data.mine.prompt", "found 3, expected non-empty text or a list of it"),
        (TRAIN.replace("What?", "''"), "train_data.mine.prompt", "found '', expected non-empty text"),
        (
            TRAIN.replace("label", "[a, 3]"),
            "train_data.mine.key",
            "found ['a', 3], expected non-empty text or a list",
        ),
        (TRAIN.replace("label", "['', a]"), "train_data.mine.key", "found ['', 'a'], expected non-empty text or"),
        (TRAIN.replace("label", "['; ']"), "train_data.mine.key", "found ['; '], expected a JSON field or several"),
        (
            TRAIN.replace("What?", "[]"),
            "train_data.mine.prompt",
            "found [], expected non-empty text or a list of it",
        ),
        (TRAIN.replace("What?", "[a, ' ']"), "train_data.mine.prompt", "found ['a', ' '], expected non-empty text"),
        (TRAIN.replace("What?", "[a, [b]]"), "train_data.mine.prompt", "found ['a', ['b']], expected"),
        (TRAIN.replace("label", "';'"), "train_data.mine.key", "found ';', expected a JSON field"),
        (
            TRAIN.replace("[one.tar]", "[]"),
            "train_data.mine.data",
            "found [], expected non-empty text or a list of it",
        ),
        (
            TRAIN.replace("[one.tar]", "{a: one.tar}"),
            "train_data.mine.data",
            "expected non-empty text or a list of it",
        ),
        (TRAIN.replace("one.tar", "absent.tar"), "train_data.mine.data", "no file matches 'absent.tar'"),
        (TRAIN.replace("one.tar", "'one{0..1}.tar'"), "train_data.mine.data", "no file matches 'one0.tar'"),
        (TRAIN.replace("one.tar", "'none*.tar'"), "train_data.mine.data", "no file matches 'none*.tar'"),
        (TRAIN.replace("one.tar", "sub"), "train_data.mine.data", "'sub': a folder, expected a tar file"),
        (TRAIN.replace("one.tar", "'sub/folder*'"), "train_data.mine.data", "no file matches 'sub/folder*'"),
        (TRAIN.replace("one.tar", "'one{0..1.tar'"), "train_data.mine.data", "bad brace pattern"),
        (TRAIN.replace("one.tar", "'one{0-1}.tar'"), "train_data.mine.data", "bad brace pattern"),
        (TRAIN.replace("one.tar", "one.tar, ./one.tar"), "train_data.mine.data", "one.tar twice"),
        (TRAIN.replace("one.tar", "one.tar, '*.tar'"), "train_data.mine.data", "one.tar twice"),
        (TRAIN.replace("one.tar", "'{0..999999}.tar'"), "train_data.mine.data", "stands for more than 100000 paths"),
        (TRAIN.replace("mine", "gtzan"), "train_data.gtzan", "this is the name of a public dataset or mix"),
        (TRAIN.replace("mine", "task1"), "train_data.task1", "this is the name of a public dataset or mix"),
        (TRAIN.replace("mine", "all"), "train_data.all", "this is the name of a public dataset or mix"),
        (TRAIN.replace("mine", "m" * 81), f"train_data.{shown('m' * 81)}", "expected at most 80 letters, digits"),
        (TRAIN.replace("mine", "-mine"), "train_data.-mine", "not - first"),
        (
            TRAIN.replace("mine", "音" * 67),
            f"train_data.{'音' * 67}",
            "found a name of 201 bytes in UTF-8, expected at most 200",
        ),
        (TRAIN.replace("mine", "'mine\\n'"), "train_data.mine\\n", "expected at most 80 letters"),
        (
            TRAIN.replace("mine", r'"my\ndata"'),
            r"train_data.'my\ndata'",
            r"found the name 'my\ndata', expected at most",
        ),
        (
            TRAIN.replace("mine", "../mine"),
            "train_data.../mine",
            "found the name '../mine', expected at most 80 letters",
        ),
        (TRAIN.replace("mine", "a b"), "train_data.a b", "letters, digits, - and _, not - first"),
        (TRAIN + "num_training_workers: -1\n", "num_training_workers", "found -1, expected a whole number"),
        (TRAIN + "num_training_workers: many\n", "num_training_workers", "found 'many'"),
        (TRAIN + "num_training_workers: 1.5\n", "num_training_workers", "found 1.5, expected a whole number"),
        (TRAIN + "max_steps: 0\n", "max_steps", "found 0, expected a whole number of at least 1"),
        (TRAIN + "max_steps: 1e3\n", "max_steps", "found 1000.0, expected a whole number of at least 1; write 1000"),
        (
            TRAIN + "steps: 10\n",
            "steps",
            "unknown key; expected one of train_data, num_training_workers, max_steps; did you mean max_steps?",
        ),
        (TRAIN + "num_workers: 1\n", "num_workers", "did you mean num_training_workers?"),
        (TRAIN.replace("prompt:", "promt:"), "train_data.mine.promt", "did you mean prompt?"),
        (TRAIN.replace("mine", "no"), "", "line 2, column 3: found the key 'no', which is true or false to YAML"),
        (TRAIN + TRAIN.splitlines()[1].replace("mine", "off"), "", "found the key 'off', which is true or false"),
        (TRAIN.replace("What?", "no"), "train_data.mine.prompt", "found False, expected non-empty text or a list"),
        (TRAIN.replace("label", "010"), "", "found '010', which is a number in octal to YAML"),
        (TRAIN.replace("one.tar", "$NOWHERE/one.tar"), "train_data.mine.data", "variable NOWHERE is not set"),
        (
            TRAIN.replace("label", "label, weight: 1"),
            "train_data.mine.weight",
            "expected one of prompt, data, key, prob",
        ),
        (TRAIN.replace("label", "label, prob: 0"), "train_data.mine.prob", "found 0, expected a finite number above 0"),
        (TRAIN.replace("label", "label, prob: -1"), "train_data.mine.prob", "found -1, expected a finite number"),
        (TRAIN.replace("label", "label, prob: .nan"), "train_data.mine.prob", "found nan, expected a finite number"),
        (TRAIN.replace("label", "label, prob: 50%"), "train_data.mine.prob", "found '50%', expected a finite number"),
        (TRAIN.replace("label", "label, prob: [1]"), "train_data.mine.prob", "found [1], expected a finite number"),
        (
            TRAIN.replace("label", "label, prob: 1") + "  other: {prompt: Who?, data: two.tar, key: a}\n",
            "train_data",
            "other has no prob, but others have; give all datasets one, or none",
        ),
        (ON_HUB.replace("me/corpus", "corpus"), "train_data.mine.repo_id", "found 'corpus', expected OWNER/NAME"),
        (ON_HUB.replace("me/corpus", "3"), "train_data.mine.repo_id", "found 3, expected non-empty text"),
        (ON_HUB.replace("me/corpus", "[me/corpus]"), "train_data.mine.repo_id", "expected non-empty text"),
        (
            ON_HUB.replace("0.tar", "*.tar"),
            "train_data.mine.data",
            "found the glob 'train/*.tar', but files on the hub",
        ),
        (ON_HUB.replace("0.tar", "[01].tar"), "train_data.mine.data", "use braces, as in {00..10}"),
        (ON_HUB.replace("train/", "/train/"), "train_data.mine.data", "found '/train/0.tar', expected a plain path"),
        (
            ON_HUB.replace("train/", "../train/"),
            "train_data.mine.data",
            "found '../train/0.tar', expected a plain path",
        ),
        (
            ON_HUB.replace("train/", "a/../train/"),
            "train_data.mine.data",
            "expected a plain path inside the repository",
        ),
        (ON_HUB.replace("train/", "./train/"), "train_data.mine.data", "expected a plain path inside the repository"),
        (ON_HUB.replace("train/", "train//"), "train_data.mine.data", "expected a plain path inside the repository"),
        (ON_HUB.replace("0.tar", "{0..1.tar"), "train_data.mine.data", "bad brace pattern"),
        (ON_HUB.replace("0.tar", "{0,0}.tar"), "train_data.mine.data", "found train/0.tar twice"),
    ],
)
def test_wrong_training_files(write: Write, catalogue: Catalogue, text: str, where: str, said: str) -> None:
    assert_refused(lambda: read_own_mix(write(text), catalogue), where, said)


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("", "", "found nothing, expected a mapping"),
        ("{}", "", "found no dataset, expected at least one"),
        (
            "3: word\n",
            "line 1, column 1",
            "found the key '3', which is a number to YAML, expected text; put it in quotes",
        ),
        ("mine: one.tar\n", "mine", "found 'one.tar', expected a mapping"),
        (EVAL + EVAL, "", "the key 'mine' is repeated"),
        (PUBLISHED_TRAIN, "train_data.CustomDataName", "unknown key; expected one of data, batch_size, num_workers"),
        (EVAL.replace("  metric: Accuracy\n", ""), "mine.metric", "missing"),
        (EVAL.replace("Accuracy", "accuracy"), "mine.metric", "unknown metric 'accuracy'; known metrics:"),
        (EVAL.replace("Accuracy", "[Accuracy]"), "mine.metric", "expected non-empty text"),
        (EVAL.replace("Accuracy", "mAP"), "mine.metric", "requires the argument 'num_classes'"),
        (EVAL.replace("Accuracy", "mAP"), "mine.metric", "a whole number of at least 1 (under metric_args)"),
        (WITH_ARGUMENT.replace("metric: mAP", "metric: map"), "mine.metric", "unknown metric 'map'; known metrics:"),
        (WITH_ARGUMENT.replace("mAP", "iWER"), "mine.metric_args", "'iWER' does not take the argument 'num_classes'"),
        (WITH_ARGUMENT.replace("num_classes", "classes"), "mine.metric_args", "does not take the argument 'classes'"),
        (WITH_ARGUMENT.replace("3", "0"), "mine.metric_args", "'num_classes' of metric 'mAP' is 0; expected a whole"),
        (WITH_ARGUMENT.replace("3", "true"), "mine.metric_args", "is True; expected a whole number of at least 1"),
        (WITH_ARGUMENT.replace("3", "[3]"), "mine.metric_args.num_classes", "found [3], expected text, a number"),
        (WITH_ARGUMENT.replace("3", ""), "mine.metric_args.num_classes", "found nothing, expected text, a number"),
        (WITH_ARGUMENT.replace("{num_classes: 3}", "{}"), "mine.metric_args", "requires the argument 'num_classes'"),
        (WITH_ARGUMENT.replace("{num_classes: 3}", "[3]"), "mine.metric_args", "found [3], expected a mapping"),
        (WITH_ARGUMENT.replace("num_classes: 3", "name: mAP"), "mine.metric_args", "does not take the argument 'name'"),
        (EVAL.replace("data: {data: [one.tar],", "data: {"), "mine.data.data", "missing"),
        (EVAL.replace(", prompt: What?", ""), "mine.data.prompt", "missing"),
        (EVAL.replace("key: label, ", ""), "mine.data.key", "missing"),
        (EVAL.replace("one.tar", "absent.tar"), "mine.data.data", "no file matches 'absent.tar'"),
        (EVAL.replace("{data: [one.tar], key: label, prompt: What?}", "[one.tar]"), "mine.data", "expected a mapping"),
        (EVAL + "  batch_size: 0\n", "mine.batch_size", "found 0, expected a whole number of at least 1"),
        (EVAL + "  batch_size: 2.5\n", "mine.batch_size", "found 2.5"),
        (EVAL + "  num_workers: -1\n", "mine.num_workers", "found -1, expected a whole number of at least 0"),
        (EVAL + "  metric_args: {num_classes: 3}\n", "mine.metric_args", "'Accuracy' does not take the argument"),
        (EVAL + "  weight: 0\n", "mine.weight", "found 0, expected a finite number above 0"),
        (EVAL + "  weight: -1.5\n", "mine.weight", "found -1.5, expected a finite number above 0"),
        (EVAL + "  weight: heavy\n", "mine.weight", "found 'heavy', expected a finite number above 0"),
        (
            EVAL + "  prob: 1\n",
            "mine.prob",
            "unknown key; expected one of data, batch_size, num_workers, metric, metric_",
        ),
        (EVAL + "  repo_id: a/b\n", "mine.repo_id", "unknown key"),
        (EVAL + "  prompt: Twice?\n", "mine.prompt", "unknown key"),
        (EVAL.replace("What?", "[]"), "mine.data.prompt", "found [], expected non-empty text or a list of it"),
        (
            EVAL.replace("key: label", "key: label, repo_id: corpus"),
            "mine.data.repo_id",
            "found 'corpus', expected OWNER",
        ),
        (
            EVAL.replace("key: label", "key: label, prob: 1"),
            "mine.data.prob",
            "expected one of data, key, prompt, repo_id",
        ),
        (
            EVAL.replace("one.tar", "'*.tar'").replace("label", "label, repo_id: a/b"),
            "mine.data.data",
            "found the glob '*.tar', but files on the hub are not listed",
        ),
        (EVAL.replace("mine", "esc-50"), "esc-50", "this is the name of a public dataset or mix; choose another"),
        (EVAL.replace("mine", "task2"), "task2", "this is the name of a public dataset or mix"),
        (EVAL.replace("mine", "my.set"), "my.set", "found the name 'my.set', expected at most 80 letters"),
    ],
)
def test_wrong_evaluation_files(write: Write, catalogue: Catalogue, text: str, where: str, said: str) -> None:
    assert_refused(lambda: read_own_evaluations(write(text), catalogue), where, said)


def test_the_page_for_users_works_as_it_is_written(write: Write, catalogue: Catalogue, tmp_path: Path) -> None:
    blocks = re.findall(r"^ *```(\w+)\n(.*?)^ *```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    _, program = (text for language, text in blocks if language == "python")
    (tmp_path / "sounds").mkdir()
    suffixes = ("wav", "flac", "mp3", "ogg", "OPUS") * 300
    files = [f"sounds/take.{number}.{suffix}" for number, suffix in enumerate(suffixes)]
    for file in files:
        Path(file).write_bytes(file.encode())
    rows = [f"{file},label of {file},train\n" for file in files]
    Path("clips.csv").write_text("".join(["file,label,split\n", *rows, f"{files[0]},heard,test\n"]))
    exec(compile(program, "docs/datasets.md", "exec"), {})  # as a reader would run it
    test, *tars = sorted(Path("tars").iterdir())
    assert [tar.name for tar in (test, *tars)] == ["test_00.tar", "train_00.tar", "train_01.tar"]
    assert [sample.fields["label"] for sample in read_samples(shard_at(test))] == ["heard"]
    samples = [sample for tar in tars for sample in read_samples(shard_at(tar))]
    assert {sample.problem for sample in samples} == {None}
    assert sorted(str(sample.fields["file"]) for sample in samples) == sorted(files)
    assert [sample.fields["file"] for sample in samples] != files
    assert all(sample.audio == sample.fields["file"].encode() for sample in samples)
    yaml_files = [textwrap.dedent(text) for language, text in blocks if language == "yaml"]
    mixes = [read_own_mix(write(text), catalogue) for text in yaml_files if text.startswith("train_data:")]
    tests = [read_own_evaluations(write(text), catalogue) for text in yaml_files if text.startswith("eval_")]
    assert [len(mix.datasets) for mix in mixes] == [1, 2]
    assert [len(datasets) for datasets in tests] == [1, 1]
    full = load_catalogue("full").datasets["gtzan"]
    learnt, tested = mixes[1].datasets[1], tests[1][0]
    assert (learnt.train, learnt.prompts, learnt.repository) == (full.train, full.prompts, full.repository)
    assert (tested.eval, tested.prompts, tested.repository) == (full.eval, full.prompts, full.repository)


def test_the_page_for_users_names_every_key_and_every_metric(write: Write, catalogue: Catalogue) -> None:
    with pytest.raises(CatalogueError) as train:
        read_own_mix(write("typing_error:\n"), catalogue)
    with pytest.raises(CatalogueError) as train_dataset:
        read_own_mix(write("train_data: {mine: {typing_error: 1}}\n"), catalogue)
    with pytest.raises(CatalogueError) as evaluation:
        read_own_evaluations(write("mine: {typing_error: 1}\n"), catalogue)
    with pytest.raises(CatalogueError) as data:
        read_own_evaluations(write("mine: {data: {typing_error: 1}}\n"), catalogue)
    page = PAGE.read_text(encoding="utf-8")
    for caught, prefix in ((train, ""), (train_dataset, ""), (evaluation, ""), (data, "data.")):
        keys = str(caught.value).partition("expected one of ")[2].split(", ")
        assert len(keys) >= 3
        for key in keys:
            assert f"\n| `{prefix}{key}` |" in page
    for metric in METRICS:
        assert f"\n| `{metric}` |" in page


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
