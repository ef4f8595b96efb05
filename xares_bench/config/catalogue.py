"""The catalogue: datasets, tasks, mixes, recipes and presets, read from the YAML files of the package.

A catalogue is read for one preset, and everything in it is resolved for that preset: a dataset's shards, metric and
steps are the ones to use, nothing is looked up a second time.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xares_bench.config.recipe import Recipe, read_recipe
from xares_bench.core.errors import CatalogueError, UsageError
from xares_bench.core.own_files import required_folder
from xares_bench.core.parsing import Section, did_you_mean, read_yaml, shown
from xares_bench.metrics.registry import check_metric

DATA_FOLDER = Path(__file__).parent

# Of a dataset whose licence was not looked up, or is not stated.
UNKNOWN_LICENCE = "unknown"
# A licence is a name, not its text: reports show it beside the dataset.
_MAX_LICENCE_LENGTH = 100

# A pattern with more paths is a typing error, which must not exhaust memory.
_MAX_PATHS = 100_000
_NUMBER_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
_LETTER_RANGE = re.compile(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d+)?")


@dataclass(frozen=True, kw_only=True)
class Split:
    """The shards of one split, and the JSON fields with a clip's targets.

    Attributes:
        shards: Paths, braces expanded, relative to the data folder unless absolute.
        target_keys: Fields to look a target up in; the first one that holds something counts.
        num_workers: Threads that decode; None: one per processor; 0: none, the main one does it.
    """

    shards: tuple[str, ...]
    target_keys: tuple[str, ...]
    num_workers: int | None = None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A named dataset: shards, prompts, target keys and a metric.

    Attributes:
        name: Its id, e.g. `esc-50`.
        task: The task that it is scored in.
        prompts: What the language model is asked about a clip; at least one, and one of them is drawn per sample.
        metric: Name of the metric.
        metric_arguments: Arguments of the metric, e.g. `num_classes`.
        train: Training split; None for a dataset that is only evaluated.
        eval: Test split; None for a dataset that is only trained on.
        weight: Weight in the overall score of its task.
        mix_weight: Sampling weight in its task's training mix.
        mix_weight_all: Sampling weight in the mix of all; None: its share of the training shards.
        steps_alone: Optimiser steps when it is trained alone.
        generation_batch_size: Clips that are generated for at once, where it is not the recipe's.
        repository: Hub dataset repository that the shards' paths lie in; None: they are files that are there.
        licence: Licence of the data, for reports only; `unknown` where it is not known.
    """

    name: str
    task: str
    prompts: tuple[str, ...]
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
    licence: str = UNKNOWN_LICENCE


@dataclass(frozen=True, kw_only=True)
class Mix:
    """A training mix: datasets with sampling weights that sum to 1.

    Attributes:
        name: `task1`, `task2`, `all`, a dataset's name, or the name of a YAML file.
        weights: Sampling weight per dataset, in a fixed order.
        datasets: The datasets, in that order.
        steps: Optimiser steps.
        num_workers: Threads that decode; None: one per processor; 0: none, the main one does it.
    """

    name: str
    datasets: tuple[Dataset, ...]
    weights: tuple[float, ...]
    steps: int
    num_workers: int | None = None


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
        needs_gpu: Whether training without a GPU is to be insisted on.
    """

    name: str
    summary: str
    folder: Path | None
    decoder: str
    recipe: Recipe
    steps: Mapping[str, int]
    needs_gpu: bool


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All datasets, tasks and mixes of one preset.

    Attributes:
        preset: The preset.
        datasets: The datasets by name, as tasks train and evaluate them.
        alone: The datasets that differ where a LALM is trained on them alone, as they are then.
    """

    preset: Preset
    datasets: Mapping[str, Dataset]
    alone: Mapping[str, Dataset] = field(default_factory=dict)

    @functools.cached_property
    def tasks(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the datasets by task."""
        tasks: dict[str, tuple[str, ...]] = {}
        for dataset in self.datasets.values():
            tasks[dataset.task] = (*tasks.get(dataset.task, ()), dataset.name)
        return tasks

    @property
    def mix_names(self) -> tuple[str, ...]:
        """Names that `mix` knows: every task, `all`, every dataset."""
        return (*self.tasks, "all", *self.datasets)

    def mix(self, name: str) -> Mix:
        """Return the mix of a task, of all tasks, or of one dataset.

        Raises:
            CatalogueError: There is no such mix.
        """
        if name in self.datasets:
            dataset = self.alone.get(name, self.datasets[name])
            steps = self.preset.steps.get("alone", dataset.steps_alone)
            assert steps is not None, name
            return Mix(name=name, datasets=(dataset,), weights=(1.0,), steps=steps)
        if name == "all":
            datasets = tuple(self.datasets.values())
            return make_mix(name, datasets, _weights_of_all(datasets), self.preset.steps[name])
        if name in self.tasks:
            datasets = tuple(self.datasets[dataset] for dataset in self.tasks[name])
            return make_mix(name, datasets, [dataset.mix_weight for dataset in datasets], self.preset.steps[name])
        expected = ", ".join(("auto", *self.mix_names))
        hint = did_you_mean(name, ("auto", *self.mix_names))
        raise CatalogueError(f"--train={name}: no such mix; expected a YAML file or one of {expected}{hint}")


def load_catalogue(
    preset: str, datasets_file: Path = DATA_FOLDER / "datasets.yaml", presets_file: Path = DATA_FOLDER / "presets.yaml"
) -> Catalogue:
    """Read the catalogue for a preset.

    Raises:
        CatalogueError: There is no such preset, or a file is ill-formed.
    """
    presets = read_yaml(presets_file, CatalogueError)
    if preset not in presets.values:
        raise CatalogueError(
            f"--preset={preset}: no such preset; expected one of {', '.join(sorted(presets.values))}"
            f"{did_you_mean(preset, presets.values)}"
        )
    section = presets.section(preset)
    section.only("summary", "data", "decoder", "own_decoder", "needs_gpu", "steps", "metrics", "alone", "recipe")
    data = section.section("data")
    data.only("folder", "train", "eval", "licence")
    metrics = section.section("metrics")
    datasets = {}
    for name, dataset_section in read_yaml(datasets_file, CatalogueError).sections():
        override = metrics if metrics.has(name) else None
        datasets[name] = _read_dataset(name, dataset_section, data, override)
    for name in metrics.values:
        if name not in datasets:
            metrics.fail(name, f"no such dataset{did_you_mean(name, datasets)}")
    alone = {}
    for name, differences in section.section("alone").sections():
        if name not in datasets:
            differences.fail(None, f"no such dataset{did_you_mean(name, datasets)}")
        alone[name] = _read_alone(datasets[name], differences)
    steps = section.section("steps")
    for mix in ("all", *(dataset.task for dataset in datasets.values())):
        if mix not in steps.values:
            steps.fail(mix, f"missing; every task of {datasets_file.name} and the mix of all need their steps")
    return Catalogue(preset=_read_preset(preset, section, data, steps), datasets=datasets, alone=alone)


def make_mix(
    name: str, datasets: Iterable[Dataset], weights: Iterable[float], steps: int, num_workers: int | None = None
) -> Mix:
    """Return a mix, with weights normalised to a sum of 1."""
    weights = tuple(weights)
    total = math.fsum(weights)
    return Mix(
        name=name,
        datasets=tuple(datasets),
        weights=tuple(weight / total for weight in weights),
        steps=steps,
        num_workers=num_workers,
    )


def expand_braces(pattern: str) -> tuple[str, ...]:
    """Return the paths that a brace pattern stands for.

    >>> expand_braces("fold_{08..10}.tar")
    ('fold_08.tar', 'fold_09.tar', 'fold_10.tar')

    Raises:
        ValueError: A brace has no partner, what it encloses is neither a range nor a list, or there are too many paths.
    """
    from braceexpand import braceexpand

    if _num_paths(pattern) > _MAX_PATHS:
        raise ValueError(f"{shown(pattern)} stands for more than {_MAX_PATHS} paths")
    try:
        paths = tuple(braceexpand(pattern))
    except ValueError:  # unbalanced
        paths = (pattern,)
    if any("{" in path or "}" in path for path in paths):
        raise ValueError(f"bad brace pattern {shown(pattern)}; expected a range like {{00..10}} or a list like {{a,b}}")
    return paths


def read_licence(section: Section) -> str:
    """Return the name of a licence.

    Raises:
        CatalogueError: It is missing, or no name: empty, several lines, or too long.
    """
    licence = section.text("licence").strip()
    if len(licence) > _MAX_LICENCE_LENGTH or not licence.isprintable():
        section.fail(
            "licence",
            f"found {shown(licence)}, expected the name of a licence in one line of at most {_MAX_LICENCE_LENGTH} "
            f"characters, such as CC-BY-4.0 or {UNKNOWN_LICENCE}",
        )
    return licence


def _read_preset(name: str, section: Section, data: Section, steps: Section) -> Preset:
    if section.has("own_decoder") and section.has("decoder"):
        section.fail("own_decoder", "found beside decoder; expected one of the two")
    recipe = section.section("recipe")
    return Preset(
        name=name,
        summary=section.text("summary"),
        folder=required_folder(data.text("folder"), f"--preset={name}") if data.has("folder") else None,
        decoder=str(required_folder(section.text("own_decoder"), f"--preset={name}"))
        if section.has("own_decoder")
        else section.text("decoder"),
        recipe=read_recipe(recipe),
        steps={mix: steps.integer(mix, at_least=1) for mix in steps.values},
        needs_gpu=section.boolean("needs_gpu"),
    )


def _read_dataset(name: str, section: Section, data: Section, metrics: Section | None) -> Dataset:
    section.only("task", "prompt", "metric", "targets", "mix_weight", "steps_alone", "repository", "licence", "shards")
    targets = section.section("targets")
    targets.only("train", "eval")
    weight = section.section("mix_weight")
    weight.only("task", "all")
    metric, arguments = _read_metric(metrics.section(name) if metrics else section.section("metric"))
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
        prompts=section.texts("prompt"),
        metric=metric,
        metric_arguments=arguments,
        train=splits["train"],
        eval=splits["eval"],
        mix_weight=weight.number("task", above=0),
        mix_weight_all=weight.number("all", above=0) if weight.has("all") else None,
        steps_alone=section.integer("steps_alone", at_least=1),
        repository=None if data.has("folder") else section.text("repository"),
        licence=read_licence(data if data.has("licence") else section),
    )


def _read_alone(dataset: Dataset, section: Section) -> Dataset:
    """Return a dataset with the shards and the target keys that it has where it is trained alone."""
    section.only("targets", "shards")
    for part in section.values:
        section.section(part).only("train", "eval")
    return dataclasses.replace(
        dataset, train=_split_alone(dataset.train, section, "train"), eval=_split_alone(dataset.eval, section, "eval")
    )


def _split_alone(split: Split | None, section: Section, name: str) -> Split:
    assert split is not None
    shards, target_keys = split.shards, split.target_keys
    if section.has("shards") and section.section("shards").has(name):
        source = section.section("shards")
        shards = tuple(path for pattern in source.texts(name) for path in _expand(source, name, pattern))
    if section.has("targets") and section.section("targets").has(name):
        target_keys = section.section("targets").texts(name)
    return dataclasses.replace(split, shards=shards, target_keys=target_keys)


def _read_metric(section: Section) -> tuple[str, dict[str, Any]]:
    """Read name and arguments of a metric from a mapping `{name: NAME, ARGUMENT: VALUE, ...}`."""
    name = section.text("name")
    arguments = {key: value for key, value in section.scalars().items() if key != "name"}
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


def _num_paths(pattern: str) -> int:
    """Count the paths of a brace pattern, or a few more, without building them."""
    # For every open brace, outermost first: paths of its finished alternatives, and of the one being read.
    counts = [[0, 1]]
    for part in re.split(r"([{},])", pattern):
        if part == "{":
            counts.append([0, 1])
        elif len(counts) == 1:
            continue
        elif part == "}":
            finished, current = counts.pop()
            counts[-1][1] *= finished + current
        elif part == ",":
            counts[-1] = [sum(counts[-1]), 1]
        elif numbers := _NUMBER_RANGE.fullmatch(part):
            start, end, step = (int(number or 1) for number in numbers.groups())
            counts[-1][1] *= abs(end - start) // (step or 1) + 1
        elif _LETTER_RANGE.fullmatch(part):
            counts[-1][1] *= abs(ord(part[0]) - ord(part[3])) + 1
    return math.prod(sum(count) for count in counts)


def _weights_of_all(datasets: tuple[Dataset, ...]) -> list[float]:
    """Return the weights of the mix `all`: the stated one, else the share of the mix's training shards."""
    shards = [len(dataset.train.shards) if dataset.train else 0 for dataset in datasets]
    return [
        num_shards / sum(shards) if dataset.mix_weight_all is None else dataset.mix_weight_all
        for dataset, num_shards in zip(datasets, shards, strict=True)
    ]
