from __future__ import annotations

import random

import numpy as np
import pytest

from xares_bench.metrics import METRICS
from xares_bench.metrics.registry import score
from xares_bench.reports.chance import chance_level


def test_of_accuracy_it_is_what_the_most_frequent_label_scores() -> None:
    references = ["dog", "Dog.", "cat", "cow", "cow!"] + ["dog"] * 3
    levels = [score("Accuracy", references, [label] * len(references)) for label in references]
    assert chance_level("Accuracy", references, {}) == max(levels) == 5 / 8
    assert chance_level("Accuracy", ["a", "b", "c", "d"], {}) == 1 / 4


def test_of_mean_average_precision_it_is_the_mean_prevalence() -> None:
    pick = random.Random(0)
    references = [";".join(pick.sample("abcdef", pick.randint(1, 4))) for _ in range(50)]
    prevalence = [np.mean([label in reference.split(";") for reference in references]) for label in "abcdef"]
    for num_classes in (6, 10):
        level = chance_level("mAP", references, {"num_classes": num_classes})
        assert level == pytest.approx(sum(prevalence) / num_classes)
        everything = score("mAP", references, ["a;b;c;d;e;f"] * 50, num_classes=num_classes)
        assert level == pytest.approx(everything)


@pytest.mark.parametrize("metric", sorted(METRICS.keys() - {"Accuracy", "mAP"}))
def test_texts_have_none(metric: str) -> None:
    assert chance_level(metric, ["a dog", "a cat"], {}) is None


def test_without_targets_or_arguments_there_is_none() -> None:
    assert chance_level("Accuracy", [], {}) is None
    assert chance_level("mAP", ["a;b"], {"num_classes": 1}) is None
    assert chance_level("mAP", ["a;b"], {}) is None
