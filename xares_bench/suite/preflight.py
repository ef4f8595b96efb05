"""Preflight: what the tests of some datasets need before they can run, what of it is there, and fetching the rest."""

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
    """What a session will find finished.

    Attributes:
        mixes: What there is of the LALMs, per mix.
        num_shards: Shards that features are made of; of more than one, a limit may leave the later ones out.
        num_shards_reused: Those of them whose features are there.
        feature_bytes: What all kept features take, those of other runs included.
        feature_budget_bytes: What they may take.
        num_scores: Datasets to score.
        num_scores_reused: Those of them whose scores are there.
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
    """Answers, for the names of some datasets, what they need.

    Attributes:
        plan: What is to be done.
        home: Where shards of the hub go.
        shards: Finds shards.
        keys: Keys of what is to be made.
        store: Holds what is made.
        features: Holds the features.
    """

    plan: Plan
    home: DataHome
    shards: ShardSource
    keys: Keys
    store: Store
    features: FeatureStore

    def survey(self, names: Sequence[str]) -> Survey | None:
        """What these datasets and their mixes have on the hub, and what of it is here; None: nothing is there.

        Raises:
            DataError: The hub cannot be asked.
        """
        return self._survey(self._splits(names))

    def check(self, names: Sequence[str]) -> None:
        """Refuse what cannot work, before anything is fetched or trained.

        Raises:
            UsageError: A metric's model is missing, or there is too little disk.
            DataError: The hub cannot be asked.
        """
        # First of all: keys of scores name the models of their metrics. Loading them is for those who will judge.
        for metric in self._metrics(names):
            metric_identity(metric)
        for metric in self._metrics(name for name in names if not self._has_score(name)):
            check_available(metric)
        needed = self._survey(self._unfinished(names))
        if needed is not None:
            needed.check_space()

    def fetch(self, names: Sequence[str], progress: Progress) -> None:
        """Bring the shards here that unfinished work needs, and look at the first sample of each.

        A shard that cannot be had is an error of the datasets that need it, when they ask for it.

        Raises:
            UsageError: Too little disk.
            DataError: The hub cannot be asked, or a dataset's shards are of no use from their first samples on.
        """
        unfinished = self._unfinished(names)
        needed = self._survey(unfinished)
        if needed is not None:
            self.home.fetch(needed, progress)
        for dataset, split in unfinished:
            try:
                shards = self.shards.locate(split, dataset.repository)
            except DataError:
                continue  # said to those who need it
            check_first_samples(dataset, split, shards)

    def repositories(self, names: Sequence[str]) -> tuple[str, ...]:
        """The hub repositories that these datasets and their mixes have shards in."""
        return tuple(sorted({dataset.repository for dataset, _ in self._splits(names) if dataset.repository}))

    def reuse(self, names: Sequence[str]) -> Reuse:
        """What a session that evaluates these datasets will find finished.

        Raises:
            DataError: A shard is missing.
        """
        features: dict[str, bool] = {}  # whether they are there, per key
        for dataset, split in self._splits(names):
            max_audio_s = None if split is dataset.eval else self.plan.recipe.training.max_audio_s
            num_left = self.plan.limit
            for shard in self.shards.locate(split, dataset.repository):
                if num_left == 0:
                    break
                key = self.features.key(shard, max_audio_s, num_left)
                entry = self.store.find(FEATURES, key)
                features[key] = entry is not None
                if num_left is not None:
                    if entry is None:
                        break  # how many samples it leaves to the shards behind it is not known yet
                    num_left -= entry.manifest["num_samples"]
        return Reuse(
            num_shards=len(features),
            num_shards_reused=sum(features.values()),
            feature_bytes=self.features.budget.cached_bytes,
            feature_budget_bytes=self.features.budget.max_bytes,
            mixes={mix.name: self._state_of(mix) for mix in self._mixes(names)},
            num_scores=len(names),
            num_scores_reused=sum(map(self._has_score, names)),
        )

    def _mixes(self, names: Iterable[str]) -> list[Mix]:
        """The mixes whose LALMs these datasets are evaluated with."""
        return list({mix.name: mix for mix in map(self.plan.mix_for, names)}.values())

    def _metrics(self, names: Iterable[str]) -> list[str]:
        return sorted({self.plan.dataset(name).metric for name in names})

    def _state_of(self, mix: Mix) -> str:
        """What becomes of the LALMs of a mix in this session."""
        if self._has_lalm(mix):
            return "reused"
        for seed in self.plan.seeds:
            checkpoints = self.checkpoints(mix, seed)
            if checkpoints.num_steps:
                return f"to be continued after step {checkpoints.num_steps} of {self.plan.num_steps(mix)}"
            other = checkpoints.of_others()
            if other:
                return (
                    f"to be trained from the beginning (there is an unfinished one, {other} steps long, of another "
                    "recipe, decoder, data, version of the encoder or of the code)"
                )
        return "to be trained"

    def checkpoints(self, mix: Mix, seed: int) -> Checkpoints:
        """The checkpoints of the training of a mix with a seed."""
        description = {"mix": mix.name, "seed": seed, "encoder": self.keys.clips.encoder.name}
        return Checkpoints(self.store, self.keys.lalm(mix, seed), description)

    def _has_lalm(self, mix: Mix) -> bool:
        return self._are_kept("lalms", lambda: [self.keys.lalm(mix, seed) for seed in self.plan.seeds])

    def _has_score(self, name: str) -> bool:
        return self._are_kept("scores", lambda: self.keys.scores(name))

    def _are_kept(self, kind: str, keys: Callable[[], Iterable[str]]) -> bool:
        try:
            return all(self.store.find(kind, key) is not None for key in keys())
        except DataError:
            return False  # a shard is missing: whoever makes it will say so

    def _splits(self, names: Sequence[str]) -> list[tuple[Dataset, Split]]:
        """Every split that these datasets need, with its dataset."""
        return _splits_of(self._mixes(names), map(self.plan.dataset, names))

    def _unfinished(self, names: Sequence[str]) -> list[tuple[Dataset, Split]]:
        """The splits that something is still to be made of."""
        untrained = [mix for mix in self._mixes(names) if not self._has_lalm(mix)]
        return _splits_of(untrained, (self.plan.dataset(name) for name in names if not self._has_score(name)))

    def _survey(self, splits: Iterable[tuple[Dataset, Split]]) -> Survey | None:
        wanted: dict[str, list[str]] = {}
        for dataset, split in splits:
            if dataset.repository is not None:
                wanted.setdefault(dataset.repository, []).extend(split.shards)
        return self.home.survey(wanted) if wanted else None


def _splits_of(mixes: Iterable[Mix], evaluated: Iterable[Dataset]) -> list[tuple[Dataset, Split]]:
    """The training splits of mixes and the test splits of datasets."""
    pairs = [(dataset, dataset.train) for mix in mixes for dataset in mix.datasets]
    pairs.extend((dataset, dataset.eval) for dataset in evaluated)
    return [(dataset, split) for dataset, split in pairs if split is not None]
