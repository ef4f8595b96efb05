"""The registry of families; tests/encoders/test_hugging_face.py holds the features of each to the library's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

from tests.audio_models import save_waveform_model
from xares_bench.core.errors import EncoderError
from xares_bench.encoders.hugging_face_families import (
    FAMILIES,
    GenericWrapper,
    ModelWrapper,
    WaveformWrapper,
    with_silence,
    wrap,
)
from xares_bench.encoders.hugging_face_models import HubModel, load_hub_model


def test_families_are_named_by_model_types_of_transformers() -> None:
    assert set(FAMILIES) <= set(CONFIG_MAPPING)


@pytest.mark.parametrize("setting", ["add_adapter", "conv_pos_batch_norm"])
def test_a_model_whose_settings_let_padding_in_has_the_generic_wrapper(tmp_path: Any, setting: str) -> None:
    found = load_hub_model(
        str(save_waveform_model(tmp_path, "wav2vec2 with layer norm")), None, trust_remote_code=False
    )
    assert isinstance(wrap(found), WaveformWrapper)
    setattr(found.model.config, setting, True)
    assert not WaveformWrapper.fits(found.model.config)
    assert isinstance(wrap(found), GenericWrapper)


def test_a_model_of_no_family_that_gives_no_features_is_refused_with_its_type() -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no audio")

    extractor = SimpleNamespace(sampling_rate=16_000)
    model = SimpleNamespace(config=SimpleNamespace())
    found = HubModel(label="hf:x", model_type="codec", model=model, extractor=extractor, commit=None)
    with pytest.raises(EncoderError, match=r"hf:x is a codec model that gives no features for a second of audio \("):
        wrap(found)


def test_a_model_of_no_family_with_windows_of_one_length_is_refused_by_name() -> None:
    class Fixed:
        sampling_rate = 16_000

        def __call__(self, clips: list[Any], **_: Any) -> dict[str, torch.Tensor]:
            return {"input_features": torch.zeros(len(clips), 5, 3)}

    def model(**inputs: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=inputs["input_features"], hidden_states=())

    model.config = SimpleNamespace()  # type: ignore[attr-defined]
    found = HubModel(label="hf:x", model_type="clap", model=model, extractor=Fixed(), commit=None)
    with pytest.raises(
        EncoderError, match="hf:x is a clap model behind a Fixed that makes windows of one length of all clips, so"
    ):
        wrap(found)


def test_a_wrapper_must_say_how_clips_are_encoded() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ModelWrapper(None, None)  # type: ignore[abstract]


def test_silence_fills_up_short_clips_only() -> None:
    clip_N = torch.ones(3)
    assert with_silence(clip_N, 5).tolist() == [1, 1, 1, 0, 0]
    assert with_silence(clip_N, 2).tolist() == [1, 1, 1]
