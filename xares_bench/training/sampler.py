"""The sampler: which row of which dataset a training sees next.

Each draw picks a dataset by its weight, then that dataset's next row. Passes over a dataset follow one another without
end: shards in a new order in each pass, samples of a shard in their stored order, one row for each target of a clip.
The order depends only on the seed. Only the shards that are being read are in memory, so their number does not matter.

Draws are numbered. What a number stands for (dataset, prompt, sample, target) is the same in every session, whatever is
cached, so a resumed training makes the same draws again and skips those that it has used.
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
from xares_bench.datasets.targets import NO_TARGETS, Targets
from xares_bench.features.chunks import Pending
from xares_bench.features.encoding import AudioClip, Clip
from xares_bench.features.feature_store import FeatureStore
from xares_bench.features.rows import SampleCount, with_targets
from xares_bench.scores.records import DroppedSample


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """A row to train on, and the prompt to ask.

    Attributes:
        prompt: One of its dataset's prompts.
        target: The text that the language model should predict.
        clip: Its features; or its audio, not encoded yet, if it is a window of a longer recording.
    """

    prompt: str
    target: str
    clip: Clip | AudioClip


@dataclass(frozen=True, kw_only=True)
class Past:
    """What an interrupted session of the same training has drawn.

    Attributes:
        num_draws: Number of rows that were drawn, including unusable ones.
        still_needed: Numbers, from 0, of the drawn rows that no finished step has used.
    """

    num_draws: int = 0
    still_needed: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a training draws from.

    Attributes:
        mix: Datasets and weights.
        shards: Training shards of every dataset of the mix.
        sample_counts: Samples of every dataset, counted in the first pass.
        seed: Determines every order.
        max_audio_s: Longer recordings are cropped to a window of this many seconds.
        limit: Maximal number of samples per dataset; None: all.
        past: Draws of an earlier session. They are counted already, and read and encoded only if they are still needed.
        unusable: Numbers of the drawn rows whose clips turned out to be unusable; grows as rows are drawn.
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
        """Return what a later session needs to know about the drawn samples, as JSON values."""
        sample_counts = {name: sample_count.to_json() for name, sample_count in self.sample_counts.items()}
        return {"unusable": list(self.unusable), "tallies": sample_counts}

    def continued(self, counts: Mapping[str, Any], past: Past) -> TrainingData:
        """Return the same data for a later session, with the counts and the draws of the session before."""
        sample_counts = {
            name: sample_count.continued(counts["tallies"][name]) for name, sample_count in self.sample_counts.items()
        }
        return dataclasses.replace(self, sample_counts=sample_counts, past=past, unusable=list(counts["unusable"]))


def draws(data: TrainingData, features: FeatureStore, num_threads: int | None) -> Iterator[Draw | None]:
    """Yield draws without end; None for a draw that an earlier session has used.

    Clips come with their features. Windows of longer recordings come with their audio, a new window in every pass.

    Args:
        data: What to draw from.
        features: Computes features, or finds them in the cache.
        num_threads: Threads that read audio; None: one per processor. Neither this nor the cache changes the draws.

    Raises:
        DataError: A shard is damaged, or too many samples of a dataset are unusable.
        EncoderError: The encoder breaks its contract on one of the clips.
    """
    num_past = data.past.num_draws
    is_unusable = frozenset(data.unusable).__contains__
    is_needed = data.past.still_needed.__contains__

    def sample_of(row: _Row) -> object:
        return row.step.sample if row.number >= num_past or is_needed(row.number) else None

    # Rows, unusable samples and ends of shards all go through `resolve`, in order: whether a sample is usable is known
    # only when a thread has read it, and samples must be counted in order to know when there are too many unusable
    # ones.
    for row, result in features.resolve(_draw(data, features, num_threads), sample_of, num_threads):
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
    """A step towards a row; the last step is the row itself.

    Attributes:
        number: Number of rows drawn before.
        prompt: One of the prompts of the dataset.
        step: The step.
    """

    number: int
    prompt: str
    step: _Step


@dataclass(frozen=True, kw_only=True, eq=False)
class _Step:
    """A step through a dataset: a row, an unusable sample, the end of a shard, or the end of a pass.

    Attributes:
        dataset: The dataset.
        pass_number: Number of passes over the dataset before this one.
        sample: The row's sample, or the unusable one; None: an end.
        target: The row's target.
        targets: All targets of the sample.
        is_first: Whether it is the sample's first row.
        is_last: Whether this is the end of the pass.
    """

    dataset: Dataset
    pass_number: int
    sample: Clip | Pending | DroppedSample | None
    target: str = ""
    targets: Targets = NO_TARGETS
    is_first: bool = True
    is_last: bool = False


def _count(step: _Step, sample: object, sample_count: SampleCount) -> None:
    """Count the sample of a step of the first pass, as it turned out after reading."""
    if sample is None:
        sample_count.check(complete=step.is_last)
    elif step.is_first:
        sample_count.add(sample, step.targets)


def _draw(data: TrainingData, features: FeatureStore, num_threads: int | None) -> Iterator[_Row]:
    """Yield the steps to the next row of each drawn dataset, with a prompt for it."""
    rng = random.Random(f"{data.seed} draw")
    number = 0
    # While past draws are repeated, only the samples that are still needed are encoded, so no shard can be cached
    # whole.
    cache = lambda: number >= data.past.num_draws  # noqa: E731
    steps = {dataset.name: _passes(dataset, data, features, cache, num_threads) for dataset in data.mix.datasets}
    for number in itertools.count():
        dataset = rng.choices(data.mix.datasets, data.mix.weights)[0]
        prompt = rng.choice(dataset.prompts)
        for step in steps[dataset.name]:
            yield _Row(number=number, prompt=prompt, step=step)
            if isinstance(step.sample, Clip | Pending):
                break


def _passes(
    dataset: Dataset,
    data: TrainingData,
    features: FeatureStore,
    cache: Callable[[], bool],
    num_threads: int | None,
) -> Iterator[_Step]:
    """Yield the steps of endless passes over a dataset; features of shards opened while `cache()` are cached."""
    assert dataset.train is not None
    shards = data.shards[dataset.name]
    rng = random.Random(f"{data.seed} shards of {dataset.name}")
    for pass_number in itertools.count():
        step = functools.partial(_Step, dataset=dataset, pass_number=pass_number)
        # With a limit, every pass must see the same samples, and so the same first shards.
        order = shards if data.limit is not None else rng.sample(shards, len(shards))
        num_left = data.limit
        for place, shard in enumerate(order, start=1):
            if num_left == 0:
                break
            if cache():
                features.prepare(
                    shard,
                    order[place:],
                    max_audio_s=data.max_audio_s,
                    max_clips=num_left,
                    num_threads=num_threads,
                )
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
                    yield step(sample=sample, targets=targets)
                for number, target in enumerate(targets.texts):
                    yield step(sample=sample, target=target, targets=targets, is_first=number == 0)
            yield step(sample=None)
        yield step(sample=None, is_last=True)
