"""Metrics: reference strings and hypothesis strings in, one score between 0 and 1 out.

A row is one (clip, target) pair; `references[i]` and `hypotheses[i]` belong to row `i`. Every metric is a pure function
that normalises its strings first, and does not depend on the order of the rows. `METRICS` knows them by the names that
the catalogue and users' YAML files use; one more entry there is all that another metric needs. FENSE and DATE are
judged by models, which `captions` loads when they are first asked for; the others need nothing but the strings.

Example:
    >>> score("iWER", ["The cat sat."], ["the cat sits"])
    0.6666666666666667
"""

from __future__ import annotations

import math
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xares_bench.core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from jiwer import CharacterOutput, WordOutput
    from numpy.typing import NDArray

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    """What a metric says about a dataset's rows.

    Attributes:
        score: Between 0 and 1, higher is better; FENSE and DATE of hopeless hypotheses can be a little below 0.
        row_values: One per row, in the rows' order; None where the metric says nothing about a row by itself. Their
            mean is the score for Accuracy, FENSE and DATE: the other metrics sum over the corpus before they divide.
        row_parts: What the metric sums over the rows before it divides, `[N, P]`; see `scores.clip_sums`.
    """

    score: float
    row_values: tuple[float | None, ...]
    row_parts: NDArray[np.float64] = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Argument:
    """A whole number that a metric must be told besides the strings.

    Attributes:
        minimum: Smallest value that makes sense.
    """

    minimum: int


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric as the catalogue names it.

    Attributes:
        name: Its name in the catalogue, in YAML files and in results.
        function: `(references, hypotheses, **arguments) -> MetricResult`.
        arguments: The arguments it requires, by name; it takes no others.
        judged: Whether it needs the models of `captions`.
    """

    name: str
    function: Callable[..., MetricResult]
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    judged: bool = False


def score(name: str, references: Sequence[str], hypotheses: Sequence[str], **arguments: int) -> float:
    """Return the score of one dataset, between 0 and 1; see `MetricResult`.

    Args:
        name: A key of `METRICS`.
        references: One target string per row.
        hypotheses: One generated string per row.
        arguments: What the metric requires, such as `num_classes` of mAP.

    Raises:
        UsageError: The metric is unknown, its arguments are wrong, the references cannot be scored with it, or a model
            that it needs is absent.
        ValueError: There are no rows, or the two sequences differ in length.

    Example:
        >>> score("Accuracy", ["dog", "cat"], ["Dog!", "cow"])
        0.5
    """
    return evaluate(name, references, hypotheses, **arguments).score


def evaluate(name: str, references: Sequence[str], hypotheses: Sequence[str], **arguments: int) -> MetricResult:
    """Return score and row values of one dataset; arguments and errors are those of `score`.

    Example:
        >>> evaluate("mAP", ["dog; cat", "cow"], ["cat; dog", "cow"], num_classes=4)
        MetricResult(score=0.75, row_values=(None, None))
    """
    check_metric(name, arguments)
    return METRICS[name].function(references, hypotheses, **arguments)


def check_metric(name: str, arguments: Mapping[str, object]) -> None:
    """Raise UsageError unless `METRICS[name]` exists and takes exactly these arguments.

    Example:
        >>> check_metric("mAP", {"num_classes": 50})
        >>> check_metric("mAP", {})  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        UsageError: metric 'mAP' requires the argument 'num_classes', a whole number of at least 1
    """
    if name not in METRICS:
        raise UsageError(f"unknown metric {name!r}; known are {', '.join(sorted(METRICS))}")
    metric = METRICS[name]
    for key in arguments:
        if key not in metric.arguments:
            accepted = f"the argument {', '.join(metric.arguments)}" if metric.arguments else "no arguments"
            raise UsageError(f"metric {name!r} does not take the argument {key!r}; it takes {accepted}")
    for key, argument in metric.arguments.items():
        wanted = f"a whole number of at least {argument.minimum}"
        if key not in arguments:
            raise UsageError(f"metric {name!r} requires the argument {key!r}, {wanted}")
        value = arguments[key]
        # bool is an int to Python, but `num_classes: yes` is a mistake.
        if not isinstance(value, int) or isinstance(value, bool) or value < argument.minimum:
            raise UsageError(f"argument {key!r} of metric {name!r} is {value!r}; expected {wanted}")


def check_available(name: str) -> None:
    """Have all that a metric needs at hand, models fetched and loaded, so that no score fails after hours of training.

    Raises:
        UsageError: A model is absent and cannot be fetched, or cannot be used.
    """
    if METRICS[name].judged:
        from xares_bench.metrics.captions import judges

        judges.check_available()


def metric_identity(name: str) -> dict[str, str]:
    """Names and SHA-256 of the model files that a metric judges with; empty for a metric of strings alone.

    Raises:
        UsageError: A model is absent.

    Example:
        >>> metric_identity("chrF")
        {}
    """
    if not METRICS[name].judged:
        return {}
    from xares_bench.metrics.captions.files import identity

    return identity()


def normalise(text: str, *, keep_punctuation: bool = False) -> str:
    r"""Return the text as metrics compare it.

    In this order: Unicode NFKC (full-width forms become plain ones), lower case, every "-" a space, ASCII punctuation
    removed, white space folded to single spaces and stripped. Punctuation beyond ASCII that NFKC does not map to ASCII
    stays, such as the Chinese full stop.

    Args:
        text: Any string.
        keep_punctuation: Leave out the fourth step, as mAP does, whose labels are separated by ";".

    Example:
        >>> normalise("  Well-known,\tit's \uff11\uff12!")
        'well known its 12'
    """
    folded = unicodedata.normalize("NFKC", text).lower().replace("-", " ")
    if not keep_punctuation:
        folded = folded.translate(_WITHOUT_PUNCTUATION)
    return " ".join(folded.split())


def accuracy(references: Sequence[str], hypotheses: Sequence[str]) -> MetricResult:
    """Return the share of rows whose normalised strings are equal.

    The normalisation takes signs and punctuation away, so "-1" and "1" count as equal, and so do "3.5" and "35"; a
    label of punctuation alone equals an empty hypothesis. Chance is one in the number of labels only if all labels are
    equally frequent. Row values are 1.0 and 0.0.

    Raises:
        ValueError: There are no rows, or the two sequences differ in length.

    Example:
        >>> accuracy(["speech", "-1"], ["Speech.", "1"])
        MetricResult(score=1.0, row_values=(1.0, 1.0))
    """
    _check_rows(references, hypotheses)
    pairs = zip(references, hypotheses, strict=True)
    row_values = tuple(float(normalise(reference) == normalise(hypothesis)) for reference, hypothesis in pairs)
    return _mean_of_rows(row_values)


def mean_average_precision(references: Sequence[str], hypotheses: Sequence[str], *, num_classes: int) -> MetricResult:
    """Return the mean over `num_classes` columns of the average precision of ";"-separated label sets.

    Both strings are normalised with their punctuation kept and split at ";", labels are stripped, and each label that
    occurs in a reference is a column of zeros and ones over the rows. Up to `num_classes`, columns without a label are
    added and count 0; a hypothesis's label that no reference has is dropped. With predictions of 0 and 1 the
    precision-recall curve has two points, "the predicted rows" and "all rows", so that the step-wise
    `AP = sum_k (R_k - R_{k-1}) P_k` (scikit-learn user guide, "Precision, recall and F-measures") is
    `R * P + (1 - R) * prevalence`.

    It follows that naming every label in every row, naming none at all, and naming only wrong ones all score the same:
    the mean prevalence of the labels, times the share of columns that have a label. A label named more often in wrong
    rows than in right ones can score less than that. There are no row values: one row has no average
    precision.

    Raises:
        UsageError: The references hold more labels than `num_classes`, or none at all.
        ValueError: There are no rows, the two sequences differ in length, or `num_classes` is less than 1.

    Example:
        >>> mean_average_precision(["dog; cat", "cat"], ["cat", "cat"], num_classes=2).score  # cat 1.0, dog 0.5
        0.75
    """
    _check_rows(references, hypotheses)
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; expected at least 1")
    import numpy as np

    num_positive: Counter[str] = Counter()
    num_predicted: Counter[str] = Counter()
    num_hits: Counter[str] = Counter()
    rows = [
        (_labels(reference), _labels(hypothesis)) for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    for positive, predicted in rows:
        num_positive.update(positive)
        num_predicted.update(predicted)
        num_hits.update(positive & predicted)
    if not num_positive:
        raise UsageError(f"none of the {len(references)} references holds a label; mAP is not defined. Check the key.")
    if len(num_positive) > num_classes:
        raise UsageError(
            f"the references hold {len(num_positive)} different labels, more than num_classes={num_classes}; "
            f"set num_classes to at least {len(num_positive)}, or check that ';' separates the labels"
        )
    average_precisions = []
    for label, positives in num_positive.items():
        recall = num_hits[label] / positives
        precision = num_hits[label] / max(1, num_predicted[label])
        average_precisions.append(recall * precision + (1 - recall) * positives / len(references))
    columns = {label: column for column, label in enumerate(sorted(num_positive))}
    parts_N3L = np.zeros((len(rows), 3, len(columns)))
    for row, (positive, predicted) in enumerate(rows):
        for part, labels in enumerate((positive, predicted, positive & predicted)):
            parts_N3L[row, part, [columns[label] for label in labels if label in columns]] = 1
    # fsum is exact, so the score does not depend on the order in which labels were first seen.
    return MetricResult(
        score=math.fsum(average_precisions) / num_classes,
        row_values=(None,) * len(references),
        row_parts=np.concatenate([np.ones((len(rows), 1)), parts_N3L.reshape(len(rows), -1)], axis=1),
    )


def inverse_word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> MetricResult:
    """Return `max(0, 1 - WER)`, with WER the corpus's word edits over the corpus's reference words.

    Edits are the substitutions, deletions and insertions of a shortest alignment of the normalised strings, as jiwer
    counts them, summed over all rows before dividing. Insertions are unbounded and the result is clipped, so one long
    hallucination among nine perfect transcripts can bring the score to 0. A row's value is its own `max(0, 1 - WER)`,
    clipped row by row. A row whose normalised reference is empty adds its insertions to the corpus; its own value is
    1.0 if the hypothesis is empty too, else 0.0.

    Raises:
        UsageError: No reference holds a word.
        ValueError: There are no rows, or the two sequences differ in length.

    Example:
        >>> inverse_word_error_rate(["one two", "three"], ["one", "three"])
        MetricResult(score=0.6666666666666667, row_values=(0.5, 1.0))
        >>> inverse_word_error_rate(["yes"] * 10, ["yes"] * 9 + ["no " * 10]).score
        0.0
    """
    _check_rows(references, hypotheses)
    from jiwer import process_words

    return _inverse_error_rate(process_words(_normalised(references), _normalised(hypotheses)), unit="word")


def inverse_character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> MetricResult:
    """Return `max(0, 1 - CER)`: as the inverse word error rate, over characters (Unicode code points).

    The single spaces that normalisation leaves inside a string count as characters, as they do in jiwer: a Chinese
    transcript with a space more than its reference has one insertion. Empty references are treated as there.

    Raises:
        UsageError: No reference holds a character.
        ValueError: There are no rows, or the two sequences differ in length.

    Example:
        >>> inverse_character_error_rate(["今天天气", "好"], ["今天 天气", "号"])
        MetricResult(score=0.6, row_values=(0.75, 0.0))
    """
    _check_rows(references, hypotheses)
    from jiwer import process_characters

    return _inverse_error_rate(process_characters(_normalised(references), _normalised(hypotheses)), unit="character")


def chrf(references: Sequence[str], hypotheses: Sequence[str]) -> MetricResult:
    """Return the corpus's character n-gram F-score, chrF2, as a share of 1 instead of 100.

    The F-score, recall weighted twice, of the precision and recall of character n-grams, each averaged over the
    orders 1 to 6, white space left out, counts summed over the rows first (Popović 2015, "chrF: character n-gram
    F-score for automatic MT evaluation"). Computed by sacrebleu on the normalised strings; its signature is
    `nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0`. A row's value is its own chrF; it is None for a row
    whose normalised reference is empty, which has no n-grams and does not enter the corpus either.

    Raises:
        UsageError: All normalised references are empty.
        ValueError: There are no rows, or the two sequences differ in length.

    Example:
        >>> result = chrf(["a dog barks", "rain"], ["A dog barks.", "drain"])
        >>> round(result.score, 3), result.row_values[0]
        (0.987, 1.0)
    """
    _check_rows(references, hypotheses)
    from sacrebleu.metrics.chrf import CHRF

    targets, outputs = _normalised(references), _normalised(hypotheses)
    if not any(targets):
        raise UsageError(
            f"none of the {len(targets)} references holds a character; chrF is not defined. Check the key."
        )
    import numpy as np

    metric = CHRF()
    row_values = tuple(
        metric.sentence_score(output, [target]).score / 100 if target else None
        for target, output in zip(targets, outputs, strict=True)
    )
    return MetricResult(
        score=metric.corpus_score(outputs, [targets]).score / 100,
        row_values=row_values,
        row_parts=np.array(metric._extract_corpus_statistics(outputs, [targets]), dtype=np.float64),
    )


def fense(references: Sequence[str], hypotheses: Sequence[str]) -> MetricResult:
    """Return the mean over the rows of the likeness in meaning, a tenth of it for hypotheses that are not fluent.

    Likeness is the cosine of the normalised strings' embeddings by `paraphrase-TinyBERT-L6-v2`; not fluent is what
    `echecker_clotho_audiocaps_base` gives more than 0.9 for. It is the figure of mecat 1.1.0 with one reference per
    row, which that package rounds to four digits. A row's value does not depend on the other rows. It can be negative,
    as a cosine can. An empty hypothesis is compared like any other.

    Raises:
        UsageError: All normalised references are empty, or a model is absent.
        ValueError: There are no rows, or the two sequences differ in length.
    """
    targets, outputs = _captions(references, hypotheses, "FENSE")
    from xares_bench.metrics.captions import judges

    return _mean_of_rows(judges.fense_row_values(targets, outputs))


def date(references: Sequence[str], hypotheses: Sequence[str]) -> MetricResult:
    """Return the mean over the rows of the harmonic mean of likeness and of telling the rows' references apart.

    Likeness is as in FENSE, but over embeddings in which a text's rarer words count more. Telling apart is the share of
    all references that are clearly less like the hypothesis than its own (`captions.formulas.date_values`). It is the
    figure of mecat 1.1.0 for the subtask "long" with one reference per row, which that package rounds to four digits.

    Both parts depend on the whole set of rows: a row's value holds within its set only, and a score over some of a
    dataset's rows is not comparable with the score over all. The definition clips nothing: a row whose likeness is
    negative can have a large value of either sign, where the two parts nearly cancel in the denominator.

    Raises:
        UsageError: All normalised references are empty, or a model is absent.
        ValueError: There are no rows, or the two sequences differ in length.
    """
    targets, outputs = _captions(references, hypotheses, "DATE")
    from xares_bench.metrics.captions import judges

    return _mean_of_rows(judges.date_row_values(targets, outputs))


def _inverse_error_rate(measured: WordOutput | CharacterOutput, *, unit: str) -> MetricResult:
    lengths = [len(reference) for reference in measured.references]
    edits = [
        sum(
            # Of a substitution's two spans, which are equally long, and an insertion's or deletion's only one.
            max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            for chunk in chunks
            if chunk.type != "equal"
        )
        for chunks in measured.alignments
    ]
    if sum(lengths) == 0:
        raise UsageError(
            f"none of the {len(lengths)} references holds a {unit}; an error rate is not defined. Check the key."
        )
    import numpy as np

    return MetricResult(
        score=max(0.0, 1 - sum(edits) / sum(lengths)),
        row_values=tuple(
            max(0.0, 1 - edit / length) if length else float(edit == 0)
            for edit, length in zip(edits, lengths, strict=True)
        ),
        row_parts=np.array([edits, lengths], dtype=np.float64).T,
    )


def _labels(text: str) -> set[str]:
    labels = (label.strip() for label in normalise(text, keep_punctuation=True).split(";"))
    return {label for label in labels if label}


def _normalised(texts: Sequence[str]) -> list[str]:
    return [normalise(text) for text in texts]


def _captions(references: Sequence[str], hypotheses: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """Normalised references and hypotheses, for the judges."""
    _check_rows(references, hypotheses)
    targets = _normalised(references)
    if not any(targets):
        raise UsageError(
            f"none of the {len(targets)} references holds a character; {name} is not defined. Check the key."
        )
    return targets, _normalised(hypotheses)


def _mean_of_rows(row_values: Sequence[float]) -> MetricResult:
    import numpy as np

    return MetricResult(
        score=math.fsum(row_values) / len(row_values),
        row_values=tuple(row_values),
        row_parts=np.array([row_values, [1.0] * len(row_values)]).T,
    )


def _check_rows(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    # A string is itself a sequence of strings and would be scored letter by letter.
    if isinstance(references, str) or isinstance(hypotheses, str):
        raise TypeError("references and hypotheses are sequences of strings, one per row, not a string")
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses; expected one each per row")
    if not references:
        raise ValueError("no rows to score")


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="Accuracy", function=accuracy),
        Metric(name="mAP", function=mean_average_precision, arguments={"num_classes": Argument(minimum=1)}),
        Metric(name="iWER", function=inverse_word_error_rate),
        Metric(name="iCER", function=inverse_character_error_rate),
        Metric(name="chrF", function=chrf),
        Metric(name="FENSE", function=fense, judged=True),
        Metric(name="DATE", function=date, judged=True),
    )
}
