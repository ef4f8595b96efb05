"""Own data: the two YAML forms that train on and evaluate tar files of one's own.

    train_data:                          eval_custom:
      CustomDataName:                      data:
        prompt: My prompt                    data:
        data:                                - PATH_TO_MY_TARS{00..10}.tar
        - PATH_TO_MY_TARS{00..10}.tar        key: DATAKEY
        key: DATAKEY                         prompt: My prompt
    num_training_workers: 4                batch_size: 4
                                           num_workers: 0
                                           metric: Accuracy

Paths may hold braces and globs; relative ones start at the current directory.
"""

from __future__ import annotations

import glob
from pathlib import Path

from xares_bench.catalogue import Catalogue, Dataset, Mix, Split, expand_braces, make_mix, read_metric
from xares_bench.errors import CatalogueError
from xares_bench.metrics import computable
from xares_bench.yaml_file import Section, read_yaml

# The task that own datasets are scored in.
OWN_TASK = "custom"


def read_own_mix(path: Path, catalogue: Catalogue) -> Mix:
    """The mix of a `train_data` YAML; every dataset in it is drawn equally often.

    Raises:
        CatalogueError: The file is ill-formed, or a path in it matches no file.
    """
    file = read_yaml(path, CatalogueError)
    file.only("train_data", "num_training_workers")
    num_workers = file.integer("num_training_workers", at_least=0) if file.has("num_training_workers") else 0
    datasets = []
    for name, section in file.section("train_data").sections():
        section.only("prompt", "data", "key")
        _check_name(section, name, catalogue)
        datasets.append(
            Dataset(
                name=name,
                task=OWN_TASK,
                prompt=section.text("prompt"),
                metric="",
                metric_arguments={},
                train=_read_split(section, num_workers),
                eval=None,
            )
        )
    if not datasets:
        file.fail("train_data", "found no dataset, expected at least one")
    steps = catalogue.preset.steps.get("alone", catalogue.preset.steps["all"])
    return make_mix(path.name, datasets, [1.0] * len(datasets), steps)


def read_own_evaluations(path: Path, catalogue: Catalogue) -> tuple[Dataset, ...]:
    """The datasets of an evaluation YAML.

    Raises:
        CatalogueError: The file is ill-formed, or a path in it matches no file.
    """
    datasets = []
    file = read_yaml(path, CatalogueError)
    for name, section in file.sections():
        section.only("data", "batch_size", "num_workers", "metric")
        data = section.section("data")
        data.only("data", "key", "prompt")
        _check_name(section, name, catalogue)
        metric, arguments = read_metric(
            Section(path, f"{name}.metric", {"name": section.text("metric")}, CatalogueError)
        )
        if metric not in computable():
            section.fail("metric", f"{metric} cannot be computed by this version; {', '.join(computable())} can")
        datasets.append(
            Dataset(
                name=name,
                task=OWN_TASK,
                prompt=data.text("prompt"),
                metric=metric,
                metric_arguments=arguments,
                train=None,
                eval=_read_split(data, section.integer("num_workers", at_least=0) if section.has("num_workers") else 0),
                generation_batch_size=section.integer("batch_size", at_least=1) if section.has("batch_size") else None,
            )
        )
    if not datasets:
        file.fail(None, "found no dataset, expected at least one")
    return tuple(datasets)


def _check_name(section: Section, name: str, catalogue: Catalogue) -> None:
    if name in catalogue.datasets:
        section.fail(None, "this is the name of a public dataset; choose another one")
    if not name.replace("-", "").replace("_", "").isalnum():
        section.fail(None, f"found the name {name!r}, expected letters, digits, - and _ (it becomes a file's name)")


def _read_split(section: Section, num_workers: int) -> Split:
    shards: list[str] = []
    for pattern in section.texts("data"):
        try:
            expanded = expand_braces(pattern)
        except ValueError as cause:
            section.fail("data", str(cause))
        for path in expanded:
            found = _matches(path)
            if not found:
                section.fail("data", f"no file matches {path!r} (relative paths start at {Path.cwd()})")
            shards.extend(str(Path(file).resolve()) for file in found)
    twice = sorted({shard for shard in shards if shards.count(shard) > 1})
    if twice:
        section.fail("data", f"names {twice[0]} twice")
    keys = tuple(key.strip() for key in section.text("key").split(";") if key.strip())
    if not keys:
        section.fail("key", f"found {section.values['key']!r}, expected a JSON field or several joined by ;")
    return Split(shards=tuple(shards), target_keys=keys, num_workers=num_workers)


def _matches(path: str) -> list[str]:
    """Files that a path, which may hold a glob, stands for, in order."""
    if glob.has_magic(path):
        found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
        return [file for file in found if Path(file).is_file()]
    return [path] if Path(path).is_file() else []
