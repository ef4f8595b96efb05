"""Rows: a split of a dataset becomes (clip, target) pairs, with every sample that could not be used named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from xares_bench.catalogue import Dataset, Split
from xares_bench.errors import DataError
from xares_bench.features import Clip, FeatureStore
from xares_bench.progress import Progress
from xares_bench.records import DroppedSample
from xares_bench.shards import ShardFolder, find_targets

# Where a target is looked for after a dataset's own keys.
FALLBACK_TARGET_KEYS = ("captions", "caption", "text")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One (clip, target) pair of a dataset."""

    clip: Clip
    target: str


@dataclass(frozen=True, kw_only=True)
class SplitRows:
    """What there is to train on or to evaluate in a split.

    Attributes:
        rows: (clip, target) pairs, in the order of the shards.
        clips: The clips that have a target.
        dropped: The samples that could not be used.
    """

    rows: tuple[Row, ...]
    clips: tuple[Clip, ...]
    dropped: tuple[DroppedSample, ...]


@dataclass(frozen=True, kw_only=True)
class RowReader:
    """Reads splits, by way of the feature store.

    Attributes:
        shards: Where the shards are.
        features: Where the features are, or are made.
        limit: At most this many samples of a split; None: all.
        max_dropped_share: More unusable samples than this share are an error.
        progress: Shows the shards that are done.
    """

    shards: ShardFolder
    features: FeatureStore
    limit: int | None
    max_dropped_share: float
    progress: Progress

    def read(self, dataset: Dataset, split: Split, max_audio_s: float | None) -> SplitRows:
        """The rows of a split of a dataset; features that are not there are made.

        Args:
            dataset: Names the split in messages.
            split: Its shards and target keys.
            max_audio_s: Longer clips are cropped to this many seconds; None: never.

        Raises:
            DataError: A shard is missing or damaged, or too many samples are unusable.
            EncoderError: The encoder breaks its contract on one of the clips.
        """
        clips: list[Clip] = []
        dropped: list[DroppedSample] = []
        shards = self.shards.locate(split)
        with self.progress.bar(f"features of {dataset.name}", len(shards)) as advance:
            for shard in shards:
                num_left = None if self.limit is None else self.limit - len(clips) - len(dropped)
                if num_left == 0:
                    break
                features = self.features.obtain(
                    shard, max_audio_s=max_audio_s, max_clips=num_left, num_workers=split.num_workers
                )
                clips.extend(features.clips)
                dropped.extend(features.dropped)
                advance()
        num_samples = len(clips) + len(dropped)
        rows, without_target = make_rows(clips, split)
        dropped.extend(without_target)
        self._check_dropped(dataset, dropped, num_samples)
        unusable = {(sample.shard, sample.clip) for sample in without_target}
        return SplitRows(
            rows=tuple(rows),
            clips=tuple(clip for clip in clips if (clip.shard, clip.key) not in unusable),
            dropped=tuple(dropped),
        )

    def _check_dropped(self, dataset: Dataset, dropped: list[DroppedSample], num_samples: int) -> None:
        if num_samples == 0:
            raise DataError(f"{dataset.name}: its shards hold no sample; restore them, or name the right --data-home")
        if len(dropped) == num_samples or len(dropped) > self.max_dropped_share * num_samples:
            named = "; ".join(f"{sample.clip} of {sample.shard}: {sample.reason}" for sample in dropped[:3])
            more = "; ..." if len(dropped) > 3 else ""
            raise DataError(
                f"{dataset.name}: {len(dropped)} of {num_samples} samples are unusable, more than the allowed share of "
                f"{self.max_dropped_share:.1%} ({named}{more}); mend the shards, or allow more with "
                "--set max_dropped_share=SHARE"
            )


def make_rows(clips: Iterable[Clip], split: Split) -> tuple[list[Row], list[DroppedSample]]:
    """The rows of clips, one per clip and target, and the clips without a target."""
    rows: list[Row] = []
    dropped = []
    keys = tuple(dict.fromkeys((*split.target_keys, *FALLBACK_TARGET_KEYS)))
    for clip in clips:
        try:
            rows.extend(Row(clip=clip, target=target) for target in find_targets(clip.fields, keys))
        except ValueError as cause:
            dropped.append(DroppedSample(shard=clip.shard, clip=clip.key, reason=str(cause)))
    return rows, dropped
