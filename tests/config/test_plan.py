"""The plan: what a command line asks for, with every mistake in it named before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xares_bench.config.plan import Plan, make_plan
from xares_bench.core.errors import CatalogueError, EncoderSpecError, UsageError

TRAIN = "train_data: {mine: {prompt: What?, data: one.tar, key: label}}\n"
EVAL = "mine: {data: {data: one.tar, key: label, prompt: What?}, metric: Accuracy}\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with an encoder's file, a shard and the two YAML forms; with no data home set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XARES_DATA_HOME", raising=False)
    Path("one.tar").touch()
    Path("train.yaml").write_text(TRAIN)
    Path("train.yml").write_text(TRAIN)
    Path("eval.yaml").write_text(EVAL)
    Path("enc.py").write_text("class MyEncoder: pass\n")


def plan(*changes: str, **options: Any) -> Plan:
    """A plan as of a command line with these options."""
    defaults: dict[str, Any] = {
        "encoder": None,
        "encoder_arguments": None,
        "preset": "mini",
        "train": "auto",
        "evaluate": None,
        "changes": changes,
        "seed": None,
        "pool": None,
        "num_seeds": 1,
        "tracker": None,
        "decoder": None,
        "limit": None,
        "data_home": None,
        "data_revisions": (),
        "allow_cpu": False,
        "feature_bytes": None,
        "checkpoint_steps": 500,
        "runs_dir": "runs",
    }
    return make_plan(**{**defaults, **options})


def test_nothing_asked_for() -> None:
    made = plan()
    assert made.encoder is None
    assert made.mix is None
    assert made.limit is None
    assert made.own_datasets == {}
    assert made.deviations == {}
    assert made.recipe == made.catalogue.preset.recipe
    assert made.catalogue.preset.name == "mini"
    assert made.runs_folder == Path.cwd() / "runs"


def test_planning_creates_nothing() -> None:
    before = sorted(Path().iterdir())
    plan("learning_rate=1e-3", train="train.yaml", evaluate="eval.yaml", encoder="enc.py", data_home="home")
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("learning_rate=1e-3", "learning_rate", 0.001),
        ("learning_rate=1.5e-3", "learning_rate", 0.0015),
        ("learning_rate = 0.25", "learning_rate", 0.25),
        ("learning_rate=2", "learning_rate", 2.0),
        ("adam_epsilon=1E-9", "adam_epsilon", 1e-9),
        ("batch_size=8", "batch_size", 8),
        ("steps=null", "steps", None),
        ("steps=", "steps", None),
        ("steps=12", "steps", 12),
        ("deterministic=false", "deterministic", False),
        ("deterministic=true", "deterministic", True),
        ("adaptation=lora", "adaptation", "lora"),
    ],
)
def test_set(change: str, key: str, value: Any) -> None:
    got = plan(change).recipe.values()[key]
    assert got == value
    assert type(got) is type(value)


def test_a_key_that_is_set_twice_is_refused() -> None:
    with pytest.raises(
        UsageError, match="--set=batch_size=9: batch_size is set twice, before to 8; give each key once"
    ):
        plan("batch_size=8", "batch_size=9")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("batch_size", "--set=batch_size: expected KEY=VALUE, e.g. --set learning_rate=0.001"),
        ("=8", "--set==8: expected KEY=VALUE"),
        ("", "--set=: expected KEY=VALUE"),
        ("lr=1", "--set: lr: unknown key; expected one of seed, steps, batch_size"),
        ("learning_rate=fast", "--set: learning_rate: found 'fast', expected a finite number above 0"),
        ("learning_rate=nan", "--set: learning_rate: found 'nan', expected a finite number"),
        ("learning_rate=[1]", "--set: learning_rate: found [1], expected"),
        ("learning_rate=[1", "--set=learning_rate=[1: '[1' is neither a number, true, false, null nor a word"),
        ("learning_rate=a: b: c", "is neither a number, true, false, null nor a word"),
        ("steps=2024-99-99", "'2024-99-99' is neither a number"),
        ("batch_size=1e3", "--set: batch_size: found 1000.0, expected a whole number of at least 1"),
        ("batch_size=null", "--set: batch_size: found nothing, expected a whole number"),
        ("deterministic=1", "--set: deterministic: found 1, expected true or false"),
        ("decoder=other", "--set: decoder: unknown key"),
        ("max_steps=3", "generation_positions; did you mean steps?"),
        ("lr=1", "generation_positions; did you mean learning_rate?"),
        ("learning-rate=1", "generation_positions; did you mean learning_rate?"),
        ("batch_size=010", "--set=batch_size=010: line 1, column 1: found '010', which is a number in octal to YAML"),
        ("warmup_steps=1:30", "found '1:30', which is a number in base 60 to YAML; write it in decimal"),
        ("adaptation=no", "--set: adaptation: found False, expected one of lora, full"),
    ],
)
def test_wrong_set(change: str, said: str) -> None:
    with pytest.raises(CatalogueError) as caught:
        plan(change)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_deviations_are_what_differs_from_the_preset() -> None:
    preset = plan().recipe.values()
    made = plan("learning_rate=1e-4", f"batch_size={preset['batch_size']}", "max_new_tokens=7", "steps=5")
    assert made.deviations == {
        "learning_rate": (preset["learning_rate"], 1e-4),
        "max_new_tokens": (preset["max_new_tokens"], 7),
        "steps": (None, 5),
    }


def test_seed_is_a_deviation_too() -> None:
    made = plan(seed=7)
    assert made.recipe.training.seed == 7
    assert made.deviations == {"seed": (42, 7)}
    assert plan(seed=42).deviations == {}
    with pytest.raises(UsageError, match=r"--seed=0 and --set seed=3 both set seed; give one of them"):
        plan("seed=3", seed=0)
    with pytest.raises(CatalogueError, match="seed: found -1, expected a whole number of at least 0"):
        plan(seed=-1)


def test_the_presets_recipe_is_left_alone() -> None:
    made = plan("learning_rate=1", seed=9)
    assert made.catalogue.preset.recipe == plan().recipe


def test_auto_trains_each_tasks_mix() -> None:
    made = plan()
    assert made.mix_for("esc-50").name == "task1"
    assert made.mix_for("clotho").name == "task2"
    assert all(made.covers(name) for name in made.catalogue.datasets)


@pytest.mark.parametrize(("train", "covered"), [("task1", 15), ("task2", 5), ("all", 20), ("gtzan", 1)])
def test_one_mix_for_everything(train: str, covered: int) -> None:
    made = plan(train=train)
    assert made.mix is not None
    assert made.mix.name == train
    assert made.mix_for("gtzan") is made.mix
    assert sum(made.covers(name) for name in made.catalogue.datasets) == covered
    assert made.covers("gtzan") == (train != "task2")


def test_a_mix_of_own_data_covers_own_evaluations_only() -> None:
    made = plan(train="train.yaml", evaluate="eval.yaml")
    assert made.mix is not None
    assert [dataset.name for dataset in made.mix.datasets] == ["mine"]
    assert made.covers("mine")
    assert not any(made.covers(name) for name in made.catalogue.datasets)
    assert made.mix_for("mine") is made.mix
    assert made.dataset("mine").eval is not None
    assert made.dataset("gtzan") is made.catalogue.datasets["gtzan"]


def test_a_dataset_that_is_trained_alone_is_evaluated_as_it_is_then() -> None:
    for train, num_shards in (("fsd50k", 1), ("task1", 32), ("all", 32), ("auto", 32)):
        split = plan(preset="full", train=train).dataset("fsd50k").eval
        assert split is not None
        assert len(split.shards) == num_shards, train


def test_own_evaluations_of_a_public_mix() -> None:
    made = plan(train="task1", evaluate="eval.yaml")
    assert made.covers("mine")
    assert made.covers("gtzan")
    assert not made.covers("clotho")
    assert made.mix_for("mine").name == "task1"


def test_both_yaml_suffixes_are_files() -> None:
    for name in ("train.yaml", "train.yml"):
        mix = plan(train=name, evaluate="eval.yaml").mix
        assert mix is not None
        assert [dataset.name for dataset in mix.datasets] == ["mine"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"evaluate": "eval.yaml"}, r"^--eval needs --train: name the mix whose LALM"),
        ({"train": "train.yaml"}, r"^--train=train\.yaml needs --eval: it contains no public dataset"),
        ({"evaluate": "absent.yaml", "train": "task1"}, r"^absent\.yaml: no such file$"),
        ({"train": "absent.yaml"}, r"^absent\.yaml: no such file$"),
        ({"train": "task3"}, r"^--train=task3: no such mix; expected a YAML file or one of auto, task1, task2, all"),
        ({"train": "eval.yaml"}, r"^eval\.yaml: mine: unknown key"),
        ({"train": "task1", "evaluate": "train.yaml"}, r"^train\.yaml: train_data\.mine: unknown key"),
        ({"preset": "huge"}, r"^--preset=huge: no such preset; expected one of full, mini$"),
        ({"encoder_arguments": "{}"}, r"^--encoder-args needs --encoder$"),
        ({"train": "tsk1"}, r"no such mix; expected .*; did you mean task1\?$"),
        ({"train": "gtzn"}, r"no such mix; expected .*; did you mean gtzan\?$"),
        ({"preset": "Mini"}, r"no such preset; expected one of full, mini; did you mean mini\?$"),
    ],
)
def test_wrong_options(options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        plan(**options)
    assert "\n" not in str(caught.value)


def test_the_encoder_is_read_but_not_imported() -> None:
    Path("enc.py").write_text("raise SystemExit('imported')\nclass MyEncoder: pass\n")
    made = plan(encoder="enc.py", encoder_arguments='{"layer": 6}')
    assert made.encoder is not None
    assert made.encoder.arguments == {"layer": 6}
    with pytest.raises(EncoderSpecError):
        plan(encoder="absent.py")


def test_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    corpus = plan().catalogue.preset.folder
    assert plan().data_folder == corpus
    assert plan(preset="full").data_folder == tmp_path / "xares_data"
    assert plan(preset="full", data_home="here").data_folder == tmp_path / "here"
    assert plan(data_home="/abs").data_folder == Path("/abs")
    monkeypatch.setenv("XARES_DATA_HOME", "/big/disk")
    assert plan(preset="full").data_folder == Path("/big/disk")
    assert plan(preset="full", data_home="here").data_folder == tmp_path / "here", "the option wins"
    assert plan().data_folder == corpus, "the variable is about the published data, not the mini corpus"
    monkeypatch.setenv("XARES_DATA_HOME", "relative")
    assert plan(preset="full").data_folder == tmp_path / "relative"
    monkeypatch.setenv("XARES_DATA_HOME", "")
    assert plan(preset="full").data_folder == tmp_path / "xares_data", "an empty variable counts as none"


@pytest.mark.parametrize(
    "options",
    [
        {"encoder": "$NOWHERE/enc.py"},
        {"encoder": "hf:$NOWHERE/model"},
        {"train": "$NOWHERE/train.yaml", "evaluate": "eval.yaml"},
        {"train": "train.yaml", "evaluate": "$NOWHERE/eval.yaml"},
        {"decoder": "${NOWHERE}/decoder"},
        {"data_home": "$NOWHERE"},
        {"runs_dir": "~/$NOWHERE"},
    ],
    ids=str,
)
def test_a_variable_that_is_not_set_is_an_error_in_every_option(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="the environment variable NOWHERE is not set; set it, or write it out"):
        plan(**options)


def test_the_data_home_may_name_other_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XARES_DATA_HOME", "$NOWHERE/data")
    with pytest.raises(UsageError, match="the environment variable NOWHERE is not set"):
        plan()
    monkeypatch.setenv("NOWHERE", "/big")
    assert plan().data_home == Path("/big/data")


def test_limit_and_runs_folder() -> None:
    made = plan(limit=5, runs_dir="/elsewhere/runs")
    assert made.limit == 5
    assert made.runs_folder == Path("/elsewhere/runs")


def test_planning_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom xares_bench.config.plan import make_plan\n"
        "make_plan(encoder='enc.py', encoder_arguments=None, preset='mini', train='train.yaml', evaluate='eval.yaml',"
        " changes=['steps=3'], seed=1, pool=None, num_seeds=1, tracker=None, decoder=None, limit=2, data_home=None,"
        " data_revisions=(), allow_cpu=False, feature_bytes=None, checkpoint_steps=500, runs_dir='runs')\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'peft', 'webdataset', 'numpy', 'soundfile', 'soxr'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_half_the_disk_for_features_is_a_deviation_and_their_budget_is_none() -> None:
    made = plan("feature_dtype=float16", feature_bytes=1000)
    assert made.deviations == {"feature_dtype": ("encoder", "float16")}
    assert made.feature_bytes == 1000
    with pytest.raises(CatalogueError, match=r"feature_dtype: found 'float8', expected one of encoder, float16"):
        plan("feature_dtype=float8")


def test_another_decoder_is_a_deviation(tmp_path: Path) -> None:
    folder = tmp_path / "decoder"
    folder.mkdir()
    (folder / "config.json").touch()
    assert plan().decoder == plan().catalogue.preset.decoder
    for text, expected, shown in (
        ("decoder", str(folder), "decoder"),
        ("./decoder", str(folder), "decoder"),
        ("owner/name", "owner/name", "owner/name"),
        ("owner/name@v1", "owner/name@v1", "owner/name@v1"),
        ("gpt2", "gpt2", "gpt2"),
    ):
        made = plan(decoder=text)
        assert made.decoder == expected
        assert made.deviations == {"decoder": ("fixtures/mini-decoder of xares-bench", shown)}


@pytest.mark.parametrize("text", ["", "./absent", "/absent/decoder", "a/b/c", "enc.py", "empty"])
def test_what_is_no_decoder(text: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(UsageError, match=rf"^--decoder={text}: "):
        plan(decoder=text)


def test_shards_of_the_hub_go_to_the_data_home_whatever_the_preset(tmp_path: Path) -> None:
    for preset in ("mini", "full"):
        assert plan(preset=preset).data_home == tmp_path / "xares_data"
        assert plan(preset=preset, data_home="here").data_home == tmp_path / "here"


def test_revisions_are_those_of_repositories_that_are_used() -> None:
    made = plan(preset="full", data_revisions=["main", "mispeech/MECAT-Caption@v1"])
    assert made.data_revisions == {None: "main", "mispeech/MECAT-Caption": "v1"}
    with pytest.raises(UsageError, match=r"^--data-revision=me/mine: this repository is not used; found misp"):
        plan(preset="full", data_revisions=["me/mine@v1"])
    with pytest.raises(UsageError, match=r"found no repository"):
        plan(data_revisions=["a/b@v1"])


def test_other_data_than_the_presets_is_a_deviation(tmp_path: Path) -> None:
    assert plan().data_deviations(["gtzan"]) == {}
    assert plan(data_home=str(tmp_path)).data_deviations(["gtzan"]) == {"data_home": (None, ".")}
    other = plan(preset="full", data_revisions=["abc"])
    assert other.data_deviations(["gtzan"]) == {"data_revision": (None, "abc")}


def test_licences_are_of_all_data_that_is_read() -> None:
    made = plan(preset="full")
    licences = made.licences(["clotho"])
    assert licences == {name: made.dataset(name).licence for name in made.catalogue.tasks["task2"]}
    assert plan(preset="full", train="librispeech").licences(["librispeech"]) == {"librispeech": "CC-BY-4.0"}


def test_the_licence_of_data_in_the_place_of_the_miniatures_is_unknown(tmp_path: Path) -> None:
    assert set(plan().licences(["gtzan"]).values()) == {"Apache-2.0"}
    assert set(plan(data_home=str(tmp_path)).licences(["gtzan"]).values()) == {"unknown"}
