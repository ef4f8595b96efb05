"""Error rates compared with a textbook edit distance and with jiwer, and what follows from their definitions."""

from __future__ import annotations

import doctest
from collections.abc import Sequence

import pytest

from tests.metrics.factory import SEEDS, random_sentences
from xares_bench.metrics import evaluate, score, transcription
from xares_bench.metrics.parts import normalise


def levenshtein(source: Sequence[str], target: Sequence[str]) -> int:
    """The textbook algorithm, with the whole table."""
    table = [[row + column for column in range(len(target) + 1)] for row in range(len(source) + 1)]
    for row in range(1, len(source) + 1):
        for column in range(1, len(target) + 1):
            table[row][column] = min(
                table[row - 1][column] + 1,
                table[row][column - 1] + 1,
                table[row - 1][column - 1] + (source[row - 1] != target[column - 1]),
            )
    return table[-1][-1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["iWER", "iCER"])
def test_error_rates_equal_a_textbook_edit_distance_and_jiwers_corpus_score(name: str, seed: int) -> None:
    import jiwer

    references, hypotheses = random_sentences(seed)
    units = str.split if name == "iWER" else list
    rows = [
        (levenshtein(units(normalise(reference)), units(normalise(hypothesis))), len(units(normalise(reference))))
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    result = evaluate(name, references, hypotheses)
    assert 0 < result.score < 1
    assert result.score == pytest.approx(1 - sum(edits for edits, _ in rows) / sum(length for _, length in rows))
    assert result.row_values == pytest.approx([max(0, 1 - edits / length) for edits, length in rows])
    error_rate = jiwer.wer if name == "iWER" else jiwer.cer
    assert result.score == pytest.approx(
        1 - error_rate([normalise(text) for text in references], [normalise(text) for text in hypotheses])
    )


def test_one_long_hallucination_makes_iwer_zero() -> None:
    result = evaluate("iWER", ["good morning"] * 10, ["good morning"] * 9 + ["the " * 21])
    assert result.score == 0.0
    assert result.row_values == (1.0,) * 9 + (0.0,)


def test_icer_counts_inner_spaces() -> None:
    assert score("iCER", ["今天天气"], ["今天 天气"]) == 0.75
    assert score("iCER", ["今天 天气"], ["今天天气"]) == 0.8


@pytest.mark.parametrize("name", ["iWER", "iCER"])
def test_insertions_into_an_empty_reference_count(name: str) -> None:
    result = evaluate(name, ["", "!", "a b c d"], ["x", "", "a b c d"])
    assert result.score == pytest.approx(1 - 1 / len("abcd" if name == "iWER" else "a b c d"))
    assert result.row_values == (0.0, 1.0, 1.0)


@pytest.mark.versions
def test_examples_in_docstrings() -> None:
    outcome = doctest.testmod(transcription)
    assert outcome.attempted > 0
    assert outcome.failed == 0
