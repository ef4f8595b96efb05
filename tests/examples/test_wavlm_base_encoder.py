from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel

from tests.audio_models import NUM_LAYERS, noise, padded, save_waveform_model
from xares_bench.config.encoder_spec import EncoderSpec, parse_encoder_spec
from xares_bench.core.errors import EncoderError
from xares_bench.encoders.contract import check_contract
from xares_bench.encoders.loading import load_encoder

FILE = Path(__file__).parents[2] / "examples" / "wavlm_base_encoder.py"
CPU = torch.device("cpu")
KINDS = [
    "wavlm with group norm",
    "wavlm with layer norm",
    "wav2vec2 with group norm",
    "wav2vec2 with layer norm",
    "hubert with group norm",
    "hubert with layer norm",
    "unispeech",
    "data2vec-audio",
]


def spec_for(folder: Path, **arguments: Any) -> EncoderSpec:
    return parse_encoder_spec(str(FILE), json.dumps({"model_name": str(folder), **arguments}))


@pytest.mark.parametrize("kind", KINDS)
def test_keeps_every_clause_and_honours_the_mask(tmp_path: Path, kind: str) -> None:
    report = check_contract(spec_for(save_waveform_model(tmp_path, kind)), CPU)
    assert {name: o.message for name, o in report.outcomes.items() if o.status != "passed"} == {}
    assert report.honours_mask
    assert report.frames_per_second == pytest.approx(50, abs=0.05)


@pytest.mark.parametrize("layer", [None, 0, 1, NUM_LAYERS])
@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_padded_clips_have_the_features_that_the_library_gives_each_alone(
    tmp_path: Path, kind: str, do_normalize: bool, layer: int | None
) -> None:
    folder = save_waveform_model(tmp_path, kind, do_normalize=do_normalize)
    clips = [noise(1.2, seed=1), noise(0.7003, seed=2), noise(0.1, seed=3), noise(1.2, seed=4)]
    features, mask = load_encoder(spec_for(folder, layer=layer), CPU)(*padded(clips))
    assert mask is not None
    extractor = AutoFeatureExtractor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    model = AutoModel.from_pretrained(folder).eval()
    for clip, clip_features, clip_mask in zip(clips, features, mask, strict=True):
        inputs = extractor(clip.numpy(), sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            outputs = model(inputs["input_values"], output_hidden_states=True)
        expected = outputs.last_hidden_state if layer is None else outputs.hidden_states[layer]
        torch.testing.assert_close(clip_features[clip_mask], expected[0], rtol=1e-3, atol=1e-4)


def test_a_clip_too_short_for_a_frame_is_filled_up_with_silence(tmp_path: Path) -> None:
    encoder = load_encoder(spec_for(save_waveform_model(tmp_path, "wavlm with layer norm")), CPU)
    features, mask = encoder(*padded([noise(0.01), noise(0.5)]))
    assert mask is not None
    assert mask.sum(dim=1).tolist() == [1, 24]
    assert encoder(noise(0.01)[None])[0].shape == (1, 1, features.shape[2])


def test_a_layer_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = save_waveform_model(tmp_path, "wavlm with group norm")
    with pytest.raises(EncoderError, match=r"layer 3: .* has the layers 0 to 2") as caught:
        load_encoder(spec_for(folder, layer=3), CPU)
    assert caught.value.clause == "arguments"
