"""Threads that wait: how long torch's threads spin, on an idle machine and on a busy one.

    python -m benchmarks.spinning [SPINCOUNT ...]

Between two parallel loops an OpenMP thread spins for a while before it sleeps. On an idle machine that is faster; where
other processes compute, it takes the time that the others, and its own partner, need. Each setting is measured in
processes of its own, in turns, with training steps of the mini decoder: alone, and beside as many busy processes as the
machine has cores. `default` is torch as it comes, `1 thread` the alternative that needs no waiting at all.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

NUM_ROUNDS = 5
NUM_STEPS = 8
SPINCOUNTS = ("1000", "10000", "30000", "100000")

_DECODER = Path(__file__).parent.parent / "fixtures" / "mini-decoder"
_BUSY = "while True: pass"


def main(spincounts: list[str]) -> None:
    """Print seconds per step of every setting, and the ratio to the best of its column."""
    settings: dict[str, dict[str, str]] = {"default": {}, "1 thread": {"OMP_NUM_THREADS": "1"}}
    settings["passive"] = {"OMP_WAIT_POLICY": "passive"}
    settings |= {f"spin {count}": {"GOMP_SPINCOUNT": count} for count in spincounts}
    seconds: dict[str, dict[bool, list[float]]] = {name: {False: [], True: []} for name in settings}
    for _ in range(NUM_ROUNDS):
        for is_busy in (False, True):
            others = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(is_busy * (os.cpu_count() or 1))]
            try:
                for name, setting in settings.items():
                    seconds[name][is_busy].append(_measured(setting))
            finally:
                for other in others:
                    other.kill()
                    other.wait()
    best = {is_busy: min(statistics.median(found[is_busy]) for found in seconds.values()) for is_busy in (False, True)}
    sys.stdout.write(f"{'setting':12s} {'idle':>8s} {'ratio':>6s} {'busy':>8s} {'ratio':>6s}\n")
    for name, found in seconds.items():
        cells = [statistics.median(found[is_busy]) for is_busy in (False, True)]
        line = f"{name:12s} {cells[0]:8.3f} {cells[0] / best[False]:6.2f} {cells[1]:8.3f} {cells[1] / best[True]:6.2f}"
        sys.stdout.write(f"{line}\n")


def _measured(setting: dict[str, str]) -> float:
    """Return the median seconds per step in a process with these variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, "-m", "benchmarks.spinning", "--steps"]
    done = subprocess.run(command, env={**kept, **setting}, capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout)
    return statistics.median(found)


def _steps() -> list[float]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(_DECODER)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    optimizer = torch.optim.AdamW(model.parameters())
    tokens_BL = torch.randint(0, config.vocab_size, (32, 96))
    seconds = []
    for _ in range(NUM_STEPS):
        start_s = time.perf_counter()
        optimizer.zero_grad()
        model(input_ids=tokens_BL, labels=tokens_BL).loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start_s)
    return seconds[2:]


if __name__ == "__main__":
    if sys.argv[1:] == ["--steps"]:
        json.dump(_steps(), sys.stdout)
    else:
        main(sys.argv[1:] or list(SPINCOUNTS))
