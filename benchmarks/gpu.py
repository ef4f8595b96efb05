"""One command for a machine with a GPU: is the package correct there, and how fast is it?

    python -m benchmarks.gpu --out results --budget-s 540
    python -m benchmarks.gpu --out results --only step,generation
    python -m benchmarks.gpu --out results --tiny        # on a CPU, with a tiny decoder: tests the command itself

Every part runs in a process of its own with a time limit and leaves one JSON line in `gpu.jsonl`. A part that fails
leaves its last lines and stops no other. What each part measures is written at its function in `gpu_parts.py`. Results
are in `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.sizes import REPOSITORY

# In this order: what breaks before how fast it is. Seconds that each may take.
LIMITS_S = {
    "facts": 60,
    "suite": 180,
    "equality": 60,
    "step": 180,
    "bf16": 90,
    "control": 90,
    "generation": 90,
    "memory": 60,
    "twice": 120,
    "launcher": 60,
    "two_trainings": 120,
}
# Less is not worth starting a process for.
_SHORTEST_S = 10.0


def main() -> None:
    """Run the parts one after another."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.jsonl")
    parser.add_argument("--budget-s", type=float, default=540, help="seconds for all parts together")
    parser.add_argument("--only", type=_parts, default=tuple(LIMITS_S), help="parts, separated by commas")
    parser.add_argument("--tiny", action="store_true", help="a tiny decoder on the CPU: tests the command itself")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as work, (given.out / "gpu.jsonl").open("w", encoding="utf-8") as file:
        for part in given.only:
            left_s = given.budget_s - (time.monotonic() - started)
            if left_s < _SHORTEST_S:
                line: dict[str, Any] = {"part": part, "left out": "the budget is used up"}
            else:
                line = _run(part, Path(work), tiny=given.tiny, limit_s=min(left_s, LIMITS_S[part]))
            # Written at once, so that results survive if the command is stopped.
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(json.dumps(line), flush=True)  # noqa: T201


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    for part in parts:
        if part not in LIMITS_S:
            raise argparse.ArgumentTypeError(f"found {part!r}, expected some of {', '.join(LIMITS_S)}")
    return parts


def _run(part: str, work: Path, *, tiny: bool, limit_s: float) -> dict[str, Any]:
    """The line of a part, which runs in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu_parts", part, str(work / part), *(["--tiny"] if tiny else [])]
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    # Left to the package on purpose: a user's first session finds it unset, too.
    environment.pop("CUBLAS_WORKSPACE_CONFIG", None)
    started = time.monotonic()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        found: dict[str, Any] = {"failed": f"no result after {limit_s:.0f} s"}
    else:
        *_, last = ["", *done.stdout.strip().splitlines()]
        if done.returncode == 0:
            found = json.loads(last)
        else:
            found = {"failed": (done.stderr or done.stdout).strip().splitlines()[-3:]}
    return {"part": part, "s": round(time.monotonic() - started, 1), **found}


if __name__ == "__main__":
    main()
