"""Metrics of transcripts: inverse word and character error rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xares_bench.metrics.parts import (
    Metric,
    MetricResult,
    check_rows,
    normalise_all,
    ratio,
    result_of_sums,
    undefined,
)

if TYPE_CHECKING:
    from jiwer import CharacterOutput, WordOutput

    from xares_bench.metrics.parts import Array


def inverse_word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> MetricResult:
    """Return `max(0, 1 - WER)`, where WER is the number of word edits over the number of reference words.

    Edits are the substitutions, deletions and insertions of a shortest alignment of the normalised texts, as jiwer
    counts them. Edits and words are summed over all rows before dividing. Insertions are unbounded and the result is
    clipped at 0, so one long hallucination among nine perfect transcripts can bring the score to 0. A row's value is
    its own `max(0, 1 - WER)`. If a row's normalised reference is empty, its insertions count in the sum; its own value
    is 1.0 if the prediction is empty too, else 0.0.

    Raises:
        UsageError: No reference contains a word.
        ValueError: There are no rows, or the two sequences differ in length.

    Example:
        >>> inverse_word_error_rate(["one two", "three"], ["one", "three"])
        MetricResult(score=0.6666666666666667, row_values=(0.5, 1.0))
        >>> inverse_word_error_rate(["yes"] * 10, ["yes"] * 9 + ["no " * 10]).score
        0.0
    """
    check_rows(references, hypotheses)
    from jiwer import process_words

    aligned = process_words(normalise_all(references), normalise_all(hypotheses))
    return _inverse_error_rate(aligned, metric="iWER", unit="word")


def inverse_character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> MetricResult:
    """Return `max(0, 1 - CER)`: like the inverse word error rate, over characters (Unicode code points).

    The single spaces that normalisation leaves inside a text count as characters, as in jiwer: a Chinese transcript
    with one space more than its reference has one insertion. Empty references are handled as for words.

    Raises:
        UsageError: No reference contains a character.
        ValueError: There are no rows, or the two sequences differ in length.

    Example:
        >>> inverse_character_error_rate(["今天天气", "好"], ["今天 天气", "号"])
        MetricResult(score=0.6, row_values=(0.75, 0.0))
    """
    check_rows(references, hypotheses)
    from jiwer import process_characters

    aligned = process_characters(normalise_all(references), normalise_all(hypotheses))
    return _inverse_error_rate(aligned, metric="iCER", unit="character")


def _inverse_error_rate(aligned: WordOutput | CharacterOutput, *, metric: str, unit: str) -> MetricResult:
    lengths = [len(reference) for reference in aligned.references]
    edits = [
        sum(
            # The two spans of a substitution are equally long; an insertion or deletion has only one.
            max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            for chunk in chunks
            if chunk.type != "equal"
        )
        for chunks in aligned.alignments
    ]
    if sum(lengths) == 0:
        raise undefined(metric, len(lengths), unit)
    import numpy as np

    return result_of_sums(
        _inverse_error_rate_of_sums,
        row_values=[
            max(0.0, 1 - edit / length) if length else float(edit == 0)
            for edit, length in zip(edits, lengths, strict=True)
        ],
        row_parts=np.array([edits, lengths], dtype=np.float64).T,
    )


def _inverse_error_rate_of_sums(sums_BP: Array) -> Array:
    """`max(0, 1 - edits / length)`, from sums of edits and of reference lengths: `[B]` from `[B, 2]`."""
    import numpy as np

    return np.maximum(0.0, 1 - ratio(sums_BP[:, 0], sums_BP[:, 1]))


INVERSE_WORD_ERROR_RATE = Metric(
    name="iWER",
    function=inverse_word_error_rate,
    of_sums=_inverse_error_rate_of_sums,
    description="1 - word error rate, at least 0",
    task="Speech recognition",
    hub_name="iwer",
    hub_task="automatic-speech-recognition",
)

INVERSE_CHARACTER_ERROR_RATE = Metric(
    name="iCER",
    function=inverse_character_error_rate,
    of_sums=_inverse_error_rate_of_sums,
    description="1 - character error rate, at least 0",
    task="Speech recognition",
    hub_name="icer",
    hub_task="automatic-speech-recognition",
)
