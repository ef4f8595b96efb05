"""Whole processes and how much memory they took."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# A process counts its parent's memory as its own peak until it has become another program. This one has little.
_WAITING = """
import pathlib, resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
unit = 1 if sys.platform == "darwin" else 1024
pathlib.Path(sys.argv[1]).write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit))
sys.exit(status)
"""


def peak_bytes_of(
    command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, is_shown: bool = False
) -> int:
    """Run a command to its end; its peak resident memory in bytes.

    Args:
        command: Program and arguments.
        cwd: Where it runs.
        env: Its environment; None: ours.
        is_shown: Whether its output is.

    Raises:
        RuntimeError: It failed.
    """
    with tempfile.NamedTemporaryFile() as peak:
        waiting = [sys.executable, "-c", _WAITING, peak.name, *command]
        output = None if is_shown else subprocess.DEVNULL
        status = subprocess.run(waiting, cwd=cwd, env=env, stdout=output, check=False).returncode
        if status != 0:
            raise RuntimeError(f"exit status {status}: {' '.join(command)}")
        return int(Path(peak.name).read_text(encoding="ascii"))
