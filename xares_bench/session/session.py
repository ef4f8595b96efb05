"""The session: what pytest's hooks know of a run of the bench tests, from the plan to the exit status.

Registered as a plugin by `open_session` when `bench/` is collected.
"""

from __future__ import annotations

import functools
import os
import shlex
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from xares_bench.config.plan import Plan, make_plan
from xares_bench.core.errors import DiskError, UsageError, XaresError
from xares_bench.core.progress import Progress
from xares_bench.metrics.registry import METRICS
from xares_bench.runtime.signals import cancel_deadline, save_stderr
from xares_bench.scores.baselines import (
    Baseline,
    BaselineScore,
    check_comparable,
    check_new_baseline,
    load_baseline,
    write_baseline,
)
from xares_bench.scores.records import Overall, RunManifest, ScoreRecord
from xares_bench.session.workers import Outcomes, attach, carry, is_helper, is_worker, leave_reports_to_the_first, rank

if TYPE_CHECKING:
    from xares_bench.reports.results import Background, Results
    from xares_bench.scores.gate import Finding, Gate
    from xares_bench.suite.suite import Suite

SESSION = pytest.StashKey["BenchSession"]()


class BenchSession:
    """State of one pytest session over the bench tests.

    Attributes:
        plan: What the command line asks for.
    """

    def __init__(self, config: pytest.Config) -> None:
        """Read and check the options.

        Raises:
            UsageError: An option, or a file that it names, is wrong.
        """
        self._config = config
        self._started = time.perf_counter()
        option = config.option
        self.plan: Plan = make_plan(
            encoder=option.xares_encoder,
            encoder_arguments=option.xares_encoder_args,
            preset=option.xares_preset,
            train=option.xares_train,
            evaluate=option.xares_eval,
            changes=option.xares_set,
            seed=option.xares_seed,
            num_seeds=option.xares_seeds,
            tracker=option.xares_track,
            decoder=option.xares_decoder,
            limit=option.xares_limit,
            data_home=option.xares_data_home,
            data_revisions=option.xares_data_revision,
            allow_cpu=option.xares_allow_cpu,
            feature_bytes=option.xares_feature_budget,
            checkpoint_steps=option.xares_checkpoint_steps,
            runs_dir=option.xares_runs_dir,
        )
        if option.xares_tolerance is not None and option.xares_baseline is None:
            raise UsageError("--tolerance needs --baseline: name what scores are held against")
        if option.xares_limit is not None and (option.xares_baseline or option.xares_save_baseline):
            raise UsageError("--limit leaves clips out; such scores neither make a baseline nor are held against one")
        self._baseline: Baseline | None = None
        if option.xares_baseline is not None:
            self._baseline = load_baseline(option.xares_baseline, tasks=self.plan.catalogue.tasks)
            check_comparable(self._baseline, preset=self.plan.catalogue.preset.name, datasets=())
        self._save_to = None if option.xares_save_baseline is None else Path(option.xares_save_baseline)
        if self._save_to is not None:
            check_new_baseline(self._save_to, replace=option.xares_force)
        elif option.xares_force:
            raise UsageError("--force needs --save-baseline: it lets that overwrite a baseline")
        self._selected: tuple[str, ...] = ()
        self._num_held = 0  # tests that the gate decides
        self._outcomes = Outcomes()
        self._problems: list[str] = []
        self._not_ready: XaresError | None = None
        self._notes: list[str] = []  # what is no reason to fail

    # What the fixtures of bench/conftest.py ask for.

    @functools.cached_property
    def suite(self) -> Suite:
        """The suite of the plan; importing it imports torch."""
        from xares_bench.suite.suite import Suite

        manager = self._config.pluginmanager.getplugin("capturemanager")
        shown = Progress(manager.global_and_fixture_disabled if manager else nullcontext)
        return Suite(self.plan, shown if rank() == 0 else Progress(quiet=True))

    @functools.cached_property
    def gate(self) -> Gate:
        """What scores are held against."""
        from xares_bench.scores.gate import DEFAULT_FLOOR, Gate, Tolerance

        by_noise, number = self._config.option.xares_tolerance or (True, None)
        tolerance = Tolerance(by_noise=by_noise, number=DEFAULT_FLOOR if number is None else number)
        return Gate(baseline=self._baseline, tolerance=tolerance)

    @functools.cached_property
    def run(self) -> RunManifest:
        """Name and description of this run."""
        return self.suite.open_run(self._selected)

    @property
    def selected(self) -> tuple[str, ...]:
        """Datasets whose tests this session runs."""
        return self._selected

    def fetch(self) -> None:
        """Bring here what the selected tests need.

        Raises:
            XaresError: It cannot be had.
        """
        if self._not_ready is not None:
            raise self._not_ready
        self.suite.fetch(self._selected)
        self.suite.track(self.run)

    def publish(self, item: pytest.Item, record: ScoreRecord) -> None:
        """Record a score before anything is asserted of it: predictions in the run's folder, the rest on the report."""
        from xares_bench.core.store import write_atomically

        source = self.suite.predictions_file(record.dataset)
        write_atomically(self.predictions_file(record.dataset), source.read_bytes())
        self.suite.track_score(record)
        self.suite.clip_sums(record.dataset).save(self.clip_sums_file(record.dataset))
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

    def hold(self, item: pytest.Item, record: ScoreRecord) -> None:
        """Fail the test of a dataset whose published score may not pass."""
        from xares_bench.scores.clip_sums import load_clip_sums

        clip_sums = load_clip_sums(self.clip_sums_file(record.dataset))
        self._hold(item, self.gate.examine(record, clip_sums), self.predictions_file(record.dataset))

    def hold_overall(self, item: pytest.Item, overall: Overall, num_clips: int) -> None:
        """Fail the test of a task whose overall score may not pass."""
        self._hold(item, self.gate.examine_overall(overall, num_clips), self.predictions_folder)

    def _hold(self, item: pytest.Item, finding: Finding, predictions: Path) -> None:
        attach(item, finding=finding.to_json())
        self._outcomes.findings[finding.what] = finding
        failure = self._failures_by_gate().get(finding.what)
        if failure is not None:
            pytest.fail(f"{failure}; predictions: {predictions}", pytrace=False)

    def _failures_by_gate(self) -> dict[str, str]:
        """What does not pass beside all that is known so far."""
        return self.gate.failures(list(self._outcomes.findings.values()), self._num_held)

    def clip_sums_file(self, dataset: str) -> Path:
        """Where it is kept what a dataset's score is made of."""
        run = self._outcomes.run or self.run  # of a controller of xdist, the workers'
        return self.plan.runs_folder / run.name / "clip_sums" / f"{dataset}.npz"

    @property
    def predictions_folder(self) -> Path:
        """Where the predictions are for people to read, one file per dataset."""
        return self.plan.runs_folder / self.run.name / "predictions"

    def predictions_file(self, dataset: str) -> Path:
        """Where a dataset's predictions are for people to read."""
        return self.predictions_folder / f"{dataset}.jsonl"

    # Hooks.

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Refuse what cannot run, before anything is collected."""
        if self._config.option.collectonly:
            return
        if self.plan.encoder is None:
            raise pytest.UsageError(
                "the bench tests need an encoder:\n"
                "  pytest bench --preset=mini --encoder=examples/logmel_encoder.py\n"
                "  pytest bench --preset=mini --encoder=my/enc.py::MyEncoder --encoder-args='{\"layer\": 6}' -k task1\n"
                "  pytest bench --collect-only -q      lists the tests; it needs no encoder"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and getattr(self._config.option, "numprocesses", None):
            raise pytest.UsageError(
                f"this is one of {os.environ['WORLD_SIZE']} processes of a launcher, and -n starts more: use a "
                "launcher to train on several GPUs, or -n to evaluate several datasets at once"
            )

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Deselect the tests of datasets, and of tasks, that the mix of --train does not train for."""
        uncovered = [item for item in items if not all(map(self.plan.covers, self._datasets_of(item)))]
        if uncovered:
            config.hook.pytest_deselected(items=uncovered)
            items[:] = [item for item in items if item not in uncovered]

    @pytest.hookimpl(tryfirst=True)  # before the terminal asks for the header
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note what is selected, and refuse what cannot be done before anything is fetched or trained."""
        names = {_parameters(item).get("dataset") for item in session.items}
        known = chain.from_iterable(self.plan.tasks.values())
        self._selected = tuple(name for name in dict.fromkeys(known) if name in names)  # whatever the order of tests
        tasks = (_parameters(item).get("task") for item in session.items)
        complete = {task for task in tasks if task is not None and {*self.plan.tasks[task]} <= {*self._selected}}
        self._num_held = len(self._selected) + len(complete)
        if self._config.option.collectonly or is_worker(self._config):
            return
        try:
            if self._baseline is not None:
                check_comparable(self._baseline, preset=self.plan.catalogue.preset.name, datasets=self._selected)
            if self._selected and self.suite.contract.failure is None:
                self.suite.check(self._selected)
        except UsageError as error:
            self._selected = ()  # nothing is run, so no score is missed
            raise pytest.UsageError(str(error)) from None
        except XaresError as error:
            self._not_ready = error  # said in the header, and by every test that needs data

    def pytest_report_collectionfinish(self, config: pytest.Config) -> list[str]:
        """Say what is going to happen: encoder, decoder, data, what is reused, where results go."""
        if config.option.collectonly or is_worker(config):
            return []
        from xares_bench.session.header import header_lines, title

        problem: XaresError | None = self._not_ready
        try:
            if problem is None:
                return header_lines(self.suite, self.gate, self._selected, lambda: self.run)
        except XaresError as error:
            problem = error
        return [title(self.plan), f"not ready: {problem}"]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Show what users caused as one line, and put the score on the report."""
        report = yield
        if call.excinfo is not None and isinstance(call.excinfo.value, XaresError):
            report.longrepr = str(call.excinfo.value)
        carry(item, report)
        return report

    def pytest_enter_pdb(self) -> None:
        """Let who looks into an encoder take the time it needs."""
        cancel_deadline()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect scores and failures, in the process that writes the results."""
        if not is_helper(self._config):
            self._outcomes.enter(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the run's files and the baseline; a dataset that was asked for and has no score is not a pass."""
        if "suite" in vars(self):
            self.suite.close()
        if is_helper(self._config) or self._config.option.collectonly:
            return
        results = self._results()
        if results is not None:
            from xares_bench.reports.report import write_run

            try:
                self._notes += write_run(self.plan.runs_folder / results.run.name, results, self._background())
            except DiskError as error:
                self._problems.append(str(error))
        without_score = results.missing if results is not None else self._selected
        if without_score:
            self._problems.append(f"no score for {', '.join(without_score)}: not a pass")
        # Beside the losses of tests that ran later, a smaller one can turn out to be more than noise (Holm).
        late = self._outcomes.late(self._failures_by_gate())
        self._problems += [f"not a pass either, now that all tests are known: {failure}" for failure in late]
        if self._save_to is not None:
            self._problems += self._save_baseline(self._save_to, results)
        if self._problems and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self._problems:
            self._outcomes.failures["xares-bench"] = "; ".join(self._problems)
        if results is not None:
            from xares_bench.reports.github import append_summary
            from xares_bench.reports.report import scores_markdown

            text = scores_markdown(results, self._baseline)
            self._notes += append_summary(os.environ, text, self._outcomes.failures)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the table, where the files are, and what is missing; of a listing, what has no test of its own."""
        if self._config.option.collectonly:
            terminalreporter.write_line(f"mixes (--train): auto, {', '.join(self.plan.catalogue.mix_names)}, FILE.yaml")
            terminalreporter.write_line(f"metrics: {', '.join(sorted(METRICS))}")
            return
        results = self._results()
        if results is not None:
            from xares_bench.reports.report import terminal_table, timings

            terminalreporter.section("xares-bench")
            terminalreporter.write_line(terminal_table(results, self.gate.baseline))
            improved = self.gate.improvements(list(self._outcomes.findings.values()), self._num_held)
            if improved:
                terminalreporter.write_line(f"\nbetter than the baseline by more than noise: {', '.join(improved)}")
            seconds = ", ".join(f"{name.removesuffix('_s')} {value:.0f} s" for name, value in timings(results).items())
            terminalreporter.write_line(f"\nwork behind these scores: {seconds}; this session {results.wall_s:.0f} s")
            terminalreporter.write_line(f"results: {self.plan.runs_folder / results.run.name}")
        for note in self._notes:
            terminalreporter.write_line(f"xares-bench: {note}", yellow=True)
        for problem in self._problems:
            terminalreporter.write_line(f"xares-bench: {problem}", red=True)
        if not is_helper(self._config):
            from xares_bench.reports.github import error_lines

            for line in error_lines(os.environ, self._outcomes.failures):
                terminalreporter.write_line(line)

    def _datasets_of(self, item: pytest.Item) -> Iterable[str]:
        """The datasets that one of the bench tests speaks of: its own, or all of its task."""
        parameters = _parameters(item)
        if "dataset" in parameters:
            return (parameters["dataset"],)
        return self.plan.catalogue.tasks[parameters["task"]] if "task" in parameters else ()

    def _results(self) -> Results | None:
        order = [*self.plan.catalogue.datasets, *self.plan.own_datasets]
        return self._outcomes.results(order, time.perf_counter() - self._started)

    def _background(self) -> Background:
        """What the run's page shows beside the results."""
        from xares_bench.reports.results import Background, ClipSource

        sources = {}
        for name in self._outcomes.records:
            dataset = self.plan.dataset(name)
            folder = self.plan.data_folder if dataset.repository is None else self.plan.data_home
            shards = () if dataset.eval is None else tuple(folder / path for path in dataset.eval.shards)
            sources[name] = ClipSource(prompts=dataset.prompts, shards=shards)
        found = {what: finding.difference for what, finding in self._outcomes.findings.items()}
        return Background(
            command=shlex.join(["pytest", *map(str, self._config.invocation_params.args)]),
            baseline=self._baseline,
            differences={what: (known.low, known.high) for what, known in found.items() if known is not None},
            sources=sources,
        )

    def _save_baseline(self, path: Path, results: Results | None) -> list[str]:
        """Write the scores as a baseline; what stands against it."""
        if results is None or results.missing:
            return [f"{path} is not written: not every selected dataset has a score"]
        run = results.run
        try:
            write_baseline(
                path,
                preset=run.preset,
                replace=self._config.option.xares_force,
                scores={record.dataset: self._baseline_score(record) for record in results.records},
                note=f"{run.encoder['spec']}, run {run.name}",
                fingerprints={"encoder": run.encoder["fingerprint"], "decoder": run.decoder["fingerprint"]},
            )
        except XaresError as error:
            return [str(error)]
        return []

    def _baseline_score(self, record: ScoreRecord) -> BaselineScore:
        from xares_bench.scores.clip_sums import load_clip_sums

        return BaselineScore(
            score=record.score,
            interval=record.interval,
            deviation=record.deviation,
            spread=record.spread,
            num_seeds=len(record.seed_scores),
            num_rows=record.num_rows,
            num_clips=record.num_clips,
            clip_sums=load_clip_sums(self.clip_sums_file(record.dataset)),
        )


def open_session(config: pytest.Config) -> BenchSession:
    """Start the session of the bench tests, once, and let it see pytest's hooks.

    Raises:
        pytest.UsageError: An option, or a file that it names, is wrong.
    """
    try:
        session = BenchSession(config)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    config.pluginmanager.register(session, "xares_bench_session")
    save_stderr()
    if rank() > 0:
        leave_reports_to_the_first(config, session.plan.runs_folder / f"process-{rank()}.log")
    # Statistics over one round say nothing, and our table has the seconds; --benchmark-json and the like still work.
    config.option.benchmark_quiet = True
    return session


def _parameters(item: pytest.Item) -> Mapping[str, Any]:
    """Parameters of one of the bench tests, which all come to use the fixture `bench`; nothing for other tests."""
    callspec = getattr(item, "callspec", None)
    return callspec.params if callspec is not None and "bench" in getattr(item, "fixturenames", ()) else {}
