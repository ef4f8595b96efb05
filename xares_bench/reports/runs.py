"""Finished runs: reads their folders, and refuses files that are damaged or were changed.

Comparisons and leaderboards trust these numbers, so whatever can be recomputed (scores from clip sums, overall scores
from scores) is compared with what the file says.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xares_bench.core.errors import RunWarning, UsageError
from xares_bench.core.parsing import local_path, parse_json
from xares_bench.reports.described import arguments_in_words, frames_per_second_of
from xares_bench.reports.origin import Origin
from xares_bench.reports.tables import Table, overall_rows, prediction_rows, robustness_rows, score_rows, write_parquet
from xares_bench.scores.clip_sums import ClipSums, load_clip_sums
from xares_bench.scores.records import (
    RESULTS_SCHEMA,
    Overall,
    Prediction,
    RobustnessRecord,
    RunManifest,
    ScoreRecord,
    overall_of,
)

RESULTS_FILE = "results.json"

# How far a score in results.json may be from the one that its clip sums give.
_ROUNDING = 1e-5


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run, as its files have it.

    `scores`, `overall`, `robustness` and `predictions` are tables: lists of flat mappings, which `pandas.DataFrame` and
    `polars.DataFrame` take as they are. Every row begins with the run's name, so tables of several runs can be joined.

    Attributes:
        folder: The run's folder.
        manifest: What it evaluated, and with what.
        records: The scores by dataset, in the catalogue's order.
        overalls: The overall scores by task.
        lalms: The manifests of the LALMs.
        failures: Why the run does not pass, by what fails: scores that are below the baseline, and datasets without a
            score. None in a run of an earlier version, which does not tell.
        origin: What wrote it, and when; None in a run of an earlier version.
        losses: What scores lose on corrupted test clips; empty without `--corrupt`.
    """

    folder: Path
    manifest: RunManifest
    records: Mapping[str, ScoreRecord]
    overalls: Mapping[str, Overall]
    lalms: tuple[Mapping[str, Any], ...]
    failures: Mapping[str, str] | None = None
    origin: Origin | None = None
    losses: tuple[RobustnessRecord, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run, which is that of its folder."""
        return self.manifest.name

    @property
    def scores(self) -> Table:
        """A row per dataset, in the catalogue's order: score, 95 % confidence interval, and what was scored."""
        return score_rows(self.manifest, self.records.values())

    @property
    def overall(self) -> Table:
        """A row per task: its overall score."""
        return overall_rows(self.manifest, self.overalls.values())

    @property
    def robustness(self) -> Table:
        """A row per dataset and corruption: what the score loses; empty without `--corrupt`."""
        return robustness_rows(self.manifest, self.records, self.losses)

    @functools.cached_property
    def predictions(self) -> Table:
        """A row per clip and target of every dataset: reference, hypothesis and value, read from the run's files.

        Raises:
            UsageError: A file is damaged.
        """
        return [row for name in self.records for row in prediction_rows(self.name, name, self.predictions_of(name))]

    def write_parquet(self, folder: str | os.PathLike[str] | None = None) -> list[Path]:
        """Write each table to `NAME.parquet`, except one without rows; return the paths.

        Args:
            folder: Where to; None: the run's folder.

        Raises:
            UsageError: pyarrow is not installed, or a file of the run is damaged.
            DiskError: A file cannot be written.
        """
        tables = {"scores": self.scores, "overall": self.overall, "robustness": self.robustness}
        tables["predictions"] = self.predictions
        return write_parquet(self.folder if folder is None else local_path(os.fspath(folder)), tables)

    def clip_sums(self, dataset: str) -> ClipSums | None:
        """Read the clip sums behind a score; None if the file is missing.

        Raises:
            UsageError: The file is damaged, or gives another score.
        """
        path = self.folder / "clip_sums" / f"{dataset}.npz"
        if not path.is_file():
            return None
        clip_sums = load_clip_sums(path)
        found, expected = float(clip_sums.scores()[0]), self.records[dataset].score
        if math.isfinite(expected) and not abs(found - expected) <= _ROUNDING:
            raise UsageError(
                f"{self.folder / RESULTS_FILE}: the score of {dataset} is {expected:.6f}, but {path} gives "
                f"{found:.6f}; one of them was changed. Run the suite again"
            )
        return clip_sums

    def predictions_of(self, dataset: str) -> list[Prediction]:
        """Read the predictions of a dataset; empty if the file is missing.

        Raises:
            UsageError: The file is damaged.
        """
        path = self.folder / "predictions" / f"{dataset}.jsonl"
        if not path.is_file():
            return []
        try:
            with path.open(encoding="utf-8") as lines:
                return [Prediction(**parse_json(line)) for line in lines]
        except (ValueError, TypeError) as cause:
            raise UsageError(f"{path} cannot be read: {cause}; run the suite again") from cause


def read_runs(folder: str | os.PathLike[str]) -> list[Run]:
    """Read all finished runs of a folder, by name, such as `runs`; a warning names each that cannot be read.

    Raises:
        UsageError: The folder has no runs.
    """
    runs, problems = find_runs(local_path(os.fspath(folder)))
    for problem in problems:
        warnings.warn(f"left out: {problem}", RunWarning, stacklevel=2)
    return runs


def find_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """Read the finished runs of a folder, by name.

    Returns:
        The runs, and a problem for each that cannot be read.

    Raises:
        UsageError: The folder has no runs.
    """
    files = sorted(folder.glob(f"*/{RESULTS_FILE}"))
    if not files:
        raise UsageError(f"no finished run in {folder}; expected the folder of --runs-dir (default: runs)")
    runs, problems = [], []
    for file in files:
        try:
            runs.append(read_run(file))
        except UsageError as cause:
            problems.append(str(cause))
    return runs, problems


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read a finished run by its folder, or by its results.json.

    What can be recomputed is compared with what the file says.

    Raises:
        UsageError: There is no run, it is of another version, or it is damaged or was changed.
    """
    path = local_path(os.fspath(path))
    file = path if path.name == RESULTS_FILE else path / RESULTS_FILE
    try:
        data = parse_json(file.read_text(encoding="utf-8"))
    except OSError as cause:
        raise UsageError(f"{file}: no finished run ({cause.strerror}); name a folder below runs/") from cause
    except ValueError as cause:
        raise UsageError(f"{file} is truncated or damaged ({cause}); run the suite again") from cause
    if not isinstance(data, dict) or data.get("schema") != RESULTS_SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else None
        raise UsageError(f"{file} has schema {found}; this version reads schema {RESULTS_SCHEMA}; run the suite again")
    try:
        run = RunManifest.from_json(data["run"])
        records = [ScoreRecord.from_json(record) for record in data["scores"]]
        by_name = {record.dataset: record for record in records}
        for record in records:
            _check(record)
        overalls = {
            task: overall_of(task, records, run.tasks.get(task, ()))
            for task in dict.fromkeys(record.task for record in records)
        }
        written = {overall["task"]: overall["score"] for overall in data["overall"]}
        lalms = tuple(dict(lalm) for lalm in data["lalms"])
        losses = tuple(RobustnessRecord.from_json(loss) for loss in data.get("robustness", ()))
        for loss in losses:
            _check_loss(loss, by_name)
        failures = None if data.get("failures") is None else dict(data["failures"])
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise UsageError(f"{file} does not have the fields of a run ({cause!r}); run the suite again") from cause
    for task, overall in overalls.items():
        if math.isfinite(overall.score) and not _close(written.get(task), overall.score):
            raise UsageError(
                f"{file}: the overall score of {task} is {written.get(task)}, but its datasets give "
                f"{overall.score:.6f}; one of them was changed. Run the suite again"
            )
    return Run(
        folder=file.parent,
        manifest=run,
        records=by_name,
        overalls=overalls,
        lalms=lalms,
        failures=failures,
        origin=Origin.from_json(data.get("written_by")),
        losses=losses,
    )


def _check(record: ScoreRecord) -> None:
    """Raise ValueError if a value of a record has the wrong type or range."""
    for name in ("dataset", "task", "metric"):
        if not isinstance(getattr(record, name), str):
            raise ValueError(f"{name} of {record.dataset} is {getattr(record, name)!r}, expected text")
    if not isinstance(record.score, (int, float)) or abs(record.score) > 1:
        raise ValueError(f"the score of {record.dataset} is {record.score!r}, expected a number within -1 and 1")
    if not isinstance(record.weight, (int, float)) or not 0 < record.weight < math.inf:
        raise ValueError(f"the weight of {record.dataset} is {record.weight!r}, expected a number above 0")
    if record.interval is not None and not (
        len(record.interval) == 2 and -1 <= record.interval[0] <= record.interval[1] <= 1
    ):
        raise ValueError(
            f"the interval of {record.dataset} is {record.interval!r}, expected two numbers within -1 and 1"
        )


def _check_loss(loss: RobustnessRecord, records: Mapping[str, ScoreRecord]) -> None:
    """Raise ValueError if a value of a loss has the wrong type or range, or its dataset has no score."""
    what = f"{loss.corruption!r} of {loss.dataset!r}"
    if loss.dataset not in records:
        raise ValueError(f"{what} has a loss, but its dataset has no score")
    name, _, level = str(loss.corruption).partition(":")
    if not name or not math.isfinite(float(level)):
        raise ValueError(f"the corruption {what} is not NAME:LEVEL")
    numbers = [loss.score, loss.loss, *(loss.interval or ())]
    if not all(isinstance(number, (int, float)) and not abs(number) > 2 for number in numbers):
        raise ValueError(f"the loss by {what} is not a number in the range of differences of scores")
    if loss.interval is not None and not (len(loss.interval) == 2 and loss.interval[0] <= loss.interval[1]):
        raise ValueError(f"the interval of {what} is {loss.interval!r}, expected two numbers in order")


def _close(found: object, expected: float) -> bool:
    return isinstance(found, (int, float)) and abs(found - expected) <= _ROUNDING


@dataclass(frozen=True, kw_only=True)
class OtherRun:
    """A run beside others.

    Attributes:
        name: Name of its folder.
        encoder: Name of the encoder's class, or of the model.
        arguments: The encoder's arguments as JSON; empty if there are none.
        dimensions: Dimensions of its frames.
        frames_per_second: Frames per second of audio that the LALM gets.
        realtime_factor: Seconds of computing per second of audio.
        score: Weighted mean over the given datasets.
    """

    name: str
    encoder: str
    arguments: str
    dimensions: int
    frames_per_second: float
    realtime_factor: float
    score: float


def other_runs(folder: Path, *, preset: str, device: str, datasets: Collection[str]) -> list[OtherRun]:
    """Return the runs beside a run's folder that can be compared with it, by name; unreadable ones are skipped.

    Args:
        folder: The run's folder, which is left out.
        preset: Its preset.
        device: Its device, as costs on different devices cannot be compared.
        datasets: Datasets that a run must have complete scores of.
    """
    found = []
    for path in sorted(folder.parent.glob(f"*/{RESULTS_FILE}")):
        if path.parent == folder:
            continue
        try:
            other = read_run(path)
            if other.manifest.preset == preset and other.manifest.environment["device"] == device:
                found.append(other_run(other.manifest, other.records, datasets))
        except (UsageError, KeyError):
            continue  # of another version, or not finished
    return [run for run in found if run is not None]


def other_run(run: RunManifest, records: Mapping[str, ScoreRecord], datasets: Collection[str]) -> OtherRun | None:
    """Return a run for a list of runs; None unless it has complete scores of all the datasets.

    Raises:
        KeyError: The manifest lacks a value of the encoder.
    """
    chosen = [records[name] for name in datasets if name in records and not records[name].partial]
    if not chosen or len(chosen) < len(datasets) or not all(math.isfinite(record.score) for record in chosen):
        return None
    encoder = run.encoder
    return OtherRun(
        name=run.name,
        encoder=encoder["name"],
        arguments=arguments_in_words(run),
        dimensions=encoder["output_dim"],
        frames_per_second=frames_per_second_of(run),
        realtime_factor=encoder["realtime_factor"],
        score=math.fsum(record.score * record.weight for record in chosen)
        / math.fsum(record.weight for record in chosen),
    )
