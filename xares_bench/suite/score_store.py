"""Scores of datasets, on their test clips and on corrupted ones: found in the store, or computed by the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xares_bench.config.catalogue import Mix
from xares_bench.config.plan import Plan
from xares_bench.core.store import Entry, Store
from xares_bench.datasets.corruptions import Corruption
from xares_bench.datasets.inventory import Inventories
from xares_bench.datasets.shards import ShardSource
from xares_bench.features.rows import parts_of
from xares_bench.scores.clip_sums import CLIP_SUMS_FILE, ClipSums, joined, load_clip_sums
from xares_bench.scores.records import PREDICTIONS_FILE, RobustnessRecord, ScoreRecord
from xares_bench.scores.robustness import robustness_of
from xares_bench.suite.keys import Keys
from xares_bench.suite.seeds import mean_over_seeds
from xares_bench.suite.texts import PartTexts, TextStore, remove_texts

if TYPE_CHECKING:
    from xares_bench.suite.pipeline import Pipeline

KIND = "scores"


@dataclass(frozen=True, kw_only=True)
class ScoreStore:
    """Scores of one plan, an entry of the store per dataset, training seed, and corruption if there is one.

    Attributes:
        plan: Datasets, mixes, limit and seeds.
        store: Holds the entries.
        keys: Their keys.
        shards: Finds the test shards.
        inventories: What is in them.
        lalm: Returns the trained LALM of a mix and a seed.
        was_cached: Whether an entry is not of this session.
        pipeline: Returns the pipeline, which is imported only when something has to be computed.
    """

    plan: Plan
    store: Store
    keys: Keys
    shards: ShardSource
    inventories: Inventories
    lalm: Callable[[Mix, int], Entry]
    was_cached: Callable[[Entry], bool]
    pipeline: Callable[[], Pipeline]

    def record(self, name: str, corruption: Corruption | None = None) -> ScoreRecord:
        """Return the score of a dataset, the mean over the training seeds; what is not stored is computed now.

        Raises:
            XaresError: It cannot be computed.
        """
        records = [self._of_seed(name, seed, corruption) for seed in self.plan.seeds]
        return records[0] if len(records) == 1 else mean_over_seeds(records, self.clip_sums(name, corruption))

    def robustness(self, name: str, corruption: Corruption) -> RobustnessRecord:
        """Return what a dataset's score loses by a corruption; what is not stored is computed now.

        Raises:
            XaresError: One of the two scores cannot be computed.
        """
        self.record(name)
        corrupted = self.record(name, corruption)
        return robustness_of(corrupted, str(corruption), self.clip_sums(name), self.clip_sums(name, corruption))

    def make_free(self, name: str, seed: int, corruption: Corruption | None = None) -> None:
        """Generate for those parts of an unscored test set that no other process has, or is at.

        Raises:
            XaresError: The texts of a part cannot be generated.
        """
        if self.store.find(KIND, self.keys.score(name, seed, corruption)) is None:
            self._texts(name, seed, corruption).make_free()

    def are_intact(self, name: str) -> bool:
        """Return whether all scores of a dataset are stored and undamaged: their files are read."""
        return all(self.store.use(KIND, key) for key in self.keys.scores(name))

    def predictions_file(self, name: str, corruption: Corruption | None = None) -> Path:
        """Return the file with a scored dataset's predictions, those of the first training seed."""
        return self._folders(name, corruption)[0] / PREDICTIONS_FILE

    def clip_sums(self, name: str, corruption: Corruption | None = None) -> ClipSums:
        """Return the clip sums behind a scored dataset's score, of all training seeds."""
        return joined([load_clip_sums(folder / CLIP_SUMS_FILE) for folder in self._folders(name, corruption)])

    def _folders(self, name: str, corruption: Corruption | None) -> list[Path]:
        """Return the folders of a scored dataset's entries, one per training seed."""
        entries = [self.store.find(KIND, key) for key in self.keys.scores(name, corruption)]
        assert all(entries), (name, corruption)
        return [entry.folder for entry in entries if entry is not None]

    def _of_seed(self, name: str, seed: int, corruption: Corruption | None) -> ScoreRecord:
        dataset = self.plan.dataset(name)
        mix = self.plan.mix_for(name)
        key = self.keys.score(name, seed, corruption)

        def make(folder: Path) -> dict[str, Any]:
            texts = self._texts(name, seed, corruption).all()
            return {"record": self.pipeline().score(dataset, mix, self.lalm(mix, seed), texts, folder, key).to_json()}

        entry = self.store.obtain(KIND, key, make)
        remove_texts(self.store, key)
        return ScoreRecord.from_json({**entry.manifest["record"], "reused": self.was_cached(entry)})

    def _texts(self, name: str, seed: int, corruption: Corruption | None) -> TextStore:
        """The texts of a test set, generated or not."""
        dataset = self.plan.dataset(name)
        split = dataset.eval
        assert split is not None
        shards = self.shards.locate(split, dataset.repository)
        parts = parts_of(shards, lambda shard: self.inventories.of(shard, split).num_samples, self.plan.limit)

        def make(number: int) -> PartTexts:
            title = titled(name, corruption)
            if len(parts) > 1:
                title += f", part {number + 1} of {len(parts)}"
            lalm = self.lalm(self.plan.mix_for(name), seed)
            return self.pipeline().generate(dataset, lalm, parts[number], title, corruption)

        return TextStore(self.store, self.keys.score(name, seed, corruption), len(parts), make)


def titled(name: str, corruption: Corruption | None) -> str:
    """Return a dataset and its corruption in words."""
    return name if corruption is None else f"{name} with {corruption}"
