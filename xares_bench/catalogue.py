"""The catalogue: datasets, tasks, mixes, recipes and presets, read from the YAML files of the package.

A catalogue is read for one preset, and everything in it is resolved for that preset: a dataset's shards, metric and
steps are the ones to use, nothing is looked up a second time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xares_bench.errors import CatalogueError, UsageError
from xares_bench.metrics import check_metric
from xares_bench.recipe import Recipe, read_recipe
from xares_bench.yaml_file import Section, read_yaml

DATA_FOLDER = Path(__file__).parent / "data"
REPOSITORY_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class Split:
    """The shards of one split and the JSON fields that hold a clip's targets.

    Attributes:
        shards: Paths, braces expanded, relative to the data folder unless absolute.
        target_keys: Fields to look a target up in; the first one present wins.
        num_workers: Threads that decode audio; 0: as many as there are processors.
    """

    shards: tuple[str, ...]
    target_keys: tuple[str, ...]
    num_workers: int = 0


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One named set of shards with a prompt, target keys and a metric.

    Attributes:
        name: Its id, e.g. `esc-50`.
        task: The task that it is scored in.
        prompt: What the language model is asked about every clip.
        metric: Name of the metric.
        metric_arguments: Arguments of the metric, e.g. `num_classes`.
        train: Training split; None for a dataset that is only evaluated.
        eval: Test split; None for a dataset that is only trained on.
        weight: Weight in the overall score of its task.
        mix_weight: Sampling weight in its task's training mix.
        mix_weight_all: Sampling weight in the mix of all; None: its share of the training shards.
        steps_alone: Optimiser steps when it is trained alone.
        generation_batch_size: Clips that are generated for at once, where it is not the recipe's.
        repository: Hub repository that holds the shards, or None for local files.
    """

    name: str
    task: str
    prompt: str
    metric: str
    metric_arguments: Mapping[str, Any]
    train: Split | None
    eval: Split | None
    weight: float = 1.0
    mix_weight: float = 1.0
    mix_weight_all: float | None = None
    steps_alone: int | None = None
    generation_batch_size: int | None = None
    repository: str | None = None


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What a LALM is trained on: datasets with sampling weights that sum to 1.

    Attributes:
        name: `task1`, `task2`, `all`, a dataset's name, or the name of a YAML file.
        weights: Sampling weight per dataset, in a fixed order.
        datasets: The datasets, in that order.
        steps: Optimiser steps.
    """

    name: str
    datasets: tuple[Dataset, ...]
    weights: tuple[float, ...]
    steps: int


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Data source, decoder and recipe together.

    Attributes:
        name: `full` or `mini`.
        summary: One line for people.
        folder: Where the shards lie; None: in the data home.
        decoder: Hugging Face name, or an absolute folder.
        recipe: The preset's own recipe.
        steps: Optimiser steps of the mixes.
    """

    name: str
    summary: str
    folder: Path | None
    decoder: str
    recipe: Recipe
    steps: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Everything there is to train on and to evaluate, for one preset."""

    preset: Preset
    datasets: Mapping[str, Dataset]

    @functools.cached_property
    def tasks(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the datasets of every task."""
        tasks: dict[str, tuple[str, ...]] = {}
        for dataset in self.datasets.values():
            tasks[dataset.task] = (*tasks.get(dataset.task, ()), dataset.name)
        return tasks

    def mix(self, name: str) -> Mix:
        """The mix of a task, of all, or of one dataset.

        Raises:
            CatalogueError: There is no such mix.
        """
        if name in self.datasets:
            dataset = self.datasets[name]
            steps = self.preset.steps.get("alone", dataset.steps_alone)
            assert steps is not None, name
            return Mix(name=name, datasets=(dataset,), weights=(1.0,), steps=steps)
        if name == "all":
            datasets = tuple(self.datasets.values())
            return make_mix(name, datasets, _weights_of_all(datasets), self.preset.steps[name])
        if name in self.tasks:
            datasets = tuple(self.datasets[dataset] for dataset in self.tasks[name])
            return make_mix(name, datasets, [dataset.mix_weight for dataset in datasets], self.preset.steps[name])
        expected = ", ".join(("auto", *sorted(self.tasks), "all", *sorted(self.datasets)))
        raise CatalogueError(f"--train={name}: no such mix; expected a YAML file or one of {expected}")


def load_catalogue(
    preset: str, datasets_file: Path = DATA_FOLDER / "datasets.yaml", presets_file: Path = DATA_FOLDER / "presets.yaml"
) -> Catalogue:
    """The catalogue, resolved for a preset.

    Raises:
        CatalogueError: There is no such preset, or a file is ill-formed.
    """
    presets = read_yaml(presets_file, CatalogueError)
    if preset not in presets.values:
        raise CatalogueError(f"--preset={preset}: no such preset; expected one of {', '.join(sorted(presets.values))}")
    section = presets.section(preset)
    section.only("summary", "data", "decoder", "steps", "metrics", "recipe")
    data = section.section("data")
    data.only("folder", "train", "eval")
    metrics = section.section("metrics")
    datasets = {}
    for name, dataset_section in read_yaml(datasets_file, CatalogueError).sections():
        override = metrics if metrics.has(name) else None
        datasets[name] = _read_dataset(name, dataset_section, data, override)
    for name in metrics.values:
        if name not in datasets:
            metrics.fail(name, "no such dataset")
    steps = section.section("steps")
    for mix in ("all", *(dataset.task for dataset in datasets.values())):
        if mix not in steps.values:
            steps.fail(mix, f"missing; every task of {datasets_file.name} and the mix of all need their steps")
    return Catalogue(preset=_read_preset(preset, section, data, steps), datasets=datasets)


def make_mix(name: str, datasets: Iterable[Dataset], weights: Iterable[float], steps: int) -> Mix:
    """A mix with weights normalised to a sum of 1."""
    weights = tuple(weights)
    total = math.fsum(weights)
    return Mix(name=name, datasets=tuple(datasets), weights=tuple(weight / total for weight in weights), steps=steps)


def expand_braces(pattern: str) -> tuple[str, ...]:
    """The paths that a brace pattern stands for.

    >>> expand_braces("fold_{08..10}.tar")
    ('fold_08.tar', 'fold_09.tar', 'fold_10.tar')

    Raises:
        ValueError: A brace has no partner, or what it encloses is neither a range nor a list.
    """
    from braceexpand import braceexpand

    try:
        paths = tuple(braceexpand(pattern))
    except ValueError:  # unbalanced
        paths = (pattern,)
    if any("{" in path or "}" in path for path in paths):
        raise ValueError(f"bad brace pattern {pattern!r}; expected a range like {{00..10}} or a list like {{a,b}}")
    return paths


def _read_preset(name: str, section: Section, data: Section, steps: Section) -> Preset:
    decoder = section.text("decoder")
    recipe = section.section("recipe")
    return Preset(
        name=name,
        summary=section.text("summary"),
        folder=REPOSITORY_ROOT / data.text("folder") if data.has("folder") else None,
        decoder=str(REPOSITORY_ROOT / decoder) if (REPOSITORY_ROOT / decoder).is_dir() else decoder,
        recipe=read_recipe(recipe),
        steps={str(mix): steps.integer(str(mix), at_least=1) for mix in steps.values},
    )


def _read_dataset(name: str, section: Section, data: Section, metrics: Section | None) -> Dataset:
    section.only("task", "prompt", "metric", "targets", "mix_weight", "steps_alone", "repository", "shards")
    targets = section.section("targets")
    targets.only("train", "eval")
    weight = section.section("mix_weight")
    weight.only("task", "all")
    metric, arguments = read_metric(metrics.section(name) if metrics else section.section("metric"))
    shards = section.section("shards")
    shards.only("train", "eval")
    splits = {}
    for split in ("train", "eval"):
        source = data if data.has(split) else shards
        paths = [path for pattern in source.texts(split) for path in _expand(source, split, pattern)]
        splits[split] = Split(
            shards=tuple(path.replace("DATASET", name) for path in paths) if source is data else tuple(paths),
            target_keys=targets.texts(split),
        )
    return Dataset(
        name=name,
        task=section.text("task"),
        prompt=section.text("prompt"),
        metric=metric,
        metric_arguments=arguments,
        train=splits["train"],
        eval=splits["eval"],
        mix_weight=weight.number("task", above=0),
        mix_weight_all=weight.number("all", above=0) if weight.has("all") else None,
        steps_alone=section.integer("steps_alone", at_least=1),
        repository=section.text("repository"),
    )


def read_metric(section: Section) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a metric, checked, from a mapping `{name: NAME, ARGUMENT: VALUE, ...}`."""
    name = section.text("name")
    arguments = {key: value for key, value in section.values.items() if key != "name"}
    try:
        check_metric(name, arguments)
    except UsageError as cause:
        section.fail(None, str(cause))
    return name, arguments


def _expand(section: Section, key: str, pattern: str) -> tuple[str, ...]:
    try:
        return expand_braces(pattern)
    except ValueError as cause:
        section.fail(key, str(cause))


def _weights_of_all(datasets: tuple[Dataset, ...]) -> list[float]:
    """Weights of the mix of all: the stated one, else the share of the mix's training shards."""
    shards = [len(dataset.train.shards) if dataset.train else 0 for dataset in datasets]
    return [
        num_shards / sum(shards) if dataset.mix_weight_all is None else dataset.mix_weight_all
        for dataset, num_shards in zip(datasets, shards, strict=True)
    ]
