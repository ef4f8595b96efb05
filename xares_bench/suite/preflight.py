"""Preflight: checks before the tests of some datasets, which results are cached, and downloads of missing shards.

Everything that can fail is looked at before the first download and the first training step: hours later is too late to
learn that a metric's model is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from xares_bench.config.catalogue import Dataset, Mix, Split
from xares_bench.config.plan import Plan
from xares_bench.core.errors import DataError
from xares_bench.core.progress import Progress
from xares_bench.core.store import Store
from xares_bench.datasets.shards import ShardSource
from xares_bench.datasets.targets import check_first_samples
from xares_bench.features.disk_budget import KIND as FEATURES
from xares_bench.features.feature_store import FeatureStore
from xares_bench.hub import DataHome, Survey
from xares_bench.metrics.registry import check_available, metric_identity
from xares_bench.suite.keys import Keys
from xares_bench.training.checkpoints import Checkpoints


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """Which results of a session are cached.

    Attributes:
        mixes: The state of each mix's LALMs, in words.
        num_shards: Shards to encode; with a limit, only those known to be needed.
        num_shards_reused: Those of them with cached features.
        feature_bytes: Disk space of all cached features, those of other runs included.
        feature_budget_bytes: The most that they may take.
        num_scores: Datasets to evaluate.
        num_scores_reused: Those of them with cached scores.
    """

    mixes: Mapping[str, str]
    num_shards: int
    num_shards_reused: int
    feature_bytes: int
    feature_budget_bytes: int
    num_scores: int
    num_scores_reused: int


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """Tells what datasets need, given their names.

    Attributes:
        plan: Datasets, mixes and recipe.
        home: The folder for shards of the hub.
        shards: Finds shards.
        keys: Cache keys of the results.
        store: The cache of LALMs and scores.
        features: The cache of features.
    """

    plan: Plan
    home: DataHome
    shards: ShardSource
    keys: Keys
    store: Store
    features: FeatureStore

    def survey(self, names: Sequence[str]) -> Survey | None:
        """Return which shards of these datasets and their mixes are on the hub, and which of them are here.

        Returns:
            The survey; None if no shard comes from the hub.

        Raises:
            DataError: The hub does not answer.
        """
        return self._survey(self._splits(names))

    def check(self, names: Sequence[str]) -> None:
        """Refuse what cannot work, before anything is downloaded or trained.

        Raises:
            UsageError: A metric's model is missing, or there is too little disk space.
            DataError: The hub does not answer.
        """
        # The keys of scores contain the digests of metric models, so without their files no score can be looked up.
        # Whether the models can be loaded matters only for scores that are not cached.
        for metric in self._metrics(names):
            metric_identity(metric)
        for metric in self._metrics(name for name in names if not self._has_score(name)):
            check_available(metric)
        needed = self._survey(self._unfinished(names))
        if needed is not None:
            needed.check_space()

    def fetch(self, names: Sequence[str], progress: Progress) -> None:
        """Download the shards that are needed for results that are not cached, and check their first samples.

        A shard that cannot be downloaded fails the tests of the datasets that need it, and no others.

        Raises:
            UsageError: There is too little disk space.
            DataError: The hub does not answer, or the first samples of a dataset are unusable.
        """
        unfinished = self._unfinished(names)
        needed = self._survey(unfinished)
        if needed is not None:
            self.home.fetch(needed, progress)
        for dataset, split in unfinished:
            try:
                shards = self.shards.locate(split, dataset.repository)
            except DataError:
                continue  # the tests of this dataset will fail with it
            check_first_samples(dataset, split, shards)

    def repositories(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the hub repositories with shards of these datasets and their mixes."""
        return tuple(sorted({dataset.repository for dataset, _ in self._splits(names) if dataset.repository}))

    def reuse(self, names: Sequence[str]) -> Reuse:
        """Return what is cached for a session that evaluates these datasets.

        Raises:
            DataError: A shard is missing.
        """
        is_cached: dict[str, bool] = {}  # per key of features; datasets may share shards
        for dataset, split in self._splits(names):
            max_audio_s = None if split is dataset.eval else self.plan.recipe.training.max_audio_s
            num_left = self.plan.limit
            for shard in self.shards.locate(split, dataset.repository):
                if num_left == 0:
                    break
                key = self.features.key(shard, max_audio_s, num_left)
                entry = self.store.find(FEATURES, key)
                is_cached[key] = entry is not None
                if num_left is not None:
                    if entry is None:
                        break  # how many samples it has, and so which shards follow, is unknown until it is read
                    num_left -= entry.manifest["num_samples"]
        return Reuse(
            num_shards=len(is_cached),
            num_shards_reused=sum(is_cached.values()),
            feature_bytes=self.features.budget.cached_bytes,
            feature_budget_bytes=self.features.budget.max_bytes,
            mixes={mix.name: self._state_of(mix) for mix in self._mixes(names)},
            num_scores=len(names),
            num_scores_reused=sum(map(self._has_score, names)),
        )

    def _mixes(self, names: Iterable[str]) -> list[Mix]:
        """Return the mixes whose LALMs these datasets are evaluated with, each once."""
        return list({mix.name: mix for mix in map(self.plan.mix_for, names)}.values())

    def _metrics(self, names: Iterable[str]) -> list[str]:
        return sorted({self.plan.dataset(name).metric for name in names})

    def _state_of(self, mix: Mix) -> str:
        """Say whether a mix's LALMs are cached, or where their training starts."""
        if self._has_lalm(mix):
            return "cached"
        for seed in self.plan.seeds:
            checkpoints = self.checkpoints(mix, seed)
            if checkpoints.num_steps:
                return f"training resumes after step {checkpoints.num_steps} of {self.plan.num_steps(mix)}"
            other = checkpoints.of_others()
            if other:
                return (
                    f"training from scratch; found a checkpoint at step {other}, but recipe, decoder, data, encoder or "
                    "code changed"
                )
        return "training from scratch"

    def checkpoints(self, mix: Mix, seed: int) -> Checkpoints:
        """Return the checkpoints of the training of a mix with a seed."""
        description = {"mix": mix.name, "seed": seed, "encoder": self.keys.clips.encoder.name}
        return Checkpoints(self.store, self.keys.lalm(mix, seed), description)

    def _has_lalm(self, mix: Mix) -> bool:
        return self._are_cached("lalms", lambda: [self.keys.lalm(mix, seed) for seed in self.plan.seeds])

    def _has_score(self, name: str) -> bool:
        return self._are_cached("scores", lambda: self.keys.scores(name))

    def _are_cached(self, kind: str, keys: Callable[[], Iterable[str]]) -> bool:
        try:
            return all(self.store.find(kind, key) is not None for key in keys())
        except DataError:
            return False  # a shard is missing, so there is no key; computing the result will fail with this error

    def _splits(self, names: Sequence[str]) -> list[tuple[Dataset, Split]]:
        """Return all splits that these datasets need for training and evaluation."""
        return _splits_of(self._mixes(names), map(self.plan.dataset, names))

    def _unfinished(self, names: Sequence[str]) -> list[tuple[Dataset, Split]]:
        """Return the splits that are needed for results that are not cached."""
        untrained = [mix for mix in self._mixes(names) if not self._has_lalm(mix)]
        return _splits_of(untrained, (self.plan.dataset(name) for name in names if not self._has_score(name)))

    def _survey(self, splits: Iterable[tuple[Dataset, Split]]) -> Survey | None:
        wanted: dict[str, list[str]] = {}
        for dataset, split in splits:
            if dataset.repository is not None:
                wanted.setdefault(dataset.repository, []).extend(split.shards)
        return self.home.survey(wanted) if wanted else None


def _splits_of(mixes: Iterable[Mix], evaluated: Iterable[Dataset]) -> list[tuple[Dataset, Split]]:
    """Return the training splits of mixes and the test splits of datasets."""
    pairs = [(dataset, dataset.train) for mix in mixes for dataset in mix.datasets]
    pairs.extend((dataset, dataset.eval) for dataset in evaluated)
    return [(dataset, split) for dataset, split in pairs if split is not None]
