"""The session: what the fixtures of `bench/conftest.py` ask for, and what the tests have found out so far."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from xares_bench.core.errors import BaselineError, XaresError
from xares_bench.core.progress import Progress
from xares_bench.scores.baselines import Baseline, check_comparable
from xares_bench.scores.comparability import differences, facts_of, untold
from xares_bench.scores.records import Overall, RobustnessRecord, RunManifest, ScoreRecord
from xares_bench.session.options import Options
from xares_bench.session.workers import Outcomes, attach, rank

if TYPE_CHECKING:
    from xares_bench.config.catalogue import Mix
    from xares_bench.datasets.corruptions import Corruption
    from xares_bench.reports.results import Results
    from xares_bench.scores.gate import Finding, Gate
    from xares_bench.suite.suite import Suite


class BenchSession:
    """One pytest session over the bench tests.

    Everything that imports torch or numpy is made when it is first asked for, so that a listing imports neither.

    Attributes:
        options: The command line, read.
        command: What was typed or called, for the report.
        plan: What to train and evaluate.
        outcomes: What has come in from the tests.
        selected: Datasets whose tests this session runs, in the order of the catalogue.
        corrupted: Datasets and corruptions whose tests this session runs.
        run_datasets: The datasets of the run: those, and with `--lf` also those that passed before.
        num_gated: Tests that the gate decides: one per dataset, and one per task with all datasets selected.
        problems: Why the session fails beside its failed tests; known at its end.
        not_ready: Why no test can have its data, or None. The header shows it; every test that needs data raises it.
    """

    def __init__(
        self,
        options: Options,
        command: str,
        uncaptured: Callable[[], AbstractContextManager[None]],
        say: Callable[[str], None],
    ) -> None:
        """Do nothing yet.

        Args:
            options: The command line, read.
            command: What was typed or called.
            uncaptured: Makes a context in which output reaches the terminal, for progress bars.
            say: Shows a line at once, during the tests.
        """
        self.options = options
        self.command = command
        self.plan = options.plan
        self.outcomes = Outcomes()
        self.selected: tuple[str, ...] = ()
        self.run_datasets: tuple[str, ...] = ()
        self.corrupted: tuple[tuple[str, Corruption], ...] = ()
        self.problems: tuple[str, ...] = ()
        self.num_gated = 0
        self.not_ready: XaresError | None = None
        self._uncaptured = uncaptured
        self._say = say
        self._started = time.perf_counter()

    @functools.cached_property
    def suite(self) -> Suite:
        """Trains and evaluates; importing it imports torch."""
        from xares_bench.suite.suite import Suite

        return Suite(self.plan, Progress(self._uncaptured, quiet=rank() > 0))

    @functools.cached_property
    def gate(self) -> Gate:
        """Decides which scores pass."""
        from xares_bench.scores.gate import DEFAULT_FLOOR, Gate, Tolerance

        options = self.options
        number = DEFAULT_FLOOR if options.tolerance is None else options.tolerance
        return Gate(
            baseline=options.baseline,
            tolerance=Tolerance(by_noise=options.by_noise, number=number),
            caveat="; ".join(self.baseline_differences),
        )

    @functools.cached_property
    def run(self) -> RunManifest:
        """Name and description of this run."""
        return self.suite.open_run(self.run_datasets)

    @property
    def contract_failure(self) -> tuple[str, str] | None:
        """Clause and message of the encoder's contract if it was found broken; None if not, or if nobody has looked."""
        return self.suite.contract.failure if "suite" in vars(self) else None

    @property
    def baseline(self) -> Baseline | None:
        """The baseline to compare scores with, or None."""
        return self.options.baseline

    @functools.cached_property
    def baseline_differences(self) -> list[str]:
        """What the baseline and this run do not have in common, in words."""
        if self.baseline is None or not self.baseline.facts:
            return []
        return differences(self.baseline.facts, self._facts)

    @property
    def baseline_untold(self) -> str:
        """What the baseline does not tell though this run does, in words; empty if there is nothing."""
        return "" if self.baseline is None else untold(self.baseline.facts, self._facts)

    @functools.cached_property
    def _facts(self) -> dict[str, str]:
        """What the scores of the run depend on besides the encoder."""
        mixes = {name: self.plan.mix_for(name).name for name in self.run_datasets}
        return facts_of(self.run, mixes) if mixes else {}

    # Before the tests.

    def select(self, datasets: set[str], tasks: set[str], others: Collection[str] = ()) -> None:
        """Take note of the datasets and the tasks that have a test in this session.

        Args:
            datasets: Datasets with a test.
            tasks: Tasks with a test.
            others: Datasets of the run before, which this session continues if it has no other ones.
        """
        known = dict.fromkeys(name for members in self.plan.tasks.values() for name in members)
        self.selected = tuple(name for name in known if name in datasets)  # whatever the order of the tests
        is_continued = {*datasets} <= {*others}
        others = [name for name in others if is_continued and name in known and self.plan.covers(name)]
        self.run_datasets = tuple(name for name in known if name in datasets or name in others)
        # A session that continues a run is one with it: the others' tests were gated before.
        gated = {*tasks, *(self.plan.tasks if others else ())}
        complete = [task for task in gated if {*self.plan.tasks[task]} <= {*self.run_datasets}]
        self.num_gated = len(self.run_datasets) + len(complete)

    def check(self) -> None:
        """Refuse what cannot work, before anything is fetched or trained.

        Raises:
            UsageError: The command line asks for something impossible.
            XaresError: Something else is in the way, such as a hub that cannot be asked.
        """
        if self.baseline is not None:
            check_comparable(self.baseline, preset=self.plan.catalogue.preset.name, datasets=self.selected)
        if self.suite.contract.failure is not None:
            return
        if self.selected:
            self.suite.check(self.selected)
        if self.run_datasets and self.options.is_strict:
            self._check_strictly()

    def _check_strictly(self) -> None:
        """Refuse a baseline that was measured with something else, or that does not tell with what."""
        if self.baseline_differences:
            problem = f"was measured with {'; '.join(self.baseline_differences)}; run with its values, or"
        elif self.baseline_untold:
            problem = f"does not tell what it was measured with: {self.baseline_untold}; give no --strict-baseline, or"
        else:
            return
        raise BaselineError(f"--strict-baseline: the baseline {problem} make another one with --save-baseline=FILE")

    def show_header(self) -> None:
        """Show the header at once, where pytest asks for none."""
        from xares_bench.session.header import header_lines

        for line in header_lines(self):
            self._say(line.removeprefix("xares-bench: "))

    # During the tests: what their fixtures call.

    def fetch(self) -> None:
        """Download what the selected tests need, check it, and say what is wrong with it.

        Raises:
            XaresError: It cannot be had.
        """
        if self.not_ready is not None:
            raise self.not_ready
        for line in self.suite.fetch(self.selected):
            self._say(line)
        self.suite.track(self.run)

    @property
    def mixes(self) -> list[Mix]:
        """The mixes of the selected datasets that can be scored, each once; to be asked after `fetch`."""
        names = [name for name in self.selected if not self.suite.preflight.fails(name)]
        return list({mix.name: mix for mix in map(self.plan.mix_for, names)}.values())

    def publish(self, item: pytest.Item, record: ScoreRecord) -> None:
        """Record a score before anything is asserted of it: predictions in the run's folder, the rest on the report."""
        self._write_files(record.dataset)
        self.suite.track_score(record)
        lalms = self.suite.lalms(self.plan.mix_for(record.dataset))
        attach(
            item,
            record=record.to_json(),
            run=self.run.to_json(),
            lalms=[{**lalm.manifest, "reused": lalm.reused} for lalm in lalms],
        )
        item.user_properties += [
            ("dataset", record.dataset),
            ("metric", record.metric),
            ("score", float(record.score)),
            ("num_rows", int(record.num_rows)),
        ]

    def publish_robustness(self, item: pytest.Item, record: RobustnessRecord, corruption: Corruption) -> None:
        """Record a loss by a corruption, as `publish` does a score."""
        self._write_files(record.dataset, corruption)
        attach(item, robustness=record.to_json(), run=self.run.to_json())
        item.user_properties += [
            ("dataset", record.dataset),
            ("corruption", record.corruption),
            ("score", float(record.score)),
            ("loss", float(record.loss)),
        ]

    def _write_files(self, dataset: str, corruption: Corruption | None = None) -> None:
        """Write the predictions and the clip sums of a score into the run's folder."""
        from xares_bench.core.store import write_atomically

        scores = self.suite.scores
        source = scores.predictions_file(dataset, corruption)
        write_atomically(self.predictions_file(dataset, corruption), source.read_bytes())
        scores.clip_sums(dataset, corruption).save(self.clip_sums_file(dataset, corruption))

    def apply_gate(self, item: pytest.Item, record: ScoreRecord) -> None:
        """Fail the test of a dataset whose published score does not pass."""
        from xares_bench.scores.clip_sums import load_clip_sums

        finding = self.gate.examine(record, load_clip_sums(self.clip_sums_file(record.dataset)))
        self._decide(item, finding, self.predictions_file(record.dataset))

    def apply_gate_to_overall(self, item: pytest.Item, overall: Overall, num_clips: int) -> None:
        """Fail the test of a task whose overall score does not pass."""
        self._decide(item, self.gate.examine_overall(overall, num_clips), self._run_folder / "predictions")

    def _decide(self, item: pytest.Item, finding: Finding, predictions: Path) -> None:
        attach(item, finding=finding.to_json())
        self.outcomes.findings[finding.what] = finding
        failure = self.failures_by_gate().get(finding.what)
        if failure is not None:
            pytest.fail(f"{failure}; predictions: {predictions}", pytrace=False)

    # After the tests.

    def enter_cached(self) -> None:
        """Enter the cached scores of the run's datasets that no test of this session has brought, if it has any score.

        Raises:
            XaresError: A file of theirs cannot be written.
        """
        for name in self.outcomes.missing:
            found = self.suite.find_score(name)
            if found is not None:
                record, lalms = found
                self._write_files(name)
                self.outcomes.add(record, lalms)

    def close(self) -> None:
        """End what the suite has begun, if there is one."""
        if "suite" in vars(self):
            self.suite.close()

    def failures_by_gate(self) -> dict[str, str]:
        """Why scores do not pass, given all findings so far, by what they are scores of."""
        return self.gate.failures(list(self.outcomes.findings.values()), self.num_gated)

    def improvements(self) -> list[str]:
        """Datasets and tasks that are better than the baseline by more than noise."""
        return self.gate.improvements(list(self.outcomes.findings.values()), self.num_gated)

    def results(self) -> Results | None:
        """Everything that has come in; None where there is no score."""
        order = [*self.plan.catalogue.datasets, *self.plan.own_datasets]
        return self.outcomes.results(order, time.perf_counter() - self._started)

    # Files of the run's folder.

    @property
    def _run_folder(self) -> Path:
        # A controller of xdist has no suite; its run is the one that the workers report.
        return self.plan.runs_folder / (self.outcomes.run or self.run).name

    def predictions_file(self, dataset: str, corruption: Corruption | None = None) -> Path:
        """A dataset's predictions."""
        return self._folder_of(corruption) / "predictions" / f"{dataset}.jsonl"

    def clip_sums_file(self, dataset: str, corruption: Corruption | None = None) -> Path:
        """The clip sums of a dataset's score."""
        return self._folder_of(corruption) / "clip_sums" / f"{dataset}.npz"

    def _folder_of(self, corruption: Corruption | None) -> Path:
        """Where the files of scores are. A corruption has a folder of its own, with a name that has no colon."""
        if corruption is None:
            return self._run_folder
        return self._run_folder / "corrupted" / str(corruption).replace(":", "-")
