"""A new baseline: the scores of a run, written so that `baselines.load_baseline` reads them back to the last bit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from xares_bench.core.errors import BaselineError, UsageError
from xares_bench.core.store import write_together
from xares_bench.core.yaml_text import dump_yaml
from xares_bench.scores.baselines import BASELINE_SCHEMA, BaselineScore, clip_sums_file
from xares_bench.scores.comparability import facts_of
from xares_bench.scores.records import RunManifest, ScoreRecord


def check_new_baseline(path: Path, *, replace: bool = False) -> None:
    """Raise UsageError if a baseline cannot be written there; nothing is created.

    Called before training, so that hours of work do not end in a wrong path.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{path} cannot be a baseline; expected a file name that ends in .yaml")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; expected a file name")
    if not replace and (path.exists() or path.is_symlink()):
        raise UsageError(f"{path} exists already; name another file, or overwrite it with --force")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise UsageError(f"{path} cannot be written: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK):
        raise UsageError(f"{path} cannot be written: no write permission for {nearest}")


def write_baseline(
    path: Path,
    *,
    preset: str,
    scores: Mapping[str, BaselineScore],
    note: str = "",
    fingerprints: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
    replace: bool = False,
) -> None:
    """Write a baseline; `load_baseline` reads the same scores back, to the last bit.

    The YAML file is written last, after the clip sums whose digests it holds.

    Args:
        path: A .yaml file; missing folders above it are created.
        preset: The preset that the scores were measured with.
        scores: Scores by dataset.
        note: Where the scores come from.
        fingerprints: Digests of the encoder, the data and so on.
        facts: What the scores depend on besides the encoder.
        replace: Whether to overwrite an existing baseline.

    Raises:
        UsageError: The file exists.
        DiskError: The file cannot be written.
        BaselineError: There are no scores, or one is not a finite number within -1 and 1.
    """
    check_new_baseline(path, replace=replace)
    if not scores:
        raise BaselineError(f"{path} is not written: there are no scores to save")
    for dataset, known in scores.items():
        # Also refuses NaN: any comparison with it is false.
        if not -1 <= known.score <= 1:
            raise BaselineError(
                f"{path} is not written: the score of {dataset} is {known.score}, expected a number within -1 and 1"
            )
    content: dict[str, object] = {"schema": BASELINE_SCHEMA, "preset": preset}
    if note:
        content["note"] = note
    clip_sums = {
        dataset: known.clip_sums.to_bytes() for dataset, known in scores.items() if known.clip_sums is not None
    }
    digests = {dataset: hashlib.sha256(data).hexdigest() for dataset, data in clip_sums.items()}
    content["scores"] = {name: _described(scores[name], digests.get(name)) for name in sorted(scores)}
    if facts:
        content["run"] = {name: str(facts[name]) for name in sorted(facts)}
    if fingerprints:
        content["fingerprints"] = {part: fingerprints[part] for part in sorted(fingerprints)}
    files: dict[Path, bytes | str] = {clip_sums_file(path, dataset): data for dataset, data in clip_sums.items()}
    write_together({**files, path: dump_yaml(content)})


def save_as_baseline(
    path: Path,
    run: RunManifest,
    records: Iterable[ScoreRecord],
    clip_sums_files: Mapping[str, Path],
    *,
    replace: bool = False,
) -> None:
    """Write a run's scores as a baseline.

    Args:
        path: A .yaml file; missing folders above it are created.
        run: The run.
        records: Its scores.
        clip_sums_files: The file of every score's clip sums, by dataset.
        replace: Whether a baseline that is there already is overwritten.

    Raises:
        UsageError, DiskError, BaselineError: As for `write_baseline`.
    """
    from xares_bench.scores.clip_sums import load_clip_sums

    records = tuple(records)
    scores = {
        record.dataset: BaselineScore(
            score=record.score,
            interval=record.interval,
            deviation=record.deviation,
            spread=record.spread,
            num_seeds=len(record.seed_scores),
            seed_scores=record.seed_scores,
            weight=record.weight,
            num_rows=record.num_rows,
            num_clips=record.num_clips,
            clip_sums=load_clip_sums(clip_sums_files[record.dataset]),
        )
        for record in records
    }
    write_baseline(
        path,
        preset=run.preset,
        scores=scores,
        note=f"{run.encoder['spec']}, run {run.name}",
        fingerprints={"encoder": run.encoder["fingerprint"], "decoder": run.decoder["fingerprint"]},
        facts=facts_of(run, {record.dataset: record.mix for record in records}),
        replace=replace,
    )


def _described(known: BaselineScore, clip_sums: str | None) -> dict[str, object]:
    """Return a score for YAML, in plain floats: PyYAML cannot write numpy's."""
    found: dict[str, object] = {
        "score": float(known.score),
        "interval": None if known.interval is None else [float(end) for end in known.interval],
        "deviation": None if known.deviation is None else float(known.deviation),
        "rows": known.num_rows,
        "clips": known.num_clips,
        "seeds": known.num_seeds,
        "spread": None if known.spread is None else float(known.spread),
        "seed_scores": [float(score) for score in known.seed_scores] if len(known.seed_scores) > 1 else None,
        "weight": None if known.weight == 1 else float(known.weight),
        "clip_sums": clip_sums,
    }
    return {key: value for key, value in found.items() if value is not None}
