"""Metrics of captions: chrF from character n-grams; FENSE and DATE from two models, loaded when first used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xares_bench.metrics.parts import (
    Metric,
    MetricResult,
    check_rows,
    mean_of_rows,
    mean_of_sums,
    normalise_all,
    undefined,
)

if TYPE_CHECKING:
    from xares_bench.metrics.parts import Array


def chrf(references: Sequence[str], hypotheses: Sequence[str]) -> MetricResult:
    """Return the character n-gram F-score over all rows, chrF2, from 0 to 1 instead of 0 to 100.

    The F-score, with recall weighted twice, of the precision and recall of character n-grams, each averaged over the
    orders 1 to 6, without white space, from counts summed over the rows (Popović 2015, "chrF: character n-gram
    F-score for automatic MT evaluation"). Computed by sacrebleu on the normalised texts; its signature is
    `nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0`. A row's value is its own chrF. A row whose normalised
    reference is empty has no n-grams: its value is None, and it does not count in the sums.

    Raises:
        UsageError: All normalised references are empty.
        ValueError: There are no rows, or the two sequences differ in length.

    Example:
        >>> result = chrf(["a dog barks", "rain"], ["A dog barks.", "drain"])
        >>> round(result.score, 3), result.row_values[0]
        (0.987, 1.0)
    """
    targets, outputs = _captions(references, hypotheses, "chrF")
    import numpy as np
    from sacrebleu.metrics.chrf import CHRF as SacrebleuCHRF

    metric = SacrebleuCHRF()
    row_values = tuple(
        metric.sentence_score(output, [target]).score / 100 if target else None
        for target, output in zip(targets, outputs, strict=True)
    )
    return MetricResult(
        # Not from `of_sums`: sacrebleu's score went through percent, which can change the last bit. Agrees to 1e-12.
        score=metric.corpus_score(outputs, [targets]).score / 100,
        row_values=row_values,
        row_parts=np.array(metric._extract_corpus_statistics(outputs, [targets]), dtype=np.float64),
    )


def _chrf_of_sums(sums_BP: Array) -> Array:
    """chrF2 from n-gram counts for each order 1 to 6: in the prediction, in the reference, in both.

    Precision and recall are averaged over the orders that occur on both sides (Popović 2015; sacrebleu's `eff:yes`).
    """
    import numpy as np

    num_predicted, num_reference, num_both = sums_BP.reshape(len(sums_BP), -1, 3).transpose(2, 0, 1)
    is_effective = (num_predicted > 0) & (num_reference > 0)
    num_effective = np.maximum(1, is_effective.sum(axis=1))
    precision, recall = (
        (is_effective * num_both / np.maximum(1, counts)).sum(axis=1) / num_effective
        for counts in (num_predicted, num_reference)
    )
    score = 5 * precision * recall / np.where(precision + recall > 0, 4 * precision + recall, 1)
    return np.where(num_reference.any(axis=1), score, np.nan)


CHRF = Metric(
    name="chrF",
    function=chrf,
    of_sums=_chrf_of_sums,
    description="chrF2, 0 to 1",
    task="Audio captioning",
    hub_name="chrf",
    hub_task="audio-text-to-text",
)


def fense(references: Sequence[str], hypotheses: Sequence[str]) -> MetricResult:
    """Return the mean similarity in meaning over the rows, divided by ten for predictions that are not fluent.

    Similarity is the cosine of the normalised texts' embeddings by `paraphrase-TinyBERT-L6-v2`; a prediction is not
    fluent if `echecker_clotho_audiocaps_base` gives it an error probability above 0.9. This is the score of mecat 1.1.0
    with one reference per row, which mecat rounds to four digits. A row's value does not depend on the other rows. It
    can be negative, like any cosine. An empty prediction is compared like any other.

    Raises:
        UsageError: All normalised references are empty, or a model is missing.
        ValueError: There are no rows, or the two sequences differ in length.
    """
    targets, outputs = _captions(references, hypotheses, "FENSE")
    from xares_bench.metrics.captions import judges

    return mean_of_rows(judges.fense_row_values(targets, outputs))


FENSE = Metric(
    name="FENSE",
    function=fense,
    of_sums=mean_of_sums,
    description="FENSE",
    task="Audio captioning",
    hub_name="fense",
    hub_task="audio-text-to-text",
    needs_models=True,
    lowest=-1.0,
)


def date(references: Sequence[str], hypotheses: Sequence[str]) -> MetricResult:
    """Return the mean over the rows of the harmonic mean of similarity and discrimination.

    Similarity is that of FENSE, over embeddings in which a text's rarer words count more. Discrimination is the share
    of all references that are clearly less similar to the prediction than its own (`captions.formulas.date_values`).
    This is the score of mecat 1.1.0 for the subtask "long" with one reference per row, which mecat rounds to four
    digits.

    Both parts depend on the whole set of rows: a row's value is valid within its set only, and a score over some of a
    dataset's rows cannot be compared with the score over all. The definition clips nothing: a row whose similarity is
    negative can have a large value of either sign, where the two parts nearly cancel in the denominator.

    Raises:
        UsageError: All normalised references are empty, or a model is missing.
        ValueError: There are no rows, or the two sequences differ in length.
    """
    targets, outputs = _captions(references, hypotheses, "DATE")
    from xares_bench.metrics.captions import judges

    return mean_of_rows(judges.date_row_values(targets, outputs))


DATE = Metric(
    name="DATE",
    function=date,
    of_sums=mean_of_sums,
    description="DATE",
    task="Audio captioning",
    hub_name="date",
    hub_task="audio-text-to-text",
    needs_models=True,
    lowest=-1.0,
)


def _captions(references: Sequence[str], hypotheses: Sequence[str], metric: str) -> tuple[list[str], list[str]]:
    """Normalised references and predictions, at least one reference of which is not empty."""
    check_rows(references, hypotheses)
    targets = normalise_all(references)
    if not any(targets):
        raise undefined(metric, len(targets), "character")
    return targets, normalise_all(hypotheses)
