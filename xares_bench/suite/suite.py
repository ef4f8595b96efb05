"""The suite: the only glue. `lalms(mix)` and `evaluate(dataset)` find what was done before, or have the pipeline do it.

The pipeline is imported when there is something to do: importing transformers takes longer than a whole session that
finds everything finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xares_bench.config.catalogue import Mix
from xares_bench.config.plan import Plan
from xares_bench.core.digests import digest_of
from xares_bench.core.errors import EncoderError, UsageError, XaresError
from xares_bench.core.progress import Progress, hush_transformers
from xares_bench.core.store import Entry, Store
from xares_bench.datasets.shards import ShardFolder, ShardSource
from xares_bench.encoders.contract import ContractReport, check_contract
from xares_bench.encoders.loading import FrozenEncoder
from xares_bench.features.disk_budget import FeatureBudget
from xares_bench.features.encoding import ClipEncoder
from xares_bench.features.feature_store import FeatureStore
from xares_bench.hub import DataHome
from xares_bench.hub.models import Decoder, locate_decoder
from xares_bench.metrics.registry import METRICS, metric_identity
from xares_bench.runtime.device import environment_of, open_accelerator, start_tracker
from xares_bench.runtime.processes import obtain_in_all_processes
from xares_bench.scores.clip_sums import CLIP_SUMS_FILE, ClipSums, joined, load_clip_sums
from xares_bench.scores.records import PREDICTIONS_FILE, RunManifest, ScoreRecord
from xares_bench.scores.statistics import interval_of
from xares_bench.suite.keys import Keys
from xares_bench.suite.preflight import Preflight

if TYPE_CHECKING:
    from xares_bench.suite.pipeline import Pipeline


class Suite:
    """Does what a plan asks for, one encoder at a time.

    Attributes:
        plan: What to do.
        device: Where the encoder and the LALM compute.
    """

    def __init__(self, plan: Plan, progress: Progress) -> None:
        """Find the device; nothing else is done before it is asked for.

        Raises:
            UsageError: The precision that the launcher asks for does not exist on this device.
        """
        assert plan.encoder is not None
        if not sys.stderr.isatty():
            hush_transformers()
        self.plan = plan
        self._progress = progress
        self._accelerator = open_accelerator(plan.tracker)
        self._is_tracked = False
        self.device: torch.device = self._accelerator.device
        self._store = Store(root=plan.runs_folder / "store")
        self._home = DataHome(plan.data_home, plan.data_revisions)
        self._shards = ShardSource(ShardFolder(plan.data_folder, plan.runs_folder / "store" / "digests"), self._home)
        self._entries: dict[str, Entry] = {}

    @functools.cached_property
    def contract(self) -> ContractReport:
        """What the encoder keeps of its contract; checked once, where it keeps all of it also for later sessions."""
        assert self.plan.encoder is not None
        with self._progress.bar("checking the encoder", 1) as advance:
            report = check_contract(self.plan.encoder, self.device, self._store)
            advance()
        return report

    @property
    def encoder(self) -> FrozenEncoder:
        """The frozen encoder.

        Raises:
            EncoderError: A clause of the contract does not hold.
        """
        report = self.contract
        if report.failure is not None:
            raise EncoderError(*report.failure)
        assert report.encoder is not None
        return report.encoder

    def track(self, run: RunManifest) -> None:
        """Send losses and scores from here on to the tracker of the plan, if there is one."""
        if self.plan.tracker is None or self._is_tracked:
            return
        values = {"encoder": run.encoder["spec"], "preset": run.preset, **run.recipe}
        start_tracker(self._accelerator, self.plan.runs_folder / run.name / "tracking", run.name, values)
        self._is_tracked = True

    def track_score(self, record: ScoreRecord) -> None:
        """Send a score to the tracker, if there is one."""
        self._accelerator.log({f"scores/{record.dataset}": record.score})

    @property
    def num_processes(self) -> int:
        """Processes of a launcher that do this together."""
        return int(self._accelerator.num_processes)

    @property
    def num_devices(self) -> int:
        """Devices of the kind that is used, of which a process uses one."""
        return torch.cuda.device_count() if self.device.type == "cuda" else 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one of them that writes and reports."""
        return bool(self._accelerator.is_main_process)

    def close(self) -> None:
        """Let the tracker, if there is one, bring to an end what it has begun, and leave the other processes."""
        if self._is_tracked:
            self._accelerator.end_training()
        if self.num_processes > 1:
            torch.distributed.destroy_process_group()

    def check(self, names: Sequence[str]) -> None:
        """Refuse what cannot work, before anything is fetched or trained.

        Raises:
            UsageError: A preset made for a GPU and none found, more processes than a batch has samples, a metric's
                model missing, too little disk.
            DataError: The hub cannot be asked.
        """
        preset = self.plan.catalogue.preset
        if preset.needs_gpu and self.device.type == "cpu" and not self.plan.allow_cpu:
            raise UsageError(
                f"--preset={preset.name} is made for a GPU and none was found. Use --preset=mini, or insist with "
                "--allow-cpu (the published number of steps takes weeks on a CPU)"
            )
        batch_size = self.plan.recipe.training.batch_size
        if self.num_processes > batch_size:
            raise UsageError(
                f"{self.num_processes} processes cannot share batches of {batch_size}; start at most {batch_size} "
                "(a larger batch_size is another recipe)"
            )
        self.preflight.check(names)

    def fetch(self, names: Sequence[str]) -> None:
        """Bring here what these datasets need; see `Preflight.fetch`."""
        self.preflight.fetch(names, self._progress)

    def lalms(self, mix: Mix) -> list[Entry]:
        """The finished LALMs of a mix in the store, one for every seed, trained now if need be.

        Raises:
            EncoderError: The encoder breaks its contract.
            DataError: A training shard is missing or damaged, or too many of its samples are unusable.
            UsageError: The decoder cannot be used.
        """
        return [self._lalm(mix, seed) for seed in self.plan.seeds]

    def evaluate(self, name: str) -> ScoreRecord:
        """The score of a dataset, the mean over the seeds, computed now if need be; LALMs are trained first if need be.

        Raises:
            EncoderError: The encoder breaks its contract.
            DataError: A shard is missing or damaged, or too many of its samples are unusable.
        """
        records = [self._score(name, seed) for seed in self.plan.seeds]
        return records[0] if len(records) == 1 else self._mean(records)

    def evaluate_share(self, names: Sequence[str]) -> None:
        """Of several processes, evaluate this one's share of the datasets; the tests then find what others have made.

        What goes wrong is left to the test of its dataset.
        """
        if self.num_processes == 1:
            return
        for name in names[self._accelerator.process_index :: self.num_processes]:
            with contextlib.suppress(XaresError):
                self.evaluate(name)

    def predictions_file(self, name: str) -> Path:
        """The predictions of a dataset that has been evaluated, in the store; those of the first seed."""
        return self._scored(name)[0] / PREDICTIONS_FILE

    def clip_sums(self, name: str) -> ClipSums:
        """What the score of a dataset that has been evaluated is made of, over all seeds."""
        return joined([load_clip_sums(folder / CLIP_SUMS_FILE) for folder in self._scored(name)])

    def _scored(self, name: str) -> list[Path]:
        """The folders of a dataset's finished scores, seed by seed."""
        entries = [self._store.find("scores", key) for key in self._keys.scores(name)]
        assert all(entries), name
        return [entry.folder for entry in entries if entry is not None]

    def _lalm(self, mix: Mix, seed: int) -> Entry:
        key = self._keys.lalm(mix, seed)
        if key not in self._entries:
            checkpoints = self.preflight.checkpoints(mix, seed)
            self._entries[key] = obtain_in_all_processes(
                self._accelerator,
                self._store,
                "lalms",
                key,
                lambda folder: self._pipeline.train(mix, seed, folder, checkpoints),
            )
            if self.is_first:
                checkpoints.remove()
        return self._entries[key]

    def _score(self, name: str, seed: int) -> ScoreRecord:
        dataset = self.plan.dataset(name)
        mix = self.plan.mix_for(name)
        key = self._keys.score(name, seed)

        def make(folder: Path) -> dict[str, Any]:
            return {"record": self._pipeline.score(dataset, mix, self._lalm(mix, seed), folder, key).to_json()}

        entry = self._store.obtain("scores", key, make)
        return ScoreRecord.from_json({**entry.manifest["record"], "reused": entry.reused})

    def _mean(self, records: Sequence[ScoreRecord]) -> ScoreRecord:
        """One record of the same dataset's records over seeds."""
        scores = tuple(record.score for record in records)
        score = math.fsum(scores) / len(scores)
        interval = interval_of(self.clip_sums(records[0].dataset)) if math.isfinite(score) else None
        return dataclasses.replace(
            records[0],
            score=score,
            seed_scores=scores,
            interval=None if interval is None else (interval.low, interval.high),
            deviation=None if interval is None else interval.deviation,
            features_s=math.fsum(record.features_s for record in records),
            generation_s=math.fsum(record.generation_s for record in records),
            key=digest_of([record.key for record in records]),
            reused=all(record.reused for record in records),
        )

    def open_run(self, names: Iterable[str]) -> RunManifest:
        """Name and describe the run that evaluates these datasets; the same run has the same name."""
        names = tuple(names)
        preset = self.plan.catalogue.preset
        report = self.contract
        commit = getattr(self.encoder.module, "commit", None)  # of a model of the hub
        return RunManifest(
            name=f"{self.encoder.name}-{preset.name}-{self._keys.run(names)[:10]}",
            datasets=names,
            encoder={
                "spec": self.encoder.spec.text,
                "name": self.encoder.name,
                "arguments": dict(self.encoder.spec.arguments),
                "fingerprint": self.encoder.fingerprint,
                "commit": commit if isinstance(commit, str) else None,
                "output_dim": self.encoder.output_dim,
                "honours_mask": report.honours_mask,
                "frames_per_second": report.frames_per_second,
                "realtime_factor": report.realtime_factor,
                "contract_reused": report.reused,
                "warnings": dict(report.warnings),
            },
            preset=preset.name,
            decoder={
                "name": _relative(self._decoder.name),
                "commit": self._decoder.commit,
                "fingerprint": self._decoder.digest,
            },
            recipe=self.plan.recipe.values(),
            deviations={key: list(values) for key, values in self.plan.deviations.items()},
            data={
                "folder": _relative(str(self.plan.data_folder)) if self.plan.uses_public(names) else "own tar files",
                "revision": self._keys.data(names)[:12],
                "repositories": {
                    repository: self._home.commit(repository) for repository in self.preflight.repositories(names)
                },
                "limit": self.plan.limit,
            },
            tasks=self.plan.tasks,
            seeds=self.plan.seeds,
            environment={
                **environment_of(self._accelerator),
                "judges": {
                    metric: metric_identity(metric)
                    for metric in sorted({self.plan.dataset(name).metric for name in names})
                    if METRICS[metric].needs_models
                },
            },
        )

    @functools.cached_property
    def preflight(self) -> Preflight:
        """What datasets need before their tests can run."""
        return Preflight(
            plan=self.plan,
            home=self._home,
            shards=self._shards,
            keys=self._keys,
            store=self._store,
            features=self._features,
        )

    @functools.cached_property
    def _clips(self) -> ClipEncoder:
        return ClipEncoder(
            encoder=self.encoder,
            honours_mask=self.contract.honours_mask,
            half_precision=self.plan.recipe.training.feature_dtype == "float16",
        )

    @functools.cached_property
    def _features(self) -> FeatureStore:
        return FeatureStore(self._store, self._clips, FeatureBudget(self._store, self.plan.feature_bytes))

    @functools.cached_property
    def _keys(self) -> Keys:
        return Keys(
            plan=self.plan,
            shards=self._shards,
            clips=self._clips,
            decoder=self._decoder.digest,
            device_type=self.device.type,
            precision=self._accelerator.mixed_precision,
            num_processes=self.num_processes,
        )

    @functools.cached_property
    def _decoder(self) -> Decoder:
        return locate_decoder(self.plan.decoder, self.plan.data_home, self._progress)

    @functools.cached_property
    def _pipeline(self) -> Pipeline:
        from xares_bench.suite.pipeline import Pipeline

        return Pipeline(
            plan=self.plan,
            decoder_folder=self._decoder.folder,
            clips=self._clips,
            features=self._features,
            shards=self._shards,
            accelerator=self._accelerator,
            progress=self._progress,
            checkpoint_steps=self.plan.checkpoint_steps,
        )


def _relative(path: str) -> str:
    """A path as seen from the current directory, where it is below it."""
    try:
        return Path(path).relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path
