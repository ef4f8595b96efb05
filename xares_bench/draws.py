"""Draws: which row of which dataset a training sees next.

Each draw picks a dataset by its weight, then that dataset's next row. A dataset is passed over again and again: its
shards in a new order every time, the samples of a shard in their own order, a row for each target of a clip. The order
depends on the seed alone. Only the shards that are being read are in memory, so it does not matter how many there are.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

from xares_bench.catalogue import Dataset, Mix
from xares_bench.clips import Clip, Recording
from xares_bench.decoding import DecodingRequest, decode_ahead
from xares_bench.features import FeatureStore
from xares_bench.records import DroppedSample
from xares_bench.rows import SampleT, Tally, with_targets
from xares_bench.shards import Sample, Shard, read_samples

# Reads a shard's first so many samples (None: all).
_ReadShard = Callable[[Shard, int | None], Iterator[SampleT | DroppedSample]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """A row to train on.

    Attributes:
        prompt: One of its dataset's prompts.
        target: What the language model is to say.
        clip: Its clip, or its recording where features are made as they are needed.
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


def stored_draws(data: TrainingData, features: FeatureStore) -> Iterator[Draw]:
    """Endless draws of clips whose features are kept on disk.

    Raises:
        DataError: A shard is damaged, or too many samples of a dataset are unusable.
    """

    def read(shard: Shard, max_clips: int | None) -> Iterator[Clip | DroppedSample]:
        return features.read(shard, max_audio_s=data.max_audio_s, max_clips=max_clips, num_workers=None)

    for drawn in _draw(data, read):
        yield Draw(prompt=drawn.prompt, target=drawn.target, clip=drawn.sample)


def streamed_draws(data: TrainingData, num_workers: int) -> Iterator[Draw]:
    """Endless draws of recordings, read from their shards and decoded ahead by worker processes.

    The window of a long recording is another one at every pass.

    Args:
        data: What is drawn from.
        num_workers: Processes that decode; 0: this one. The draws do not depend on it.

    Raises:
        DataError: A shard is damaged, or too many samples of a dataset are unusable.
    """
    waiting: deque[_Drawn[Sample]] = deque()

    def requests() -> Iterator[DecodingRequest | None]:
        for drawn in _draw(data, _read_undecoded):
            waiting.append(drawn)
            seed = f"{data.seed} {drawn.dataset.name} {drawn.pass_number} {drawn.shard} {drawn.sample.key}"
            yield (
                DecodingRequest(sample=drawn.sample, shard=drawn.shard, max_audio_s=data.max_audio_s, seed=seed)
                if drawn.is_first
                else None
            )

    # The last recording of every dataset, for the other targets of its clip.
    recordings: dict[str, Recording | None] = {}
    for decoded in decode_ahead(requests(), num_workers):
        drawn = waiting.popleft()
        name = drawn.dataset.name
        if isinstance(decoded, DroppedSample):
            recordings[name] = None
            if drawn.pass_number == 0:
                data.tallies[name].dropped.append(decoded)
        elif decoded is not None:
            recordings[name] = decoded
        recording = recordings[name]
        if recording is not None:
            yield Draw(prompt=drawn.prompt, target=drawn.target, clip=recording)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found(Generic[SampleT]):
    """A row of a dataset: one of its samples and one of that sample's targets.

    Attributes:
        sample: The sample.
        target: The target.
        is_first: Whether it is the sample's first target.
        shard: Name of the shard.
        pass_number: How often the dataset was passed over before.
    """

    sample: SampleT
    target: str
    is_first: bool
    shard: str
    pass_number: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Drawn(_Found[SampleT]):
    """A row that was drawn.

    Attributes:
        dataset: Its dataset.
        prompt: One of the dataset's prompts.
    """

    dataset: Dataset
    prompt: str


def _draw(data: TrainingData, read: _ReadShard[SampleT]) -> Iterator[_Drawn[SampleT]]:
    rng = random.Random(f"{data.seed} draw")
    rows = {dataset.name: _passes(dataset, data, read) for dataset in data.mix.datasets}
    while True:
        dataset = rng.choices(data.mix.datasets, data.mix.weights)[0]
        yield _Drawn(**vars(next(rows[dataset.name])), dataset=dataset, prompt=rng.choice(dataset.prompts))


def _passes(dataset: Dataset, data: TrainingData, read: _ReadShard[SampleT]) -> Iterator[_Found[SampleT]]:
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
            for sample, targets in with_targets(read(shard, num_left), dataset.train, shard, tally):
                for number, target in enumerate(targets):
                    yield _Found(
                        sample=sample, target=target, is_first=number == 0, shard=shard.name, pass_number=pass_number
                    )
            tally.check(complete=False)
        tally.check(complete=True)


def _read_undecoded(shard: Shard, max_clips: int | None) -> Iterator[Sample | DroppedSample]:
    for sample in itertools.islice(read_samples(shard), max_clips):
        if sample.problem is not None:
            yield DroppedSample(shard=shard.name, clip=sample.key, reason=sample.problem)
        else:
            yield sample


def _uncounted(dataset: Dataset, data: TrainingData) -> Tally:
    return Tally(dataset=dataset.name, max_dropped_share=data.tallies[dataset.name].max_dropped_share)
