"""chrF compared with its formula and with sacrebleu; FENSE and DATE computed with tiny models."""

from __future__ import annotations

import doctest
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.metrics.captions.factory import random_captions, write_judges
from tests.metrics.factory import SEEDS, random_sentences
from xares_bench.core.errors import UsageError
from xares_bench.metrics import METRICS, captioning, evaluate, score
from xares_bench.metrics.captions.files import FOLDER_VARIABLE
from xares_bench.metrics.parts import normalise
from xares_bench.metrics.registry import check_available, metric_identity

MODEL_METRICS = sorted(name for name, metric in METRICS.items() if metric.needs_models)


def reference_chrf(references: list[str], hypotheses: list[str]) -> float:
    """The formula of Popović 2015 over corpus counts, for references without empty rows."""
    precisions, recalls = [], []
    for order in range(1, 7):
        num_matched = num_output = num_target = 0
        for reference, hypothesis in zip(references, hypotheses, strict=True):
            grams = []
            for text in (reference, hypothesis):
                letters = text.replace(" ", "")
                grams.append(Counter(letters[start : start + order] for start in range(len(letters) - order + 1)))
            if grams[0]:
                num_output += grams[1].total()
            num_target += grams[0].total()
            num_matched += (grams[0] & grams[1]).total()
        if num_output and num_target:
            precisions.append(num_matched / num_output)
            recalls.append(num_matched / num_target)
    precision, recall = np.mean(precisions), np.mean(recalls)
    return float(5 * precision * recall / (4 * precision + recall))


@pytest.mark.parametrize("seed", SEEDS)
def test_chrf_equals_its_formula_and_sacrebleus_function(seed: int) -> None:
    import sacrebleu

    references, hypotheses = random_sentences(seed, shortest=2)
    targets, outputs = [normalise(text) for text in references], [normalise(text) for text in hypotheses]
    result = evaluate("chrF", references, hypotheses)
    assert 0 < result.score < 1
    assert result.score == pytest.approx(reference_chrf(targets, outputs))
    assert result.score == pytest.approx(sacrebleu.corpus_chrf(outputs, [targets]).score / 100)
    assert result.row_values == pytest.approx(
        [sacrebleu.sentence_chrf(output, [target]).score / 100 for target, output in zip(targets, outputs, strict=True)]
    )


@pytest.mark.versions
def test_chrf_docstring_states_the_signature_that_sacrebleu_reports() -> None:
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    metric.corpus_score(["a"], [["a"]])
    without_version = str(metric.get_signature()).partition("|version:")[0]
    assert without_version in (captioning.chrf.__doc__ or "")


def test_chrf_ignores_rows_with_an_empty_reference() -> None:
    result = evaluate("chrF", ["...", "a dog"], ["a cat", "a dog"])
    assert (result.score, result.row_values) == (1.0, (None, 1.0))


@pytest.fixture(scope="module")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judges(tmp_path_factory.mktemp("judges"))


@pytest.fixture
def tiny_models(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models stand in for the published ones."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(models_folder))


def test_date_and_fense_need_models() -> None:
    assert MODEL_METRICS == ["DATE", "FENSE"]


@pytest.mark.versions
@pytest.mark.usefixtures("tiny_models")
@pytest.mark.parametrize("name", MODEL_METRICS)
def test_their_score_is_the_mean_of_its_rows(name: str) -> None:
    references, hypotheses = random_captions(0, 40)
    result = evaluate(name, references, hypotheses)
    assert len(set(result.row_values)) > 20
    assert all(type(value) is float for value in result.row_values)
    assert result.score == pytest.approx(np.mean([value for value in result.row_values if value is not None]))
    assert type(result.score) is float


@pytest.mark.usefixtures("tiny_models")
@pytest.mark.parametrize("name", MODEL_METRICS)
def test_their_score_does_not_depend_on_the_order_of_rows(name: str) -> None:
    references, hypotheses = random_captions(1, 40)
    order = random.Random(1).sample(range(40), 40)
    straight = evaluate(name, references, hypotheses)
    shuffled = evaluate(name, [references[row] for row in order], [hypotheses[row] for row in order])
    assert shuffled.score == straight.score  # to the last bit
    assert shuffled.row_values == tuple(straight.row_values[row] for row in order)


@pytest.mark.usefixtures("tiny_models")
@pytest.mark.parametrize("name", MODEL_METRICS)
def test_their_models_see_normalised_texts(name: str) -> None:
    references, hypotheses = random_captions(2, 20)
    untidy = [f" {text.upper()}! " for text in hypotheses]
    assert evaluate(name, references, untidy) == evaluate(name, [f"{text}." for text in references], hypotheses)


@pytest.mark.usefixtures("tiny_models")
def test_the_reference_itself_scores_higher_than_another_text() -> None:
    references = random_captions(3, 30)[0]
    others = references[1:] + references[:1]
    assert score("FENSE", references, references) > score("FENSE", references, others)
    assert score("DATE", references, references) > 2 * score("DATE", references, others)


@pytest.mark.usefixtures("tiny_models")
def test_a_row_of_fense_is_independent_of_the_others_and_one_of_date_is_not() -> None:
    references, hypotheses = random_captions(4, 60)
    values = {name: evaluate(name, references, hypotheses).row_values[:30] for name in MODEL_METRICS}
    half = {name: evaluate(name, references[:30], hypotheses[:30]).row_values for name in MODEL_METRICS}
    assert half["FENSE"] == pytest.approx(values["FENSE"], abs=1e-5)
    assert half["DATE"] != pytest.approx(values["DATE"], abs=1e-3)


@pytest.mark.usefixtures("tiny_models")
@pytest.mark.parametrize("name", MODEL_METRICS)
def test_an_empty_prediction_is_scored_like_any_other(name: str) -> None:
    for hypotheses in (["", "a dog barks"], ["!", ""]):
        result = evaluate(name, ["a dog", "rain"], hypotheses)
        assert all(value is not None and np.isfinite(value) for value in result.row_values)


@pytest.mark.usefixtures("tiny_models")
@pytest.mark.parametrize("name", MODEL_METRICS)
def test_they_tell_whether_their_models_are_available_and_identify_them(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check_available(name)
    assert len(metric_identity(name)) > 5
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(UsageError, match=str(tmp_path)):
        check_available(name)
    with pytest.raises(UsageError, match=str(tmp_path)):
        metric_identity(name)
    with pytest.raises(UsageError, match=str(tmp_path)):
        evaluate(name, ["a"], ["a"])


def test_examples_in_docstrings() -> None:
    outcome = doctest.testmod(captioning)
    assert outcome.attempted > 0
    assert outcome.failed == 0
