"""The header: what a session is going to do, before it does it, in lines for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from xares_bench.core.errors import EncoderError, XaresError
from xares_bench.metrics.registry import METRICS

if TYPE_CHECKING:
    from xares_bench.config.plan import Plan
    from xares_bench.scores.gate import Gate
    from xares_bench.scores.records import RunManifest
    from xares_bench.suite.suite import Suite


def title(plan: Plan) -> str:
    """The first line, which holds whatever comes."""
    return f"xares-bench: preset {plan.catalogue.preset.name}, {plan.catalogue.preset.summary}"


def header_lines(suite: Suite, gate: Gate, selected: Sequence[str], open_run: Callable[[], RunManifest]) -> list[str]:
    """Encoder, decoder, data, recipe, baseline, what is reused, where results go.

    Args:
        suite: Does the work.
        gate: What scores are held against.
        selected: The datasets; none where only the encoder's contract is tested.
        open_run: Names and describes the run.

    Raises:
        XaresError: The run cannot be described.
    """
    plan = suite.plan
    lines = [title(plan)]
    try:
        encoder, run = suite.encoder, open_run()
    except EncoderError as error:
        return [*lines, f"encoder: breaks its contract, clause {error.clause}: {error}"]
    described = run.encoder
    lines.append(
        f"encoder: {encoder.spec.text} {encoder.name} {encoder.fingerprint[:12]}, {encoder.output_dim} dimensions, "
        f"{described['frames_per_second']:.4g} frames/s, real-time factor {described['realtime_factor']:.2g}"
        f"{', contract reused' if described['contract_reused'] else ''}"
    )
    if not selected:
        return lines
    commit = f" at {run.decoder['commit']}" if run.decoder["commit"] else f" {run.decoder['fingerprint'][:12]}"
    precision = "" if run.environment["precision"] == "no" else f" in {run.environment['precision']}"
    lines.append(f"decoder: {run.decoder['name']}{commit}, on {suite.device}{precision}{_company(suite)}")
    lines.extend(_data_lines(suite, run, selected))
    changes = [f"{key}={own} (preset: {default})" for key, (default, own) in plan.deviations.items()]
    mixes = {mix.name: mix for mix in map(plan.mix_for, selected)}
    steps = ", ".join(f"{name} {plan.num_steps(mix)}" for name, mix in mixes.items())
    if plan.num_seeds > 1:
        steps += f", each with the seeds {plan.seeds[0]} to {plan.seeds[-1]}"
    lines.append(f"recipe: {', '.join(changes) if changes else 'as the preset has it'}; steps: {steps}")
    if any(METRICS[plan.dataset(name).metric].needs_models for name in selected):
        from xares_bench.metrics.captions.files import deviations

        lines.extend(f"captions: {deviation}" for deviation in deviations())
    if plan.limit is not None:
        lines.append(f"limit: {plan.limit} clips per dataset and split; results are partial")
    baseline = gate.baseline
    lines.append("baseline: none" if baseline is None else f"baseline: {baseline.name}, tolerance {gate.tolerance}")
    lines.extend(_kept(suite, selected))
    lines.append(f"results: {plan.runs_folder / run.name}")
    return lines


def _company(suite: Suite) -> str:
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
        lines.append(f"data: {repository} at {commit or 'a commit that is not known (the hub was not asked)'}")
    try:
        survey = suite.preflight.survey(selected)
    except XaresError as error:
        return [*lines, f"data: {error}"]
    return lines if survey is None else [*lines, f"data: {survey.summary}"]


def _kept(suite: Suite, selected: Sequence[str]) -> list[str]:
    """What the session finds finished, or which shard keeps it from knowing."""
    from rich.filesize import decimal

    try:
        reuse = suite.preflight.reuse(selected)
    except XaresError as error:
        return [f"kept: not known: {error}"]
    parts = [f"LALM {name} {state}" for name, state in reuse.mixes.items()]
    parts.append(f"features of {reuse.num_shards_reused} of {reuse.num_shards} shards reused")
    parts.append(f"{reuse.num_scores_reused} of {reuse.num_scores} scores reused")
    room = f"features: {decimal(reuse.feature_bytes)} kept, {decimal(reuse.feature_budget_bytes)} allowed"
    return [f"kept: {', '.join(parts)}", room]
