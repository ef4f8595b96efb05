"""What holds for every metric, how metrics are looked up, and which errors they raise."""

from __future__ import annotations

import ast
import doctest
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.metrics.captions.factory import random_captions, write_judges
from tests.metrics.factory import SEEDS, random_label_sets, random_sentences
from xares_bench.core.errors import UsageError
from xares_bench.metrics import METRICS, evaluate, registry, score
from xares_bench.metrics.captions.files import FOLDER_VARIABLE
from xares_bench.metrics.registry import check_available, check_metric, metric_identity

TEXT_METRICS = sorted(name for name, metric in METRICS.items() if not metric.needs_models)
ARGUMENTS: dict[str, dict[str, int]] = {name: {"num_classes": 40} if name == "mAP" else {} for name in METRICS}


def random_rows(name: str, seed: int) -> tuple[list[str], list[str]]:
    return random_label_sets(seed) if name == "mAP" else random_sentences(seed)


@pytest.mark.parametrize("name", ["Accuracy", "iWER", "iCER", "chrF"])
def test_references_and_predictions_are_normalised(name: str) -> None:
    assert score(name, ["\uff37ell-known, IT'S!"], ["  well known its "]) == 1.0
    assert score(name, ["well known its"], ["WELL-known;  it's"]) == 1.0


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_the_score_does_not_depend_on_the_order_of_rows(name: str) -> None:
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


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_every_row_twice_scores_the_same(name: str) -> None:
    references, hypotheses = random_rows(name, seed=1)
    once = score(name, references, hypotheses, **ARGUMENTS[name])
    assert score(name, references * 2, hypotheses * 2, **ARGUMENTS[name]) == pytest.approx(once)


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_perfect_predictions_score_one_and_useless_ones_the_minimum(name: str) -> None:
    references = ["dog", "cat", "今天", "مرحبا"]
    arguments = {"num_classes": 4} if name == "mAP" else {}
    assert score(name, references, references, **arguments) == 1.0
    assert score(name, references, ["xxx"] * 4, **arguments) == (0.25 if name == "mAP" else 0.0)


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_results_are_plain_floats_between_zero_and_one(name: str) -> None:
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
            # Only mAP has no value for a single row.
            assert value is None if name == "mAP" else type(value) is float and 0 <= value <= 1


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_metrics_without_models_are_always_available(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    check_available(name)
    assert metric_identity(name) == {}


@pytest.mark.parametrize("name", ["mAP", "iWER", "iCER", "chrF", "FENSE", "DATE"])
def test_references_without_content_are_an_error(name: str) -> None:
    with pytest.raises(UsageError, match="none of the 2 references contains a"):
        score(name, [" ; ", ""], ["", "x"], **ARGUMENTS[name])


@pytest.mark.parametrize("name", sorted(METRICS))
def test_sequences_that_are_not_one_text_per_row_are_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="no rows"):
        score(name, [], [], **ARGUMENTS[name])
    with pytest.raises(ValueError, match="2 references but 1 predictions"):
        score(name, ["a", "b"], ["a"], **ARGUMENTS[name])
    with pytest.raises(TypeError, match="one per row"):
        score(name, "abc", "abc", **ARGUMENTS[name])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("WER", {}, r"unknown metric 'WER'; known metrics: Accuracy, .*chrF, iCER, iWER, mAP"),
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
def test_unknown_metrics_and_wrong_arguments_are_an_error(
    name: str, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_metric(name, arguments)
    with pytest.raises(UsageError, match=message):
        evaluate(name, ["a"], ["a"], **arguments)  # type: ignore[arg-type]


def test_examples_in_docstrings() -> None:
    outcome = doctest.testmod(registry)
    assert outcome.attempted >= 5
    assert outcome.failed == 0


def test_importing_the_package_loads_no_scoring_library() -> None:
    heavy = {"jiwer", "numpy", "sacrebleu", "torch", "transformers"}
    program = f"import sys, xares_bench.metrics; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- one definition for each metric


@pytest.fixture
def tiny_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models stand in for the published ones of FENSE and DATE."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(write_judges(tmp_path)))


@pytest.mark.usefixtures("tiny_models")
@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_sums_over_all_rows_give_the_score(name: str) -> None:
    metric = METRICS[name]
    for seed in range(2) if metric.needs_models else SEEDS:
        references, hypotheses = random_captions(seed, 20) if metric.needs_models else random_rows(name, seed)
        result = evaluate(name, references, hypotheses, **ARGUMENTS[name])
        sums_1P = result.row_parts.sum(axis=0, keepdims=True)
        assert metric.of_sums(sums_1P, **ARGUMENTS[name]) == pytest.approx([result.score], abs=1e-12)
        twice_BP = sums_1P.repeat(2, axis=0) * [[1.0], [3.0]]
        assert metric.of_sums(twice_BP, **ARGUMENTS[name]) == pytest.approx([result.score] * 2, abs=1e-12)


def test_no_other_module_names_a_metric() -> None:
    package = REPOSITORY / "xares_bench"
    for file in package.rglob("*.py"):
        if not file.is_relative_to(package / "metrics"):
            nodes = ast.walk(ast.parse(file.read_text("utf-8")))
            constants = {node.value for node in nodes if isinstance(node, ast.Constant)}
            assert not METRICS.keys() & constants, f"{file} names a metric"


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_definition_is_complete(name: str) -> None:
    metric = METRICS[name]
    assert metric.name == name
    assert metric.description
    assert metric.task
    assert metric.hub_name == metric.hub_name.lower()
    assert metric.hub_task.startswith(("audio-", "automatic-"))
