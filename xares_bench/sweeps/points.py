"""Points: what a sweep's file asks for, one run each.

    encoders:                                  # each with every combination of its lists
      - examples/logmel_encoder.py
      - encoder: hf:microsoft/wavlm-base
        revisions: [main, v1.0]                # as @REVISION
        arguments: {layer: [3, 6, 9]}          # --encoder-args
    tasks: task1                               # tasks and datasets; default: all
    options:                                   # of the suite, without the dashes
      preset: mini
      seeds: 2
      pool: [1, 2]
      set: {learning_rate: [0.001, 0.0005]}

A list stands for alternatives, so a value that is a list itself is in two pairs of brackets.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xares_bench.config.catalogue import load_catalogue
from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.core.digests import digest_of
from xares_bench.core.errors import UsageError
from xares_bench.core.parsing import Section, did_you_mean, read_yaml, shown
from xares_bench.session.command import option_arguments

_KEYS = ("encoders", "tasks", "options")
_ENCODER_KEYS = ("encoder", "revisions", "arguments")
# What every point has of its own, or what only one run can have.
_NO_OPTIONS = {
    "encoder": "name it under encoders",
    "encoder_args": "name them under encoders, as arguments",
    "runs_dir": "give it on the command line: xares-bench sweep --runs-dir=DIR",
    "save_baseline": "all runs would write one file; run that encoder alone",
    "force": "it belongs to save_baseline",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep.

    Attributes:
        label: What tells it from the others, for a table.
        arguments: The arguments of `xares-bench`, without the folder for results.
    """

    label: str
    arguments: tuple[str, ...]

    def command(self, runs: Path) -> str:
        """Return the command line that runs it, for any shell or scheduler."""
        return shlex.join(["xares-bench", *self.arguments, f"--runs-dir={runs}"])

    @property
    def file_name(self) -> str:
        """A name for its files, unlike that of every other point."""
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", self.label).strip("-.")[:60]
        return f"{slug}-{digest_of(list(self.arguments))[:8]}"


def read_points(path: Path) -> list[Point]:
    """Read a sweep's file; the points are in the order of the file.

    Raises:
        UsageError: The file is ill-formed, or names an encoder, a task or an option that does not exist.
    """
    file = read_yaml(path, UsageError)
    file.only(*_KEYS)
    options = file.section("options") if file.has("options") else Section(path, "options", {}, UsageError)
    chosen = _selection(file, options)
    encoders = [(encoder, given) for section in _encoders(file) for encoder, given in _encoder_points(section)]
    settings = [*_combinations(options)]
    points = []
    for (encoder, given), values in itertools.product(encoders, settings):
        try:
            parse_encoder_spec(encoder, json.dumps(given) if given else None)
            arguments = option_arguments({"encoder": encoder, "encoder_args": given or None, **values})
        except UsageError as cause:
            raise UsageError(f"{path}: {cause}") from None
        label = " ".join([_short(encoder), *_differing(given, encoders), *_differing_options(values, settings)])
        points.append(Point(label=label, arguments=(*arguments, *chosen)))
    repeated = next((point for number, point in enumerate(points) if point in points[:number]), None)
    if repeated is not None:
        raise UsageError(f"{path}: {repeated.label} is named twice; name every encoder once")
    return points


def _encoders(file: Section) -> Iterator[Section]:
    """Yield the entries under `encoders` as mappings."""
    entries = file.values.get("encoders")
    if not isinstance(entries, list) or not entries:
        file.fail("encoders", f"found {shown(entries)}, expected a list of encoders")
    for number, entry in enumerate(entries):
        place = f"encoders[{number}]"
        section = Section(file.file, place, {"encoder": entry} if isinstance(entry, str) else entry, UsageError)
        if not isinstance(section.values, Mapping):
            file.fail("encoders", f"found {shown(entry)}, expected text or a mapping with the key encoder")
        section.only(*_ENCODER_KEYS)
        yield section


def _encoder_points(section: Section) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every combination of an entry: the value of `--encoder`, and that of `--encoder-args`."""
    name = section.text("encoder")
    names = [name]
    if section.has("revisions"):
        if not name.startswith("hf:"):
            section.fail("revisions", f"only models of the hub have them (hf:NAME), found {name}")
        names = [f"{name}@{revision}" for revision in section.texts("revisions")]
    arguments = section.section("arguments") if section.has("arguments") else None
    for encoder in names:
        for given in [{}] if arguments is None else _combinations(arguments):
            yield encoder, given


def _combinations(section: Section) -> Iterator[dict[str, Any]]:
    """Yield a mapping for every choice of one value from each list, also from lists in a mapping such as `set`."""
    alternatives = []
    for key, value in section.values.items():
        if isinstance(value, Mapping):
            alternatives.append([*_combinations(section.section(key))])
        elif isinstance(value, list):
            if not value:
                section.fail(key, "found an empty list, expected at least one value")
            alternatives.append(value)
        else:
            alternatives.append([value])
    for values in itertools.product(*alternatives):
        yield dict(zip(section.values, values, strict=True))


def _selection(file: Section, options: Section) -> list[str]:
    """Return the arguments that select the tests; refuses options that a sweep cannot have, and unknown tasks."""
    for name, advice in _NO_OPTIONS.items():
        if name in options.values:
            options.fail(name, f"a sweep has no such option; {advice}")
    if not file.has("tasks"):
        return []
    preset = options.values.get("preset", "full")
    catalogue = load_catalogue(preset if isinstance(preset, str) else "full")
    known = [*catalogue.tasks, *catalogue.datasets]
    for name in (names := file.texts("tasks")):
        if name not in known:
            hint = did_you_mean(name, known)
            file.fail("tasks", f"{name}: no such task or dataset; expected some of {', '.join(known)}{hint}")
    return ["-k", " or ".join(names)]


def _short(encoder: str) -> str:
    """Return an encoder's name for a table, without the folders of its file."""
    file, separator, rest = encoder.partition("::")
    return f"{Path(file).name}{separator}{rest}" if file.endswith(".py") else encoder.removeprefix("hf:")


def _differing(given: Mapping[str, Any], encoders: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Return the arguments of an encoder that another point has with another value, or not at all."""
    return [f"{key}={value}" for key, value in given.items() if any(other.get(key) != value for _, other in encoders)]


def _differing_options(values: Mapping[str, Any], settings: list[dict[str, Any]]) -> list[str]:
    """Return the options of a point that not all points have in common."""
    found = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            inner = [other[key] for other in settings]
            found += _differing_options(value, inner)
        elif any(other[key] != value for other in settings):
            found.append(f"{key}={value}")
    return found
