"""The options of the command line: names, help, and the values that can be read alone."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import cast

import pytest


def add_options(parser: pytest.Parser) -> None:
    """Add the options of the benchmark: a list, as long as there are options.

    Raises:
        argparse.ArgumentError: Another plugin has an option of this name.
    """
    group = parser.getgroup("xares-bench", "xares-bench: does a language model understand sound through your encoder?")
    add = group.addoption
    add(
        "--encoder",
        dest="xares_encoder",
        metavar="SPEC",
        help="the encoder: FILE.py (its one class ending in Encoder), FILE.py::CLASS, package.module.CLASS, or "
        "hf:NAME_OR_FOLDER[@REVISION] for an audio model of the hub",
    )
    add(
        "--encoder-args",
        dest="xares_encoder_args",
        metavar="JSON",
        help="keyword arguments of the encoder's constructor",
    )
    add(
        "--preset",
        dest="xares_preset",
        default="full",
        metavar="NAME",
        help="data, decoder and recipe: full (the published benchmark) or mini (runs on a laptop); default: full",
    )
    add(
        "--train",
        dest="xares_train",
        default="auto",
        metavar="MIX",
        help="what to train on: auto (one LALM per task, trained on that task's datasets), task1, task2, all, "
        "the name of a dataset, or FILE.yaml; default: auto",
    )
    add("--eval", dest="xares_eval", metavar="FILE", help="also evaluate the datasets that a YAML file describes")
    add(
        "--decoder",
        dest="xares_decoder",
        metavar="NAME",
        help="another decoder: a causal language model, OWNER/NAME[@REVISION] on the hub or a folder",
    )
    add(
        "--set",
        dest="xares_set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the recipe, e.g. --set learning_rate=0.001; repeatable",
    )
    add("--seed", dest="xares_seed", type=_count(0), metavar="N", help="seed of the training, the same as --set seed=N")
    add(
        "--pool",
        dest="xares_pool",
        type=_count(1),
        metavar="N",
        help="average N neighbouring frames to one, from the same cached features; the same as --set frame_pool=N",
    )
    add(
        "--seeds",
        dest="xares_seeds",
        type=_count(1),
        default=1,
        metavar="N",
        help="train N LALMs per mix, with N consecutive seeds, and report mean scores; default: 1",
    )
    add(
        "--corrupt",
        dest="xares_corrupt",
        action="append",
        default=[],
        metavar="NAME:LEVEL",
        help="also score the test clips after a corruption, without training for it: noise:DB, mp3:KBIT_S, "
        "speed:FACTOR, reverb[:RT60_S] or lowpass:HZ, e.g. --corrupt=noise:10; repeatable",
    )
    add("--limit", dest="xares_limit", type=_count(1), metavar="N", help="use at most N clips per dataset and split")
    add(
        "--data-home",
        dest="xares_data_home",
        metavar="DIR",
        help="folder of the shards, to which they are also downloaded; default: the preset's own folder, else "
        "$XARES_DATA_HOME, else ./xares_data",
    )
    add(
        "--data-revision",
        dest="xares_data_revision",
        action="append",
        default=[],
        metavar="[REPO@]REV",
        help="commit, tag or branch of the data on the hub, for all repositories or for one; later runs use it, too; "
        "repeatable",
    )
    add(
        "--allow-cpu",
        dest="xares_allow_cpu",
        action="store_true",
        help="allow a preset that is made for a GPU to train without one, however long it takes",
    )
    add(
        "--feature-budget",
        dest="xares_feature_budget",
        type=_size,
        metavar="SIZE",
        help="disk space for cached features, e.g. 50GB, or 0 for none; default: half of the free space",
    )
    add(
        "--checkpoint-steps",
        dest="xares_checkpoint_steps",
        type=_count(1),
        default=500,
        metavar="N",
        help="save a checkpoint every N steps, and when the training is interrupted; the same command resumes from it; "
        "default: 500",
    )
    add(
        "--track",
        dest="xares_track",
        choices=("tensorboard", "wandb", "trackio"),
        help="also send losses and scores to this tracker; needs its package; default: off",
    )
    add("--runs-dir", dest="xares_runs_dir", default="runs", metavar="DIR", help="folder for results; default: ./runs")
    add(
        "--baseline",
        dest="xares_baseline",
        metavar="NAME",
        help="fail scores below this baseline: the name of a shipped one, or a file",
    )
    add(
        "--tolerance",
        dest="xares_tolerance",
        type=_tolerance,
        metavar="ci|NUMBER",
        help="how far a score may be below the baseline: a fixed number, or ci for any loss that noise can explain or "
        "that is at most 0.005 (ci:FLOOR for another floor); default: ci",
    )
    add(
        "--strict-baseline",
        dest="xares_strict_baseline",
        action="store_true",
        help="refuse a baseline that was measured with another or an unknown recipe, decoder, mix, data or version, "
        "instead of only saying so",
    )
    add("--save-baseline", dest="xares_save_baseline", metavar="FILE", help="save this run's scores as a baseline")
    add("--force", dest="xares_force", action="store_true", help="allow --save-baseline to overwrite a file")


class _Noted:
    """Stands in for pytest's parser, and notes what is done with the value of each option."""

    def __init__(self) -> None:
        self.actions: dict[str, str] = {}

    def getgroup(self, *_: object) -> _Noted:
        return self

    def addoption(self, name: str, action: str = "store", **_: object) -> None:
        self.actions[name] = action


def option_actions() -> dict[str, str]:
    """Return `store`, `store_true` or `append` for every option, by name."""
    noted = _Noted()
    add_options(cast(pytest.Parser, noted))
    return noted.actions


def _count(at_least: int) -> Callable[[str], int]:
    """Return a parser of whole numbers that refuses smaller ones."""

    def read(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < at_least:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of at least {at_least}")
        return int(text)

    return read


def _size(text: str) -> int:
    """Return the bytes of a size such as 50GB, 300MB or 0."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a size, e.g. 50GB, 300MB or 0")
    power = " KMGT".index(found[2].upper() or " ")
    return round(float(f"{found[1]}e{3 * power}"))


def _tolerance(text: str) -> tuple[bool, float | None]:
    """Return whether noise decides, and the number that is given, if any."""
    kind, _, number = text.partition(":") if text.startswith("ci") else ("", "", text)
    if text == "ci":
        return True, None
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf or kind not in ("", "ci"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected ci, ci:FLOOR or a number of at least 0, e.g. 0.02")
    return kind == "ci", value
