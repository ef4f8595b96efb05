"""The header: what a session is going to do, before it does it, in lines for the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xares_bench.core.errors import EncoderError, XaresError
from xares_bench.metrics.registry import METRICS
from xares_bench.runtime.variables import SPINCOUNT, num_workers

if TYPE_CHECKING:
    from xares_bench.config.plan import Plan
    from xares_bench.scores.records import RunManifest
    from xares_bench.session.session import BenchSession
    from xares_bench.suite.suite import Suite


def header_lines(session: BenchSession) -> list[str]:
    """Encoder, decoder, data, recipe, baseline, what is reused, where results go; or why the run is not ready."""
    preset = session.plan.catalogue.preset
    title = f"xares-bench: preset {preset.name}, {preset.summary}"
    if session.not_ready is not None:
        return [title, f"not ready: {session.not_ready}"]
    try:
        return [title, *_run_lines(session)]
    except EncoderError as error:
        return [title, f"encoder: breaks its contract, clause {error.clause}: {error}"]
    except XaresError as error:
        return [title, f"not ready: {error}"]


def _run_lines(session: BenchSession) -> list[str]:
    """The lines of a session that can run; of the encoder alone where only its contract is tested.

    Raises:
        EncoderError: The encoder breaks its contract.
        XaresError: The run cannot be described.
    """
    plan, suite, selected = session.plan, session.suite, session.selected
    encoder, run = suite.encoder, session.run
    lines = [
        f"encoder: {encoder.spec.text} {encoder.name} {encoder.fingerprint[:12]}, {encoder.output_dim} dimensions, "
        f"{run.encoder['frames_per_second']:.4g} frames/s, real-time factor {run.encoder['realtime_factor']:.2g}"
        f"{', contract check cached' if run.encoder['contract_reused'] else ''}"
    ]
    if str(encoder.settings):
        lines.append(f"encoder: sets {encoder.settings} for the whole process; that is undone after each of its calls")
    if encoder.num_before:
        earlier = "an earlier encoder" if encoder.num_before == 1 else f"{encoder.num_before} earlier encoders"
        lines.append(
            f"encoder: same source, arguments and weights as {earlier}, but other features; nothing of that is reused"
        )
    if not selected:
        return lines
    commit = f" at {run.decoder['commit']}" if run.decoder["commit"] else f" {run.decoder['fingerprint'][:12]}"
    precision = "" if run.environment["precision"] == "no" else f" in {run.environment['precision']}"
    lines.append(f"decoder: {run.decoder['name']}{commit}, on {suite.device}{precision}{_processes(suite)}")
    spincount = run.environment["variables"].get("GOMP_SPINCOUNT")
    if run.environment["threads"] > 1 and spincount == SPINCOUNT:
        lines.append(
            f"threads: {run.environment['threads']}, which sleep soon while they wait (GOMP_SPINCOUNT={spincount})"
        )
    lines.extend(_data_lines(suite, run, selected))
    lines.append(f"recipe: {_recipe(plan, selected)}")
    number = num_workers(os.environ)
    if number > 1:
        lines.append(f"trainings: up to {number} at once, one in each worker (-n {number}), all on {suite.device}")
    if any(METRICS[plan.dataset(name).metric].needs_models for name in selected):
        from xares_bench.metrics.captions.files import deviations

        lines.extend(f"captions: {deviation}" for deviation in deviations())
    if plan.limit is not None:
        lines.append(f"limit: {plan.limit} clips per dataset and split; results are partial")
    corruptions = dict.fromkeys(str(corruption) for _, corruption in session.corrupted)
    if corruptions:
        lines.append(f"corruptions: {', '.join(corruptions)}, each of the test clips alone; no training is for them")
    baseline, tolerance = session.baseline, session.gate.tolerance
    lines.append("baseline: none" if baseline is None else f"baseline: {baseline.name}, tolerance {tolerance}")
    if session.baseline_differences:
        lines.append(
            f"baseline: measured with {'; '.join(session.baseline_differences)}: scores may differ for that alone "
            "(--strict-baseline refuses it)"
        )
    if session.baseline_untold:
        lines.append(f"baseline: does not tell what it was measured with: {session.baseline_untold}")
    lines.extend(_cache_lines(suite, selected))
    lines.append(f"results: {plan.runs_folder / run.name}")
    return lines


def _recipe(plan: Plan, selected: Sequence[str]) -> str:
    """What differs from the preset, and how long every mix is trained."""
    changes = [
        f"{key}={own}" + ("" if default is None else f" (preset: {default})")
        for key, (default, own) in plan.deviations.items()
    ]
    mixes = {mix.name: mix for mix in map(plan.mix_for, selected)}
    steps = ", ".join(f"{name} {plan.num_steps(mix)}" for name, mix in mixes.items())
    if plan.num_seeds > 1:
        steps += f", each with the seeds {plan.seeds[0]} to {plan.seeds[-1]}"
    return f"{', '.join(changes) if changes else 'preset defaults'}; steps: {steps}"


def _processes(suite: Suite) -> str:
    """How many processes there are, or could be."""
    if suite.num_processes > 1:
        return f", {suite.num_processes} processes"
    if suite.num_devices == 1:
        return ""
    launcher = f"accelerate launch --num_processes={suite.num_devices} -m pytest ..."
    return f", one of {suite.num_devices} GPUs ({launcher} uses all)"


def _data_lines(suite: Suite, run: RunManifest, selected: Sequence[str]) -> list[str]:
    """Where the data are, which they are, and what of them is still to be fetched."""
    data = run.data
    lines = [f"data: {data['folder']}, revision {data['revision']}"]
    for repository, commit in data["repositories"].items():
        lines.append(f"data: {repository} at {commit or 'an unknown commit (the hub was not asked)'}")
    lines.extend(f"data: {shared}" for shared in suite.preflight.shared(selected))
    try:
        survey = suite.preflight.survey(selected)
    except XaresError as error:
        return [*lines, f"data: {error}"]
    return lines if survey is None else [*lines, f"data: {survey.summary}"]


def _cache_lines(suite: Suite, selected: Sequence[str]) -> list[str]:
    """Which results are cached, or why that is unknown."""
    from rich.filesize import decimal

    try:
        reuse = suite.preflight.reuse(selected)
    except XaresError as error:
        return [f"cached: unknown: {error}"]
    return [
        *(f"LALM {name}: {state}" for name, state in reuse.mixes.items()),
        f"cached: features of {reuse.num_shards_reused} of {reuse.num_shards} shards, "
        f"{reuse.num_scores_reused} of {reuse.num_scores} scores; "
        f"features take {decimal(reuse.feature_bytes)} of {decimal(reuse.feature_budget_bytes)} allowed",
    ]
