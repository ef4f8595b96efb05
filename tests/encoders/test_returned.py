"""What an encoder returns is checked on every call."""

from __future__ import annotations

import pytest
import torch

from tests.encoders.conftest import Loader, forward
from xares_bench.core.errors import EncoderError

AUDIO = torch.linspace(-1, 1, 3200).reshape(2, 1600)
MASK = torch.ones(2, 1600, dtype=torch.long)


def test_features_keep_the_encoders_dtype(load: Loader) -> None:
    features, _ = load(forward("return audio.unfold(1, 400, 160)[..., :4].half(), None"))(AUDIO)
    assert features.dtype == torch.float16


@pytest.mark.parametrize("mask", ["[[1, 1], [1, 0]]", "[[1.0, 1.0], [1.0, 0.0]]", "[[True, True], [True, False]]"])
def test_its_mask_becomes_bool(load: Loader, mask: str) -> None:
    _, frame_mask = load(forward(f"return audio[:, :8].reshape(2, 2, 4), torch.tensor({mask})"))(AUDIO, MASK)
    assert frame_mask is not None
    assert frame_mask.dtype == torch.bool
    assert frame_mask.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("handed_back", ["mask", "mask.clone()", "None if mask is None else mask.bool()"])
def test_the_audios_own_mask_counts_as_none(load: Loader, handed_back: str) -> None:
    _, frame_mask = load(forward(f"return audio[:, :8].reshape(2, 2, 4), {handed_back}"))(AUDIO, MASK)
    assert frame_mask is None


@pytest.mark.parametrize(
    ("body", "clause"),
    [
        ("return [audio[:, :8].reshape(2, 2, 4), None, None]", "two-results"),
        ("return None", "two-results"),
        ("return None, None", "features-float"),
        ("return audio[:, :8].reshape(2, 2, 4).to_sparse(), None", "features-float"),
        ("return audio[:, :8].reshape(1, 4, 4), None", "features-shape"),
        ("return audio[:, :8].reshape(2, 2, 4) / 0, None", "features-finite"),
        ("return audio[:, :8].reshape(2, 2, 4), torch.ones(2, 3)", "mask-shape"),
        ("return audio[:, :8].reshape(2, 2, 4), torch.ones(2, 2, device='meta')", "device"),
        ("return audio[:, :8].reshape(2, 2, 4), [[1, 1], [1, 1]]", "mask-shape"),
        ("return audio[:, :8].reshape(2, 2, 4), torch.eye(2).flip(1) * torch.tensor([[1], [0]])", "mask-shape"),
        ("raise StopIteration", "no-mask"),
    ],
)
def test_every_result_is_looked_at(load: Loader, body: str, clause: str) -> None:
    encoder = load(forward(body))
    with pytest.raises(EncoderError) as caught:
        encoder(AUDIO)
    assert caught.value.clause == clause
    assert "\n" not in str(caught.value)
