"""Robustness: what a score loses when the test clips are corrupted, and whether that is more than noise."""

from __future__ import annotations

import math

from xares_bench.scores.clip_sums import ClipSums
from xares_bench.scores.records import RobustnessRecord, ScoreRecord
from xares_bench.scores.statistics import TrainingNoise, paired_difference, pooled_training_noise


def robustness_of(corrupted: ScoreRecord, corruption: str, clean_sums: ClipSums, sums: ClipSums) -> RobustnessRecord:
    """Return the loss by a corruption, paired by clip: the same LALMs hear each clip clean and corrupted.

    Args:
        corrupted: The score on the corrupted clips.
        corruption: The corruption.
        clean_sums: The clip sums of the clean score.
        sums: Those of the corrupted score, of the same training seeds. Clips that only one of them has, such as those
            that a corruption made too short for the encoder, are left out of the loss.
    """
    found = paired_difference(clean_sums, sums, training=_training_noise(clean_sums, sums))
    assert found is not None, "both are over clips of one test set, by one metric"
    has_interval = math.isfinite(found.low) and math.isfinite(found.high)
    return RobustnessRecord(
        dataset=corrupted.dataset,
        corruption=corruption,
        score=corrupted.score,
        loss=found.difference,
        interval=(found.low, found.high) if has_interval else None,
        num_clips=found.num_clips,
        key=corrupted.key,
    )


def _training_noise(clean_sums: ClipSums, sums: ClipSums) -> TrainingNoise | None:
    """How much the loss varies with the training seeds: by seed, as each LALM has a clean and a corrupted score."""
    in_both = {*clean_sums.clips} & {*sums.clips}
    common = [clip for clip in clean_sums.clips if clip in in_both]
    losses = sums.select(common).scores_of_seeds() - clean_sums.select(common).scores_of_seeds()
    if len(losses) < 2:
        return None
    # Of one quantity with several seeds: the loss itself, not two scores that vary apart.
    return pooled_training_noise((float(losses.std(ddof=1)), len(losses)))
