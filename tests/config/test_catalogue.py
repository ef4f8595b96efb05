"""The catalogue: it holds the published figures, and refuses what is not well-formed, naming file and key."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from braceexpand import braceexpand

from tests.conftest import REPOSITORY
from xares_bench.config.catalogue import (
    DATA_FOLDER,
    Catalogue,
    Dataset,
    expand_braces,
    load_catalogue,
    make_mix,
)
from xares_bench.core.errors import CatalogueError

# As published with edition 0.0.12, typed in apart from the catalogue:
# name | prompt | metric | train keys | test keys | weight in task | weight in all (-: by shards) | steps alone |
# training shards | test shards | last training shard | last test shard
PUBLISHED = """
asvspoof2015|Detect if the audio is genuine or a spoof.|Accuracy|binary_spoof|binary_spoof|1|-|10000|18|194|ASVSpoof2015/train/asvspoof_train_000017.tar.gz|ASVSpoof2015/test/asvspoof_eval_000193.tar.gz
cremad|Identify the emotion expressed in the speech.|Accuracy|label|label;labels|1|-|1000|6|2|CremaD/train/train_cremad_with_text_000005.tar.gz|CremaD/test/valid_cremad_with_text_000001.tar.gz
esc-50|Classify the environmental sound.|Accuracy|label;labels|text;caption;captions;label;labels|0.5|-|2000|4|1|ESC-50/train/esc50_fold_4_0000000.tar.gz|ESC-50/test/esc50_fold_5_0000000.tar.gz
fluentspeechcommands|Identify the command, action, and object from the speech.|Accuracy|text;caption;captions;label;labels|text;caption;captions;label;labels|2|-|3000|24|4|FluentSpeechCommands/train/train_intent_with_text_000023.tar.gz|FluentSpeechCommands/test/test_intent_with_text_000003.tar.gz
freemusicarchive|Classify the music genre (FMA).|Accuracy|genre|genre|2|-|10000|64|8|FreeMusicArchive/train/small_train_000063.tar.gz|FreeMusicArchive/test/fma_small_test_000007.tar.gz
fsd50k|Multi-label classification for FSD50k|mAP 200|label;labels|label;labels|3|-|5000|9|32|FSD50k/train/train_with_text_000008.tar.gz|FSD50k/test/eval_with_text_000031.tar.gz
fsdkaggle2018|Multi-label classification for FSDKaggle2018|mAP 41|label;labels|label;labels|2|-|10000|21|3|FSDKaggle2018/train/train_with_text_000020.tar.gz|FSDKaggle2018/test/test_with_text_000002.tar.gz
gtzan|Classify the music genre (GTZAN).|Accuracy|genre|genre|1|-|2000|9|1|GTZAN/train/gtzan_fold_8_0000000.tar.gz|GTZAN/test/gtzan_fold_9_0000000.tar.gz
libricount|Count the amount of speakers.|Accuracy|num_speakers|num_speakers|1|-|2000|4|1|LibriCount/train/libricount_fold03.tar.gz|LibriCount/test/libricount_fold04.tar.gz
nsynth|Classify the music instrument.|Accuracy|instrument_family_str|instrument_family_str|3|0.03|20000|372|6|NSynth/train/train_000371.tar.gz|NSynth/test/test_000005.tar.gz
speechcommandsv1|Classify the keyword.|Accuracy|text;caption;captions;label;labels|text;caption;captions;label;labels|1|0.05|10000|52|7|SpeechCommandsV1/train/train_renamed_with_text_000051.tar.gz|SpeechCommandsV1/test/test_renamed_with_text_000006.tar.gz
urbansound8k|Classify the urban sound.|Accuracy|soundevent|soundevent|1|-|2000|9|1|Urbansound8k/train/urbansound_fold9_0000000.tar.gz|Urbansound8k/test/urbansound_fold10_0000000.tar.gz
vocalsound|Classify the vocal sound.|Accuracy|text;caption;captions;label;labels|labels|2|-|2000|21|5|VocalSound/train/train_with_text_000020.tar.gz|VocalSound/test/test_000004.tar.gz
voxceleb1|Are the two speakers the same or different?|Accuracy|label;labels|text;caption;captions;label;labels|2|-|5000|40|19|VoxCeleb1/train/train_000039.tar.gz|VoxCeleb1/test/test_000018.tar.gz
voxlingua33|Classify the language.|Accuracy|label;labels|text;caption;captions;label;labels|3|0.2|30000|210|6|VoxLingua33/train/train_subset_k_000209.tar.gz|VoxLingua33/test/dev_000005.tar.gz
aishell-1|Transcribe the Chinese speech into text.|iCER|text|text|2|0.05|50000|174|12|AISHELL-1/train/train_000173.tar.gz|AISHELL-1/test/test_000011.tar.gz
clotho|Generate a short caption for the audio.|FENSE|text;caption;captions;label;labels|caption;captions|1|0.02|5000|18|5|Clotho/train/train_000017.tar.gz|Clotho/test/test_000004.tar.gz
librispeech|Transcribe the English speech into text|iWER|trans|trans|2|0.05|50000|20|20|LibriSpeech/train/train-clean-100-000019.tar.gz|LibriSpeech/test/test-clean-000019.tar.gz
mecat|Write a general audiocaption.|DATE|long|long|3|0.2|10000|10|10|00A/train_0000-0000000.tar.gz|00A/test_0000-0000000.tar.gz
songdescriber|Generate a caption for the music|FENSE|caption|captions|1|-|2000|2|2|Songdescriber/train/train_song_describer_000001.tar.gz|Songdescriber/test/valid_song_describer_000001.tar.gz
"""  # noqa: E501
FACTS = [line.split("|") for line in PUBLISHED.strip().splitlines()]
TASK2 = ("aishell-1", "clotho", "librispeech", "mecat", "songdescriber")

# The published recipe, by the names that the catalogue has for its values.
RECIPE = {
    "seed": 42,
    "batch_size": 4,
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "warmup_steps": 200,
    "max_grad_norm": 1.0,
    "adaptation": "lora",
    "lora_rank": 8,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "max_audio_s": 30.0,
    "shuffle_buffer": 256,
    "sort_window": 128,
    "deterministic": True,
    "repetition_penalty": 1.05,
    "max_new_tokens": 150,
}

# libyaml's where it is there, which is ten times faster.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def full() -> Catalogue:
    return load_catalogue("full")


@pytest.fixture(scope="module")
def mini() -> Catalogue:
    return load_catalogue("mini")


@pytest.fixture
def message_of_edited(tmp_path: Path) -> Callable[[str, Edit], str]:
    """What is said of a copy of `datasets.yaml` or `presets.yaml` that was edited."""

    def load(name: str, edit: Edit) -> str:
        files = {}
        for file in ("datasets", "presets"):
            files[file] = DATA_FOLDER / f"{file}.yaml"
            if file == name:
                content = yaml.load(files[file].read_text(encoding="utf-8"), Loader=LOADER)
                edit(content)
                files[file] = tmp_path / f"{file}.yaml"
                files[file].write_text(yaml.dump(content, Dumper=DUMPER), encoding="utf-8")
        with pytest.raises(CatalogueError) as caught:
            load_catalogue("full", datasets_file=files["datasets"], presets_file=files["presets"])
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(f"{files[name]}: ")
        return message.removeprefix(f"{files[name]}: ")

    return load


def test_there_are_15_and_5_datasets(full: Catalogue, mini: Catalogue) -> None:
    names = {line[0] for line in FACTS}
    assert len(FACTS) == len(names) == 20
    for catalogue in (full, mini):
        assert set(catalogue.datasets) == names
        assert set(catalogue.tasks) == {"task1", "task2"}
        assert set(catalogue.tasks["task2"]) == set(TASK2)
        assert set(catalogue.tasks["task1"]) == names - set(TASK2)
        assert len(catalogue.tasks["task1"]) == 15
        assert len(catalogue.tasks["task2"]) == 5


@pytest.mark.parametrize("fact", FACTS, ids=[line[0] for line in FACTS])
def test_full_catalogue_holds_the_published_figures(full: Catalogue, fact: list[str]) -> None:
    name, prompt, metric, train_keys, eval_keys, weight, weight_all, steps, num_train, num_eval, train, test = fact
    dataset = full.datasets[name]
    assert dataset.name == name
    assert dataset.task == ("task2" if name in TASK2 else "task1")
    assert dataset.prompts == (prompt,)
    metric_name, _, num_classes = metric.partition(" ")
    assert dataset.metric == metric_name
    assert dataset.metric_arguments == ({"num_classes": int(num_classes)} if num_classes else {})
    assert dataset.weight == 1.0
    assert dataset.mix_weight == float(weight)
    assert dataset.mix_weight_all == (None if weight_all == "-" else float(weight_all))
    assert dataset.steps_alone == int(steps)
    assert dataset.repository == ("mispeech/MECAT-Caption" if name == "mecat" else "mispeech/xares_llm_data")
    assert dataset.train is not None
    assert dataset.eval is not None
    assert dataset.train.target_keys == tuple(train_keys.split(";"))
    assert dataset.eval.target_keys == tuple(eval_keys.split(";"))
    for split, count, last in ((dataset.train, num_train, train), (dataset.eval, num_eval, test)):
        assert len(split.shards) == len(set(split.shards)) == int(count)
        assert split.shards[-1] == last
    assert not set(dataset.train.shards) & set(dataset.eval.shards)


def test_expansion_keeps_zeros_and_order(full: Catalogue) -> None:
    split = full.datasets["nsynth"].train
    assert split is not None
    assert split.shards[0] == "NSynth/train/train_000000.tar.gz"
    assert split.shards[9:11] == ("NSynth/train/train_000009.tar.gz", "NSynth/train/train_000010.tar.gz")
    folds = full.datasets["urbansound8k"].train
    assert folds is not None
    assert folds.shards[0] == "Urbansound8k/train/urbansound_fold1_0000000.tar.gz"


def test_mecat_has_its_ten_shards_a_split(full: Catalogue) -> None:
    dataset = full.datasets["mecat"]
    assert dataset.train is not None
    assert dataset.eval is not None
    folders = ["0M0", "000", "SMA", "S00", "S00", "0MA", "S0A", "SM0", "SM0", "00A"]
    numbers = ["0000", "0000", "0000", "0000", "0001", "0000", "0000", "0000", "0001", "0000"]
    for split, word in ((dataset.train, "train"), (dataset.eval, "test")):
        assert split.shards == tuple(
            f"{folder}/{word}_{number}-0000000.tar.gz" for folder, number in zip(folders, numbers, strict=True)
        )


def test_full_preset_is_the_published_recipe(full: Catalogue) -> None:
    values = full.preset.recipe.values()
    assert {key: values[key] for key in RECIPE} == RECIPE
    # What changes speed, disk and memory; when data is refused; and what the published recipe does not do: pooling.
    ours = {
        "frame_pool",
        "compile",
        "cuda_graphs",
        "feature_dtype",
        "generation_batch_size",
        "generation_positions",
        "max_dropped_share",
        "steps",
    }
    assert set(values) - set(RECIPE) == ours
    assert values["steps"] is None
    assert values["frame_pool"] == 1
    assert full.preset.decoder == "HuggingFaceTB/SmolLM2-135M"
    assert full.preset.folder is None
    assert dict(full.preset.steps) == {"task1": 100_000, "task2": 100_000, "all": 100_000}


def test_mixes_have_the_published_weights(full: Catalogue) -> None:
    for task in ("task1", "task2"):
        mix = full.mix(task)
        weights = {line[0]: float(line[5]) for line in FACTS if (line[0] in TASK2) == (task == "task2")}
        total = sum(weights.values())
        assert mix.name == task
        assert mix.steps == 100_000
        assert dict(zip((part.name for part in mix.datasets), mix.weights, strict=True)) == pytest.approx(
            {name: weight / total for name, weight in weights.items()}
        )


def test_mix_of_all_weighs_by_shards_where_nothing_is_stated(full: Catalogue) -> None:
    mix = full.mix("all")
    num_shards = sum(int(line[8]) for line in FACTS)
    assert num_shards == 1087
    weights = {line[0]: int(line[8]) / num_shards if line[6] == "-" else float(line[6]) for line in FACTS}
    total = sum(weights.values())
    assert len(mix.datasets) == 20
    assert mix.steps == 100_000
    assert dict(zip((part.name for part in mix.datasets), mix.weights, strict=True)) == pytest.approx(
        {name: weight / total for name, weight in weights.items()}
    )


@pytest.mark.parametrize("preset", ["full", "mini"])
def test_every_mix_sums_to_1(preset: str) -> None:
    catalogue = load_catalogue(preset)
    for name in ("task1", "task2", "all", *catalogue.datasets):
        mix = catalogue.mix(name)
        assert sum(mix.weights) == pytest.approx(1, abs=1e-12)
        assert all(weight > 0 for weight in mix.weights)
        assert mix.steps >= 1


def test_mix_of_one_dataset(full: Catalogue, mini: Catalogue) -> None:
    mix = full.mix("voxlingua33")
    assert (mix.name, mix.weights, mix.steps) == ("voxlingua33", (1.0,), 30_000)
    assert mix.datasets == (full.datasets["voxlingua33"],)
    assert mini.mix("voxlingua33").steps == mini.preset.steps["alone"] < 30_000


def test_three_datasets_differ_where_they_are_trained_alone(full: Catalogue, mini: Catalogue) -> None:
    usual = ("text", "caption", "captions", "label", "labels")
    differences: dict[str, dict[str, dict[str, Any]]] = {
        "esc-50": {"train": {"target_keys": usual}},
        "fsd50k": {"eval": {"shards": ("FSD50k/test/eval_with_text_000000.tar.gz",)}},
        "nsynth": {"eval": {"shards": ("NSynth/test/test_000000.tar.gz",), "target_keys": usual}},
    }
    for name, dataset in full.datasets.items():
        expected = dataset
        for split, values in differences.get(name, {}).items():
            changed = dataclasses.replace(getattr(dataset, split), **values)
            expected = dataclasses.replace(expected, **{split: changed})
            assert changed != getattr(dataset, split)
        assert full.mix(name).datasets == (expected,)
        assert dataset in (*full.mix("task1").datasets, *full.mix("task2").datasets)
        assert mini.mix(name).datasets == (mini.datasets[name],)


def test_an_unknown_mix_is_answered_with_the_known_ones(full: Catalogue) -> None:
    with pytest.raises(CatalogueError, match=r"^--train=tusk1: no such mix; expected a YAML file or one of") as caught:
        full.mix("tusk1")
    for name in ("auto", *full.mix_names):
        assert re.search(rf"\b{re.escape(name)}\b", str(caught.value))


def test_every_mix_is_named(full: Catalogue) -> None:
    assert full.mix_names[:3] == ("task1", "task2", "all")
    assert set(full.mix_names[3:]) == {line[0] for line in FACTS}
    assert len(full.mix_names) == 23
    assert [full.mix(name).name for name in full.mix_names] == list(full.mix_names)


def test_a_prompt_may_be_a_list(tmp_path: Path) -> None:
    text = (DATA_FOLDER / "datasets.yaml").read_text(encoding="utf-8")
    path = tmp_path / "datasets.yaml"
    path.write_text(
        text.replace("prompt: Classify the language.", "prompt: [Which?, What language?]"), encoding="utf-8"
    )
    assert load_catalogue("full", datasets_file=path).datasets["voxlingua33"].prompts == ("Which?", "What language?")


def test_every_public_dataset_says_its_licence_and_the_page_says_the_same(full: Catalogue) -> None:
    page = (REPOSITORY / "docs" / "datasets.md").read_text(encoding="utf-8")
    table = (
        page.partition("\n## Licences of the public datasets\n")[2].partition("| --- | --- |\n")[2].partition("\n\n")[0]
    )
    rows = dict(row.strip("| ").split(" | ") for row in table.splitlines())
    assert rows == {name: dataset.licence for name, dataset in full.datasets.items()}


def test_the_miniatures_have_the_licence_of_this_repository(mini: Catalogue) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {dataset.licence for dataset in mini.datasets.values()} == {project["license"]}


def test_features_are_the_encoders_own_unless_said(full: Catalogue, mini: Catalogue) -> None:
    assert {full.preset.recipe.training.feature_dtype, mini.preset.recipe.training.feature_dtype} == {"encoder"}


def test_decoding_threads_are_one_per_processor_unless_said(full: Catalogue) -> None:
    split = full.datasets["gtzan"].train
    assert split is not None
    assert split.num_workers is None
    assert full.mix("task1").num_workers is None
    assert make_mix("mine", [made("a")], [1], 7, 0).num_workers == 0


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(CatalogueError, match=r"^--preset=tiny: no such preset; expected one of full, mini$"):
        load_catalogue("tiny")


def test_mini_differs_in_data_metrics_and_steps_only(full: Catalogue, mini: Catalogue) -> None:
    for name, dataset in mini.datasets.items():
        other = full.datasets[name]
        assert dataset.prompts == other.prompts
        assert dataset.repository is None
        assert dataset.task == other.task
        assert dataset.mix_weight == other.mix_weight
        assert dataset.train is not None
        assert dataset.eval is not None
        assert other.train is not None
        assert other.eval is not None
        assert dataset.train.target_keys == other.train.target_keys
        assert dataset.eval.target_keys == other.eval.target_keys
        assert all(shard.startswith(f"{name}/") for shard in (*dataset.train.shards, *dataset.eval.shards))
        assert not set(dataset.train.shards) & set(dataset.eval.shards)
        assert dataset.metric not in ("FENSE", "DATE")
    assert mini.preset.folder is not None
    assert mini.preset.folder.is_absolute()


def test_make_mix_normalises() -> None:
    datasets = [made("a"), made("b")]
    mix = make_mix("mine", datasets, [1, 3], 7)
    assert (mix.name, mix.datasets, mix.weights, mix.steps) == ("mine", tuple(datasets), (0.25, 0.75), 7)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ("a.tar",)),
        ("a_{8..11}.tar", ("a_8.tar", "a_9.tar", "a_10.tar", "a_11.tar")),
        ("a_{098..101}.tar", ("a_098.tar", "a_099.tar", "a_100.tar", "a_101.tar")),
        ("{train,test}/{0..1}.tar", ("train/0.tar", "train/1.tar", "test/0.tar", "test/1.tar")),
        ("/abs/{a,b{0..1}}.tar", ("/abs/a.tar", "/abs/b0.tar", "/abs/b1.tar")),
    ],
)
def test_braces_expand(pattern: str, expected: tuple[str, ...]) -> None:
    assert expand_braces(pattern) == expected


@pytest.mark.parametrize(
    "pattern", ["a_{00..10.tar", "a_00..10}.tar", "a_{0-3}.tar", "a_{}.tar", "{a}", "a_{1...3}.tar"]
)
def test_bad_braces_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"^bad brace pattern .*; expected a range like \{00\.\.10\} or a list like"):
        expand_braces(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "a_{0..100000}.tar",
        "a_{0..999999999999999999999999}.tar",
        "a_{9999999999..0}.tar",
        "{0..9}" * 30,
        "{a,b}" * 64,
        "{a..z}{A..Z}{a..z}{A..Z}{a..z}",
        "{x,{y,{0..999999999}}}",
        "{0..9999999999..2}",
    ],
)
def test_braces_that_would_fill_the_memory_are_refused_at_once(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"^'.* stands for more than 100000 paths$"):
        expand_braces(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "{00000..99999}.tar",
        "{0..199998..2}.tar",
        "{a{0..49999},b{0..49999}}.tar",
        "{a..c}/{0..9999}.tar",
        "{" + ",".join(f"{letter}{{0..99}}" for letter in "abcdefghij") + "}",
    ],
)
def test_many_paths_are_fine(pattern: str) -> None:
    assert expand_braces(pattern) == tuple(braceexpand(pattern))


def put(*path: str, value: Any) -> Edit:
    """An edit that sets one value."""

    def edit(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return edit


def drop(*path: str) -> Edit:
    """An edit that takes one key away."""

    def edit(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return edit


@pytest.mark.parametrize(
    ("file", "edit", "start", "said"),
    [
        ("datasets", drop("gtzan", "licence"), "gtzan.licence:", "missing"),
        (
            "datasets",
            put("gtzan", "licence", value="a\nb"),
            "gtzan.licence:",
            "name of a licence in one line of at most",
        ),
        ("datasets", put("gtzan", "licence", value="a" * 101), "gtzan.licence:", "name of a licence in one line"),
        ("presets", put("full", "data", "licence", value=[]), "full.data.licence:", "expected non-empty text"),
        ("datasets", put("gtzan", "promt", value="x"), "gtzan.promt:", "unknown key; expected one of task, prompt"),
        ("datasets", put("gtzan", "targets", "test", value=["x"]), "gtzan.targets.test:", "one of train, eval"),
        ("datasets", put("gtzan", "mix_weight", "task2", value=1), "gtzan.mix_weight.task2:", "one of task, all"),
        ("datasets", put("gtzan", "shards", "dev", value=["x"]), "gtzan.shards.dev:", "one of train, eval"),
        ("datasets", put("gtzan", "metric", value={"name": "Acuracy"}), "gtzan.metric:", "unknown metric 'Acuracy'"),
        ("datasets", put("gtzan", "metric", value={"name": "mAP"}), "gtzan.metric:", "requires the argument"),
        ("datasets", put("gtzan", "metric", "num_classes", value=3), "gtzan.metric:", "does not take the argument"),
        (
            "datasets",
            put("gtzan", "metric", value={"name": "mAP", "num_classes": [3]}),
            "gtzan.metric.num_classes:",
            "[3]",
        ),
        ("datasets", put("fsd50k", "metric", "num_classes", value=0), "fsd50k.metric:", "at least 1"),
        ("datasets", put("gtzan", "metric", value="Accuracy"), "gtzan.metric:", "expected a mapping"),
        ("datasets", put("gtzan", "shards", "train", value=["a{0..1.tar"]), "gtzan.shards.train:", "bad brace pattern"),
        ("datasets", put("gtzan", "shards", "eval", value=["a{0-1}.tar"]), "gtzan.shards.eval:", "bad brace pattern"),
        (
            "datasets",
            put("gtzan", "shards", "eval", value=[]),
            "gtzan.shards.eval:",
            "expected non-empty text or",
        ),
        ("datasets", put("gtzan", "shards", "eval", value=3), "gtzan.shards.eval:", "found 3"),
        (
            "datasets",
            put("gtzan", "mix_weight", "task", value=0),
            "gtzan.mix_weight.task:",
            "found 0, expected a finite",
        ),
        ("datasets", put("gtzan", "mix_weight", "task", value=-2), "gtzan.mix_weight.task:", "number above 0"),
        ("datasets", put("gtzan", "mix_weight", "all", value=0.0), "gtzan.mix_weight.all:", "number above 0"),
        ("datasets", put("gtzan", "mix_weight", "task", value="2"), "gtzan.mix_weight.task:", "found '2'"),
        ("datasets", put("gtzan", "mix_weight", "task", value=float("nan")), "gtzan.mix_weight.task:", "found nan"),
        ("datasets", put("gtzan", "prompt", value=["a", 3]), "gtzan.prompt:", "expected non-empty text or"),
        ("datasets", put("gtzan", "prompt", value=[]), "gtzan.prompt:", "found [], expected non-empty text or"),
        ("datasets", put("gtzan", "prompt", value=" "), "gtzan.prompt:", "expected non-empty text"),
        ("datasets", put("gtzan", "steps_alone", value=0), "gtzan.steps_alone:", "whole number of at least 1"),
        ("datasets", put("gtzan", "steps_alone", value=1.5), "gtzan.steps_alone:", "found 1.5"),
        (
            "datasets",
            put("gtzan", "targets", "eval", value=[]),
            "gtzan.targets.eval:",
            "expected non-empty text or",
        ),
        ("datasets", put("gtzan", value=None), "gtzan:", "found nothing, expected a mapping"),
        ("datasets", drop("gtzan", "prompt"), "gtzan.prompt:", "missing"),
        ("datasets", drop("gtzan", "metric"), "gtzan.metric:", "missing"),
        ("datasets", drop("gtzan", "shards", "train"), "gtzan.shards.train:", "missing"),
        ("datasets", drop("gtzan", "targets", "eval"), "gtzan.targets.eval:", "missing"),
        ("datasets", drop("gtzan", "mix_weight", "task"), "gtzan.mix_weight.task:", "missing"),
        ("presets", put("full", "metrics", value={"gtzan2": {"name": "chrF"}}), "full.metrics.gtzan2:", "no such"),
        ("presets", put("full", "metrics", value={"gtzan": {"name": "x"}}), "full.metrics.gtzan:", "unknown metric"),
        ("presets", put("full", "decodr", value="x"), "full.decodr:", "unknown key"),
        ("presets", put("full", "data", "trian", value=["x"]), "full.data.trian:", "unknown key"),
        ("presets", put("full", "data", "train", value=["x{0.tar"]), "full.data.train:", "bad brace pattern"),
        ("presets", put("full", "recipe", "lr", value=1), "full.recipe.lr:", "unknown key; expected one of seed"),
        ("presets", put("full", "recipe", "batch_size", value=0), "full.recipe.batch_size:", "at least 1"),
        ("presets", put("full", "recipe", "learning_rate", value="fast"), "full.recipe.learning_rate:", "found 'fast'"),
        ("presets", put("full", "recipe", "deterministic", value=1), "full.recipe.deterministic:", "true or false"),
        ("presets", put("full", "recipe", "adaptation", value="qlora"), "full.recipe.adaptation:", "one of lora, full"),
        ("presets", drop("full", "recipe", "seed"), "full.recipe.seed:", "missing"),
        ("presets", drop("full", "recipe", "max_grad_norm"), "full.recipe.max_grad_norm:", "missing"),
        ("presets", put("full", "steps", "task1", value=0), "full.steps.task1:", "at least 1"),
        ("presets", drop("full", "steps", "all"), "full.steps.all:", "missing"),
        ("presets", drop("full", "decoder"), "full.decoder:", "missing"),
        ("presets", drop("full", "recipe", "feature_dtype"), "full.recipe.feature_dtype:", "one of encoder, float16"),
        ("presets", drop("full", "needs_gpu"), "full.needs_gpu:", "missing"),
        ("presets", put("full", "keep_features", value=True), "full.keep_features:", "unknown key"),
        ("presets", put("full", "recipe", "feature_dtype", value="half"), "full.recipe.feature_dtype:", "found 'half'"),
    ],
)
def test_ill_formed_files_are_refused(
    message_of_edited: Callable[[str, Edit], str], file: str, edit: Edit, start: str, said: str
) -> None:
    message = message_of_edited(file, edit)
    assert message.startswith(start + " ")
    assert said in message


def test_a_task_without_steps_is_refused(tmp_path: Path) -> None:
    text = (DATA_FOLDER / "datasets.yaml").read_text(encoding="utf-8")
    path = tmp_path / "datasets.yaml"
    path.write_text(text.replace("task: task2", "task: tusk2", 1), encoding="utf-8")
    with pytest.raises(
        CatalogueError, match=r"presets\.yaml: full\.steps\.tusk2: missing; every task of datasets\.yaml"
    ):
        load_catalogue("full", datasets_file=path)


@pytest.mark.parametrize("preset_file", [False, True])
def test_duplicate_names_are_refused(tmp_path: Path, preset_file: bool) -> None:
    name = "presets.yaml" if preset_file else "datasets.yaml"
    text = (DATA_FOLDER / name).read_text(encoding="utf-8")
    path = tmp_path / name
    path.write_text(text + text[text.index("\nmini:" if preset_file else "\ngtzan:") :], encoding="utf-8")
    files = {"presets_file": path} if preset_file else {"datasets_file": path}
    with pytest.raises(CatalogueError, match=rf"^{re.escape(str(path))}: .*is repeated"):
        load_catalogue("mini", **files)


def made(name: str) -> Dataset:
    return Dataset(
        name=name, task="custom", prompts=("p",), metric="Accuracy", metric_arguments={}, train=None, eval=None
    )
