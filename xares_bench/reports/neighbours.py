"""Neighbours: other runs of the same runs folder, for their scores and what their encoders cost."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from xares_bench.core.errors import UsageError
from xares_bench.reports.runs import RESULTS_FILE, read_run
from xares_bench.scores.records import RunManifest, ScoreRecord


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A run as it stands beside others.

    Attributes:
        name: Name of its folder.
        encoder: Name of the encoder's class, or of the model.
        arguments: What the encoder was made with, as JSON; empty where nothing was given.
        dimensions: Width of its frames.
        frames_per_second: How many frames it makes of a second.
        realtime_factor: Seconds of computing per second of audio.
        score: Weighted mean over the datasets that it was asked for.
    """

    name: str
    encoder: str
    arguments: str
    dimensions: int
    frames_per_second: float
    realtime_factor: float
    score: float


def neighbours_of(folder: Path, *, preset: str, device: str, datasets: Collection[str]) -> list[Neighbour]:
    """Runs beside a run's folder that can be compared with it, by name; what cannot be read is passed over.

    Args:
        folder: The run's folder, which is left out.
        preset: Its preset.
        device: What it was computed on, as costs of different devices cannot be compared.
        datasets: What must have been scored, whole.
    """
    found = []
    for path in sorted(folder.parent.glob(f"*/{RESULTS_FILE}")):
        if path.parent == folder:
            continue
        try:
            other = read_run(path)
            if other.run.preset == preset and other.run.environment["device"] == device:
                found.append(neighbour(other.run, other.records, datasets))
        except (UsageError, KeyError):
            continue  # not of this version, or not finished
    return [run for run in found if run is not None]


def neighbour(run: RunManifest, records: Mapping[str, ScoreRecord], datasets: Collection[str]) -> Neighbour | None:
    """A run as a neighbour; None where it does not have all of the datasets, each whole.

    Raises:
        KeyError: What is to be known of the encoder is not in the manifest.
    """
    chosen = [records[name] for name in datasets if name in records and not records[name].partial]
    if not chosen or len(chosen) < len(datasets) or not all(math.isfinite(record.score) for record in chosen):
        return None
    encoder = run.encoder
    return Neighbour(
        name=run.name,
        encoder=encoder["name"],
        arguments=json.dumps(encoder["arguments"], ensure_ascii=False) if encoder["arguments"] else "",
        dimensions=encoder["output_dim"],
        frames_per_second=encoder["frames_per_second"],
        realtime_factor=encoder["realtime_factor"],
        score=math.fsum(record.score * record.weight for record in chosen)
        / math.fsum(record.weight for record in chosen),
    )
