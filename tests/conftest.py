"""Small real parts to test with: clips with features on disk, and a tiny decoder in the Hugging Face format.

The heavy libraries are imported here once: pytest sessions that run inside a test forget what they import themselves,
and soxr cannot be imported a second time.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jiwer  # noqa: F401
import peft  # noqa: F401
import pytest
import sacrebleu  # noqa: F401
import soundfile  # noqa: F401
import soxr  # noqa: F401
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from transformers import ByT5Tokenizer, LlamaConfig

from xares_bench.config.catalogue import load_catalogue
from xares_bench.config.recipe import Recipe
from xares_bench.encoders.clauses import CLAUSES
from xares_bench.features.encoding import Clip, StoredFrames
from xares_bench.lalm.batch import Batch, TextTokenizer, Utterance, collate
from xares_bench.suite.pipeline import Pipeline  # noqa: F401
from xares_bench.suite.suite import Suite  # noqa: F401

pytest_plugins = ["pytester"]

# A shell's background jobs and nohup ignore these, and so would every process that a test starts and sends one.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

REPOSITORY = Path(__file__).parent.parent
# Tests of `bench/` with public datasets: one per clause, one per dataset, one per task.
NUM_BENCH_TESTS = len(CLAUSES) + 20 + 2


def last_wins(options: Iterable[object]) -> list[str]:
    """Options of which later ones replace earlier ones, as with defaults of tests: xares-bench refuses repetitions."""
    kept: dict[str, tuple[str, ...]] = {}
    texts = iter(map(str, options))
    for text in texts:
        if text == "--set":
            change = next(texts)
            kept.pop(name := f"--set {change.partition('=')[0]}", None)
            kept[name] = (text, change)
        else:
            # Only an option with its value can be a repetition.
            name = text.partition("=")[0] if text.startswith("--") and "=" in text else f"{len(kept)} {text}"
            kept.pop(name, None)
            kept[name] = (text,)
    return [text for option in kept.values() for text in option]


MakeClips = Callable[..., list[Clip]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--slow` runs the long forms of tests, too."""
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each of them has a short form that always runs."""
    if not config.getoption("--slow", default=False):
        for item in items:
            if item.get_closest_marker("slow") is not None:
                item.add_marker(pytest.mark.skip(reason="takes minutes; --slow runs it"))


@pytest.fixture(autouse=True)
def nothing_of_the_session_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions inside tests are no workers of xdist, and write nothing to the page of the job that runs them."""
    names = ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID")
    for name in (*names, "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the config and the tokeniser of a Llama of two layers, without weights."""
    folder = tmp_path_factory.mktemp("decoder")
    tokenizer = ByT5Tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        initializer_range=0.3,  # far enough from zero that different inputs give different texts
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tokenizer(decoder_folder: str) -> TextTokenizer:
    """The tiny decoder's tokens."""
    from xares_bench.lalm.decoder import load_tokenizer

    return TextTokenizer(load_tokenizer(decoder_folder))


@pytest.fixture
def make_clips(tmp_path: Path) -> MakeClips:
    """Makes clips of so many random feature frames each, in one file."""

    def make(lengths: list[int], *, output_dim: int = 6, seed: int = 0) -> list[Clip]:
        generator = torch.Generator().manual_seed(seed)
        frames_ND = torch.randn(sum(lengths), output_dim, generator=generator)
        file = tmp_path / f"frames-{seed}-{output_dim}.safetensors"
        save_file({"frames": frames_ND}, file)
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        return [
            Clip(
                key=f"clip-{index}",
                shard="shard",
                duration_s=length / 10,
                num_frames=length,
                fields={"label": f"label {index}"},
                features=StoredFrames(file=file, start=start, num_frames=length),
            )
            for index, (length, start) in enumerate(zip(lengths, starts, strict=True))
        ]

    return make


@pytest.fixture
def batch(make_clips: MakeClips, tokenizer: TextTokenizer) -> Batch:
    """Four sequences whose targets are the names of their clips."""
    sequences = [
        Utterance(
            clip=clip,
            prompt_ids=tokenizer.prompt(clip, "?").prompt_ids,
            target_ids=(*tokenizer.prompt(clip, clip.key).prompt_ids, tokenizer.eos_id),
        )
        for clip in make_clips([4, 3, 5, 2])
    ]
    return collate(sequences)


@pytest.fixture(scope="session")
def mini_recipe() -> Recipe:
    """The recipe of the mini preset."""
    return load_catalogue("mini").preset.recipe


@pytest.fixture
def mixed_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Asks for a precision as `accelerate launch` does; accelerate keeps one state per process."""

    def ask(precision: str) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)

    yield ask
    AcceleratorState._reset_state(reset_partial_state=True)
