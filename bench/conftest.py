"""Fixtures of the bench tests: from the command line to an encoder, a LALM and a score."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from xares_bench.core.errors import XaresError
from xares_bench.plugin import is_open
from xares_bench.scores.records import RobustnessRecord, ScoreRecord, overall_of
from xares_bench.session.clock import ComputeClock
from xares_bench.session.hooks import SESSION
from xares_bench.session.session import BenchSession

if TYPE_CHECKING:
    from xares_bench.core.store import Entry
    from xares_bench.datasets.corruptions import Corruption
    from xares_bench.encoders.contract_report import ContractReport

_CLOCK = ComputeClock()


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Refuse to start without the plugin."""
    if not pluginmanager.has_plugin("session"):  # otherwise the collection has begun
        _check_plugin(pluginmanager)


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    """The same where the suite is named as a module, whose conftest.py is read last."""
    _check_plugin(config.pluginmanager)


def _check_plugin(pluginmanager: pytest.PytestPluginManager) -> None:
    if not any(map(pluginmanager.has_plugin, ("xares_bench", "xares_bench.plugin"))):
        raise pytest.UsageError(
            "the plugin of xares-bench is not loaded; leave out -p no:xares_bench, or, where plugins are not loaded by "
            "themselves, add -p xares_bench.plugin -p pytest_benchmark.plugin"
        )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A folder above does not name the benchmark; own datasets and corruptions are listed only where there are some."""
    if not is_open(config):
        return True
    options = config.stash[SESSION].options
    asked_for = {"test_custom.py": options.plan.own_datasets, "test_robustness.py": options.corruptions}
    return None if asked_for.get(collection_path.name, True) else True


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let pytest-benchmark report the seconds of computation, those of cached scores included."""
    item.add_marker(pytest.mark.benchmark(timer=_CLOCK))


@pytest.fixture(scope="session")
def bench(pytestconfig: pytest.Config) -> BenchSession:
    """The session: plan, suite, baseline."""
    return pytestconfig.stash[SESSION]


@pytest.fixture(scope="session")
def contract(bench: BenchSession) -> ContractReport:
    """The result of checking the encoder's contract, once, whichever tests are selected."""
    return bench.suite.contract


@pytest.fixture(scope="session")
def data(bench: BenchSession, contract: ContractReport) -> None:
    """Downloads the shards that the selected tests need and that are not on disk, and checks them all."""
    if contract.failure is not None:
        clause, message = contract.failure
        pytest.skip(f"the encoder breaks its contract, clause {clause}: {message}")
    bench.fetch()


@pytest.fixture
def lalms(bench: BenchSession, data: None, dataset: str) -> list[Entry]:
    """The LALMs that the dataset is evaluated with, one per seed, trained when they are first asked for."""
    if bench.suite.preflight.fails(dataset):
        return []  # nothing is trained for it; `evaluate` raises what is wrong
    mix = bench.plan.mix_for(dataset)
    lalms = bench.suite.lalms(mix, bench.mixes)
    bench.suite.evaluate_share(
        [name for name in bench.selected if bench.plan.mix_for(name) == mix],
        [pair for pair in bench.corrupted if bench.plan.mix_for(pair[0]) == mix],
    )
    return lalms


@pytest.fixture
def evaluate(
    bench: BenchSession, lalms: list[Entry], benchmark: BenchmarkFixture, request: pytest.FixtureRequest
) -> Callable[[str], ScoreRecord]:
    """Scores a dataset and records the score, before anything is asserted of it."""

    def timed(dataset: str) -> ScoreRecord:
        record = bench.suite.evaluate(dataset)
        _CLOCK.advance(record.features_s + record.generation_s)
        return record

    def evaluate_and_record(dataset: str) -> ScoreRecord:
        once: Callable[..., ScoreRecord] = benchmark.pedantic
        benchmark.group = bench.plan.dataset(dataset).task
        record = once(timed, args=(dataset,), rounds=1, iterations=1)
        benchmark.extra_info.update(
            metric=record.metric,
            score=record.score,
            num_rows=record.num_rows,
            num_clips=record.num_clips,
            audio_s=record.duration_s,
            features_s=record.features_s,
            generation_s=record.generation_s,
            clips_per_s=record.num_clips / record.generation_s,
            cached=record.reused,
        )
        bench.publish(request.node, record)
        return record

    return evaluate_and_record


@pytest.fixture
def evaluate_corrupted(
    bench: BenchSession, lalms: list[Entry], benchmark: BenchmarkFixture, request: pytest.FixtureRequest
) -> Callable[[str, Corruption], RobustnessRecord]:
    """Scores a dataset on corrupted test clips, and records what is lost; skips a dataset without a clean score."""

    def evaluate_and_record(dataset: str, corruption: Corruption) -> RobustnessRecord:
        try:
            bench.suite.evaluate(dataset)
        except XaresError as error:
            pytest.skip(f"{dataset} has no clean score, so nothing to compare with: {error}")
        once: Callable[..., RobustnessRecord] = benchmark.pedantic
        benchmark.group = str(corruption)
        record = once(bench.suite.robustness, args=(dataset, corruption), rounds=1, iterations=1)
        benchmark.extra_info.update(score=record.score, loss=record.loss, num_clips=record.num_clips)
        bench.publish_robustness(request.node, record, corruption)
        return record

    return evaluate_and_record


@pytest.fixture
def gate(bench: BenchSession, request: pytest.FixtureRequest) -> Callable[[ScoreRecord], None]:
    """Fails the test where the score is below the baseline."""
    return functools.partial(bench.apply_gate, request.node)


@pytest.fixture
def gate_overall(
    bench: BenchSession, contract: ContractReport, request: pytest.FixtureRequest
) -> Callable[[str], None]:
    """Fails the test where a task's overall score is below the baseline; skips while datasets are missing."""

    def apply_gate(task: str) -> None:
        if contract.failure is not None:
            pytest.skip(f"the encoder breaks its contract, clause {contract.failure[0]}")
        expected = bench.plan.catalogue.tasks[task]
        selected = [name for name in expected if name in bench.run_datasets]
        if len(selected) < len(expected) or bench.plan.limit is not None:
            pytest.skip(f"incomplete: {len(selected)} of {len(expected)} datasets selected, limit {bench.plan.limit}")
        records = [bench.suite.evaluate(name) for name in selected]
        num_clips = sum(record.num_clips for record in records)
        bench.apply_gate_to_overall(request.node, overall_of(task, records, expected), num_clips)

    return apply_gate
