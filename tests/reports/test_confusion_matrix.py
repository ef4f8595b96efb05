"""Confusion matrices, compared with scikit-learn's."""

from __future__ import annotations

import random

from sklearn.metrics import confusion_matrix

from xares_bench.reports.confusion_matrix import confusion_matrix_of
from xares_bench.scores.records import Prediction


def predicted(reference: str, hypothesis: str) -> Prediction:
    return Prediction(clip="c", reference=reference, hypothesis=hypothesis, value=None)


def test_counts_are_those_of_scikit_learn() -> None:
    source = random.Random(7)
    labels = ["dog", "cat", "rain"]
    rows = [(source.choice(labels), source.choice(labels)) for _ in range(200)]
    found = confusion_matrix_of(predicted(*row) for row in rows)
    references, hypotheses = zip(*rows, strict=True)
    expected = confusion_matrix(references, hypotheses, labels=list(found.labels))
    assert [list(line[:-1]) for line in found.counts[:-1]] == expected.tolist()
    assert not found.has_other_labels


def test_texts_are_compared_as_accuracy_compares_them() -> None:
    found = confusion_matrix_of([predicted("Dog", "dog."), predicted("dog", "DOG"), predicted("cat", "")])
    assert found.labels == ("Dog", "cat"), "as the data writes them first, the most frequent first"
    assert found.counts == ((2, 0, 0), (0, 0, 1), (0, 0, 0))
    assert found.most_frequent is None, "an empty answer is no label"


def test_rare_labels_and_answers_that_are_none_are_other() -> None:
    rows = (
        [predicted("a", "b")] * 3
        + [predicted("b", "a")] * 2
        + [predicted("z", "a"), predicted("a", "a b"), predicted("b", "z")]
    )
    found = confusion_matrix_of(rows, max_labels=2)
    assert found.labels == ("a", "b")
    assert found.counts == ((0, 3, 1), (2, 0, 1), (1, 0, 0))
    assert found.has_other_labels
    assert found.most_frequent == ("a", "b", 3)
    assert sum(map(sum, found.counts)) == len(rows)
