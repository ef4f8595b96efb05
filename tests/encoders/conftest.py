"""Encoders from sources in a test's own folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.encoders.loading import FrozenEncoder, load_encoder

CPU = torch.device("cpu")

PLAIN = """
import torch
from torch import nn

class PlainEncoder(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.output_dim = 4
        self.scale = scale

    def forward(self, audio, mask=None):
        return self.scale * audio.unfold(1, 400, 160)[..., :4], None
"""

LEARNED = """
import torch
from torch import nn

class LearnedEncoder(nn.Module):
    def __init__(self, weight=None, buffer=0.0):
        super().__init__()
        self.output_dim = 4
        self.conv = nn.Conv1d(1, 4, 400, 160)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("offset", torch.tensor(buffer), persistent=False)
        if weight is not None:
            nn.init.constant_(self.conv.weight, weight)

    def forward(self, audio, mask=None):
        features = self.drop(self.norm(self.conv(audio[:, None]))) + self.offset
        return features.transpose(1, 2), None
"""

Loader = Callable[..., FrozenEncoder]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """Write a source to a file and load it."""
    monkeypatch.chdir(tmp_path)

    def load(source: str, arguments: str | None = None, name: str = "enc.py") -> FrozenEncoder:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        return load_encoder(parse_encoder_spec(str(path), arguments), CPU)

    return load


def forward(body: str) -> str:
    """A source whose forward has this body."""
    return PLAIN.replace("return self.scale * audio.unfold(1, 400, 160)[..., :4], None", body)
