"""The formulas of FENSE and DATE compared with their definitions, and the memory that DATE needs."""

from __future__ import annotations

import doctest
import tracemalloc

import numpy as np
import pytest

from xares_bench.metrics.captions import formulas
from xares_bench.metrics.captions.formulas import Array, date_values, fense_values, row_similarities


def random_embeddings(seed: int, num_rows: int, width: int = 6) -> tuple[Array, Array, Array]:
    """Predictions near their references, references, and error probabilities on both sides of the threshold."""
    rng = np.random.default_rng(seed)
    references = rng.standard_normal((num_rows, width))
    hypotheses = references + rng.standard_normal((num_rows, width))
    unit = [array / np.linalg.norm(array, axis=1, keepdims=True) for array in (hypotheses, references)]
    return unit[0].astype(np.float32), unit[1].astype(np.float32), rng.uniform(0.6, 1, num_rows).astype(np.float32)


def direct_date(hypotheses: Array, references: Array, error_probabilities: Array) -> list[float]:
    """The definition, over the whole N x N matrix and row by row."""
    factors = [0.1 if probability > 0.9 else 1.0 for probability in error_probabilities]
    matrix = hypotheses.astype(np.float64) @ references.T.astype(np.float64) * np.array(factors)[:, None]
    values = []
    for row, similarities in enumerate(matrix):
        confused = sum(similarity >= similarities[row] - 0.1703 / 2 for similarity in similarities)
        discriminability = 1 - confused / len(matrix)
        values.append(2 * similarities[row] * discriminability / (similarities[row] + discriminability + 1e-8))
    return values


@pytest.mark.parametrize(
    ("similarity", "probability", "expected"),
    [(0.6, 0.0, 0.6), (0.6, 0.89, 0.6), (0.6, 0.91, 0.06), (-0.2, 0.95, -0.02), (1.0, 1.0, 0.1)],
)
def test_fense_is_the_similarity_or_a_tenth_of_it(similarity: float, probability: float, expected: float) -> None:
    values = fense_values(np.array([similarity], np.float32), np.array([probability], np.float32))
    assert values == pytest.approx([expected])


def test_a_probability_at_the_threshold_is_not_an_error() -> None:
    assert fense_values(np.array([0.5], np.float32), np.array([0.9], np.float32)) == pytest.approx([0.5])


@pytest.mark.parametrize("block_rows", [1, 7, 256])
def test_date_equals_the_direct_formula_whatever_the_blocks(block_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formulas, "_BLOCK_ROWS", block_rows)
    for seed in range(4):
        rows = random_embeddings(seed, 60)
        expected = direct_date(*rows)
        assert len(set(expected)) > 40
        assert date_values(*rows) == pytest.approx(expected, abs=1e-5)


def test_a_single_row_has_no_discrimination() -> None:
    assert date_values(*random_embeddings(0, 1)).tolist() == [0.0]


def test_a_row_equally_similar_to_all_references_scores_zero() -> None:
    hypotheses, references, _ = random_embeddings(1, 40)
    references[:] = references[0]
    assert date_values(hypotheses, references, np.zeros(40, np.float32)).tolist() == [0.0] * 40


def test_the_cosine_of_equal_embeddings_is_at_most_one() -> None:
    _, references, _ = random_embeddings(2, 500, width=64)
    assert row_similarities(references, references) == pytest.approx(1)
    assert row_similarities(references, references).max() <= 1


def test_twenty_thousand_rows_need_no_matrix_of_all_pairs() -> None:
    rows = random_embeddings(3, 20_000, width=4)
    tracemalloc.start()
    values = date_values(*rows)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.isfinite(values).all()
    assert peak_bytes < 200e6  # all pairs would be 1600e6


def test_examples_in_docstrings() -> None:
    outcome = doctest.testmod(formulas)
    assert outcome.attempted > 0
    assert outcome.failed == 0
