"""WavLM, and its relatives wav2vec2, HuBERT, data2vec, UniSpeech, through transformers.

    pytest bench --encoder=examples/wavlm_base_encoder.py
    pytest bench --encoder=examples/wavlm_base_encoder.py --encoder-args='{"layer": 9}'
    pytest bench --encoder=examples/wavlm_base_encoder.py --encoder-args='{"model_name": "facebook/hubert-large-ll60k"}'

Shows two things about masks. Normalise (mean 0, variance 1) over the clip, without its padding. And for most of these
models the mask is not enough: the base models normalise the output of their first convolution over time, padding
included, so they encode only clips of equal length together.

Shapes: B clips, S samples at 16 kHz, T frames (50 a second), D = output_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoModel

MIN_SAMPLES = 400
"""The shortest clip from which the convolutions give a frame."""


class WavLMEncoder(nn.Module):
    """A self-supervised speech model that takes waveforms.

    Attributes:
        output_dim: Width of the model, 768 for base models.
    """

    def __init__(self, model_name: str = "microsoft/wavlm-base-plus", layer: int | None = None) -> None:
        """Load the model and its feature extractor, which says whether to normalise.

        Args:
            model_name: A model on the hub, or a folder.
            layer: The hidden state to take: 0 enters the first layer, n leaves the n-th. None: the model's output.
        """
        super().__init__()
        self.feature_extractor = AutoFeatureExtractor.from_pretrained(model_name)  # type: ignore[no-untyped-call]
        self.model = AutoModel.from_pretrained(model_name, dtype=torch.float32)
        self.layer = layer
        config = self.model.config
        if layer is not None and not 0 <= layer <= config.num_hidden_layers:
            raise ValueError(f"layer {layer}: {model_name} has the layers 0 to {config.num_hidden_layers}")
        self.output_dim: int = config.hidden_size
        is_plain = config.model_type in ("hubert", "wav2vec2", "wavlm")
        self.ignores_padding: bool = is_plain and config.feat_extract_norm == "layer"

    def forward(self, audio: Tensor, audio_attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features `[B, T, D]` and their mask `[B, T]` of audio `[B, S]`, with or without a mask `[B, S]`."""
        if audio_attention_mask is None:
            audio_attention_mask = torch.ones_like(audio, dtype=torch.long)
        audio = nn.functional.pad(audio * audio_attention_mask, (0, max(MIN_SAMPLES - audio.shape[1], 0)))
        num_samples_B = audio_attention_mask.sum(dim=1).clamp(min=MIN_SAMPLES)
        num_frames_B = self.model._get_feat_extract_output_lengths(num_samples_B)
        features_BTD = audio.new_zeros(len(audio), int(num_frames_B.max()), self.output_dim)
        for rows in self.groups(num_samples_B):
            hidden_GTD = self.encode(audio[rows], num_samples_B[rows])
            features_BTD[rows, : hidden_GTD.shape[1]] = hidden_GTD
        mask_BT = torch.arange(features_BTD.shape[1], device=audio.device) < num_frames_B[:, None]
        return features_BTD, mask_BT.long()

    def groups(self, num_samples_B: Tensor) -> list[Tensor]:
        """Indices of clips that are encoded together."""
        if self.ignores_padding:
            return [torch.arange(len(num_samples_B), device=num_samples_B.device)]
        return [(num_samples_B == num_samples).nonzero().flatten() for num_samples in set(num_samples_B.tolist())]

    def encode(self, audio_GS: Tensor, num_samples_G: Tensor) -> Tensor:
        """Features `[G, T, D]` of a group of clips."""
        audio_GS = audio_GS[:, : int(num_samples_G.max())]
        is_valid_GS = torch.arange(audio_GS.shape[1], device=audio_GS.device) < num_samples_G[:, None]
        if self.feature_extractor.do_normalize:
            mean_G1 = audio_GS.sum(dim=1, keepdim=True) / num_samples_G[:, None]
            centred_GS = (audio_GS - mean_G1) * is_valid_GS
            variance_G1 = centred_GS.square().sum(dim=1, keepdim=True) / num_samples_G[:, None]
            audio_GS = centred_GS / (variance_G1 + 1e-7).sqrt()
        outputs = self.model(audio_GS, attention_mask=is_valid_GS.long(), output_hidden_states=self.layer is not None)
        hidden_GTD: Tensor = outputs.last_hidden_state if self.layer is None else outputs.hidden_states[self.layer]
        return hidden_GTD
