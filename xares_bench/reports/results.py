"""Results: everything that a session has found out, and what reports need to know besides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xares_bench.scores.baselines import Baseline
from xares_bench.scores.records import Overall, RunManifest, ScoreRecord, overall_of

if TYPE_CHECKING:
    from xares_bench.config.plan import Plan
    from xares_bench.scores.gate import Finding


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that a session has found out, in the order of the catalogue.

    Attributes:
        run: What the run was made of.
        records: The scores.
        lalms: What is known of the LALMs they were made with: mix, key, steps, rows, times.
        missing: Datasets that were asked for and have no score.
        wall_s: Wall time of the session.
    """

    run: RunManifest
    records: tuple[ScoreRecord, ...]
    lalms: tuple[Mapping[str, Any], ...]
    missing: tuple[str, ...] = ()
    wall_s: float = 0.0
    overalls: tuple[Overall, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Average every task that has a score."""
        tasks = dict.fromkeys(record.task for record in self.records)
        overalls = [overall_of(task, self.records, self.run.tasks.get(task, ())) for task in tasks]
        object.__setattr__(self, "overalls", tuple(overalls))

    def of_task(self, task: str) -> list[ScoreRecord]:
        """The records of a task."""
        return [record for record in self.records if record.task == task]


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """Where a dataset's test clips lie, and what was asked of them.

    Attributes:
        prompts: The prompts, one of which every clip was asked.
        shards: Test shards, in order; they need not be on disk.
    """

    prompts: tuple[str, ...]
    shards: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Background:
    """What a report shows of a run beside its results.

    Attributes:
        command: The command line.
        baseline: The baseline that scores are compared with, or None.
        differences: 95 % interval of score minus baseline, by dataset, and by `TASK overall`.
        sources: The test clips, by dataset.
    """

    command: str = ""
    baseline: Baseline | None = None
    differences: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sources: Mapping[str, ClipSource] = field(default_factory=dict)


def background_of(
    plan: Plan, results: Results, command: str, baseline: Baseline | None, findings: Mapping[str, Finding]
) -> Background:
    """The background of a session's results.

    Args:
        plan: What was trained and evaluated.
        results: What came of it.
        command: The command line.
        baseline: The baseline that scores are compared with, or None.
        findings: The gate's findings, by dataset or task.
    """
    sources = {}
    for record in results.records:
        dataset = plan.dataset(record.dataset)
        folder = plan.data_folder if dataset.repository is None else plan.data_home
        shards = () if dataset.eval is None else tuple(folder / path for path in dataset.eval.shards)
        sources[record.dataset] = ClipSource(prompts=dataset.prompts, shards=shards)
    found = {what: finding.difference for what, finding in findings.items()}
    return Background(
        command=command,
        baseline=baseline,
        differences={what: (known.low, known.high) for what, known in found.items() if known is not None},
        sources=sources,
    )
