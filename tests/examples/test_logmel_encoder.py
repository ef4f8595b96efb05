from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram

from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.encoders.contract import check_contract

FILE = Path(__file__).parents[2] / "examples" / "logmel_encoder.py"
DEVICE = torch.device("cpu")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("logmel_encoder", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noise(num_samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("num_mels", [40, 64, 80])
def test_filters_are_those_of_another_implementation(example: ModuleType, num_mels: int) -> None:
    expected = mel_filter_bank(257, num_mels, 0.0, 8000.0, 16000, norm=None, mel_scale="htk")
    filters = example.mel_filters(num_mels).numpy()
    np.testing.assert_allclose(filters, expected, atol=1e-4)
    assert (filters.sum(axis=0) > 0).all()


def test_features_are_those_of_another_implementation(example: ModuleType) -> None:
    audio = noise(5000)
    energies = spectrogram(
        audio.numpy().astype(np.float64),
        np.hanning(401)[:-1],
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        mel_filters=mel_filter_bank(257, 64, 0.0, 8000.0, 16000, norm=None, mel_scale="htk"),
        mel_floor=0.0,
    ).T
    windows = (np.log10(energies + 1e-6) + 1) / 2
    features, mask = example.LogMelEncoder()(audio[None])
    # 29 windows fill three frames of eight and five windows of a fourth.
    assert windows.shape == (29, 64)
    assert features.shape == (1, 4, 512)
    assert mask.tolist() == [[1, 1, 1, 1]]
    np.testing.assert_allclose(features.reshape(32, 64)[:29].numpy(), windows, atol=1e-3)
    assert (features.reshape(32, 64)[29:] == -2.5).all()


@pytest.mark.parametrize("num_samples", [1, 160, 400, 1600, 1681, 16000, 19999])
def test_a_padded_clip_has_the_features_of_the_clip_alone(example: ModuleType, num_samples: int) -> None:
    encoder = example.LogMelEncoder()
    alone, alone_mask = encoder(noise(num_samples)[None])
    batch = torch.stack([noise(20000, seed=1), noise(20000, seed=2)])
    # What lies in the padding is of no account.
    batch[1, :num_samples] = noise(num_samples)
    mask = torch.stack([torch.ones(20000), (torch.arange(20000) < num_samples).float()]).long()
    features, frame_mask = encoder(batch, mask)
    assert frame_mask.shape == features.shape[:2]
    assert frame_mask[1].sum() == alone_mask.sum() == alone.shape[1]
    torch.testing.assert_close(features[1][frame_mask[1].bool()], alone[0], rtol=1e-4, atol=1e-4)
    assert frame_mask[0].all()


def test_arguments_decide_the_width() -> None:
    spec = parse_encoder_spec(str(FILE), '{"num_mels": 40, "stack": 4}')
    encoder = check_contract(spec, DEVICE).encoder
    assert encoder is not None
    assert encoder.output_dim == 160


def test_keeps_every_clause_and_honours_the_mask() -> None:
    report = check_contract(parse_encoder_spec(str(FILE)), DEVICE)
    assert {name: o.message for name, o in report.outcomes.items() if o.status != "passed"} == {}
    assert report.honours_mask
    assert report.frames_per_second == pytest.approx(12.5, abs=0.05)
    assert report.realtime_factor is not None
    assert report.realtime_factor < 0.2


def test_is_silent_about_silence(example: ModuleType) -> None:
    features, _ = example.LogMelEncoder()(torch.zeros(1, 1600))
    assert (features == -2.5).all()
