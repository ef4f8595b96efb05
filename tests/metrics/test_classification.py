"""Accuracy and mAP compared with scikit-learn, and what follows from their definitions."""

from __future__ import annotations

import doctest
import random
import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from tests.metrics.factory import LABELS, SEEDS, random_label_sets
from xares_bench.core.errors import UsageError
from xares_bench.metrics import classification, evaluate, score


def reference_mean_average_precision(references: list[str], hypotheses: list[str], num_classes: int) -> float:
    """By scikit-learn, from a matrix over all columns."""
    from sklearn.metrics import average_precision_score

    target_sets, output_sets = ([{*text.strip().split(";")} for text in texts] for texts in (references, hypotheses))
    labels = sorted(set().union(*target_sets))
    total = 0.0
    for label in labels:
        targets = np.array([label in labels_of_row for labels_of_row in target_sets], dtype=int)
        outputs = np.array([label in labels_of_row for labels_of_row in output_sets], dtype=float)
        total += average_precision_score(targets, outputs)
    return total / num_classes


@pytest.mark.parametrize("seed", SEEDS)
def test_accuracy_equals_scikit_learn(seed: int) -> None:
    from sklearn.metrics import accuracy_score

    rng = random.Random(seed)
    references = [rng.choice(LABELS) for _ in range(40)]
    hypotheses = [reference if rng.random() < 0.5 else rng.choice(LABELS) for reference in references]
    result = evaluate("Accuracy", references, hypotheses)
    assert 0 < result.score < 1
    assert result.score == pytest.approx(accuracy_score(references, hypotheses))
    assert result.row_values == tuple(
        float(reference == hypothesis) for reference, hypothesis in zip(references, hypotheses, strict=True)
    )


@pytest.mark.parametrize("seed", range(200))
def test_map_equals_scikit_learn(seed: int) -> None:
    """Labels as they stand between two ";", with and without blanks beside it."""
    references, hypotheses = random_label_sets(seed)
    for num_classes in (13, 200):
        expected = reference_mean_average_precision(references, hypotheses, num_classes)
        assert 0 < expected < 1
        assert score("mAP", references, hypotheses, num_classes=num_classes) == pytest.approx(expected, abs=1e-12)


def labels_by_the_rule(text: str) -> list[str]:
    """Normalised with its punctuation, then split as it stands."""
    folded = unicodedata.normalize("NFKC", text).lower().replace("-", " ")
    return re.sub(r"\s+", " ", folded).strip().split(";")


def average_precision_by_the_rule(is_positive: Sequence[bool], is_predicted: Sequence[bool]) -> Fraction:
    """The step-wise area under precision and recall of a column: first of the predicted rows, then of all rows."""
    area = recall_before = Fraction(0)
    for rows in ([row for row, found in enumerate(is_predicted) if found], range(len(is_predicted))):
        if rows:
            num_hits = sum(is_positive[row] for row in rows)
            recall = Fraction(num_hits, sum(is_positive))
            area += (recall - recall_before) * Fraction(num_hits, len(rows))
            recall_before = recall
    return area


def map_by_the_rule(references: Sequence[str], hypotheses: Sequence[str], num_classes: int) -> Fraction:
    targets, outputs = ([labels_by_the_rule(text) for text in texts] for texts in (references, hypotheses))
    columns = sorted({label for labels in targets for label in labels})
    areas = [
        average_precision_by_the_rule([column in row for row in targets], [column in row for row in outputs])
        for column in columns
    ]
    return sum([*areas, *[Fraction(0)] * (num_classes - len(columns))], start=Fraction(0)) / num_classes


def test_200_random_label_sets_with_blanks_have_the_macro_average_of_the_rule() -> None:
    rng = random.Random(2)
    num_that_depend_on_blanks = 0

    def label_set(labels: Sequence[str]) -> str:
        return rng.choice([";", ";", "\uff1b"]).join(
            rng.choice(["", "", " ", "\t"]) + label + rng.choice(["", "", "  "]) for label in labels
        )

    for _ in range(200):
        names = ["dog", "Dog", "hi-hat", "hi hat", "cat's", "cats", "\uff12", "", "\u72d7"]
        references = ["dog", *(label_set(rng.sample(names, rng.randint(0, 4))) for _ in range(rng.randint(1, 9)))]
        hypotheses = [
            label_set([*(name for name in names if name in reference and rng.random() < 0.5), rng.choice(names)])
            for reference in references
        ]
        num_labels = len({label for reference in references for label in labels_by_the_rule(reference)})
        num_classes = num_labels + rng.choice([0, 1, 5])
        found = score("mAP", references, hypotheses, num_classes=num_classes)
        assert found == pytest.approx(float(map_by_the_rule(references, hypotheses, num_classes)), abs=1e-12)
        without, predicted_without = (
            [re.sub(r"\s*([;\uff1b])\s*", r"\1", text) for text in texts] for texts in (references, hypotheses)
        )
        num_that_depend_on_blanks += map_by_the_rule(without, predicted_without, num_classes) != pytest.approx(found)
    assert num_that_depend_on_blanks > 100


def test_accuracy_ignores_the_minus_sign_and_the_decimal_point() -> None:
    assert score("Accuracy", ["-1", "3.5"], ["1", "35"]) == 1.0


def test_every_label_no_label_and_wrong_labels_all_score_the_mean_prevalence() -> None:
    references = ["a;b", "a", "a", "c"]
    prevalence = (3 / 4 + 1 / 4 + 1 / 4) / 3
    for hypothesis in ("a;b;c", "", "unknown"):
        assert score("mAP", references, [hypothesis] * 4, num_classes=3) == pytest.approx(prevalence)
    only_wrong = ["c", "b", "c;b", "a;b"]
    assert score("mAP", references, only_wrong, num_classes=3) == pytest.approx(prevalence)


def test_map_can_fall_below_the_mean_prevalence() -> None:
    references = ["a"] * 8 + ["b"] * 2
    hypotheses = ["a"] + [""] * 7 + ["a"] * 2
    assert score("mAP", references, hypotheses, num_classes=2) < 0.5
    expected = reference_mean_average_precision(references, hypotheses, 2)
    assert score("mAP", references, hypotheses, num_classes=2) == pytest.approx(expected)


def test_map_counts_missing_columns_as_zero_and_ignores_labels_that_no_reference_has() -> None:
    assert score("mAP", ["a", "b"], ["a; z; y", "b; z"], num_classes=2) == 1.0
    assert score("mAP", ["a", "b"], ["a", "b"], num_classes=8) == 0.25


def test_map_splits_labels_as_they_stand_and_counts_each_once() -> None:
    assert score("mAP", ["Hi-Hat;Dog", "cat"], ["dog;hi hat;dog", "CAT"], num_classes=3) == 1.0
    # Blanks beside ";" belong to a label: " cat" is never predicted by "cat".
    assert score("mAP", ["dog; cat", "cow"], ["dog;cat", "cow"], num_classes=3) == pytest.approx((1 + 1 + 0.5) / 3)
    # Punctuation inside a label counts, unlike in all other metrics.
    assert score("mAP", ["dog's", "cat"], ["dogs", "cat"], num_classes=2) == 0.75


def test_more_labels_than_classes_is_an_error_that_names_both_numbers() -> None:
    with pytest.raises(UsageError, match=r"3 different labels, more than num_classes=2"):
        score("mAP", ["a;b", "c"], ["a", "c"], num_classes=2)
    assert score("mAP", ["a;b", "c"], ["a;b", "c"], num_classes=3) == 1.0


def test_map_itself_refuses_zero_classes() -> None:
    with pytest.raises(ValueError, match="num_classes is 0"):
        classification.mean_average_precision(["a"], ["a"], num_classes=0)


def test_examples_in_docstrings() -> None:
    outcome = doctest.testmod(classification)
    assert outcome.attempted > 0
    assert outcome.failed == 0
