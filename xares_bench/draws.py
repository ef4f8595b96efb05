"""Draws: which row of which dataset a training sees next.

Each draw picks a dataset by its weight, then that dataset's next row. A dataset is passed over again and again: its
shards in a new order every time, the samples of a shard in their own order, a row for each target of a clip. The order
depends on the seed alone. Only the shards that are being read are in memory, so it does not matter how many there are.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from xares_bench.catalogue import Dataset, Mix
from xares_bench.clips import Clip, Recording
from xares_bench.features import FeatureStore, Pending
from xares_bench.records import DroppedSample
from xares_bench.rows import Tally, with_targets
from xares_bench.shards import Shard


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """A row to train on.

    Attributes:
        prompt: One of its dataset's prompts.
        target: What the language model is to say.
        clip: Its clip, or its recording where that is a window of a longer clip and not encoded yet.
    """

    prompt: str
    target: str
    clip: Clip | Recording


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What draws are made of.

    Attributes:
        mix: Datasets and weights.
        shards: Training shards of every dataset of the mix.
        tallies: What becomes of the samples of every dataset; counted in the first pass.
        seed: Decides every order.
        max_audio_s: Longer recordings are cropped to a window of this many seconds.
        limit: At most this many samples of a dataset; None: all.
    """

    mix: Mix
    shards: Mapping[str, Sequence[Shard]]
    tallies: Mapping[str, Tally]
    seed: int
    max_audio_s: float
    limit: int | None


def draws(data: TrainingData, features: FeatureStore, num_threads: int | None) -> Iterator[Draw]:
    """Endless draws; of clips, and of recordings where a window of a longer clip is drawn, another one at every pass.

    Args:
        data: What is drawn from.
        features: Makes the clips, or finds them made.
        num_threads: Threads that decode; None: one per processor. The draws do not depend on it, nor on what is kept.

    Raises:
        DataError: A shard is damaged, or too many samples of a dataset are unusable.
        EncoderError: The encoder does not keep its contract on one of the clips.
    """
    drawn_rows = _draw(data, features)
    for drawn, result in features.resolve(drawn_rows, lambda drawn: drawn.sample, num_threads):
        clip = drawn.sample if result is None else result
        if isinstance(clip, DroppedSample):
            if drawn.pass_number == 0 and drawn.is_first:
                data.tallies[drawn.dataset.name].dropped.append(clip)
            continue
        assert isinstance(clip, Clip | Recording)
        yield Draw(prompt=drawn.prompt, target=drawn.target, clip=clip)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """A row of a dataset: one of its samples and one of that sample's targets.

    Attributes:
        sample: The sample.
        target: The target.
        is_first: Whether it is the sample's first target.
        pass_number: How often the dataset was passed over before.
    """

    sample: Clip | Pending
    target: str
    is_first: bool
    pass_number: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Drawn(_Found):
    """A row that was drawn.

    Attributes:
        dataset: Its dataset.
        prompt: One of the dataset's prompts.
    """

    dataset: Dataset
    prompt: str


def _draw(data: TrainingData, features: FeatureStore) -> Iterator[_Drawn]:
    rng = random.Random(f"{data.seed} draw")
    rows = {dataset.name: _passes(dataset, data, features) for dataset in data.mix.datasets}
    while True:
        dataset = rng.choices(data.mix.datasets, data.mix.weights)[0]
        yield _Drawn(**vars(next(rows[dataset.name])), dataset=dataset, prompt=rng.choice(dataset.prompts))


def _passes(dataset: Dataset, data: TrainingData, features: FeatureStore) -> Iterator[_Found]:
    """Every row of a dataset, again and again."""
    assert dataset.train is not None
    shards = data.shards[dataset.name]
    rng = random.Random(f"{data.seed} shards of {dataset.name}")
    for pass_number in itertools.count():
        # A limit means the same samples at every pass.
        order = shards if data.limit is not None else rng.sample(shards, len(shards))
        # Only the first pass is counted.
        tally = data.tallies[dataset.name] if pass_number == 0 else _uncounted(dataset, data)
        for shard in order:
            num_left = None if data.limit is None else data.limit - tally.num_samples
            if num_left == 0:
                break
            samples = features.open(
                shard,
                max_audio_s=data.max_audio_s,
                max_clips=num_left,
                seed=f"{data.seed} {dataset.name} {pass_number}",
            )
            for sample, targets in with_targets(samples, dataset.train, shard, tally):
                for number, target in enumerate(targets):
                    yield _Found(sample=sample, target=target, is_first=number == 0, pass_number=pass_number)
            tally.check(complete=False)
        tally.check(complete=True)


def _uncounted(dataset: Dataset, data: TrainingData) -> Tally:
    return Tally(dataset=dataset.name, max_dropped_share=data.tallies[dataset.name].max_dropped_share)
