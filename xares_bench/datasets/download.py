"""What a run of the full preset reads, downloaded beforehand: shards, decoder, and the models that judge captions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from xares_bench.config.catalogue import Catalogue, Dataset, Split, load_catalogue
from xares_bench.core.errors import DataError, UsageError
from xares_bench.core.parsing import did_you_mean
from xares_bench.core.progress import Progress
from xares_bench.hub import DataHome, fetch_model, survey_model
from xares_bench.metrics.registry import METRICS, metric_identity

_PRESET = "full"


def download(
    names: Sequence[str],
    folder: Path,
    *,
    split: str | None,
    revisions: Mapping[str | None, str],
    decoder: str | None,
    with_models: bool,
    dry_run: bool,
    say: Callable[[str], None],
) -> None:
    """Download what the datasets need, and check that it is there; what is there already stays.

    Args:
        names: Names of tasks and datasets; `all` for all.
        folder: The folder for the shards.
        split: `train` or `eval`; None: both.
        revisions: Revision by hub repository; under None the one for all others.
        decoder: Language model to download, `NAME[@REVISION]`; None: the preset's.
        with_models: Whether decoder and judges are downloaded, too.
        dry_run: Whether only the sizes are shown.
        say: Shows a line.

    Raises:
        UsageError: A name is unknown, a repository is not used, or the folder is a file.
        XaresError: Something cannot be downloaded.
    """
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # errors are shown in one line below
    catalogue = load_catalogue(_PRESET)
    datasets = _datasets(catalogue, names)
    wanted = _wanted(datasets, split)
    for repository in revisions:
        if repository is not None and repository not in wanted:
            raise UsageError(
                f"--data-revision={repository}@{revisions[repository]}: no dataset to download is in this repository; "
                f"expected one of {', '.join(wanted)}"
            )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, expected the folder of the data; choose another --data-home")
    home = DataHome(folder, revisions, write=not dry_run)
    shards = home.survey(wanted)
    say(f"shards   {shards.summary}")
    say(f"         in {folder}")
    for repository in wanted:
        say(f"         from {repository} at commit {home.commit(repository) or 'unknown'}")
    surveys = [shards]
    name, at, revision = (decoder or catalogue.preset.decoder).partition("@")
    if with_models:
        model = survey_model(name, revision=revision if at else None, data_home=folder, write=not dry_run)
        say(f"decoder  {name}: {model.summary}")
        surveys.append(model)
    if dry_run:
        return
    for survey in surveys:
        survey.check_space()
    if with_models:
        fetch_model(name, revision=revision if at else None, data_home=folder, progress=Progress())
    home.fetch(shards, Progress())
    if with_models and split != "train":
        _fetch_judges(datasets, say)
    _check(home, wanted)
    say("all present")


def _datasets(catalogue: Catalogue, names: Sequence[str]) -> list[Dataset]:
    """Return the datasets that names of tasks and datasets stand for.

    Raises:
        UsageError: There is no such task or dataset.
    """
    chosen: dict[str, Dataset] = {}
    for name in names:
        if name != "all" and name not in catalogue.tasks and name not in catalogue.datasets:
            expected = ", ".join((*sorted(catalogue.tasks), "all", *sorted(catalogue.datasets)))
            hint = did_you_mean(name, (*catalogue.tasks, "all", *catalogue.datasets))
            raise UsageError(f"{name}: no such task or dataset; expected some of {expected}{hint}")
        found = catalogue.datasets if name == "all" else catalogue.tasks.get(name, (name,))
        chosen.update((dataset, catalogue.datasets[dataset]) for dataset in found)
    return list(chosen.values())


def _wanted(datasets: Iterable[Dataset], split: str | None) -> dict[str, list[str]]:
    """Return the paths of the datasets' shards, by repository."""
    wanted: dict[str, list[str]] = {}
    for dataset in datasets:
        assert dataset.repository is not None, dataset.name
        for part in _splits(dataset, split):
            wanted.setdefault(dataset.repository, []).extend(part.shards)
    return wanted


def _fetch_judges(datasets: Iterable[Dataset], say: Callable[[str], None]) -> None:
    """Download the models that the metrics of these datasets judge with.

    Raises:
        UsageError: One is missing and cannot be downloaded.
    """
    for metric in sorted({dataset.metric for dataset in datasets if METRICS[dataset.metric].needs_models}):
        metric_identity(metric)
        say(f"judges   of {metric}: present")


def _splits(dataset: Dataset, split: str | None) -> list[Split]:
    splits = {"train": dataset.train, "eval": dataset.eval}
    return [part for name, part in splits.items() if part is not None and split in (None, name)]


def _check(home: DataHome, wanted: dict[str, list[str]]) -> None:
    """Raise the first reason why a shard could not be downloaded, with the number of the others."""
    reasons = []
    for repository, paths in wanted.items():
        for path in paths:
            try:
                home.file(repository, path)
            except DataError as cause:
                reasons.append(str(cause))
    if reasons:
        others = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise DataError(f"{reasons[0]}{others}")
