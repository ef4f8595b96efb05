"""Metrics against independent implementations, by properties, and on the texts that break naive ones."""

from __future__ import annotations

import doctest
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.metrics.captions.factory import random_captions, write_judges
from xares_bench.core.errors import UsageError
from xares_bench.metrics import registry as metrics
from xares_bench.metrics.captions.files import FOLDER_VARIABLE
from xares_bench.metrics.registry import (
    METRICS,
    check_available,
    check_metric,
    evaluate,
    metric_identity,
    normalise,
    score,
)

# Of strings alone; the others are judged by models.
MEASURED = sorted(name for name, metric in METRICS.items() if not metric.judged)
JUDGED = sorted(name for name, metric in METRICS.items() if metric.judged)
ARGUMENTS: dict[str, dict[str, int]] = {name: {"num_classes": 40} if name == "mAP" else {} for name in MEASURED}
LABELS = [f"label {index}" for index in range(12)]
WORDS = [
    "one",
    "two",
    "three",
    "rain",
    "a",
    "dog's",
    "ПЯТЬ",
    "naïve",
    "well-known",
    "今天",
    "天气",
    "مرحبا",
    "\uff11\uff12",
]
SEEDS = range(8)


def random_sentences(seed: int, num_rows: int = 25, *, shortest: int = 1) -> tuple[list[str], list[str]]:
    """References and hypotheses that share most of their words, so that scores lie inside 0 and 1."""
    rng = random.Random(seed)
    references, hypotheses = [], []
    for _ in range(num_rows):
        words = [rng.choice(WORDS) for _ in range(rng.randint(shortest, 8))]
        heard = [rng.choice(WORDS) if rng.random() < 0.2 else word for word in words if rng.random() > 0.1]
        references.append(" ".join(words))
        hypotheses.append(" ".join(heard))
    return references, hypotheses


def random_label_sets(seed: int, num_rows: int = 30) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    references = [";".join(rng.sample(LABELS, rng.randint(0, 4))) for _ in range(num_rows)]
    hypotheses = []
    for reference in references:
        kept = [label for label in reference.split(";") if rng.random() < 0.6]
        hypotheses.append(" ; ".join(kept + rng.sample([*LABELS, "unheard of"], rng.randint(0, 3))))
    return references, hypotheses


def random_rows(name: str, seed: int) -> tuple[list[str], list[str]]:
    return random_label_sets(seed) if name == "mAP" else random_sentences(seed)


def levenshtein(source: Sequence[str], target: Sequence[str]) -> int:
    """The textbook table, whole."""
    table = [[row + column for column in range(len(target) + 1)] for row in range(len(source) + 1)]
    for row in range(1, len(source) + 1):
        for column in range(1, len(target) + 1):
            table[row][column] = min(
                table[row - 1][column] + 1,
                table[row][column - 1] + 1,
                table[row - 1][column - 1] + (source[row - 1] != target[column - 1]),
            )
    return table[-1][-1]


def reference_mean_average_precision(references: list[str], hypotheses: list[str], num_classes: int) -> float:
    """By scikit-learn, from a matrix over all columns."""
    from sklearn.metrics import average_precision_score

    target_sets = [{label.strip() for label in text.split(";")} - {""} for text in references]
    output_sets = [{label.strip() for label in text.split(";")} for text in hypotheses]
    labels = sorted(set().union(*target_sets))
    total = 0.0
    for label in labels:
        targets = np.array([label in labels_of_row for labels_of_row in target_sets], dtype=int)
        outputs = np.array([label in labels_of_row for labels_of_row in output_sets], dtype=float)
        total += average_precision_score(targets, outputs)
    return total / num_classes


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


# --- normalisation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", "hello world"),
        ("  a\t\nb\u00a0\u3000c ", "a b c"),
        ("well-known", "well known"),
        ("\uff37\uff45\uff4c\uff4c\uff0d\uff11\uff12", "well 12"),  # full-width "Well-12"
        ("don't", "dont"),
        ("snake_case", "snakecase"),
        ("ÉCOLE e\u0301cole", "école école"),
        ("ﬁne", "fine"),
        ("你好\uff0c世界\uff01", "你好世界"),  # full-width comma and exclamation mark become ASCII and go
        ("你好\u3002", "你好\u3002"),  # the ideographic full stop has no ASCII form and stays
        ("مرحبا، بالعالم!", "مرحبا، بالعالم"),  # the Arabic comma is not ASCII either
        ("\u2013", "\u2013"),  # an en dash is not "-"
        ("-1", "1"),
        ("!?.", ""),
        ("", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_normalise_keeps_punctuation_for_label_sets() -> None:
    assert normalise("Hi-Hat; Dog's\uff1bCAT", keep_punctuation=True) == "hi hat; dog's;cat"


@pytest.mark.parametrize("name", ["Accuracy", "iWER", "iCER", "chrF"])
def test_both_sides_are_normalised(name: str) -> None:
    assert score(name, ["\uff37ell-known, IT'S!"], ["  well known its "]) == 1.0
    assert score(name, ["well known its"], ["WELL-known;  it's"]) == 1.0


# --- independent implementations


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


@pytest.mark.parametrize("seed", SEEDS)
def test_map_equals_scikit_learn(seed: int) -> None:
    references, hypotheses = random_label_sets(seed)
    for num_classes in (12, 200):
        expected = reference_mean_average_precision(references, hypotheses, num_classes)
        assert 0 < expected < 1
        assert score("mAP", references, hypotheses, num_classes=num_classes) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["iWER", "iCER"])
def test_error_rates_equal_a_textbook_levenshtein_and_jiwers_corpus_figure(name: str, seed: int) -> None:
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


def test_chrf_docstring_states_the_signature_that_sacrebleu_reports() -> None:
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    metric.corpus_score(["a"], [["a"]])
    without_version = str(metric.get_signature()).partition("|version:")[0]
    assert without_version in (metrics.chrf.__doc__ or "")


# --- properties


@pytest.mark.parametrize("name", MEASURED)
def test_order_of_rows_does_not_matter(name: str) -> None:
    for seed in SEEDS:
        references, hypotheses = random_rows(name, seed)
        order = list(range(len(references)))
        random.Random(seed).shuffle(order)
        straight = evaluate(name, references, hypotheses, **ARGUMENTS[name])
        shuffled = evaluate(
            name, [references[row] for row in order], [hypotheses[row] for row in order], **ARGUMENTS[name]
        )
        assert shuffled.score == straight.score  # to the last bit
        assert shuffled.row_values == tuple(straight.row_values[row] for row in order)


@pytest.mark.parametrize("name", MEASURED)
def test_every_row_twice_scores_the_same(name: str) -> None:
    references, hypotheses = random_rows(name, seed=1)
    once = score(name, references, hypotheses, **ARGUMENTS[name])
    assert score(name, references * 2, hypotheses * 2, **ARGUMENTS[name]) == pytest.approx(once)


@pytest.mark.parametrize("name", MEASURED)
def test_perfect_is_one_and_hopeless_is_the_floor(name: str) -> None:
    references = ["dog", "cat", "今天", "مرحبا"]
    arguments = {"num_classes": 4} if name == "mAP" else {}
    assert score(name, references, references, **arguments) == 1.0
    assert score(name, references, ["xxx"] * 4, **arguments) == (0.25 if name == "mAP" else 0.0)


@pytest.mark.parametrize("name", MEASURED)
def test_result_is_plain_floats_within_zero_and_one(name: str) -> None:
    for seed in SEEDS:
        references, hypotheses = random_rows(name, seed)
        hypotheses[0] = "la " * 300
        hypotheses[1] = ""
        result = evaluate(name, references, hypotheses, **ARGUMENTS[name])
        assert score(name, references, hypotheses, **ARGUMENTS[name]) == result.score
        assert type(result.score) is float
        assert 0 <= result.score <= 1
        assert len(result.row_values) == len(references)
        for value in result.row_values:
            # Only a row of label sets has no value of its own.
            assert value is None if name == "mAP" else type(value) is float and 0 <= value <= 1


# --- what follows from the definitions


def test_accuracy_takes_minus_one_for_one() -> None:
    assert score("Accuracy", ["-1", "3.5"], ["1", "35"]) == 1.0


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


def test_chrf_leaves_rows_with_an_empty_reference_out() -> None:
    result = evaluate("chrF", ["...", "a dog"], ["a cat", "a dog"])
    assert (result.score, result.row_values) == (1.0, (None, 1.0))


def test_every_label_no_label_and_wrong_labels_all_score_the_mean_prevalence() -> None:
    references = ["a; b", "a", "a", "c"]
    prevalence = (3 / 4 + 1 / 4 + 1 / 4) / 3
    for hypothesis in ("a; b; c", "", "unheard of"):
        assert score("mAP", references, [hypothesis] * 4, num_classes=3) == pytest.approx(prevalence)
    only_wrong = ["c", "b", "c; b", "a; b"]
    assert score("mAP", references, only_wrong, num_classes=3) == pytest.approx(prevalence)


def test_map_can_fall_below_the_mean_prevalence() -> None:
    references = ["a"] * 8 + ["b"] * 2
    hypotheses = ["a"] + [""] * 7 + ["a"] * 2
    assert score("mAP", references, hypotheses, num_classes=2) < 0.5
    expected = reference_mean_average_precision(references, hypotheses, 2)
    assert score("mAP", references, hypotheses, num_classes=2) == pytest.approx(expected)


def test_map_fills_missing_columns_with_zero_and_drops_labels_that_no_reference_has() -> None:
    assert score("mAP", ["a", "b"], ["a; z; y", "b; z"], num_classes=2) == 1.0
    assert score("mAP", ["a", "b"], ["a", "b"], num_classes=8) == 0.25


def test_map_splits_and_strips_and_takes_a_label_once() -> None:
    assert score("mAP", ["Hi-Hat ;Dog", "cat"], ["dog;;  hi hat;dog;", ";CAT"], num_classes=3) == 1.0
    # Punctuation inside a label counts, unlike in all other metrics.
    assert score("mAP", ["dog's", "cat"], ["dogs", "cat"], num_classes=2) == 0.75


# --- metrics that are judged by models (the models are tested in test_captions.py)


@pytest.fixture(scope="module")
def judges_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judges(tmp_path_factory.mktemp("judges"))


@pytest.fixture
def judged(judges_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny judges stand in for the published ones."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(judges_folder))


def test_the_judged_metrics_are_the_captions_ones() -> None:
    assert JUDGED == ["DATE", "FENSE"]


@pytest.mark.usefixtures("judged")
@pytest.mark.parametrize("name", JUDGED)
def test_a_judged_score_is_the_mean_of_its_rows(name: str) -> None:
    references, hypotheses = random_captions(0, 40)
    result = evaluate(name, references, hypotheses)
    assert len(set(result.row_values)) > 20
    assert all(type(value) is float for value in result.row_values)
    assert result.score == pytest.approx(np.mean([value for value in result.row_values if value is not None]))
    assert type(result.score) is float


@pytest.mark.usefixtures("judged")
@pytest.mark.parametrize("name", JUDGED)
def test_a_judged_score_does_not_depend_on_the_order_of_rows(name: str) -> None:
    references, hypotheses = random_captions(1, 40)
    order = random.Random(1).sample(range(40), 40)
    straight = evaluate(name, references, hypotheses)
    shuffled = evaluate(name, [references[row] for row in order], [hypotheses[row] for row in order])
    assert shuffled.score == straight.score  # to the last bit
    assert shuffled.row_values == tuple(straight.row_values[row] for row in order)


@pytest.mark.usefixtures("judged")
@pytest.mark.parametrize("name", JUDGED)
def test_judges_see_normalised_strings(name: str) -> None:
    references, hypotheses = random_captions(2, 20)
    untidy = [f" {text.upper()}! " for text in hypotheses]
    assert evaluate(name, references, untidy) == evaluate(name, [f"{text}." for text in references], hypotheses)


@pytest.mark.usefixtures("judged")
def test_judges_prefer_the_reference_to_something_else() -> None:
    references = random_captions(3, 30)[0]
    others = references[1:] + references[:1]
    assert score("FENSE", references, references) > score("FENSE", references, others)
    assert score("DATE", references, references) > 2 * score("DATE", references, others)


@pytest.mark.usefixtures("judged")
def test_a_row_of_fense_stands_for_itself_and_one_of_date_does_not() -> None:
    references, hypotheses = random_captions(4, 60)
    values = {name: evaluate(name, references, hypotheses).row_values[:30] for name in JUDGED}
    of_half = {name: evaluate(name, references[:30], hypotheses[:30]).row_values for name in JUDGED}
    assert of_half["FENSE"] == pytest.approx(values["FENSE"], abs=1e-5)
    assert of_half["DATE"] != pytest.approx(values["DATE"], abs=1e-3)


@pytest.mark.usefixtures("judged")
@pytest.mark.parametrize("name", JUDGED)
def test_an_empty_hypothesis_is_judged_like_any_other(name: str) -> None:
    for hypotheses in (["", "a dog barks"], ["!", ""]):
        result = evaluate(name, ["a dog", "rain"], hypotheses)
        assert all(value is not None and np.isfinite(value) for value in result.row_values)


@pytest.mark.usefixtures("judged")
@pytest.mark.parametrize("name", JUDGED)
def test_judged_metrics_say_whether_they_can_be_had_and_what_with(
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


@pytest.mark.parametrize("name", MEASURED)
def test_metrics_of_strings_alone_need_nothing(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    check_available(name)
    assert metric_identity(name) == {}


# --- what is refused


def test_more_labels_than_classes_names_both_numbers() -> None:
    with pytest.raises(UsageError, match=r"3 different labels, more than num_classes=2"):
        score("mAP", ["a;b", "c"], ["a", "c"], num_classes=2)
    assert score("mAP", ["a;b", "c"], ["a;b", "c"], num_classes=3) == 1.0


@pytest.mark.parametrize("name", ["mAP", "iWER", "iCER", "chrF", "FENSE", "DATE"])
def test_references_without_content_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="none of the 2 references holds a"):
        score(name, [" ; ", ""], ["", "x"], **ARGUMENTS.get(name, {}))


@pytest.mark.parametrize("name", sorted(METRICS))
def test_sequences_that_are_not_one_string_per_row_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no rows"):
        score(name, [], [], **ARGUMENTS.get(name, {}))
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        score(name, ["a", "b"], ["a"], **ARGUMENTS.get(name, {}))
    with pytest.raises(TypeError, match="one per row"):
        score(name, "abc", "abc", **ARGUMENTS.get(name, {}))


def test_map_itself_refuses_zero_classes() -> None:
    with pytest.raises(ValueError, match="num_classes is 0"):
        metrics.mean_average_precision(["a"], ["a"], num_classes=0)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("WER", {}, r"unknown metric 'WER'; known are Accuracy, .*chrF, iCER, iWER, mAP$"),
        ("accuracy", {}, "unknown metric 'accuracy'"),
        ("mAP", {}, "requires the argument 'num_classes'"),
        ("mAP", {"num_classes": 0}, "is 0; expected a whole number of at least 1"),
        ("mAP", {"num_classes": -3}, "is -3; expected"),
        ("mAP", {"num_classes": 2.0}, r"is 2\.0; expected"),
        ("mAP", {"num_classes": "50"}, "is '50'; expected"),
        ("mAP", {"num_classes": True}, "is True; expected"),
        ("mAP", {"num_classes": None}, "is None; expected"),
        ("mAP", {"num_classes": 3, "classes": 3}, "does not take the argument 'classes'; it takes the argument num_c"),
        ("Accuracy", {"num_classes": 3}, "does not take the argument 'num_classes'; it takes no arguments"),
    ],
)
def test_check_metric_refuses(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_metric(name, arguments)
    with pytest.raises(UsageError, match=message):
        evaluate(name, ["a"], ["a"], **arguments)  # type: ignore[arg-type]


# --- the module


def test_examples_in_docstrings() -> None:
    outcome = doctest.testmod(metrics)
    assert outcome.attempted >= 8
    assert outcome.failed == 0


def test_importing_the_module_loads_no_scoring_library() -> None:
    heavy = {"jiwer", "numpy", "sacrebleu", "torch", "transformers"}
    program = f"import sys, xares_bench.metrics.registry; print(sorted({heavy} & set(sys.modules)))"
    root = Path(metrics.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
