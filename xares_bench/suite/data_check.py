"""The check of the data: every shard that is needed is walked before a training starts, on a few threads.

A dataset that could not be scored in the end fails at once, and costs the others nothing. Not all audio is read: the
samples that count as unusable here are those without audio, JSON or a target, and those whose audio was tried in vain
(see `datasets.inventory`).
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import TypeVar

from xares_bench.config.catalogue import Dataset, Split
from xares_bench.config.plan import Plan
from xares_bench.core.errors import DataError, UsageError
from xares_bench.core.progress import Progress
from xares_bench.datasets.audio import missing_extra
from xares_bench.datasets.inventory import Inventories, Inventory
from xares_bench.datasets.shards import Shard, ShardSource
from xares_bench.features.rows import check_dropped
from xares_bench.metrics.registry import METRICS, evaluate
from xares_bench.scores.records import DroppedSample

ItemT = TypeVar("ItemT")

_NUM_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class NeededSplit:
    """A split of a dataset that is needed.

    Attributes:
        name: The dataset's name.
        split: The split.
        is_training: Whether it is the training split.
        repository: The hub repository of its shards, or None.
    """

    name: str
    split: Split
    is_training: bool
    repository: str | None


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """Finds what is wrong with the shards of datasets.

    Attributes:
        plan: Datasets, recipe and limit.
        shards: Finds shards.
        inventories: Walks shards.
    """

    plan: Plan
    shards: ShardSource
    inventories: Inventories

    def digest(self, parts: Iterable[NeededSplit], progress: Progress) -> None:
        """Digest the local shards whose digests are not cached; they are walked in the same pass.

        What goes wrong is left to whoever needs the shard.
        """
        splits: dict[str, Split] = {}  # by shard: the walk is one for all datasets that have it
        sizes: dict[Split, int] = {}
        for part in parts:
            if part.repository is None:
                for name, size_bytes in self.shards.unread(part.split).items():
                    split = splits.setdefault(name, dataclasses.replace(part.split, shards=(name,)))
                    sizes[split] = size_bytes

        def locate(split: Split) -> None:
            try:
                self.shards.locate(split, None)
            except DataError:
                return  # met again by `problems`

        self._on_threads(locate, sizes, progress)

    def problems(self, parts: Sequence[NeededSplit], progress: Progress) -> dict[NeededSplit, DataError]:
        """Why splits could not be used to their end.

        With a limit, only the shards that hold the first samples are walked.
        """
        found: dict[NeededSplit, DataError] = {}
        located: dict[NeededSplit, tuple[Shard, ...]] = {}
        for part in parts:
            try:
                located[part] = self.shards.locate(part.split, part.repository)
            except DataError as error:
                found[part] = error
        if self.plan.limit is None:
            unknown = {
                (shard, part.split): shard.path.stat().st_size
                for part, shards in located.items()
                for shard in shards
                if not self.inventories.is_known(shard, part.split)
            }

            def walk(work: tuple[Shard, Split]) -> None:
                try:
                    self.inventories.of(*work)
                except DataError:
                    return  # met again below

            self._on_threads(walk, unknown, progress)
        for part, shards in located.items():
            try:
                self._check(part, shards)
            except DataError as error:
                found[part] = error
        return found

    def _check(self, part: NeededSplit, shards: Sequence[Shard]) -> None:
        """Raise if a split could not be used to its end.

        Raises:
            DataError: A shard is damaged, there are no samples, too many are unusable, an extra is not installed, all
                targets are corrupt, or the metric is undefined for them.
        """
        needed = self._needed(part, shards)
        damaged = [
            f"{shard.path}: {inventory.damage}" for shard, inventory, _ in needed if inventory.damage is not None
        ]
        if damaged:
            more = f" (so are {len(damaged) - 1} more shards of {part.name})" if len(damaged) > 1 else ""
            raise DataError(damaged[0] + more)
        for shard, inventory, _ in needed:
            for missing in filter(None, map(missing_extra, inventory.suffixes)):
                raise DataError(f"{part.name}: clips of {shard.name}: {missing}")
        num_samples = sum(number for *_, number in needed)
        if num_samples == 0:
            more = f" and {len(shards) - 1} more shards" if len(shards) > 1 else ""
            raise DataError(
                f"{part.name}: {shards[0].path}{more}: an archive without samples; fetch or build it again (a sample "
                "is KEY.flac, or another audio file, beside KEY.json)"
            )
        num_dropped = sum(index < number for _, inventory, number in needed for index in inventory.unusable)
        check_dropped(
            part.name,
            [
                DroppedSample(shard=shard.name, clip=key, reason=reason)
                for shard, inventory, number in needed
                for index, (key, reason) in zip(inventory.unusable, inventory.named, strict=False)
                if index < number
            ],
            num_dropped=num_dropped,
            num_samples=num_samples,
            max_dropped_share=self.plan.recipe.training.max_dropped_share,
        )
        num_corrupt = sum(index < number for _, inventory, number in needed for index in inventory.without_target)
        if num_dropped + num_corrupt == num_samples:
            raise DataError(
                f"{part.name}: none of {num_samples} samples has a usable target: all are corrupt "
                "(docs/differences.md); fix the shards, or name another key"
            )
        if not part.is_training and all(number == inventory.num_samples for _, inventory, number in needed):
            _check_metric(self.plan.dataset(part.name), [inventory.targets for _, inventory, _ in needed])

    def _needed(self, part: NeededSplit, shards: Sequence[Shard]) -> list[tuple[Shard, Inventory, int]]:
        """The shards of a split that are used, with the numbers of samples that are used of each.

        Raises:
            DataError: A shard cannot be read.
        """
        needed: list[tuple[Shard, Inventory, int]] = []
        num_left = self.plan.limit
        for shard in shards:
            if num_left == 0:
                break
            inventory = self.inventories.of(shard, part.split)
            number = inventory.num_samples if num_left is None else min(num_left, inventory.num_samples)
            needed.append((shard, inventory, number))
            if num_left is not None:
                num_left -= number
        return needed

    def shared(self, parts: Iterable[NeededSplit]) -> list[str]:
        """Say, in a line per pair of datasets, which tars are in training and in test, or twice in one of them.

        Tars are compared by their digests. One file that two datasets are trained on, for example with two prompts, is
        no surprise.
        """
        places: dict[str, list[tuple[NeededSplit, str]]] = {}
        for part in dict.fromkeys(parts):
            try:
                digests = self.shards.digests(part.split, part.repository)
            except DataError:
                continue  # a shard is missing
            for digest, name in zip(digests, part.split.shards, strict=True):
                places.setdefault(digest, []).append((part, name))
        pairs: Counter[tuple[NeededSplit, NeededSplit]] = Counter()
        examples: dict[tuple[NeededSplit, NeededSplit], tuple[str, str]] = {}
        for found in places.values():
            for (part, name), (other, other_name) in combinations(found, 2):
                if part.is_training and other.is_training and name == other_name:
                    continue
                pairs[part, other] += 1
                examples.setdefault((part, other), (name, other_name))
        return [_sharing(pair, examples[pair], num_tars) for pair, num_tars in pairs.items()]

    def _on_threads(self, work: Callable[[ItemT], None], sizes: Mapping[ItemT, int], progress: Progress) -> None:
        """Call `work` on items with sizes in bytes, with one progress bar; walks are stopped by an interruption."""
        if not sizes:
            return
        num_threads = min(_NUM_THREADS, os.cpu_count() or 1)
        with (
            progress.bar("checking shards", sum(sizes.values()), unit="bytes") as advance,
            self.inventories.shown(advance),
            ThreadPoolExecutor(num_threads) as pool,
        ):
            futures = [pool.submit(work, item) for item in sizes]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self.inventories.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def splits_by_path(plan: Plan) -> dict[Path, list[Split]]:
    """Return the splits that need each shard of a plan, by the shard's path."""
    datasets = [
        *plan.catalogue.datasets.values(),
        *plan.own_datasets.values(),
        *(plan.mix.datasets if plan.mix else ()),
    ]
    found: dict[Path, list[Split]] = {}
    for dataset in datasets:
        folder = plan.data_folder if dataset.repository is None else plan.data_home
        for split in filter(None, (dataset.train, dataset.eval)):
            for shard in split.shards:
                found.setdefault(folder / shard, []).append(split)
    return found


def _check_metric(dataset: Dataset, targets: Sequence[tuple[str, ...] | None]) -> None:
    """Raise if a metric without models cannot be computed for the targets of shards, whatever is predicted."""
    if METRICS[dataset.metric].needs_models or None in targets:
        return
    references = list(dict.fromkeys(text for texts in targets if texts is not None for text in texts))
    try:
        evaluate(dataset.metric, references, [""] * len(references), **dataset.metric_arguments)
    except UsageError as cause:
        raise DataError(f"{dataset.name}: {cause}") from None


def _sharing(pair: tuple[NeededSplit, NeededSplit], names: tuple[str, str], num_tars: int) -> str:
    """Say that two splits, or one of them twice, have tars in common."""
    first, second = sorted(pair, key=lambda part: not part.is_training)
    number = "the same tar is" if num_tars == 1 else f"{num_tars} tars are the same"
    of = [f"{part.name} ({PurePosixPath(name).name})" for part, name in zip(pair, names, strict=True)]
    if first.is_training and not second.is_training:
        of = of if pair == (first, second) else of[::-1]
        return f"{number} in training and in test: {of[0]} and {of[1]}; the test measures memory, too"
    return f"{number} twice in {'training' if first.is_training else 'test'}: {of[0]} and {of[1]}"
