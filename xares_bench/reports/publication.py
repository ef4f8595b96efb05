"""Publication: a finished run as files of a model's repository on the hub, and in words before it is uploaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from xares_bench.config.catalogue import UNKNOWN_LICENCE
from xares_bench.core.errors import UsageError
from xares_bench.core.text import encoded
from xares_bench.hub.upload import Upload
from xares_bench.reports.described import encoder_in_words, shown_in_line
from xares_bench.reports.eval_results import eval_results_yaml, has_entries, left_out
from xares_bench.reports.html_report import PAGE_FILE
from xares_bench.reports.results import Results
from xares_bench.reports.runs import RESULTS_FILE, Run

# A run's reports that are published under their names. What `.eval_results/` gets is made from the checked results.
_REPORTS = (PAGE_FILE, RESULTS_FILE, "scores.tsv", "scores.md", "model_card.yaml")


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What a finished run publishes.

    Attributes:
        run: The run.
        contents: The files, by their paths in the repository.
        absent: Files that the run's folder lacks.
        left_out: Scores without an entry in `.eval_results/`, and why.
    """

    run: Run
    contents: Mapping[str, bytes]
    absent: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def title(self) -> str:
        """The message of the commit."""
        return f"Results of xares-bench: {shown_in_line(self.run.manifest.name)}"


def publication_of(run: Run) -> Publication:
    """Read what a run publishes, and check it: predictions and clip sums must be those of its scores.

    Raises:
        UsageError: The run has no score, or one of its files is damaged or was changed.
    """
    if not run.records:
        raise UsageError(f"{run.folder / RESULTS_FILE} has no score to publish; run the suite again")
    results = Results(run=run.manifest, records=tuple(run.records.values()), lalms=run.lalms, origin=run.origin)
    names = list(_REPORTS)
    for dataset, record in run.records.items():
        if re.search(r"[/\\]|^\.", dataset):
            raise UsageError(f"{run.folder / RESULTS_FILE} names a dataset {dataset!r}; run the suite again")
        names += [f"clip_sums/{dataset}.npz", f"predictions/{dataset}.jsonl"]
        run.clip_sums(dataset)
        rows = run.predictions_of(dataset)
        if rows and len(rows) != record.num_rows:
            raise UsageError(
                f"{run.folder / 'predictions' / dataset}.jsonl has {len(rows)} rows, but the score of {dataset} has "
                f"{record.num_rows}; one of them was changed. Run the suite again"
            )
    contents, absent = {}, []
    try:
        if has_entries(results):
            contents[f".eval_results/xares-bench-{_safe(run.manifest.preset)}.yaml"] = encoded(
                eval_results_yaml(results)
            )
        unlisted = left_out(results)
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise UsageError(
            f"{run.folder / RESULTS_FILE} does not have the fields of a run ({cause!r}); run the suite again"
        ) from cause
    for name in names:
        path = run.folder / name
        if path.is_file():
            contents[f"xares-bench/{_safe(run.manifest.name)}/{name}"] = path.read_bytes()
        else:
            absent.append(name)
    return Publication(run=run, contents=contents, absent=tuple(absent), left_out=tuple(unlisted))


def publication_in_words(publication: Publication, upload: Upload, *, create_pr: bool) -> str:
    """Return what an upload does: where it goes, its files and sizes, what is incomplete, licences of the test data."""
    from rich.filesize import decimal

    run = publication.run
    target = "a new pull request" if create_pr else "its main branch, in one commit"
    lines = [
        f"to       {upload.repository}: {target}",
        f"run      {shown_in_line(run.manifest.name)}, encoder {encoder_in_words(run.manifest)}",
        *(f"         {line}" for line in _incompleteness(publication)),
        *(f"         not in .eval_results: {shown_in_line(line)}" for line in publication.left_out),
    ]
    for file in upload.files:
        note = ""
        if file.is_unchanged:
            note = "  (is there already)"
        elif file.present is not None:
            size = file.present.size_bytes
            note = f"  (replaces a file of {'unknown size' if size is None else decimal(size)})"
        lines.append(f"{decimal(len(file.content)):>12}  {file.path}{note}")
    num_files, total = len(upload.changed), sum(len(file.content) for file in upload.changed)
    lines.append(f"{decimal(total):>12}  to upload, in {num_files} {'file' if num_files == 1 else 'files'}")
    lines.append(
        "The page, the predictions and the clip sums contain clips, texts and names of test data. Their licences:"
    )
    lines += [f"         {licence}: {', '.join(names)}" for licence, names in _licences(run).items()]
    lines.append("The page and results.json also name the command, paths and libraries of the machine that ran it.")
    return "\n".join(lines)


def _incompleteness(publication: Publication) -> list[str]:
    run = publication.run
    missing = [name for name in run.manifest.datasets if name not in run.records]
    lines = [f"incomplete: no score of {shown_in_line(', '.join(missing))}"] if missing else []
    for overall in run.overalls.values():
        if overall.num_datasets < overall.num_expected:
            lines.append(f"incomplete: {overall.num_datasets} of {overall.num_expected} datasets of {overall.task}")
        elif overall.partial:
            lines.append(f"incomplete: --limit left clips of {overall.task} out")
    if publication.absent:
        lines.append(f"not in its folder: {', '.join(publication.absent)}")
    return lines


def _licences(run: Run) -> dict[str, list[str]]:
    """The datasets of the run's test data, by licence."""
    known = run.manifest.data.get("licences", {})
    found: dict[str, list[str]] = {}
    for dataset in run.records:
        licence = known.get(dataset, UNKNOWN_LICENCE)
        found.setdefault(shown_in_line(f"{licence}"), []).append(dataset)
    return found


def _safe(name: str) -> str:
    """A name as a part of a path that needs no quotes anywhere, and is no hidden file and no option."""
    safe = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip(".-")
    if not safe:
        raise UsageError(f"the run is called {name!r}, expected letters or digits in its name; run the suite again")
    return safe
