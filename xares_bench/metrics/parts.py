"""What metrics are made of: the `Metric` and `MetricResult` dataclasses, normalisation, row checks and common sums.

A row is one (clip, target) pair; `references[i]` and `hypotheses[i]` belong to row `i`. NumPy is imported when a metric
is first computed, so that listing datasets and checking a configuration do not wait for it.

Shapes: N rows, P sums per row, B weightings of the clips.
"""

from __future__ import annotations

import math
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xares_bench.core.errors import UsageError

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.float64]

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    """A metric's result for the rows of one dataset.

    Attributes:
        score: Between 0 and 1, higher is better; FENSE and DATE of poor predictions can be slightly negative.
        row_values: One value per row, in order; None where the metric is not defined for a single row. Their mean is
            the score of Accuracy, FENSE and DATE; the other metrics sum over all rows before they divide.
        row_parts: The sums of each row, `[N, P]`. `Metric.of_sums` turns their total into the score.
    """

    score: float
    row_values: tuple[float | None, ...]
    row_parts: Array = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Argument:
    """An integer that a metric requires besides the texts.

    Attributes:
        minimum: Smallest valid value.
    """

    minimum: int


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The one definition of a metric, used by scores, confidence intervals, comparisons, reports and model cards.

    Attributes:
        name: Its name in the catalogue, in YAML files and in results.
        function: `(references, hypotheses, **arguments) -> MetricResult`.
        of_sums: `(sums_BP, **arguments) -> scores_B`: the score as a function of summed `row_parts`, for B weightings
            of the clips at once; NaN where the sums have no score. The sums over all rows give `MetricResult.score`.
        description: Readable name, for model cards.
        task: Readable name of the task it measures, for model cards.
        hub_name: The metric's identifier on the Hugging Face hub.
        hub_task: The task's identifier on the Hugging Face hub.
        arguments: The arguments it requires, by name; it accepts no others.
        needs_models: Whether it needs the models of `metrics.captions`.
        single_label: Whether a row's text is one of a few labels, so that reports can show a confusion matrix.
        lowest: The lowest score.
        counted_parts: `(sums_P) -> counts_P`: which sums count for clips with these sums; None: all of them do.
    """

    name: str
    function: Callable[..., MetricResult]
    of_sums: Callable[..., Array]
    description: str
    task: str
    hub_name: str
    hub_task: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    needs_models: bool = False
    single_label: bool = False
    lowest: float = 0.0
    counted_parts: Callable[[Array], NDArray[np.bool_]] | None = None


def normalise(text: str, *, keep_punctuation: bool = False) -> str:
    r"""Return the text in the form in which metrics compare it.

    Steps, in order: Unicode NFKC (full-width forms become ASCII), lower case, every "-" becomes a space, ASCII
    punctuation is removed, runs of white space become single spaces, leading and trailing spaces are stripped. Other
    punctuation stays if NFKC does not map it to ASCII, such as the Chinese full stop.

    Args:
        text: Any string.
        keep_punctuation: Do not remove punctuation. mAP needs this, as ";" separates its labels.

    Example:
        >>> normalise("  Well-known,\tit's \uff11\uff12!")
        'well known its 12'
    """
    folded = unicodedata.normalize("NFKC", text).lower().replace("-", " ")
    if not keep_punctuation:
        folded = folded.translate(_WITHOUT_PUNCTUATION)
    return " ".join(folded.split())


def normalise_all(texts: Sequence[str]) -> list[str]:
    """Return the normalised texts, in order."""
    return [normalise(text) for text in texts]


def check_rows(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    """Check that there is one reference and one prediction per row.

    Raises:
        TypeError: One of them is a single string.
        ValueError: There are no rows, or the two sequences differ in length.
    """
    # A string is itself a sequence of strings and would be scored letter by letter.
    if isinstance(references, str) or isinstance(hypotheses, str):
        raise TypeError("references and hypotheses must be sequences of strings, one per row; got a single string")
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} predictions; expected one each per row")
    if not references:
        raise ValueError("no rows to score")


def undefined(metric: str, num_references: int, unit: str) -> UsageError:
    """Return the error to raise where no reference contains what the metric counts, such as a "word"."""
    return UsageError(
        f"none of the {num_references} references contains a {unit}, so {metric} is undefined; check the target key"
    )


def result_of_sums(
    of_sums: Callable[..., Array], *, row_values: Sequence[float | None], row_parts: Array, **arguments: int
) -> MetricResult:
    """Return the result of a metric whose score is `of_sums` of the sums over all rows."""
    score_1 = of_sums(row_parts.sum(axis=0, keepdims=True), **arguments)
    return MetricResult(score=float(score_1[0]), row_values=tuple(row_values), row_parts=row_parts)


def mean_of_rows(row_values: Sequence[float]) -> MetricResult:
    """Return the result of a metric that is the mean of its rows; its `of_sums` is `mean_of_sums`.

    Example:
        >>> mean_of_rows([1.0, 0.0])
        MetricResult(score=0.5, row_values=(1.0, 0.0))
    """
    import numpy as np

    return MetricResult(
        # fsum is exact, so the score does not depend on the order of the rows.
        score=math.fsum(row_values) / len(row_values),
        row_values=tuple(row_values),
        row_parts=np.array([row_values, [1.0] * len(row_values)]).T,
    )


def mean_of_sums(sums_BP: Array) -> Array:
    """Return the mean of values, given their sum and their number: `[B]` from `[B, 2]`."""
    return ratio(sums_BP[:, 0], sums_BP[:, 1])


def ratio(above: Array, below: Array) -> Array:
    """Return `above / below`, element by element; NaN where `below` is 0."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)
