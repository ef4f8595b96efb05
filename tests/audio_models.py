"""Tiny audio models with random weights, saved in the real format: config, safetensors, preprocessor_config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    GlmAsrEncoder,
    GlmAsrEncoderConfig,
    HubertConfig,
    HubertModel,
    LasrEncoder,
    LasrEncoderConfig,
    LasrFeatureExtractor,
    Qwen2AudioEncoder,
    Qwen2AudioEncoderConfig,
    SeamlessM4TFeatureExtractor,
    SEWConfig,
    SEWModel,
    UniSpeechConfig,
    UniSpeechModel,
    UniSpeechSatConfig,
    UniSpeechSatModel,
    VoxtralEncoder,
    VoxtralEncoderConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerModel,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

WIDTH = 32
NUM_LAYERS = 2

_TRANSFORMER: Mapping[str, Any] = MappingProxyType(
    {"hidden_size": WIDTH, "num_hidden_layers": NUM_LAYERS, "num_attention_heads": 4, "intermediate_size": 64}
)
# Strides and kernels of the real models: 320 samples a frame.
_WAVEFORMS: Mapping[str, Any] = MappingProxyType(
    {**_TRANSFORMER, "conv_dim": (16,) * 7, "num_conv_pos_embedding_groups": 4, "num_conv_pos_embeddings": 16}
)


def save_whisper(folder: Path, *, chunk_length: int = 30) -> Path:
    """Whisper with windows of so many seconds, saved as a whole: encoder, decoder, head."""
    config = WhisperConfig(
        vocab_size=100,
        d_model=WIDTH,
        encoder_layers=NUM_LAYERS,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=50 * chunk_length,
        max_target_positions=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return _saved(folder, WhisperForConditionalGeneration, config, WhisperFeatureExtractor, chunk_length=chunk_length)


def save_fixed_window_encoder(folder: Path, kind: str) -> Path:
    """The audio encoder of a language model behind Whisper's feature extractor; `kind` is a key of `FIXED_WINDOWS`."""
    make_model, config = FIXED_WINDOWS[kind]
    return _saved(folder, make_model, config, WhisperFeatureExtractor, feature_size=128)


def save_lasr(folder: Path) -> Path:
    """LASR, which needs more than 0.1 s for a frame."""
    config = LasrEncoderConfig(**_TRANSFORMER, subsampling_conv_channels=16)
    return _saved(folder, LasrEncoder, config, LasrFeatureExtractor)


def save_waveform_model(folder: Path, kind: str, *, num_layers: int = NUM_LAYERS, **extractor: Any) -> Path:
    """wav2vec2 or one of its like; `kind` is a key of `WAVEFORM_KINDS`."""
    make_model, make_config, own = WAVEFORM_KINDS[kind]
    config = make_config(**{**_WAVEFORMS, "num_hidden_layers": num_layers, **own})
    return _saved(folder, make_model, config, Wav2Vec2FeatureExtractor, **extractor)


def save_waveform_extractor(folder: Path, **settings: Any) -> None:
    """The preprocessor_config.json of a model that takes waveforms."""
    make: Callable[..., Any] = Wav2Vec2FeatureExtractor
    make(**settings).save_pretrained(folder)


def save_wav2vec2_bert(folder: Path) -> Path:
    """Wav2Vec2-BERT, which hears mel energies of two neighbouring windows."""
    config = Wav2Vec2BertConfig(**_TRANSFORMER, feature_projection_input_dim=160, conv_depthwise_kernel_size=5)
    return _saved(folder, Wav2Vec2BertModel, config, SeamlessM4TFeatureExtractor, stride=2)


def save_ast(folder: Path, *, max_length: int = 1024) -> Path:
    """The audio spectrogram transformer with windows of so many spectra, 10 ms each."""
    config = ASTConfig(**_TRANSFORMER, max_length=max_length)
    return _saved(folder, ASTModel, config, ASTFeatureExtractor, max_length=max_length)


def noise(duration_s: float, seed: int = 0) -> torch.Tensor:
    """Samples of noise at 16 kHz, quiet and a little off zero."""
    return 0.1 * torch.randn(round(16_000 * duration_s), generator=torch.Generator().manual_seed(seed)) + 0.02


def padded(clips: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips as one batch `[B, S]` with noise as padding, and the mask `[B, S]` that says so."""
    mask = torch.nn.utils.rnn.pad_sequence(
        [torch.ones(len(clip), dtype=torch.long) for clip in clips], batch_first=True
    )
    audio = torch.nn.utils.rnn.pad_sequence(list(clips), batch_first=True)
    return torch.where(mask.bool(), audio, torch.rand_like(audio)), mask


FIXED_WINDOWS: Mapping[str, tuple[Callable[..., Any], Any]] = MappingProxyType(
    {
        "qwen2_audio_encoder": (
            Qwen2AudioEncoder,
            Qwen2AudioEncoderConfig(
                d_model=WIDTH, encoder_layers=NUM_LAYERS, encoder_attention_heads=4, encoder_ffn_dim=64
            ),
        ),
        "voxtral_encoder": (VoxtralEncoder, VoxtralEncoderConfig(**_TRANSFORMER)),
        "glmasr_encoder": (GlmAsrEncoder, GlmAsrEncoderConfig(**_TRANSFORMER)),
    }
)

_LAYER_NORM: Mapping[str, Any] = MappingProxyType({"feat_extract_norm": "layer", "do_stable_layer_norm": True})

WAVEFORM_KINDS: Mapping[str, tuple[Callable[..., Any], Callable[..., Any], Mapping[str, Any]]] = MappingProxyType(
    {
        "wav2vec2 with group norm": (Wav2Vec2Model, Wav2Vec2Config, {}),
        "wav2vec2 with layer norm": (Wav2Vec2Model, Wav2Vec2Config, {**_LAYER_NORM, "conv_bias": True}),
        "wav2vec2 of a recogniser": (Wav2Vec2ForCTC, Wav2Vec2Config, {"vocab_size": 10}),
        "wav2vec2 with an adapter": (Wav2Vec2Model, Wav2Vec2Config, {"add_adapter": True, "output_hidden_size": WIDTH}),
        "hubert with group norm": (HubertModel, HubertConfig, {}),
        "hubert with layer norm": (HubertModel, HubertConfig, _LAYER_NORM),
        "hubert with batch norm": (HubertModel, HubertConfig, {"conv_pos_batch_norm": True}),
        "wavlm with group norm": (WavLMModel, WavLMConfig, {}),
        "wavlm with layer norm": (WavLMModel, WavLMConfig, _LAYER_NORM),
        "unispeech": (UniSpeechModel, UniSpeechConfig, {}),
        "unispeech-sat": (UniSpeechSatModel, UniSpeechSatConfig, {}),
        "wav2vec2-conformer": (Wav2Vec2ConformerModel, Wav2Vec2ConformerConfig, {"conv_depthwise_kernel_size": 5}),
        "data2vec-audio": (Data2VecAudioModel, Data2VecAudioConfig, {"num_conv_pos_embeddings": 5}),
        "sew": (SEWModel, SEWConfig, {"conv_kernel": (10, 3, 3, 3, 3, 2, 2), "conv_stride": (5, 2, 2, 2, 2, 2, 2)}),
    }
)


def _saved(
    folder: Path, make_model: Callable[..., Any], config: Any, make_extractor: Callable[..., Any], **extractor: Any
) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make_model(config)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            # Wider than usual, so that what differs in the input differs clearly in the features.
            if tensor.is_floating_point() and tensor.ndim > 1:
                nn.init.normal_(tensor, std=0.2)
            elif "running" not in name and tensor.is_floating_point():
                tensor.data.add_(0.1 * torch.randn_like(tensor))
    model.save_pretrained(folder)
    make_extractor(**extractor).save_pretrained(folder)
    return folder
