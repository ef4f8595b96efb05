"""Seeds: the scores of LALMs that differ only in their training seed become one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from xares_bench.core.digests import digest_of
from xares_bench.scores.clip_sums import ClipSums
from xares_bench.scores.records import ScoreRecord
from xares_bench.scores.statistics import interval_of


def mean_over_seeds(records: Sequence[ScoreRecord], clip_sums: ClipSums) -> ScoreRecord:
    """Combine the records of one dataset over the training seeds.

    Args:
        records: One per seed.
        clip_sums: Those of all seeds. The same clips are hard for all of them, so the interval of the mean does not
            follow from the intervals of the seeds.
    """
    scores = tuple(record.score for record in records)
    score = math.fsum(scores) / len(scores)
    interval = interval_of(clip_sums) if math.isfinite(score) else None
    return dataclasses.replace(
        records[0],
        score=score,
        seed_scores=scores,
        interval=None if interval is None else (interval.low, interval.high),
        deviation=None if interval is None else interval.deviation,
        features_s=math.fsum(record.features_s for record in records),
        generation_s=math.fsum(record.generation_s for record in records),
        key=digest_of([record.key for record in records]),
        reused=all(record.reused for record in records),
    )
