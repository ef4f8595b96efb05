"""The formulas of FENSE and DATE on the judges' outputs, in float32 like mecat 1.1.0.

Shapes: N rows, D width of an embedding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ERROR_THRESHOLD = 0.9
ERROR_FACTOR = 0.1
DELTA = 0.1703

_BLOCK_ROWS = 256

Array = NDArray[np.float32]


def fense_values(similarities: Array, error_probabilities: Array) -> Array:
    """Return FENSE of every row: the similarity, divided by ten if the prediction probably has a fluency error.

    Zhou et al. 2022, "Can Audio Captions Be Evaluated with Image Caption Metrics?".

    Args:
        similarities: Cosines of prediction and reference, `[N]`.
        error_probabilities: Probabilities that the prediction has a fluency error, `[N]`.

    Example:
        >>> fense_values(np.array([0.5, 0.5], np.float32), np.array([0.2, 0.95], np.float32))
        array([0.5 , 0.05], dtype=float32)
    """
    return similarities * np.where(error_probabilities > ERROR_THRESHOLD, ERROR_FACTOR, 1).astype(np.float32)


def date_values(hypotheses: Array, references: Array, error_probabilities: Array) -> Array:
    """Return DATE of every row: the harmonic mean of its FENSE and of its discrimination among all references.

    `2 s d / (s + d + 1e-8)` with `d_i = 1 - #{j: s_ij >= s_ii - delta / 2} / N`, where `s_ij` is the FENSE of
    prediction i and reference j; a reference that is only slightly less similar than the row's own counts as confused
    with it. Niu et al. 2025, "MECAT: A Multi-Experts Constructed Benchmark for Fine-Grained Audio Understanding Tasks",
    with the delta for long captions. Nothing is clipped: a row with a negative similarity can have a value of any size
    if s and -d are close.

    Args:
        hypotheses: Embeddings of unit length, `[N, D]`.
        references: Embeddings of unit length, `[N, D]`.
        error_probabilities: Probabilities that the prediction has a fluency error, `[N]`.
    """
    similarities = fense_values(row_similarities(hypotheses, references), error_probabilities)
    discriminabilities = np.empty_like(similarities)
    # In blocks of rows: the N x N similarities of 20,000 rows would take 1.6 GB, and the comparison more.
    for start in range(0, len(similarities), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        to_all = fense_values((hypotheses[block] @ references.T).T, error_probabilities[block])
        num_confused = (to_all >= similarities[block] - np.float32(DELTA / 2)).sum(axis=0)
        discriminabilities[block] = 1 - num_confused / len(similarities)
    values: Array = 2 * similarities * discriminabilities / (similarities + discriminabilities + np.float32(1e-8))
    return values


def row_similarities(hypotheses: Array, references: Array) -> Array:
    """Return the cosine of each row's two embeddings of unit length, `[N]` from `[N, D]` and `[N, D]`."""
    # Rounding can take the cosine of equal embeddings above 1.
    similarities: Array = np.einsum("nd,nd->n", hypotheses, references).clip(-1, 1)
    return similarities
