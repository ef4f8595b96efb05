"""Many sessions of the mini suite in one process, each with another encoder: `python -m tests.soak SESSIONS FOLDER`.

One line of JSON after each session says what the process holds. test_soak.py reads them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import torch

from tests.conftest import REPOSITORY

# A table of two million weights: 8 MB, which show if they stay.
ENCODER = """
import torch


class Soak{number}Encoder(torch.nn.Module):
    output_dim = 64

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(500, 4096, generator=torch.Generator().manual_seed({number})))

    def forward(self, audio, audio_attention_mask=None):
        if audio_attention_mask is None:
            audio_attention_mask = torch.ones_like(audio, dtype=torch.long)
        audio = torch.nn.functional.pad(audio * audio_attention_mask, (0, -audio.shape[1] % 640))
        features = torch.tanh(audio.unflatten(1, (-1, 640)) @ self.table[:64, :640].T)
        ends = -(-audio_attention_mask.sum(dim=1, keepdim=True) // 640)
        return features, (torch.arange(features.shape[1]) < ends).long()
"""


def held() -> dict[str, int]:
    """What this process holds now."""
    gc.collect()
    process = psutil.Process()
    return {
        "threads": process.num_threads(),
        "children": len(process.children(recursive=True)),
        "open_files": process.num_fds(),
        "temporary_files": len([*Path(tempfile.gettempdir()).rglob("*")]),
        "tensor_bytes": sum(x.nbytes for x in gc.get_objects() if issubclass(type(x), torch.Tensor)),
        "resident_bytes": process.memory_info().rss,
    }


def main(num_sessions: int, folder: Path, *options: str) -> None:
    """Run them and print what is held after each.

    Args:
        num_sessions: Number of sessions.
        folder: Where encoders, features and runs lie.
        options: Further options of pytest.
    """
    for number in range(num_sessions):
        encoder = folder / f"encoder_{number}.py"
        encoder.write_text(ENCODER.format(number=number))
        log = folder / f"session_{number}.txt"
        with log.open("w") as output, contextlib.redirect_stdout(output):
            status = pytest.main(
                [
                    *(str(REPOSITORY / "bench"), "--preset=mini", f"--encoder={encoder}", "-p", "no:cacheprovider"),
                    *(f"--runs-dir={folder / 'runs'}", *options),
                ]
            )
        sys.stdout.write(json.dumps({"status": int(status), **held()}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
