"""Preflight: checks before the tests of some datasets, which results are cached, and downloads of missing shards.

Everything that can fail is looked at before the first download and the first training step: hours later is too late to
learn that a metric's model is missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from xares_bench.config.catalogue import Dataset, Mix
from xares_bench.config.plan import Plan
from xares_bench.core.errors import DataError, XaresError
from xares_bench.core.progress import Progress
from xares_bench.core.store import Entry, Store
from xares_bench.datasets.shards import ShardSource
from xares_bench.features.disk_budget import KIND as FEATURES
from xares_bench.features.feature_store import FeatureStore
from xares_bench.hub import DataHome, Survey
from xares_bench.metrics.registry import check_available, metric_identity
from xares_bench.suite.data_check import DataCheck, NeededSplit
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
        data: Finds what is wrong with shards.
    """

    plan: Plan
    home: DataHome
    shards: ShardSource
    keys: Keys
    store: Store
    features: FeatureStore
    data: DataCheck
    _failing: dict[str, DataError] = field(default_factory=dict, init=False)
    _new_scores: set[str] = field(default_factory=set, init=False)

    def survey(self, names: Sequence[str]) -> Survey | None:
        """Return which shards of these datasets and their mixes are on the hub, and which of them are here.

        Returns:
            The survey; None if no shard comes from the hub.

        Raises:
            DataError: The hub does not answer.
        """
        return self._survey(self._splits(names))

    def check(self, names: Sequence[str], progress: Progress) -> None:
        """Refuse what cannot work, before anything is downloaded or trained.

        Raises:
            UsageError: A metric's model is missing, or there is too little disk space.
            DataError: The hub does not answer.
        """
        # The keys of scores contain the digests of metric models, so without their files no score can be looked up.
        # Whether the models can be loaded matters only for scores that are not cached.
        for metric in self._metrics(names):
            metric_identity(metric)
        # Before the first key is asked for, which would read the shards one by one and show nothing.
        self.data.digest(self._splits(names), progress)
        for metric in self._metrics(name for name in names if not self._has_score(name)):
            check_available(metric)
        needed = self._survey(self._unfinished(names))
        if needed is not None:
            needed.check_space()

    def fetch(self, names: Sequence[str], progress: Progress) -> list[str]:
        """Download the shards that are needed for results that are not cached, and walk them.

        A shard that cannot be downloaded, or not be used, fails the tests of the datasets that need it, and no others:
        see `require`.

        Returns:
            A line per problem: which datasets cannot be scored, and why.

        Raises:
            UsageError: There is too little disk space.
            DataError: The hub does not answer.
        """
        unfinished = self._unfinished(names)
        needed = self._survey(unfinished)
        if needed is not None:
            self.home.fetch(needed, progress)
        problems = self.data.problems(unfinished, progress)
        self._failing.clear()
        for name in names:
            splits = _splits_of(self._untrained([name]), [] if self._has_score(name) else [self.plan.dataset(name)])
            problem = next((problems[part] for part in splits if part in problems), None)
            if problem is not None:
                self._failing[name] = problem
            # No process has scored anything yet: before that, all of them take part in `Suite.lalms`.
            with contextlib.suppress(XaresError):  # left to its own test
                self._new_scores.update(key for key in self.keys.scores(name) if not self.store.find("scores", key))
        lines = []
        for problem in dict.fromkeys(self._failing.values()):
            failing = [name for name, found in self._failing.items() if found is problem]
            more = f" and {len(failing) - 3} more" if len(failing) > 3 else ""
            lines.append(f"{', '.join(failing[:3])}{more} cannot be scored: {problem}")
        return lines

    def fails(self, name: str) -> bool:
        """Whether a dataset cannot be scored, as `fetch` found; then `require` raises."""
        return name in self._failing

    def was_cached(self, score: Entry) -> bool:
        """Whether a score is not of this session: neither made by this call, nor since `fetch` by any process."""
        return score.reused and score.folder.name not in self._new_scores

    def require(self, name: str) -> None:
        """Refuse a dataset that cannot be scored, before anything is trained for it.

        Raises:
            DataError: A shard that it needs is missing or damaged, or too many samples are unusable.
        """
        if name in self._failing:
            raise DataError(str(self._failing[name]))

    def shared(self, names: Sequence[str]) -> list[str]:
        """Return a line for every two datasets that have a tar in common, or one that has it in training and test."""
        return self.data.shared(self._splits(names))

    def repositories(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the hub repositories with shards of these datasets and their mixes."""
        return tuple(sorted({part.repository for part in self._splits(names) if part.repository}))

    def reuse(self, names: Sequence[str]) -> Reuse:
        """Return what is cached for a session that evaluates these datasets.

        Raises:
            DataError: A shard is missing.
        """
        is_cached: dict[str, bool] = {}  # per key of features; datasets may share shards
        for part in self._splits(names):
            max_audio_s = self.plan.recipe.training.max_audio_s if part.is_training else None
            num_left = self.plan.limit
            for shard in self.shards.locate(part.split, part.repository):
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

    def _splits(self, names: Sequence[str]) -> list[NeededSplit]:
        """Return all splits that these datasets need for training and evaluation."""
        return _splits_of(self._mixes(names), map(self.plan.dataset, names))

    def _unfinished(self, names: Sequence[str]) -> list[NeededSplit]:
        """Return the splits that are needed for results that are not cached."""
        unscored = (self.plan.dataset(name) for name in names if not self._has_score(name))
        return _splits_of(self._untrained(names), unscored)

    def _untrained(self, names: Iterable[str]) -> list[Mix]:
        """Return the mixes of these datasets whose LALMs are not cached."""
        return [mix for mix in self._mixes(names) if not self._has_lalm(mix)]

    def _survey(self, splits: Iterable[NeededSplit]) -> Survey | None:
        wanted: dict[str, list[str]] = {}
        for part in splits:
            if part.repository is not None:
                wanted.setdefault(part.repository, []).extend(part.split.shards)
        return self.home.survey(wanted) if wanted else None


def _splits_of(mixes: Iterable[Mix], evaluated: Iterable[Dataset]) -> list[NeededSplit]:
    """Return the training splits of mixes and the test splits of datasets, each once."""
    pairs = [(dataset, dataset.train, True) for mix in mixes for dataset in mix.datasets]
    pairs.extend((dataset, dataset.eval, False) for dataset in evaluated)
    parts = (
        NeededSplit(name=dataset.name, split=split, is_training=is_training, repository=dataset.repository)
        for dataset, split, is_training in pairs
        if split is not None
    )
    return list(dict.fromkeys(parts))
