"""Memory of a training over one, four and sixteen times the shards, the same number of steps: it does not grow.

    pytest benchmarks/test_memory.py -s

Whole processes, as users start them: features that are cached in the first pass (`cached`), found in the cache
(`found`), and recomputed at every draw (`recomputed`). Every shard is read at least once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.processes import peak_bytes_of
from tests.conftest import REPOSITORY
from tests.shard_factory import Waveform, write_shard

SHARDS = 2
CLIPS_PER_SHARD = 48
DURATION_S = 4.0
FACTORS = (1, 4, 16)
BATCH_SIZE = 16
# All clips of the largest mix are drawn once, and what the shuffle buffer takes in advance.
STEPS = FACTORS[-1] * SHARDS * CLIPS_PER_SHARD // BATCH_SIZE

TRAIN = """
train_data:
  mine: {{prompt: Which?, data: ['{folder}/train{{00..{last:02}}}.tar'], key: label}}
num_training_workers: {num_workers}
"""
EVAL = "mine: {{data: {{data: ['{folder}/train00.tar'], key: label, prompt: Which?}}, metric: Accuracy}}\n"


def write_data(folder: Path) -> None:
    """Shards of noise under a tone, each clip with a long JSON object beside it, as real ones have."""
    rng = np.random.default_rng(0)
    time_s = np.arange(round(DURATION_S * 16_000)) / 16_000
    for shard in range(FACTORS[-1] * SHARDS):
        clips = []
        for clip in range(CLIPS_PER_SHARD):
            tone = 0.5 * np.sin(2 * np.pi * (200 + 100 * (clip % 8)) * time_s)
            waveform: Waveform = (tone + 0.05 * rng.standard_normal(len(time_s))).astype(np.float32)
            clips.append((f"c{clip}", waveform, {"label": str(clip % 8), "notes": "x" * 2000}))
        write_shard(folder / f"train{shard:02}.tar", clips)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of the largest mix; smaller ones are its first ones."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def peak_bytes(data: Path, runs: Path, factor: int, *options: str) -> int:
    """Peak resident memory of a whole run over so many times the shards."""
    train, evaluate = runs / "train.yaml", runs / "eval.yaml"
    runs.mkdir(exist_ok=True)
    train.write_text(TRAIN.format(folder=data, last=factor * SHARDS - 1, num_workers=1))
    evaluate.write_text(EVAL.format(folder=data))
    command = [sys.executable, "-m", "pytest", str(REPOSITORY / "bench"), "-q", "-p", "no:cacheprovider"]
    command += ["--preset=mini", *options]
    command += [f"--encoder={REPOSITORY / 'examples' / 'logmel_encoder.py'}", f"--runs-dir={runs}"]
    command += [f"--train={train}", f"--eval={evaluate}", "-k", "mine"]
    command += ["--set", f"steps={STEPS}", "--set", f"batch_size={BATCH_SIZE}", "--set", "max_new_tokens=4"]
    peak = peak_bytes_of(command)
    manifests = sorted((runs / "store" / "lalms").glob("*/manifest.json"), key=lambda path: path.stat().st_mtime_ns)
    assert json.loads(manifests[-1].read_text())["num_samples"] == {"mine": factor * SHARDS * CLIPS_PER_SHARD}
    return peak


@pytest.mark.parametrize("what", ["cached", "found", "recomputed"])
def test_memory_does_not_grow_with_the_mix(what: str, data: Path, tmp_path: Path) -> None:
    """The peak stays within a tenth."""
    peaks = {}
    for factor in FACTORS:
        runs = tmp_path / str(factor)
        peaks[factor] = peak_bytes(data, runs, factor, f"--feature-budget={'0' if what == 'recomputed' else '50GB'}")
        cached = {
            json.loads(path.read_text())["shard"] for path in (runs / "store" / "features").glob("*/manifest.json")
        }
        assert len(cached) == (0 if what == "recomputed" else factor * SHARDS)
        if what == "found":
            peaks[factor] = peak_bytes(data, runs, factor, "--seed=1")
    shown = ", ".join(f"{factor}x {peak / 1e6:.0f} MB" for factor, peak in peaks.items())
    sys.stdout.write(f"\n{what}: {shown}\n")
    assert max(peaks.values()) < 1.1 * min(peaks.values()), shown
