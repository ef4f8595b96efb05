from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import pytest

import xares_bench
from xares_bench.datasets.inventory import INVENTORY_MODULES
from xares_bench.encoders.contract import CONTRACT_MODULES
from xares_bench.features.feature_store import FEATURES_MODULES
from xares_bench.reports.worst_clips import AUDIO_MODULES
from xares_bench.suite.keys import SCORING_MODULES, TRAINING_MODULES

PACKAGE = Path(xares_bench.__file__).parent

# Modules that cannot change a result, and why. A name that ends in "." stands for a whole package.
CANNOT_CHANGE_A_RESULT = {
    "config.": "what it reads stands in the key as values: datasets, prompts, weights, recipe, limit, arguments",
    "core.digests": "it makes the keys; another digest is another key",
    "core.errors": "texts of errors",
    "core.file_kinds": "texts of errors",
    "core.yaml_text": "what it reads stands in the key as values, as that of config",
    "core.locks": "it waits for other processes",
    "core.progress": "progress bars",
    "core.text": "it escapes half characters, which no target and no prediction has",
    "core.store": "it stores results and verifies their digests, whatever they are",
    "features.disk_budget": "it decides which features are evicted; evicted features are recomputed to the same bits",
    "hub.": "it fetches files, whose digests or commits stand in the key",
    "runtime.exits": "it ends the process; what was ended is no result",
    "runtime.signals": "it ends or interrupts work; what was interrupted is no result",
}
# The key of a LALM holds the key of its features, the key of a score that of its LALM.
IN_THE_KEY_OF_FEATURES = {
    "encoders.": "in the key of the features",
    "datasets.audio": "in the key of the features",
    "datasets.containers": "in the key of the features",
    "datasets.mpeg": "in the key of the features",
    "datasets.ogg": "in the key of the features",
    "datasets.part": "in the key of the features",
    "features.cached_shard": "in the key of the features",
    "features.chunks": "in the key of the features",
    "features.encoding": "in the key of the features",
    "features.prefetch": "in the key of the features",
    "features.feature_store": "in the key of the features",
    "runtime.patches": "in the key of the features; for decoders, it refuses",
    "runtime.variables": "in the key of the features",
}
ONLY_SCORES = {
    "lalm.generation": "used after the training",
    "lalm.hugging_face_generation": "used after the training",
    "lalm.token_steps": "used after the training",
    "metrics.": "used after the training",
    "scores.clip_sums": "used after the training",
    "scores.statistics": "used after the training",
    "suite.texts": "used after the training",
}
ONLY_TRAINS = {"training.": "in the key of the LALM"}
SHOWN_BY_THE_PAGE = {
    "metrics.": "what it chooses stands in the page itself, whose digest is part of the key",
    "scores.records": "as metrics",
}

LISTS: dict[str, tuple[Collection[str], tuple[str, ...], Mapping[str, str]]] = {
    "encoders.contract.CONTRACT_MODULES": (CONTRACT_MODULES, ("encoders.contract",), {}),
    "datasets.inventory.INVENTORY_MODULES": (INVENTORY_MODULES, ("datasets.inventory",), {}),
    "features.feature_store.FEATURES_MODULES": (FEATURES_MODULES, ("features.feature_store",), {}),
    "suite.keys.TRAINING_MODULES": (TRAINING_MODULES, ("suite.pipeline",), {**IN_THE_KEY_OF_FEATURES, **ONLY_SCORES}),
    "suite.keys.SCORING_MODULES": (SCORING_MODULES, ("suite.pipeline",), {**IN_THE_KEY_OF_FEATURES, **ONLY_TRAINS}),
    "reports.worst_clips.AUDIO_MODULES": (AUDIO_MODULES, ("reports.worst_clips",), SHOWN_BY_THE_PAGE),
}


def file_of(name: str) -> Path | None:
    """The file of a module or a package."""
    path = PACKAGE.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imported_by(module: str) -> set[str]:
    """Our modules that a module imports while it runs, also within functions."""
    file = file_of(module)
    assert file is not None, module
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    names = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in for_types
        for alias in node.names
    ]
    own = [name.removeprefix("xares_bench.") for name in names if name.startswith("xares_bench.")]
    return {name if file_of(name) is not None else name.rpartition(".")[0] for name in own}


def closure(roots: Iterable[str], without: Collection[str]) -> set[str]:
    """All that these modules import, directly or not, but for what is left out and what only that imports."""

    def is_left_out(name: str) -> bool:
        return any(name == other or (other.endswith(".") and f"{name}.".startswith(other)) for other in without)

    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        if module not in found and not is_left_out(module):
            found.add(module)
            waiting.extend(imported_by(module))
    return found


@pytest.mark.parametrize("name", LISTS)
def test_a_key_covers_the_code_of_all_that_does_the_work(name: str) -> None:
    listed, roots, covered = LISTS[name]
    needed = closure(roots, {**CANNOT_CHANGE_A_RESULT, **covered})
    assert sorted(needed - set(listed)) == [], f"add these modules to {name}, or say here why they change no result"
    assert sorted(set(listed) - needed) == [], f"remove these modules from {name}: nothing imports them"


def test_what_is_said_to_change_no_result_is_there() -> None:
    for name in {**CANNOT_CHANGE_A_RESULT, **IN_THE_KEY_OF_FEATURES, **ONLY_SCORES, **ONLY_TRAINS, **SHOWN_BY_THE_PAGE}:
        assert (PACKAGE / name[:-1]).is_dir() if name.endswith(".") else file_of(name), name


def test_imports_within_functions_count_and_those_for_types_do_not() -> None:
    assert "metrics.captions.judges" in imported_by("metrics.registry")
    assert "suite.suite" in imported_by("session.session")  # imported by a property, and for types
    assert "reports.results" not in imported_by("reports.runs")
