from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from tests.reports.test_report import scored
from tests.scores.test_statistics import accuracy
from xares_bench.scores.clip_sums import joined
from xares_bench.suite.seeds import mean_over_seeds


def test_seeds_become_one_record_with_the_mean_and_the_sums() -> None:
    right = [np.arange(40) < 10, np.arange(40) < 20]
    records = [
        dataclasses.replace(scored("esc-50", score), features_s=1.0, generation_s=seconds, key=key, reused=key == "a")
        for score, seconds, key in ((0.25, 2.0, "a"), (0.5, 3.0, "b"))
    ]
    mean = mean_over_seeds(records, joined([accuracy(each) for each in right]))
    assert (mean.score, mean.seed_scores) == (0.375, (0.25, 0.5))
    assert (mean.features_s, mean.generation_s, mean.reused) == (2.0, 5.0, False)
    assert mean.key not in ("a", "b")
    assert mean.interval is not None
    assert mean.interval[0] < 0.375 < mean.interval[1]


def test_a_score_that_is_no_number_has_no_interval() -> None:
    records = [dataclasses.replace(scored("esc-50", score)) for score in (0.25, math.nan)]
    mean = mean_over_seeds(records, accuracy(np.arange(4) < 2))
    assert math.isnan(mean.score)
    assert mean.interval is None
    assert mean.deviation is None


def test_the_interval_is_of_all_seeds_clip_by_clip() -> None:
    right = np.arange(40) % 2 == 0
    records = [scored("esc-50", 0.5)] * 2
    same = mean_over_seeds(records, joined([accuracy(right)] * 2))
    other = mean_over_seeds(records, joined([accuracy(right), accuracy(~right)]))
    assert same.interval is not None
    assert other.interval == pytest.approx((0.5, 0.5))
    assert same.interval[1] - same.interval[0] > 0.2
