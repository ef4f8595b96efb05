"""Draws: which row of which dataset a training sees next.

Each draw picks a dataset by its weight, then that dataset's next row. A dataset is passed over again and again: its
shards in a new order every time, the samples of a shard in their own order, a row for each target of a clip. The order
depends on the seed alone. Only the shards that are being read are in memory, so it does not matter how many there are.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xares_bench.config.catalogue import Dataset, Mix
from xares_bench.datasets.shards import Shard
from xares_bench.features.encoding import AudioClip, Clip
from xares_bench.features.feature_store import FeatureStore, Pending
from xares_bench.features.rows import SampleCount, with_targets
from xares_bench.scores.records import DroppedSample


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
    clip: Clip | AudioClip


@dataclass(frozen=True, kw_only=True)
class Past:
    """What the same training has drawn before, in a session that was interrupted.

    Attributes:
        num_draws: Rows that were drawn, unusable ones included.
        still_needed: Numbers, from 0, of those that no finished step has used.
    """

    num_draws: int = 0
    still_needed: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What draws are made of.

    Attributes:
        mix: Datasets and weights.
        shards: Training shards of every dataset of the mix.
        sample_counts: Samples of every dataset, counted in the first pass.
        seed: Decides every order.
        max_audio_s: Longer recordings are cropped to a window of this many seconds.
        limit: At most this many samples of a dataset; None: all.
        past: What is passed over: it was counted before, and is decoded and encoded only where it is still needed.
        unusable: Numbers of the drawn rows whose clips turned out to be unusable; grows with the draws.
    """

    mix: Mix
    shards: Mapping[str, Sequence[Shard]]
    sample_counts: Mapping[str, SampleCount]
    seed: int
    max_audio_s: float
    limit: int | None
    past: Past = Past()
    unusable: list[int] = field(default_factory=list)

    def counts(self) -> dict[str, Any]:
        """What a later session has to know of the samples that were drawn, as JSON has it."""
        sample_counts = {
            name: {
                "num_samples": sample_count.num_samples,
                "dropped": [dataclasses.asdict(sample) for sample in sample_count.dropped],
            }
            for name, sample_count in self.sample_counts.items()
        }
        return {"unusable": list(self.unusable), "tallies": sample_counts}

    def continued(self, counts: Mapping[str, Any], past: Past) -> TrainingData:
        """The same data in a later session, with the counts of the one before and what was drawn in it."""
        sample_counts = {
            name: dataclasses.replace(
                sample_count,
                num_samples=counts["tallies"][name]["num_samples"],
                dropped=[DroppedSample(**sample) for sample in counts["tallies"][name]["dropped"]],
            )
            for name, sample_count in self.sample_counts.items()
        }
        return dataclasses.replace(self, sample_counts=sample_counts, past=past, unusable=list(counts["unusable"]))


def draws(data: TrainingData, features: FeatureStore, num_threads: int | None) -> Iterator[Draw | None]:
    """Endless draws; of clips, and of recordings where a window of a longer clip is drawn, another one at every pass.

    None stands for a draw that was used in an earlier session.

    Args:
        data: What is drawn from.
        features: Makes the clips, or finds them made.
        num_threads: Threads that decode; None: one per processor. The draws do not depend on it, nor on what is kept.

    Raises:
        DataError: A shard is damaged, or too many samples of a dataset are unusable.
        EncoderError: The encoder does not keep its contract on one of the clips.
    """
    num_past = data.past.num_draws
    is_unusable = frozenset(data.unusable).__contains__
    is_needed = data.past.still_needed.__contains__

    def sample_of(row: _Row) -> object:
        return row.step.sample if row.number >= num_past or is_needed(row.number) else None

    for row, result in features.resolve(_draw(data, features), sample_of, num_threads):
        step, is_row = row.step, isinstance(row.step.sample, Clip | Pending)
        sample = step.sample if result is None else result
        is_past = row.number < num_past
        if step.pass_number == 0 and not is_past:
            _count(step, sample, data.sample_counts[step.dataset.name])
        if isinstance(sample, Clip | AudioClip) and sample_of(row) is not None:
            yield Draw(prompt=row.prompt, target=step.target, clip=sample)
        elif is_past and is_row and not is_unusable(row.number):
            yield None
        elif is_row and not is_past:
            data.unusable.append(row.number)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Row:
    """A step on the way to a row, the row itself at last.

    Attributes:
        number: Rows that were drawn before.
        prompt: One of the prompts of the dataset.
        step: The step.
    """

    number: int
    prompt: str
    step: _Step


@dataclass(frozen=True, kw_only=True, eq=False)
class _Step:
    """A step through a dataset: a row, a sample that cannot be used, or an end.

    All of them travel with the rows, so that samples are counted when it is known what has become of them.

    Attributes:
        dataset: The dataset.
        pass_number: How often it was passed over before.
        sample: The row's sample, or the unusable one; None: the end of a shard.
        target: The row's target.
        is_first: Whether it is the sample's first row.
        is_last: Whether it is the end of the pass.
    """

    dataset: Dataset
    pass_number: int
    sample: Clip | Pending | DroppedSample | None
    target: str = ""
    is_first: bool = True
    is_last: bool = False


def _count(step: _Step, sample: object, sample_count: SampleCount) -> None:
    """Count a step of the first pass, whose sample has become what is given."""
    if sample is None:
        sample_count.check(complete=step.is_last)
    elif step.is_first:
        sample_count.add(sample)


def _draw(data: TrainingData, features: FeatureStore) -> Iterator[_Row]:
    """Steps, up to the next row of the dataset that is drawn, each with a prompt for it."""
    rng = random.Random(f"{data.seed} draw")
    number = 0
    # A shard of which the past needs only some samples cannot be written: nobody encodes the others.
    cache = lambda: number >= data.past.num_draws  # noqa: E731
    steps = {dataset.name: _passes(dataset, data, features, cache) for dataset in data.mix.datasets}
    for number in itertools.count():
        dataset = rng.choices(data.mix.datasets, data.mix.weights)[0]
        prompt = rng.choice(dataset.prompts)
        for step in steps[dataset.name]:
            yield _Row(number=number, prompt=prompt, step=step)
            if isinstance(step.sample, Clip | Pending):
                break


def _passes(dataset: Dataset, data: TrainingData, features: FeatureStore, cache: Callable[[], bool]) -> Iterator[_Step]:
    """Every row of a dataset, again and again; the features of shards opened while `cache()` is true are cached."""
    assert dataset.train is not None
    shards = data.shards[dataset.name]
    rng = random.Random(f"{data.seed} shards of {dataset.name}")
    for pass_number in itertools.count():
        step = functools.partial(_Step, dataset=dataset, pass_number=pass_number)
        # A limit means the same samples at every pass.
        order = shards if data.limit is not None else rng.sample(shards, len(shards))
        num_left = data.limit
        for shard in order:
            if num_left == 0:
                break
            samples = features.open(
                shard,
                max_audio_s=data.max_audio_s,
                max_clips=num_left,
                seed=f"{data.seed} {dataset.name} {pass_number}",
                cache=cache(),
            )
            for sample, targets in with_targets(samples, dataset.train, shard):
                if num_left is not None:
                    num_left -= 1
                if isinstance(sample, DroppedSample):
                    yield step(sample=sample)
                for number, target in enumerate(targets):
                    yield step(sample=sample, target=target, is_first=number == 0)
            yield step(sample=None)
        yield step(sample=None, is_last=True)
