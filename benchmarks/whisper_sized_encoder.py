"""An encoder of the size and the cost of Whisper base, with random weights: nothing is downloaded.

Shapes: B clips, S samples at 16 kHz, T frames, D = output_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder


class WhisperSizedEncoder(nn.Module):
    """Whisper's encoder, which always hears 30 seconds, filled up with silence.

    Attributes:
        output_dim: Width of a frame.
    """

    def __init__(self, joined_frames: int = 1, num_layers: int = 6, width: int = 512) -> None:
        """Draw the weights.

        Args:
            joined_frames: So many of the encoder's 50 frames a second become one, by their mean.
            num_layers: Of the Transformer.
            width: Of the Transformer.
        """
        super().__init__()
        config = WhisperConfig(
            d_model=width, encoder_layers=num_layers, encoder_attention_heads=8, encoder_ffn_dim=4 * width
        )
        extractor: Any = WhisperFeatureExtractor  # untyped
        self.feature_extractor = extractor(feature_size=config.num_mel_bins)
        self.encoder = WhisperEncoder(config)
        self.output_dim = width
        self.joined_frames = joined_frames

    def forward(self, audio: Tensor, audio_attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features `[B, T, D]` and their mask `[B, T]` of audio `[B, S]` of at most 30 s."""
        if audio_attention_mask is None:
            audio_attention_mask = torch.ones_like(audio, dtype=torch.long)
        clips = list((audio * audio_attention_mask).numpy())
        rate_hz = self.feature_extractor.sampling_rate
        spectra = self.feature_extractor(clips, sampling_rate=rate_hz, return_tensors="pt")
        hidden_BTD: Tensor = self.encoder(spectra["input_features"]).last_hidden_state
        frame_samples = 2 * self.feature_extractor.hop_length * self.joined_frames
        num_frames = -(-audio.shape[1] // frame_samples)
        heard_BTD = hidden_BTD[:, : num_frames * self.joined_frames]
        features_BTD = heard_BTD.reshape(len(audio), num_frames, self.joined_frames, -1).mean(dim=2)
        num_frames_B1 = -(-audio_attention_mask.sum(dim=1, keepdim=True) // frame_samples)
        return features_BTD, (torch.arange(num_frames) < num_frames_B1).long()
