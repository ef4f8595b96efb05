"""A run in words: its encoder with arguments, and everything in which it differs from its preset."""

from __future__ import annotations

import json
from collections.abc import Iterable

from xares_bench.scores.records import RunManifest, ScoreRecord


def encoder_in_words(run: RunManifest) -> str:
    """Return the encoder's specification, with its arguments as JSON if it has some."""
    arguments = arguments_in_words(run)
    return f"{run.encoder['spec']} {arguments}" if arguments else str(run.encoder["spec"])


def arguments_in_words(run: RunManifest) -> str:
    """Return the encoder's arguments as JSON; empty if it has none."""
    arguments = run.encoder["arguments"]
    return json.dumps(arguments, ensure_ascii=False) if arguments else ""


def deviations_in_words(run: RunManifest, records: Iterable[ScoreRecord]) -> list[str]:
    """Return what makes the scores of a run others than those of its preset, one text each.

    Args:
        run: The run.
        records: Its scores.
    """
    found = [
        f"{key}={own}" + ("" if default is None else f" (preset: {default})")
        for key, (default, own) in run.deviations.items()
    ]
    records = tuple(records)
    if any(record.partial for record in records):
        found.append(f"--limit={run.data.get('limit')}")
    own_mixes = sorted({record.mix for record in records if record.mix != record.task})
    found += [f"trained on {mix}" for mix in own_mixes]
    return found
