"""What measurements share. `XARES_BENCHMARKS=small` runs all of them in a reduced form whose times mean nothing."""

from __future__ import annotations

import os

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.comparison import LINES, Comparison, Report
from benchmarks.lessons import learnt_lalm
from benchmarks.ours import token_id_tokenizer
from benchmarks.sizes import Size, logmel_encoder, real_size, small_size
from tests.plain_lalm import TokenIdTokenizer
from xares_bench.encoders.loading import FrozenEncoder
from xares_bench.lalm.model import LALM


def pytest_configure(config: pytest.Config) -> None:
    """Make room for the lines."""
    config.stash[LINES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show a line per measurement."""
    if config.stash[LINES]:
        terminalreporter.section(f"ratios, medians of the rounds, {torch.get_num_threads()} threads unless stated")
        for line in config.stash[LINES]:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def size(tmp_path_factory: pytest.TempPathFactory) -> Size:
    """How much is measured."""
    if os.environ.get("XARES_BENCHMARKS") == "small":
        torch.set_num_threads(1)  # quicker where other programs run
        return small_size(tmp_path_factory.mktemp("decoder"))
    try:
        return real_size()
    except (FileNotFoundError, ImportError) as error:
        pytest.skip(f"SmolLM2 is needed: name its folder in XARES_SMOLLM2, or {error}")


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Shows a line about the test at the end of the session."""
    title = request.node.name.removeprefix("test_").replace("_", " ")
    return lambda text: request.config.stash[LINES].append(f"{title}: {text}")


@pytest.fixture
def comparison(benchmark: BenchmarkFixture, report: Report, size: Size) -> Comparison:
    """The measurement of one test."""
    return Comparison(benchmark=benchmark, say=report, rounds=size.rounds)


@pytest.fixture(scope="session")
def encoder() -> FrozenEncoder:
    """Log-mel, which costs next to nothing."""
    return logmel_encoder()


@pytest.fixture(scope="session")
def tokenizer(size: Size) -> TokenIdTokenizer:
    """The decoder's tokens."""
    return token_id_tokenizer(size)


@pytest.fixture(scope="session")
def learnt(size: Size, encoder: FrozenEncoder) -> LALM:
    """A LALM that has learnt the evaluated tasks."""
    return learnt_lalm(size, encoder)
