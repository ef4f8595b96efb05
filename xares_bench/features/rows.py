"""Rows: a split of a dataset becomes (clip, target) pairs, with every sample that could not be used named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from xares_bench.config.catalogue import Split
from xares_bench.core.errors import DataError
from xares_bench.datasets.shards import Shard
from xares_bench.datasets.targets import targets_of
from xares_bench.features.encoding import Clip
from xares_bench.features.recorder import Pending
from xares_bench.scores.records import DroppedSample


class Features(Protocol):
    """Reads the clips of shards, with their features; see `FeatureStore.read`."""

    def read(self, shard: Shard, *, max_clips: int | None, num_threads: int | None) -> Iterator[Clip | DroppedSample]:
        """The clips of a shard in order, and the samples among them that cannot be used."""


# Clips that are generated for at a time, and their seconds: features in memory are bounded by them.
_PART_CLIPS = 1024
_PART_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One (clip, target) pair of a dataset."""

    clip: Clip
    target: str


@dataclass(kw_only=True)
class Tally:
    """What became of the samples of one split.

    Attributes:
        dataset: Names the split in messages.
        max_dropped_share: More unusable samples than this share are an error.
        num_samples: Samples that were seen.
        dropped: Those of them that could not be used.
    """

    dataset: str
    max_dropped_share: float
    num_samples: int = 0
    dropped: list[DroppedSample] = field(default_factory=list)

    def count(self, sample: object) -> None:
        """Count one more sample, given what has become of it."""
        self.num_samples += 1
        if isinstance(sample, DroppedSample):
            self.dropped.append(sample)

    def check(self, *, complete: bool) -> None:
        """Raise if too many samples were unusable.

        Args:
            complete: Whether all samples were seen. If not, chance is given room: three standard deviations.

        Raises:
            DataError: There is no sample, or too many are unusable.
        """
        if self.num_samples == 0:
            if complete:
                raise DataError(
                    f"{self.dataset}: its shards hold no sample; restore them, or name the right --data-home"
                )
            return
        allowed = self.max_dropped_share * self.num_samples
        if not complete:
            allowed += 3 * allowed**0.5
        num_dropped = len(self.dropped)
        if num_dropped > allowed or num_dropped == self.num_samples:
            named = "; ".join(f"{sample.clip} of {sample.shard}: {sample.reason}" for sample in self.dropped[:3])
            more = "; ..." if num_dropped > 3 else ""
            raise DataError(
                f"{self.dataset}: {num_dropped} of {self.num_samples} samples are unusable, more than the allowed "
                f"share of {self.max_dropped_share:.1%} ({named}{more}); mend the shards, or allow more with "
                "--set max_dropped_share=SHARE"
            )


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some neighbouring clips of a split.

    Attributes:
        clips: Those that have a target.
        rows: Their (clip, target) pairs, in the order of the shards.
    """

    clips: tuple[Clip, ...]
    rows: tuple[Row, ...]


def read_parts(
    features: Features, split: Split, shards: Sequence[Shard], *, limit: int | None, tally: Tally
) -> Iterator[Part]:
    """The clips and rows of a split, part by part, so that it need not fit into memory.

    Args:
        features: Reads the shards' clips.
        split: Names the target keys.
        shards: The split's shards.
        limit: At most this many samples; None: all.
        tally: Counts them.

    Raises:
        DataError: A shard is damaged, or (at the end) too many samples are unusable.
        EncoderError: The encoder breaks its contract on one of the clips.
    """
    held: list[Clip] = []
    rows: list[Row] = []
    duration_s = 0.0
    for clip, targets in _usable_clips(features, split, shards, limit, tally):
        held.append(clip)
        rows.extend(Row(clip=clip, target=target) for target in targets)
        duration_s += clip.duration_s
        if len(held) == _PART_CLIPS or duration_s >= _PART_S:
            yield Part(clips=tuple(held), rows=tuple(rows))
            held, rows, duration_s = [], [], 0.0
    tally.check(complete=True)
    if held:
        yield Part(clips=tuple(held), rows=tuple(rows))


def with_targets(
    samples: Iterable[Clip | Pending | DroppedSample], split: Split, shard: Shard
) -> Iterator[tuple[Clip | Pending | DroppedSample, tuple[str, ...]]]:
    """The samples of a shard, each with its targets; those that have none become unusable ones."""
    for sample in samples:
        if isinstance(sample, DroppedSample):
            yield sample, ()
            continue
        try:
            targets = targets_of(sample.fields, split)
        except ValueError as cause:
            yield DroppedSample(shard=shard.name, clip=sample.key, reason=str(cause)), ()
            continue
        yield sample, targets


def _usable_clips(
    features: Features, split: Split, shards: Sequence[Shard], limit: int | None, tally: Tally
) -> Iterator[tuple[Clip, tuple[str, ...]]]:
    for shard in shards:
        num_left = None if limit is None else limit - tally.num_samples
        if num_left == 0:
            return
        samples = features.read(shard, max_clips=num_left, num_threads=split.num_workers)
        for clip, targets in with_targets(samples, split, shard):
            tally.count(clip)
            if isinstance(clip, Clip):
                yield clip, targets
