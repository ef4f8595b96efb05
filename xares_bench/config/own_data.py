"""Own data: the two kinds of YAML files that describe a user's own tar files, for training and for evaluation.

    train_data:                          eval_custom:
      CustomDataName:                      data:
        prompt: My prompt                    data:
        data:                                - PATH_TO_MY_TARS{00..10}.tar
        - PATH_TO_MY_TARS{00..10}.tar        key: DATAKEY
        key: DATAKEY                         prompt: My prompt
    num_training_workers: 4                batch_size: 4
                                           num_workers: 0
                                           metric: Accuracy

More keys, all optional: `prob`, `repo_id` and `licence` beside a training dataset's `prompt`, `max_steps` beside
`train_data`; `metric_args`, `weight` and `licence` beside an evaluation's `metric`, `repo_id` beside its `prompt`.
`prompt` and `key` may be lists.

Paths may contain braces, globs, environment variables and a `~` at the beginning; relative ones start at the current
directory. With `repo_id` they are paths inside a dataset repository on the hub. The files of a repository are not
listed, so globs are refused there.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from xares_bench.config.catalogue import (
    UNKNOWN_LICENCE,
    Catalogue,
    Dataset,
    Mix,
    Split,
    expand_braces,
    make_mix,
    read_licence,
)
from xares_bench.core.errors import CatalogueError, UsageError
from xares_bench.core.file_kinds import path_problem
from xares_bench.core.parsing import Section, local_path, read_yaml, shown
from xares_bench.metrics.registry import METRICS, check_metric

# The task of the user's own datasets.
OWN_TASK = "custom"

# A name becomes the name of a file, a row of a table and the id of a test.
_MAX_NAME_LENGTH = 80
# File systems allow 255 bytes; a file has a longer name while it is written.
_MAX_NAME_BYTES = 200
_NAME = re.compile(r"\w[\w-]*")
# As on the hub, except that an owner is required.
_REPOSITORY = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]{,94}\w)?/\w([\w.-]{,94}\w)?", re.ASCII)


def read_own_mix(path: Path, catalogue: Catalogue) -> Mix:
    """Read the mix of a `train_data` YAML. Without `prob`, all datasets are drawn equally often.

    Raises:
        CatalogueError: The file is ill-formed, or a path in it matches no file.
    """
    file = read_yaml(path, CatalogueError)
    file.only("train_data", "num_training_workers", "max_steps")
    num_workers = file.integer("num_training_workers", at_least=0) if file.has("num_training_workers") else None
    steps = catalogue.preset.steps.get("alone", catalogue.preset.steps["all"])
    if file.has("max_steps"):
        steps = file.integer("max_steps", at_least=1)
    datasets = []
    weights = []
    for name, section in file.section("train_data").sections():
        section.only("prompt", "data", "key", "prob", "repo_id", "licence")
        _check_name(section, name, catalogue)
        weights.append(section.number("prob", above=0) if section.has("prob") else None)
        datasets.append(
            Dataset(
                name=name,
                task=OWN_TASK,
                prompts=section.texts("prompt"),
                metric="",
                metric_arguments={},
                train=_read_split(section, num_workers),
                eval=None,
                repository=_read_repository(section),
                licence=_read_licence(section),
            )
        )
    if not datasets:
        file.fail("train_data", "found no dataset, expected at least one")
    given = [weight for weight in weights if weight is not None]
    if given and len(given) < len(weights):
        without = datasets[weights.index(None)].name
        file.fail("train_data", f"{without} has no prob, but others have; give all datasets one, or none")
    return make_mix(path.name, datasets, given or [1.0] * len(datasets), steps, num_workers)


def read_own_evaluations(path: Path, catalogue: Catalogue) -> tuple[Dataset, ...]:
    """Read the datasets of an evaluation YAML.

    Raises:
        CatalogueError: The file is ill-formed, or a path in it matches no file.
    """
    datasets = []
    file = read_yaml(path, CatalogueError)
    for name, section in file.sections():
        section.only("data", "batch_size", "num_workers", "metric", "metric_args", "weight", "licence")
        data = section.section("data")
        data.only("data", "key", "prompt", "repo_id")
        _check_name(section, name, catalogue)
        metric, arguments = _read_metric(section)
        num_workers = section.integer("num_workers", at_least=0) if section.has("num_workers") else None
        datasets.append(
            Dataset(
                name=name,
                task=OWN_TASK,
                prompts=data.texts("prompt"),
                metric=metric,
                metric_arguments=arguments,
                train=None,
                eval=_read_split(data, num_workers),
                weight=section.number("weight", above=0) if section.has("weight") else 1.0,
                generation_batch_size=section.integer("batch_size", at_least=1) if section.has("batch_size") else None,
                repository=_read_repository(data),
                licence=_read_licence(section),
            )
        )
    if not datasets:
        file.fail(None, "found no dataset, expected at least one")
    return tuple(datasets)


def check_places(datasets: Iterable[Dataset]) -> None:
    """Refuse datasets whose shards would overwrite each other: a shard keeps its path inside its repository.

    Raises:
        CatalogueError: Two repositories have a shard of the same path.
    """
    owners: dict[str, Dataset] = {}
    for dataset in datasets:
        shards = [shard for split in (dataset.train, dataset.eval) if split is not None for shard in split.shards]
        for shard in shards if dataset.repository is not None else ():
            owner = owners.setdefault(shard, dataset)
            if owner.repository != dataset.repository:
                raise CatalogueError(
                    f"{owner.name} of {owner.repository} and {dataset.name} of {dataset.repository} both have a shard "
                    f"{shown(shard)}, but the data folder has room for one; rename one of them in its repository"
                )


def _check_name(section: Section, name: str, catalogue: Catalogue) -> None:
    if name in ("auto", *catalogue.mix_names):
        section.fail(None, "this is the name of a public dataset or mix; choose another name")
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME_LENGTH:
        section.fail(
            None,
            f"found the name {shown(name)}, expected at most {_MAX_NAME_LENGTH} letters, digits, - and _, not - first "
            "(it becomes a file's name)",
        )
    num_bytes = len(name.encode("utf-8"))
    if num_bytes > _MAX_NAME_BYTES:
        section.fail(
            None,
            f"found a name of {num_bytes} bytes in UTF-8, expected at most {_MAX_NAME_BYTES} (it becomes a file's "
            "name)",
        )


def _read_metric(section: Section) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of an evaluation's metric, checked."""
    name = section.text("metric")
    arguments = section.section("metric_args").scalars() if section.has("metric_args") else None
    try:
        check_metric(name, arguments or {})
    except UsageError as cause:
        if name not in METRICS:
            section.fail("metric", str(cause))
        if arguments is None:
            section.fail("metric", f"{cause} (under metric_args)")
        section.fail("metric_args", str(cause))
    return name, arguments or {}


def _read_licence(section: Section) -> str:
    return read_licence(section) if section.has("licence") else UNKNOWN_LICENCE


def _read_repository(section: Section) -> str | None:
    if not section.has("repo_id"):
        return None
    repository = section.text("repo_id")
    if not _REPOSITORY.fullmatch(repository):
        section.fail("repo_id", f"found {shown(repository)}, expected OWNER/NAME of a dataset repository on the hub")
    return repository


def _read_split(section: Section, num_workers: int | None) -> Split:
    """Return shards and target keys. Local files must exist; those of a repository are downloaded later."""
    find = _find_in_repository if section.has("repo_id") else _find_files
    shards: list[str] = []
    for pattern in section.texts("data"):
        try:
            # Before the braces, as ${NAME} has some, too. A path inside a repository has nothing to expand.
            expanded = expand_braces(pattern if section.has("repo_id") else str(local_path(pattern)))
        except (UsageError, ValueError) as cause:
            section.fail("data", str(cause))
        for path in expanded:
            shards.extend(find(section, path))
    twice = [shard for shard, count in Counter(shards).items() if count > 1]
    if twice:
        section.fail("data", f"found {twice[0]} twice, expected every file once")
    keys = tuple(key.strip() for text in section.texts("key") for key in text.split(";") if key.strip())
    if not keys:
        section.fail("key", f"found {shown(section.values['key'])}, expected a JSON field or several joined by ;")
    return Split(shards=tuple(shards), target_keys=keys, num_workers=num_workers)


def _find_in_repository(section: Section, path: str) -> list[str]:
    """Return a path inside a repository, after checking its form."""
    if glob.has_magic(path):
        section.fail(
            "data", f"found the glob {shown(path)}, but files on the hub are not listed; use braces, as in {{00..10}}"
        )
    if PurePosixPath(path).is_absolute() or ".." in path.split("/") or str(PurePosixPath(path)) != path:
        section.fail("data", f"found {shown(path)}, expected a plain path inside the repository, e.g. train/00.tar")
    return [path]


def _beginning(pattern: str) -> Path:
    """Return the folder that a glob starts in."""
    parts = Path(pattern).parts
    magic = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:magic])


def _matches(pattern: str) -> Iterator[Path]:
    """Yield what a glob matches; `**` follows no links, of which /proc and others have some that lead to the root."""
    beginning = _beginning(pattern)
    parts = [part if part == "**" else part.replace("**", "*") for part in Path(pattern).parts[len(beginning.parts) :]]
    if parts[-1] == "**":
        parts.append("*")  # until Python 3.13, `**` alone matches folders only
    wants_hidden = any(part.startswith(".") for part in parts)
    for match in beginning.glob(str(Path(*parts))):
        if wants_hidden or not any(part.startswith(".") for part in match.relative_to(beginning).parts):
            yield match


def _find_files(section: Section, path: str) -> list[str]:
    """Return the files of a local path, which may be a glob, in order."""
    problem = path_problem(Path(path))
    if problem is not None:
        section.fail("data", f"{shown(path)}: {problem}")
    found = [path] if Path(path).is_file() else []
    if not found and "**" in path and _beginning(path).resolve() in (Path(Path.cwd().anchor), Path.home()):
        section.fail(
            "data", f"{shown(path)} would walk the whole of {_beginning(path).resolve()}; name a folder before **"
        )
    if not found and glob.has_magic(path):
        found = sorted(str(match) for match in _matches(path) if match.is_file())
    if not found:
        section.fail("data", f"no file matches {shown(path)} (relative paths start at {Path.cwd()})")
    return [str(Path(file).resolve()) for file in found]
