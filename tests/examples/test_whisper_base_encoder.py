from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from tests.audio_models import noise, padded, save_whisper
from xares_bench.config.encoder_spec import EncoderSpec, parse_encoder_spec
from xares_bench.encoders.contract import check_contract
from xares_bench.encoders.loading import FrozenEncoder, load_encoder

FILE = Path(__file__).parents[2] / "examples" / "whisper_base_encoder.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def spec(folder: Path) -> EncoderSpec:
    return parse_encoder_spec(str(FILE), json.dumps({"model_name": str(folder)}))


@pytest.fixture(scope="module")
def encoder(spec: EncoderSpec) -> FrozenEncoder:
    return load_encoder(spec, CPU)


def library_features(folder: Path, clip: torch.Tensor) -> torch.Tensor:
    """All 1500 frames of the library's own encoder for one clip."""
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    model: Any = WhisperForConditionalGeneration.from_pretrained(folder)
    model.eval()
    spectrum = extractor(clip.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        features: torch.Tensor = model.model.encoder(spectrum).last_hidden_state[0]
    assert len(features) == 1500
    return features


def test_keeps_every_clause_and_honours_the_mask(spec: EncoderSpec) -> None:
    report = check_contract(spec, CPU)
    assert {name: o.message for name, o in report.outcomes.items() if o.status != "passed"} == {}
    assert report.honours_mask
    assert report.frames_per_second == 50


@pytest.mark.parametrize(("duration_s", "num_frames"), [(0.01, 1), (1.0, 50), (1.001, 51), (30.0, 1500)])
def test_frames_are_the_librarys_as_far_as_the_clip_goes(
    encoder: FrozenEncoder, folder: Path, duration_s: float, num_frames: int
) -> None:
    clip = noise(duration_s)
    features, mask = encoder(clip[None])
    assert features.shape == (1, num_frames, encoder.output_dim)
    assert mask is not None
    assert mask.all()
    torch.testing.assert_close(features[0], library_features(folder, clip)[:num_frames], rtol=1e-4, atol=1e-4)


def test_longer_clips_are_heard_in_windows(encoder: FrozenEncoder, folder: Path) -> None:
    clip = noise(61.1)
    features, _ = encoder(clip[None])
    assert features.shape[1] == 3055
    for number, window in enumerate(torch.split(clip, 480_000)):
        expected = library_features(folder, window)
        found = features[0, 1500 * number : 1500 * (number + 1)]
        torch.testing.assert_close(found, expected[: len(found)], rtol=1e-4, atol=1e-4)


def test_a_padded_clip_has_the_features_of_the_clip_alone(encoder: FrozenEncoder) -> None:
    clips = [noise(31.0, seed=1), noise(1.0, seed=2), noise(0.3333, seed=3), noise(30.01, seed=4)]
    features, mask = encoder(*padded(clips))
    assert mask is not None
    assert mask.sum(dim=1).tolist() == [1550, 50, 17, 1501]
    for clip, clip_features, clip_mask in zip(clips, features, mask, strict=True):
        alone, _ = encoder(clip[None])
        torch.testing.assert_close(clip_features[clip_mask], alone[0], rtol=1e-4, atol=1e-4)


def test_the_decoder_is_let_go(encoder: FrozenEncoder) -> None:
    assert [name for name, _ in encoder.module.named_parameters() if "decoder" in name] == []
