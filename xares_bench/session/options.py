"""Options: the command line, read and checked as a whole before anything else happens."""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from xares_bench.config.plan import Plan, make_plan
from xares_bench.core.errors import UsageError
from xares_bench.core.parsing import local_path
from xares_bench.datasets.corruptions import Corruption, parse_corruptions
from xares_bench.scores.baselines import Baseline, check_comparable, load_baseline
from xares_bench.scores.new_baseline import check_new_baseline
from xares_bench.session.arguments import option_actions


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for.

    Attributes:
        plan: What to train and evaluate.
        baseline: The baseline to compare scores with, or None.
        by_noise: Whether a score fails by a loss beyond noise (`--tolerance=ci`), or beyond a fixed number.
        tolerance: The number given with `--tolerance`, or None.
        save_to: The file to save the scores to as a baseline, or None.
        replace: Whether `save_to` may be overwritten.
        corruptions: Corruptions of the test clips to score besides the clean ones.
        is_strict: Whether a baseline of another recipe, decoder, mix, data or version is refused.
    """

    plan: Plan
    baseline: Baseline | None
    by_noise: bool
    tolerance: float | None
    save_to: Path | None
    replace: bool
    corruptions: tuple[Corruption, ...] = ()
    is_strict: bool = False


def check_folder(folder: Path, option: str) -> None:
    """Refuse a folder that cannot be made, or cannot be written to, before any work is done for it.

    Raises:
        UsageError: It is a file, or below one, or not writable.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(f"{option}: {existing} is a file, expected a folder; choose another folder")
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as cause:
        raise UsageError(
            f"{option}: {existing} cannot be written to ({cause.strerror}); choose another folder"
        ) from cause


def check_given_once(arguments: Iterable[str]) -> None:
    """Refuse an option that a command line has twice, where pytest would let the last one win.

    Args:
        arguments: The command line, without `addopts` and PYTEST_ADDOPTS: it may override these.

    Raises:
        UsageError: An option of ours is given twice.
    """
    once = {name for name, action in option_actions().items() if action == "store"}
    given: dict[str, str] = {}
    for argument in itertools.takewhile(lambda argument: argument != "--", arguments):
        name = argument.partition("=")[0]
        if name in once:
            if name in given:
                raise UsageError(f"{argument}: {name} is given twice, before as {given[name]}; give it once")
            given[name] = argument


def read_options(option: argparse.Namespace) -> Options:
    """Check the options of `arguments`, alone and with each other, and read the files that they name.

    Raises:
        UsageError: An option, or a file that it names, is wrong.
    """
    plan = make_plan(
        encoder=option.xares_encoder,
        encoder_arguments=option.xares_encoder_args,
        preset=option.xares_preset,
        train=option.xares_train,
        evaluate=option.xares_eval,
        changes=option.xares_set,
        seed=option.xares_seed,
        pool=option.xares_pool,
        num_seeds=option.xares_seeds,
        tracker=option.xares_track,
        decoder=option.xares_decoder,
        limit=option.xares_limit,
        data_home=option.xares_data_home,
        data_revisions=option.xares_data_revision,
        allow_cpu=option.xares_allow_cpu,
        feature_bytes=option.xares_feature_budget,
        checkpoint_steps=option.xares_checkpoint_steps,
        runs_dir=option.xares_runs_dir,
    )
    if option.xares_runs_dir == "":
        raise UsageError("--runs-dir=: found nothing, expected a folder")
    if not option.collectonly:  # a listing writes nothing
        check_folder(plan.runs_folder, f"--runs-dir={option.xares_runs_dir}")
    if plan.data_home.exists() and not plan.data_home.is_dir():
        raise UsageError(f"{plan.data_home} is a file, expected the folder of the data; choose another --data-home")
    if option.xares_strict_baseline and option.xares_baseline is None:
        raise UsageError("--strict-baseline needs --baseline: name the baseline to compare scores with")
    if option.xares_tolerance is not None and option.xares_baseline is None:
        raise UsageError("--tolerance needs --baseline: name the baseline to compare scores with")
    if option.xares_limit is not None and (option.xares_baseline or option.xares_save_baseline):
        raise UsageError(
            "--limit leaves clips out; scores over fewer clips cannot be compared with a baseline or saved as one"
        )
    baseline = None
    if option.xares_baseline is not None:
        baseline = load_baseline(option.xares_baseline, tasks=plan.catalogue.tasks)
        check_comparable(baseline, preset=plan.catalogue.preset.name, datasets=())
    save_to = None if option.xares_save_baseline is None else local_path(option.xares_save_baseline)
    if save_to is not None:
        check_new_baseline(save_to, replace=option.xares_force)
    elif option.xares_force:
        raise UsageError("--force needs --save-baseline: it lets --save-baseline overwrite a file")
    by_noise, tolerance = option.xares_tolerance or (True, None)
    return Options(
        plan=plan,
        baseline=baseline,
        by_noise=by_noise,
        tolerance=tolerance,
        save_to=save_to,
        replace=option.xares_force,
        corruptions=parse_corruptions(option.xares_corrupt),
        is_strict=option.xares_strict_baseline,
    )
