"""Results: the results of a session, and what reports show beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xares_bench.reports.origin import Origin
from xares_bench.scores.baselines import Baseline
from xares_bench.scores.records import Overall, RobustnessRecord, RunManifest, ScoreRecord, overall_of

if TYPE_CHECKING:
    from xares_bench.config.plan import Plan
    from xares_bench.scores.gate import Finding


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of a session, in the order of the catalogue.

    Attributes:
        run: What the run evaluated, and with what.
        records: The scores.
        lalms: The manifests of their LALMs: mix, key, seed, steps, samples, times.
        missing: Datasets that the run was asked to evaluate and that have no score.
        wall_s: Wall time of the session.
        robustness: What these scores lose on corrupted test clips.
        origin: What writes them, and when; None if nobody has said it.
    """

    run: RunManifest
    records: tuple[ScoreRecord, ...]
    lalms: tuple[Mapping[str, Any], ...]
    missing: tuple[str, ...] = ()
    wall_s: float = 0.0
    robustness: tuple[RobustnessRecord, ...] = ()
    origin: Origin | None = None
    overalls: tuple[Overall, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Compute the overall score of every task that has a score, and put losses in order."""
        tasks = dict.fromkeys(record.task for record in self.records)
        overalls = [overall_of(task, self.records, self.run.tasks.get(task, ())) for task in tasks]
        object.__setattr__(self, "overalls", tuple(overalls))
        places = {record.dataset: place for place, record in enumerate(self.records)}
        losses = [loss for loss in self.robustness if loss.dataset in places]  # a loss of no score says nothing
        losses.sort(key=lambda loss: (places[loss.dataset], *loss.order))
        object.__setattr__(self, "robustness", tuple(losses))

    def of_task(self, task: str) -> list[ScoreRecord]:
        """Return the records of a task."""
        return [record for record in self.records if record.task == task]


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """The prompts and test shards of a dataset.

    Attributes:
        prompts: The prompts, one of which was chosen for each clip.
        shards: The test shards in order; some or all may be missing.
    """

    prompts: tuple[str, ...]
    shards: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Background:
    """What a report shows of a run besides its results.

    Attributes:
        command: The command line.
        baseline: The baseline that scores are compared with, or None.
        differences: 95 % confidence interval of score minus baseline, by dataset, and by `TASK overall`.
        failures: Why scores fail against the baseline, by the same names.
        num_compared: How many scores were compared with the baseline, overall scores included.
        sources: The test clips, by dataset.
    """

    command: str = ""
    baseline: Baseline | None = None
    differences: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    num_compared: int = 0
    sources: Mapping[str, ClipSource] = field(default_factory=dict)


def background_of(
    plan: Plan,
    results: Results,
    command: str,
    baseline: Baseline | None,
    findings: Mapping[str, Finding],
    failures: Mapping[str, str],
) -> Background:
    """Return the background of a session's results.

    Args:
        plan: The plan of the session.
        results: The results.
        command: The command line.
        baseline: The baseline that scores are compared with, or None.
        findings: The gate's findings, by dataset or task.
        failures: Why scores fail, by dataset or task.
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
        failures=failures,
        num_compared=sum(finding.baseline is not None for finding in findings.values()),
        differences={what: (known.low, known.high) for what, known in found.items() if known is not None},
        sources=sources,
    )
