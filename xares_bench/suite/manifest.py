"""The manifest of a run: what `results.json` says about encoder, decoder, data, recipe and machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xares_bench.config.plan import Plan
from xares_bench.core.own_files import shown_path
from xares_bench.encoders.contract_report import ContractReport
from xares_bench.encoders.loading import FrozenEncoder
from xares_bench.hub.models import Decoder
from xares_bench.metrics.registry import METRICS, metric_identity
from xares_bench.scores.records import RunManifest
from xares_bench.suite.keys import Keys

# Letters of the encoder's name in the name of a run's folder: each can take four bytes, and file systems allow 255.
_MAX_NAME = 50


def run_manifest(
    names: tuple[str, ...],
    *,
    plan: Plan,
    encoder: FrozenEncoder,
    contract: ContractReport,
    decoder: Decoder,
    keys: Keys,
    commits: Mapping[str, str | None],
    environment: Mapping[str, Any],
) -> RunManifest:
    """Describe the run that evaluates these datasets; equal runs have equal names.

    Args:
        names: The datasets.
        plan: Datasets, recipe and folders.
        encoder: The frozen encoder.
        contract: What its contract check found.
        decoder: The decoder.
        keys: Cache keys of the results.
        commits: The commit of each hub repository with shards, None where it is unknown.
        environment: Device, precision, libraries and so on.
    """
    commit = getattr(encoder.module, "commit", None)  # only models of the hub have one
    return RunManifest(
        name=f"{encoder.name[:_MAX_NAME]}-{plan.catalogue.preset.name}-{keys.run(names)[:10]}",
        datasets=names,
        encoder={
            "spec": encoder.spec.text,
            "name": encoder.name,
            "arguments": dict(encoder.spec.arguments),
            "fingerprint": encoder.fingerprint,
            "commit": commit if isinstance(commit, str) else None,
            "output_dim": encoder.output_dim,
            "honours_mask": contract.honours_mask,
            "frames_per_second": contract.frames_per_second,
            "realtime_factor": contract.realtime_factor,
            "contract_reused": contract.reused,
            "warnings": dict(contract.warnings),
        },
        preset=plan.catalogue.preset.name,
        decoder={"name": shown_path(decoder.name), "commit": decoder.commit, "fingerprint": decoder.digest},
        recipe=plan.recipe.values(),
        deviations={
            **{key: list(values) for key, values in plan.deviations.items()},
            **{key: list(values) for key, values in plan.data_deviations(names).items()},
        },
        data={
            "folder": shown_path(str(plan.data_folder)) if plan.uses_public(names) else "own tar files",
            "revision": keys.data(names)[:12],
            "repositories": dict(commits),
            "test_repositories": {
                name: repository for name in names if (repository := plan.dataset(name).repository) is not None
            },
            "limit": plan.limit,
            "mixes": {name: keys.mix(plan.mix_for(name))[:12] for name in names},
            "test_data": {name: keys.data([name])[:12] for name in names},
            "licences": plan.licences(names),
        },
        tasks=plan.tasks,
        seeds=plan.seeds,
        environment={
            **environment,
            "judges": {
                metric: metric_identity(metric)
                for metric in sorted({plan.dataset(name).metric for name in names})
                if METRICS[metric].needs_models
            },
        },
    )
