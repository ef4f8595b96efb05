"""The suite: `lalms(mix)` and `evaluate(dataset)` return cached results, or have the pipeline compute them.

The parts that it connects are opened at first use, as a session that only lists or checks needs few of them. The
pipeline is imported only when something is missing from the cache: importing transformers alone takes longer than a
whole session that finds everything cached.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from xares_bench.config.catalogue import Mix
from xares_bench.config.plan import Plan
from xares_bench.core.errors import EncoderError, UsageError, XaresError
from xares_bench.core.locks import announce_waits
from xares_bench.core.progress import Progress, hush_transformers
from xares_bench.core.store import Entry, Store
from xares_bench.datasets.corruptions import Corruption
from xares_bench.datasets.inventory import Inventories
from xares_bench.datasets.shards import ShardFolder, ShardSource
from xares_bench.encoders.contract import check_contract
from xares_bench.encoders.contract_report import ContractReport
from xares_bench.encoders.loading import FrozenEncoder
from xares_bench.features.disk_budget import FeatureBudget
from xares_bench.features.encoding import ClipEncoder
from xares_bench.features.feature_store import FeatureStore
from xares_bench.hub import DataHome
from xares_bench.hub.models import Decoder, locate_decoder
from xares_bench.runtime.determinism import refuse_late_workspaces
from xares_bench.runtime.device import environment_of, open_accelerator, refuse_cpu, start_tracker
from xares_bench.runtime.processes import obtain_in_all_processes
from xares_bench.scores.records import RobustnessRecord, RunManifest, ScoreRecord
from xares_bench.suite.data_check import DataCheck, splits_by_path
from xares_bench.suite.keys import Keys
from xares_bench.suite.manifest import run_manifest
from xares_bench.suite.preflight import Preflight
from xares_bench.suite.score_store import ScoreStore, titled

if TYPE_CHECKING:
    from xares_bench.suite.pipeline import Pipeline


class Suite:
    """Evaluates one encoder as a plan says.

    Attributes:
        plan: Encoder, datasets, recipe and folders.
        device: The device of the encoder and the LALM.
    """

    def __init__(self, plan: Plan, progress: Progress) -> None:
        """Find the device; everything else waits until it is needed.

        Raises:
            UsageError: The device does not support the launcher's precision.
        """
        assert plan.encoder is not None
        if not sys.stderr.isatty():
            hush_transformers()
        self.plan = plan
        self._progress = progress
        announce_waits(progress.say)
        self._accelerator = open_accelerator(plan.tracker)
        self._is_tracked = False
        self.device: torch.device = self._accelerator.device
        store = plan.runs_folder / "store"
        self._store = Store(root=store)
        self._inventories = Inventories(store / "inventories", splits_by_path(plan))
        digest = self._inventories.digest
        self._home = DataHome(plan.data_home, plan.data_revisions, digest=digest)
        self._shards = ShardSource(ShardFolder(plan.data_folder, store / "digests", digest), self._home)
        self._entries: dict[str, Entry] = {}
        self._failed: dict[str, XaresError] = {}

    @functools.cached_property
    def contract(self) -> ContractReport:
        """The result of the contract check, which runs once; later sessions reuse it if the encoder passed."""
        assert self.plan.encoder is not None
        with self._progress.bar("checking the encoder", 1) as advance:
            report = check_contract(self.plan.encoder, self.device, self._store)
            advance()
        return report

    @property
    def encoder(self) -> FrozenEncoder:
        """The frozen encoder.

        Raises:
            EncoderError: The encoder breaks its contract.
        """
        report = self.contract
        if report.failure is not None:
            raise EncoderError(*report.failure)
        assert report.encoder is not None
        return report.encoder

    def track(self, run: RunManifest) -> None:
        """Start the plan's tracker, if it has one; losses and scores from now on reach it."""
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
        """The number of processes that the launcher started."""
        return int(self._accelerator.num_processes)

    @property
    def num_devices(self) -> int:
        """The number of devices of the kind in use; each process uses one."""
        return torch.cuda.device_count() if self.device.type == "cuda" else 1

    @property
    def is_first(self) -> bool:
        """Whether this is the main process, which writes and reports."""
        return bool(self._accelerator.is_main_process)

    def close(self) -> None:
        """Let the tracker finish its uploads, and disconnect from the other processes."""
        if self._is_tracked:
            self._accelerator.end_training()
        if self.num_processes > 1:
            torch.distributed.destroy_process_group()

    def check(self, names: Sequence[str]) -> None:
        """Refuse what cannot work, before anything is fetched or trained.

        Raises:
            UsageError: The preset needs a GPU and there is none, or one that cannot compute deterministically any
                more; there are more processes than samples in a batch; a metric's model is missing; or there is too
                little disk space.
            DataError: The hub does not answer.
        """
        preset = self.plan.catalogue.preset
        if preset.needs_gpu and not self.plan.allow_cpu:
            refuse_cpu(self.device, preset.name)
        if self.plan.recipe.training.deterministic:
            refuse_late_workspaces(self.device)
        batch_size = self.plan.recipe.training.batch_size
        if self.num_processes > batch_size:
            raise UsageError(
                f"{self.num_processes} processes cannot share batches of {batch_size} samples; start at most "
                f"{batch_size} processes (a larger batch_size would change the recipe)"
            )
        self.preflight.check(names, self._progress)

    def fetch(self, names: Sequence[str]) -> list[str]:
        """Download and check what these datasets need; see `Preflight.fetch`."""
        return self.preflight.fetch(names, self._progress)

    def lalms(self, mix: Mix, others: Iterable[Mix] = ()) -> list[Entry]:
        """Return the LALMs of a mix, one per training seed; those that are not cached are trained now.

        Sessions at once, such as xdist's workers, train different LALMs: while others are at those of the mix, this one
        trains what it finds free.

        Args:
            mix: The mix.
            others: Mixes whose LALMs are needed later.

        Raises:
            EncoderError: The encoder breaks its contract.
            DataError: A training shard is missing or damaged, or too many of its samples are unusable.
            UsageError: The decoder cannot be used.
        """
        if self.num_processes == 1:  # processes of a launcher train every LALM together
            for seed in self.plan.seeds:
                self._train_if_free(mix, seed)
            for other, seed in itertools.product(others, self.plan.seeds):
                if all(self._store.find("lalms", self._keys.lalm(mix, own)) for own in self.plan.seeds):
                    break
                with contextlib.suppress(XaresError):  # left to its own tests, which run into it again
                    self._train_if_free(other, seed)
        return [self._lalm(mix, seed) for seed in self.plan.seeds]

    def evaluate(self, name: str) -> ScoreRecord:
        """Return the score of a dataset, the mean over the training seeds.

        What is not cached is computed now, the LALMs included.

        Raises:
            EncoderError: The encoder breaks its contract.
            DataError: A shard is missing or damaged, or too many of its samples are unusable.
        """
        self.preflight.require(name)
        if name in self._failed:
            raise self._failed[name]
        return self.scores.record(name)

    def find_score(self, name: str) -> tuple[ScoreRecord, list[dict[str, Any]]] | None:
        """Return a dataset's score and the manifests of its LALMs, if it is cached; nothing is computed."""
        try:
            # Intact, not only there: for a damaged score, `evaluate` would compute it anew.
            if not self.scores.are_intact(name):
                return None
            keys = [self._keys.lalm(self.plan.mix_for(name), seed) for seed in self.plan.seeds]
        except XaresError:  # its data are not there, so it has no key
            return None
        lalms = [self._store.find("lalms", key) for key in keys]
        return self.scores.record(name), [{**lalm.manifest, "reused": True} for lalm in lalms if lalm is not None]

    def robustness(self, name: str, corruption: Corruption) -> RobustnessRecord:
        """Return what the score of a dataset loses when its test clips are corrupted.

        What is not cached is computed now, the clean score included; nothing is trained or encoded again for it.

        Raises:
            EncoderError: The encoder breaks its contract on a corrupted clip.
            DataError: A shard is missing or damaged, or too many of its corrupted samples are unusable.
        """
        title = titled(name, corruption)
        if title in self._failed:
            raise self._failed[title]
        return self.scores.robustness(name, corruption)

    def evaluate_share(self, names: Sequence[str], corrupted: Sequence[tuple[str, Corruption]] = ()) -> None:
        """With several processes, evaluate what is left of the datasets; the tests then find all scores cached.

        Each process begins with datasets of its own and goes on to those of the others, where it generates for the
        parts that nobody is at. To be called after `lalms`, which takes all processes. An error is left to the
        dataset's own test in this process: raised here, it would fail the test of another dataset.

        Args:
            names: Datasets to score.
            corrupted: Datasets to score on corrupted test clips, too, with the corruptions.
        """
        if self.num_processes == 1:
            return
        jobs = [*((name, None) for name in names), *corrupted]
        index, num_processes = self._accelerator.process_index, self.num_processes
        shares = [jobs[(index + shift) % num_processes :: num_processes] for shift in range(num_processes)]
        # Seed by seed, since one LALM is in memory at a time.
        for seed, (name, corruption) in itertools.product(self.plan.seeds, itertools.chain(*shares)):
            with self._left_to_its_test(titled(name, corruption)):
                self.preflight.require(name)
                self.scores.make_free(name, seed, corruption)
        for name, corruption in shares[0]:
            title = titled(name, corruption)
            if title not in self._failed:
                with self._left_to_its_test(title):
                    self.scores.record(name, corruption)

    @contextlib.contextmanager
    def _left_to_its_test(self, title: str) -> Iterator[None]:
        """Let `evaluate` or `robustness` raise an error of the block, whether or not another process succeeds.

        Otherwise it would depend on which is faster. Said at once, as only the first process reports its tests.
        """
        try:
            yield
        except XaresError as error:
            if title not in self._failed and not self.is_first:
                with self._progress.uncaptured():
                    process = f"process {self._accelerator.process_index} of {self.num_processes}"
                    sys.stderr.write(f"xares-bench: {process}: {title}: {error}\n")
            self._failed.setdefault(title, error)

    def _train_if_free(self, mix: Mix, seed: int) -> None:
        """Train a LALM, unless it is cached or another process is training it."""
        key = self._keys.lalm(mix, seed)
        # `use`, which says so if it finds a damaged one, and removes it.
        if key in self._entries or self._store.use("lalms", key) is not None:
            return
        unfinished = self._store.begin("lalms", key, wait=False)
        if unfinished is not None:
            checkpoints = self.preflight.checkpoints(mix, seed)
            self._entries[key] = unfinished.fill(lambda folder: self._pipeline.train(mix, seed, folder, checkpoints))
            checkpoints.remove()

    def _lalm(self, mix: Mix, seed: int) -> Entry:
        key = self._keys.lalm(mix, seed)
        # Remembered, as obtaining an entry is a collective operation: once a mix's LALMs were obtained together, each
        # process can evaluate datasets of its own without waiting for the others (`evaluate_share`).
        if key not in self._entries:
            checkpoints = self.preflight.checkpoints(mix, seed)
            self._entries[key] = obtain_in_all_processes(
                self._accelerator,
                self._store,
                "lalms",
                key,
                lambda folder: self._pipeline.train(mix, seed, folder, checkpoints),
            )
            # Only now that the LALM is stored: a session that is killed before can still resume from them.
            if self.is_first:
                checkpoints.remove()
        return self._entries[key]

    def open_run(self, names: Iterable[str]) -> RunManifest:
        """Describe the run that evaluates these datasets; equal runs have equal names."""
        names = tuple(names)
        return run_manifest(
            names,
            plan=self.plan,
            encoder=self.encoder,
            contract=self.contract,
            decoder=self._decoder,
            keys=self._keys,
            commits={repository: self._home.commit(repository) for repository in self.preflight.repositories(names)},
            environment=environment_of(self._accelerator),
        )

    @functools.cached_property
    def scores(self) -> ScoreStore:
        """The scores of the plan's datasets, with their predictions and clip sums."""
        return ScoreStore(
            plan=self.plan,
            store=self._store,
            keys=self._keys,
            shards=self._shards,
            inventories=self._inventories,
            lalm=self._lalm,
            was_cached=self.preflight.was_cached,
            pipeline=lambda: self._pipeline,
        )

    @functools.cached_property
    def preflight(self) -> Preflight:
        """The checks and downloads before the tests."""
        return Preflight(
            plan=self.plan,
            home=self._home,
            shards=self._shards,
            keys=self._keys,
            store=self._store,
            features=self._features,
            data=DataCheck(plan=self.plan, shards=self._shards, inventories=self._inventories),
        )

    @functools.cached_property
    def _clips(self) -> ClipEncoder:
        return ClipEncoder(
            encoder=self.encoder,
            honours_mask=self.contract.honours_mask,
            half_precision=self.plan.recipe.training.feature_dtype == "float16",
            min_samples=self.contract.min_samples,
        )

    @functools.cached_property
    def _features(self) -> FeatureStore:
        budget = FeatureBudget(self._store, self.plan.feature_bytes)
        return FeatureStore(self._store, self._clips, budget, self.num_processes)

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
