"""The plan: what a command line asks for, read and checked before anything heavy is imported.

Every name is resolved here, so that the rest of the package never sees an option or a relative path.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xares_bench.config.catalogue import UNKNOWN_LICENCE, Catalogue, Dataset, Mix, load_catalogue
from xares_bench.config.encoder_spec import EncoderSpec, parse_encoder_spec
from xares_bench.config.own_data import OWN_TASK, check_places, read_own_evaluations, read_own_mix
from xares_bench.config.recipe import GenerationRecipe, Recipe
from xares_bench.core.errors import CatalogueError, UsageError
from xares_bench.core.own_files import shown_path
from xares_bench.core.parsing import did_you_mean, local_path
from xares_bench.core.yaml_text import MisreadWord, load_yaml
from xares_bench.hub import parse_data_revisions


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to train and evaluate, with every name resolved.

    Attributes:
        encoder: The user's encoder, or None.
        catalogue: Datasets, tasks and mixes of the preset.
        own_datasets: Datasets of `--eval`.
        mix: The mix to train on; None: the tests of each task use the LALM trained on that task's mix.
        recipe: The preset's recipe, with the changes of this run.
        num_seeds: Number of LALMs per mix, with consecutive seeds; scores are means.
        decoder: The decoder's folder, or its name on the hub.
        limit: Maximal number of clips per dataset and split, or None.
        data_folder: Folder of local shards.
        data_home: Folder of shards from the hub.
        data_revisions: Revision by hub repository; under None the one for all others.
        tracker: Tracker for losses and scores, or None.
        allow_cpu: Whether a full-size training may start without a GPU.
        feature_bytes: Disk space for cached features; None: a share of the free space.
        checkpoint_steps: Number of steps between two checkpoints of a training.
        runs_folder: Folder for results.
    """

    encoder: EncoderSpec | None
    catalogue: Catalogue
    own_datasets: Mapping[str, Dataset]
    mix: Mix | None
    recipe: Recipe
    num_seeds: int
    decoder: str
    limit: int | None
    data_folder: Path
    data_home: Path
    data_revisions: Mapping[str | None, str]
    tracker: str | None
    allow_cpu: bool
    feature_bytes: int | None
    checkpoint_steps: int
    runs_folder: Path

    @property
    def deviations(self) -> dict[str, tuple[Any, Any]]:
        """Values of recipe and decoder that differ from the preset, as `{key: (preset's, this run's)}`."""
        preset = {**self.catalogue.preset.recipe.values(), "decoder": shown_path(self.catalogue.preset.decoder)}
        own = {**self.recipe.values(), "decoder": shown_path(self.decoder)}
        return {key: (preset[key], own[key]) for key in own if own[key] != preset[key]}

    def data_deviations(self, names: Iterable[str]) -> dict[str, tuple[str | None, str]]:
        """What differs from the preset in the data that evaluating these datasets reads, in the same form."""
        found: dict[str, tuple[str | None, str]] = {}
        if not self.uses_public(names):
            return found
        preset = self.catalogue.preset.folder
        if preset is not None and self.data_folder != preset.absolute():
            found["data_home"] = (None, shown_path(str(self.data_folder)))
        if self.data_revisions:
            revisions = self.data_revisions.items()
            found["data_revision"] = (None, ", ".join(f"{repo}={rev}" if repo else rev for repo, rev in revisions))
        return found

    def licences(self, names: Iterable[str]) -> dict[str, str]:
        """The licence of each dataset that evaluating these datasets reads, in training or evaluation.

        What lies in a folder of the user's may be other data than the preset's, so its licence is unknown.
        """
        names = tuple(names)
        moved = self.catalogue.datasets if "data_home" in self.data_deviations(names) else {}
        read = {
            dataset.name: dataset for name in names for dataset in (self.dataset(name), *self.mix_for(name).datasets)
        }
        return {name: UNKNOWN_LICENCE if name in moved else dataset.licence for name, dataset in read.items()}

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the LALMs of each mix."""
        first = self.recipe.training.seed
        return tuple(range(first, first + self.num_seeds))

    @property
    def tasks(self) -> dict[str, tuple[str, ...]]:
        """Names of the datasets of every task, including the user's own."""
        own = {OWN_TASK: tuple(self.own_datasets)} if self.own_datasets else {}
        return {**self.catalogue.tasks, **own}

    def dataset(self, name: str) -> Dataset:
        """Return the public or own dataset of this name; a public one that is trained alone, as it is then."""
        if self.mix is not None and self.mix.name == name:
            return self.mix.datasets[0]
        return self.own_datasets[name] if name in self.own_datasets else self.catalogue.datasets[name]

    def uses_public(self, names: Iterable[str]) -> bool:
        """Whether evaluating these datasets reads a public dataset, in training or evaluation."""
        used = {dataset.name for name in names for dataset in (self.dataset(name), *self.mix_for(name).datasets)}
        return not used.isdisjoint(self.catalogue.datasets)

    def covers(self, name: str) -> bool:
        """Whether a LALM of this plan is trained for a dataset, so that its test makes sense."""
        return self.mix is None or name in self.own_datasets or any(part.name == name for part in self.mix.datasets)

    def num_steps(self, mix: Mix) -> int:
        """Return the number of optimiser steps for a mix."""
        return self.recipe.training.steps or mix.steps

    def generation_recipe(self, dataset: Dataset) -> GenerationRecipe:
        """Return the recipe of generation for a dataset."""
        if dataset.generation_batch_size is None:
            return self.recipe.generation
        return dataclasses.replace(self.recipe.generation, generation_batch_size=dataset.generation_batch_size)

    def mix_for(self, name: str) -> Mix:
        """Return the mix whose LALM a dataset is evaluated with."""
        return self.mix if self.mix is not None else self.catalogue.mix(self.dataset(name).task)


def make_plan(
    *,
    encoder: str | EncoderSpec | None,
    encoder_arguments: str | None,
    preset: str,
    train: str,
    evaluate: str | None,
    changes: Sequence[str],
    seed: int | None,
    pool: int | None,
    num_seeds: int,
    tracker: str | None,
    decoder: str | None,
    limit: int | None,
    data_home: str | None,
    data_revisions: Sequence[str],
    allow_cpu: bool,
    feature_bytes: int | None,
    checkpoint_steps: int,
    runs_dir: str,
) -> Plan:
    """Read and check the options of the command line; each argument is the value of one option.

    An encoder that a program has made comes as its specification.

    Raises:
        UsageError: An option, or a file that it names, is wrong.
    """
    if encoder is None and encoder_arguments is not None:
        raise UsageError("--encoder-args needs --encoder")
    if isinstance(encoder, EncoderSpec) and encoder_arguments is not None:
        raise UsageError(f"{encoder.text} is an object, which has its arguments; leave out --encoder-args")
    catalogue = load_catalogue(preset)
    own = read_own_evaluations(local_path(evaluate), catalogue) if evaluate else ()
    if own and train == "auto":
        raise UsageError("--eval needs --train: name the mix whose LALM its datasets are evaluated with")
    mix = _read_mix(train, catalogue)
    if mix is not None and mix.name not in catalogue.mix_names and not own:
        raise UsageError(f"--train={train} needs --eval: it contains no public dataset to evaluate")
    datasets = [*catalogue.datasets.values(), *(mix.datasets if mix else ()), *own]
    check_places(datasets)
    home = local_path(data_home or os.environ.get("XARES_DATA_HOME") or "xares_data").absolute()
    folder = home if data_home else catalogue.preset.folder or home
    return Plan(
        encoder=parse_encoder_spec(encoder, encoder_arguments) if isinstance(encoder, str) else encoder,
        catalogue=catalogue,
        own_datasets={dataset.name: dataset for dataset in own},
        mix=mix,
        recipe=catalogue.preset.recipe.replace(_read_changes(changes, {"seed": seed, "frame_pool": pool})),
        num_seeds=num_seeds,
        decoder=catalogue.preset.decoder if decoder is None else _read_decoder(decoder),
        limit=limit,
        data_folder=folder.absolute(),
        data_home=home,
        data_revisions=_read_revisions(data_revisions, datasets),
        tracker=tracker,
        allow_cpu=allow_cpu,
        feature_bytes=feature_bytes,
        checkpoint_steps=checkpoint_steps,
        runs_folder=local_path(runs_dir).absolute(),
    )


def _read_revisions(texts: Sequence[str], datasets: Iterable[Dataset]) -> Mapping[str | None, str]:
    """The values of `--data-revision`, each for a repository that the datasets use."""
    revisions = parse_data_revisions(texts)
    repositories = sorted({dataset.repository for dataset in datasets if dataset.repository is not None})
    for repository in revisions:
        if not repositories or repository not in (None, *repositories):
            found = ", ".join(repositories) or "no repository"
            hint = did_you_mean(repository or "", repositories)
            raise UsageError(f"--data-revision={repository or ''}: this repository is not used; found {found}{hint}")
    return revisions


def _read_changes(changes: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The changes of the recipe by `--set`, and by the options that are the same as one."""
    values: dict[str, Any] = {}
    for change in changes:
        key, value = _parse_change(change)
        if key in values:
            raise UsageError(f"--set={change}: {key} is set twice, before to {values[key]}; give each key once")
        values[key] = value
    for key, value in given.items():
        if value is None:
            continue
        if key in values:
            option = {"seed": "--seed", "frame_pool": "--pool"}[key]
            raise UsageError(f"{option}={value} and --set {key}={values[key]} both set {key}; give one of them")
        values[key] = value
    return values


def _read_mix(train: str, catalogue: Catalogue) -> Mix | None:
    if train == "auto":
        return None
    if train.endswith((".yaml", ".yml")):
        return read_own_mix(local_path(train), catalogue)
    return catalogue.mix(train)


def _read_decoder(text: str) -> str:
    """Return the absolute path of a folder, or a name on the hub."""
    path = local_path(text)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"--decoder={text}: this folder has no config.json; give a model's folder or hub name")
        return str(path.absolute())
    name, _, _ = text.partition("@")
    if not text.strip() or name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists():
        raise UsageError(f"--decoder={text}: found neither a folder nor a name of the form OWNER/NAME[@REVISION]")
    return text


def _parse_change(change: str) -> tuple[str, Any]:
    """Return key and value of one `--set KEY=VALUE`; the value is read as YAML."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise CatalogueError(f"--set={change}: expected KEY=VALUE, e.g. --set learning_rate=0.001")
    try:
        return key.strip(), load_yaml(text)
    except MisreadWord as cause:
        raise CatalogueError(f"--set={change}: {cause}") from None
    except ValueError:
        raise CatalogueError(f"--set={change}: {text!r} is neither a number, true, false, null nor a word") from None
