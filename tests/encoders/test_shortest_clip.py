from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from tests.encoders.conftest import CPU, LEARNED, PLAIN, Loader
from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.core.store import Store
from xares_bench.encoders.contract import check_contract
from xares_bench.encoders.contract_probes import probe_clip
from xares_bench.encoders.shortest_clip import shortest_clip

CLIP_S = probe_clip(1600, seed=0)

# Frames of any width, and their mask; what a mask keeps of a clip shorter than a window is decided by the argument.
MASKED = """
import torch
from torch import nn

class MaskedEncoder(nn.Module):
    output_dim = 4

    def __init__(self, window=400, alone=1):
        super().__init__()
        self.window, self.alone = window, alone

    def forward(self, audio, mask=None):
        if audio.shape[1] < self.alone:
            raise ValueError("too short")
        if mask is None:
            mask = torch.ones_like(audio)
        frames = nn.functional.pad(audio, (0, self.window)).unfold(1, self.window, self.window)[..., :4]
        ends = torch.arange(1, frames.shape[1] + 1) * self.window
        return frames, ends[None] <= mask.sum(1, keepdim=True)
"""


@pytest.mark.parametrize(("source", "expected"), [(PLAIN, 400), (LEARNED, 400)])
def test_the_width_of_the_first_window(load: Loader, source: str, expected: int) -> None:
    encoder = load(source)
    assert shortest_clip(encoder, CLIP_S, padded=False) == expected
    encoder(CLIP_S[None, :expected])


@pytest.mark.parametrize("shortest", [1, 2, 3, 399, 800, 1599, 1600])
def test_any_length(load: Loader, shortest: int) -> None:
    source = PLAIN.replace("        return", f"        assert audio.shape[1] >= {shortest}\n        return")
    source = source.replace("unfold(1, 400, 160)", "repeat(1, 5).unfold(1, 5, 5)")
    assert shortest_clip(load(source), CLIP_S, padded=False) == shortest


def test_a_padded_clip_must_keep_a_frame(load: Loader) -> None:
    encoder = load(MASKED, '{"window": 320}')
    assert shortest_clip(encoder, CLIP_S, padded=False) == 320, "without a frame in the mask it is not taken"
    encoder = load(
        MASKED.replace(
            "if mask is None:", "if mask is None:\n            return audio[:, :, None].repeat(1, 1, 4), None"
        )
    )
    assert shortest_clip(encoder, CLIP_S, padded=False) == 1
    assert shortest_clip(encoder, CLIP_S, padded=True) == 400


def test_warnings_are_no_refusals(load: Loader) -> None:
    source = PLAIN.replace("        return", "        import warnings\n        warnings.warn('short')\n        return")
    encoder = load(source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shortest_clip(encoder, CLIP_S, padded=False) == 400


def test_few_clips_are_tried(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(PLAIN)
    lengths: list[int] = []

    def forward(audio: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, None]:
        lengths.append(audio.shape[1])
        return audio.unfold(1, 400, 160)[..., :4], None

    monkeypatch.setattr(encoder.module, "forward", forward)
    shortest_clip(encoder, CLIP_S, padded=False)
    assert len(lengths) <= 12
    assert max(lengths) < 1600


def test_the_contract_measures_it_and_stores_it(tmp_path: Path) -> None:
    (tmp_path / "enc.py").write_text(PLAIN)
    spec = parse_encoder_spec(str(tmp_path / "enc.py"), None)
    report = check_contract(spec, CPU, Store(root=tmp_path / "store"))
    assert (report.failure, report.min_samples, report.reused) == (None, 400, False)
    again = check_contract(spec, CPU, Store(root=tmp_path / "store"))
    assert (again.min_samples, again.reused) == (400, True)


def test_random_state_and_weights_stay(load: Loader) -> None:
    encoder = load(LEARNED)
    before = torch.get_rng_state(), {name: value.clone() for name, value in encoder.module.state_dict().items()}
    shortest_clip(encoder, CLIP_S, padded=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in encoder.module.state_dict().items())
