"""Rows: the (clip, target) pairs of a split, and a count of its samples that names the unusable ones."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from xares_bench.config.catalogue import Split
from xares_bench.core.errors import DataError, DataWarning
from xares_bench.core.parsing import shown
from xares_bench.datasets.shards import Shard
from xares_bench.datasets.targets import NO_TARGETS, Targets, targets_of
from xares_bench.features.chunks import Pending
from xares_bench.features.encoding import Clip
from xares_bench.scores.records import DroppedSample


class Features(Protocol):
    """Reads the clips of shards, with their features; see `FeatureStore.read`."""

    def read(self, shard: Shard, *, max_clips: int | None, num_threads: int | None) -> Iterator[Clip | DroppedSample]:
        """The clips of a shard in order, and the unusable samples among them."""


# A batch ends at so many clips or seconds of audio: this bounds the features in memory during generation.
_BATCH_CLIPS = 1024
_BATCH_S = 3600.0

# A part has so many samples or more, if the split has: batches end with their part, and small ones waste time.
_PART_SAMPLES = 1024


@dataclass(frozen=True, kw_only=True)
class Row:
    """One (clip, target) pair of a dataset."""

    clip: Clip
    target: str


@dataclass(kw_only=True)
class SampleCount:
    """How many samples of a split were read, and which of them are unusable.

    Attributes:
        dataset: Names the split in messages.
        max_dropped_share: A larger share of unusable samples is an error.
        num_samples: Samples read so far.
        dropped: The unusable ones.
        without_target: Those whose targets are all corrupt. They do not count as unusable: XARES-LLM leaves them out,
            too, and its data are as they are.
        num_corrupt: Targets that are left out because they are corrupt.
        corrupt_example: The first of them.
        fallbacks: For every key that is none of the dataset's own, how many samples had their target there.
    """

    dataset: str
    max_dropped_share: float
    num_samples: int = 0
    dropped: list[DroppedSample] = field(default_factory=list)
    without_target: list[DroppedSample] = field(default_factory=list)
    num_corrupt: int = 0
    corrupt_example: str = ""
    fallbacks: Counter[str] = field(default_factory=Counter)

    def add(self, sample: object, targets: Targets) -> None:
        """Count one more sample; a `DroppedSample` is unusable, or has only corrupt targets."""
        self.num_samples += 1
        if targets.corrupt and not self.num_corrupt:
            self.corrupt_example = targets.corrupt[0]
        self.num_corrupt += len(targets.corrupt)
        if targets.fallback_key is not None:
            self.fallbacks[targets.fallback_key] += 1
        if isinstance(sample, DroppedSample):
            (self.without_target if targets.corrupt and not targets.texts else self.dropped).append(sample)

    def warn(self) -> None:
        """Warn of what is no reason to stop: corrupt targets that are left out, and targets under other keys."""
        if self.num_corrupt:
            warnings.warn(
                f"{self.dataset}: {self.num_corrupt} corrupt targets of {self.num_samples} samples are left out, e.g. "
                f"{shown(self.corrupt_example)}",
                DataWarning,
                stacklevel=2,
            )
        for key, num_samples in sorted(self.fallbacks.items()):
            warnings.warn(
                f"{self.dataset}: {num_samples} of {self.num_samples} samples have none of the keys that are named for "
                f"it; their target is from {key!r}",
                DataWarning,
                stacklevel=2,
            )

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values; `continued` reads them back."""
        # `asdict` makes another counter of the pairs of a `Counter`.
        counts = {**dataclasses.asdict(self), "fallbacks": dict(self.fallbacks)}
        return {name: counts[name] for name in counts if name not in ("dataset", "max_dropped_share")}

    def continued(self, counts: Mapping[str, Any]) -> SampleCount:
        """Return the count that goes on from `to_json`."""
        samples = {name: [DroppedSample(**sample) for sample in counts[name]] for name in ("dropped", "without_target")}
        return dataclasses.replace(self, **{**counts, **samples, "fallbacks": Counter(counts["fallbacks"])})

    def plus(self, counts: Mapping[str, Any]) -> SampleCount:
        """Return the sum of this count and one that `to_json` returned, whose samples follow those of this one."""
        more = self.continued(counts)
        return dataclasses.replace(
            self,
            num_samples=self.num_samples + more.num_samples,
            dropped=[*self.dropped, *more.dropped],
            without_target=[*self.without_target, *more.without_target],
            num_corrupt=self.num_corrupt + more.num_corrupt,
            corrupt_example=self.corrupt_example if self.num_corrupt else more.corrupt_example,
            fallbacks=self.fallbacks + more.fallbacks,
        )

    def check(self, *, complete: bool) -> None:
        """Raise if too many samples are unusable.

        Args:
            complete: Whether all samples were read. If not, the share is an estimate from the first ones, and may
                exceed the allowed one by three standard deviations of a Poisson count and one sample.

        Raises:
            DataError: There is no sample, or too many are unusable.
        """
        if self.num_samples == 0 and complete:
            raise DataError(f"{self.dataset}: its shards contain no samples; restore them, or pass another --data-home")
        num_unusable = len(self.dropped) + len(self.without_target)
        if complete and self.without_target and num_unusable == self.num_samples:
            first = self.without_target[0]
            raise DataError(
                f"{self.dataset}: none of {self.num_samples} samples has a usable target, e.g. {first.clip} of "
                f"{first.shard}: {first.reason}; fix the shards, or name another key"
            )
        check_dropped(
            self.dataset,
            self.dropped,
            num_dropped=len(self.dropped),
            num_samples=self.num_samples,
            max_dropped_share=self.max_dropped_share,
            complete=complete,
        )


def check_dropped(
    dataset: str,
    dropped: Sequence[DroppedSample],
    *,
    num_dropped: int,
    num_samples: int,
    max_dropped_share: float,
    complete: bool = True,
) -> None:
    """Raise if too many samples of a dataset are unusable.

    Args:
        dataset: Named in the message.
        dropped: Unusable samples; the first three are named.
        num_dropped: How many there are.
        num_samples: How many samples there are.
        max_dropped_share: A larger share of unusable samples is an error.
        complete: See `SampleCount.check`.

    Raises:
        DataError: Too many are unusable.
    """
    allowed = max_dropped_share * num_samples
    if not complete:
        allowed += 3 * allowed**0.5 + 1
    if num_dropped > allowed or (complete and num_dropped == num_samples > 0):
        named = "; ".join(f"{sample.clip} of {sample.shard}: {sample.reason}" for sample in dropped[:3])
        more = "; ..." if num_dropped > 3 else ""
        advice = "fix the shards, or allow more with --set max_dropped_share=SHARE"
        if num_dropped == num_samples and complete:
            advice = "fix the shards, or name their key"
        raise DataError(
            f"{dataset}: {num_dropped} of {num_samples} samples are unusable, more than the allowed share of "
            f"{max_dropped_share:.1%} ({named}{more}); {advice}"
        )


@dataclass(frozen=True, kw_only=True)
class ClipBatch:
    """Neighbouring clips of a split.

    Attributes:
        clips: Those that have a target.
        rows: Their (clip, target) pairs, in the order of the shards.
    """

    clips: tuple[Clip, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Neighbouring shards of a split. A batch never spans two parts, so each can be evaluated without the others.

    Attributes:
        shards: The shards.
        limit: At most this many of their samples; None: all.
    """

    shards: tuple[Shard, ...]
    limit: int | None


def parts_of(shards: Iterable[Shard], num_samples_of: Callable[[Shard], int], limit: int | None) -> list[Part]:
    """The parts of a split: whole shards, in order; a part ends with the shard that brings it to a batch of clips.

    Args:
        shards: The split's shards.
        num_samples_of: Number of samples of a shard, the unusable ones included.
        limit: At most this many samples of the split; None: all.
    """
    parts: list[Part] = []
    begun: list[Shard] = []
    num_before = num_samples = 0
    for shard in shards:
        if num_before + num_samples == limit:
            break
        begun.append(shard)
        num_samples += num_samples_of(shard)
        if limit is not None:
            num_samples = min(num_samples, limit - num_before)
        if num_samples >= _PART_SAMPLES:
            parts.append(Part(shards=tuple(begun), limit=None if limit is None else limit - num_before))
            num_before += num_samples
            begun, num_samples = [], 0
    if begun:
        parts.append(Part(shards=tuple(begun), limit=None if limit is None else limit - num_before))
    return parts


def read_clip_batches(features: Features, split: Split, part: Part, *, count: SampleCount) -> Iterator[ClipBatch]:
    """The clips and rows of a part of a split, batch by batch, so that it need not fit into memory.

    Args:
        features: Reads the clips of shards.
        split: Names the target keys.
        part: The part.
        count: Counts the part's samples; none so far.

    Raises:
        DataError: A shard is damaged.
        EncoderError: The encoder breaks its contract on one of the clips.
    """
    clips: list[Clip] = []
    rows: list[Row] = []
    duration_s = 0.0
    for clip, targets in _usable_clips(features, split, part, count):
        clips.append(clip)
        rows.extend(Row(clip=clip, target=target) for target in targets)
        duration_s += clip.duration_s
        if len(clips) == _BATCH_CLIPS or duration_s >= _BATCH_S:
            yield ClipBatch(clips=tuple(clips), rows=tuple(rows))
            clips, rows, duration_s = [], [], 0.0
    if clips:
        yield ClipBatch(clips=tuple(clips), rows=tuple(rows))


def with_targets(
    samples: Iterable[Clip | Pending | DroppedSample], split: Split, shard: Shard
) -> Iterator[tuple[Clip | Pending | DroppedSample, Targets]]:
    """The samples of a shard, each with its targets; a sample without a target becomes a `DroppedSample`."""
    for sample in samples:
        if isinstance(sample, DroppedSample):
            yield sample, NO_TARGETS
            continue
        try:
            targets = targets_of(sample.fields, split)
        except ValueError as cause:
            yield DroppedSample(shard=shard.name, clip=sample.key, reason=str(cause)), NO_TARGETS
            continue
        if not targets.texts:
            reason = f"its target is corrupt: {shown(targets.corrupt[0])}"
            yield DroppedSample(shard=shard.name, clip=sample.key, reason=reason), targets
            continue
        yield sample, targets


def _usable_clips(
    features: Features, split: Split, part: Part, count: SampleCount
) -> Iterator[tuple[Clip, tuple[str, ...]]]:
    for shard in part.shards:
        num_left = None if part.limit is None else part.limit - count.num_samples
        if num_left == 0:
            return
        samples = features.read(shard, max_clips=num_left, num_threads=split.num_workers)
        for clip, targets in with_targets(samples, split, shard):
            count.add(clip, targets)
            if isinstance(clip, Clip):
                yield clip, targets.texts
