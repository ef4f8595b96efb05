"""The encoder half of Whisper, through transformers.

    pytest bench --encoder=examples/whisper_base_encoder.py
    pytest bench --encoder=examples/whisper_base_encoder.py --encoder-args='{"model_name": "openai/whisper-large-v3"}'

Whisper pads its input to 30 seconds with silence, so padding changes nothing. Of its 50 frames per second, the mask
keeps those that begin before the clip ends. Longer clips are encoded in consecutive windows of 30 seconds.

Shapes: B clips, S samples at 16 kHz, T frames, D = output_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor, WhisperModel


class WhisperEncoder(nn.Module):
    """Whisper's encoder and its log-mel spectrogram.

    Attributes:
        output_dim: Width of the model, 512 for Whisper base.
    """

    def __init__(self, model_name: str = "openai/whisper-base") -> None:
        """Load the feature extractor and the model without its decoder.

        Args:
            model_name: A Whisper model on the hub, or a folder.
        """
        super().__init__()
        self.feature_extractor = WhisperFeatureExtractor.from_pretrained(model_name)
        self.encoder = WhisperModel.from_pretrained(model_name, dtype=torch.float32).get_encoder()
        self.output_dim: int = self.encoder.config.d_model
        self.window_samples: int = self.feature_extractor.n_samples
        # The second convolution of the encoder halves the 100 spectra per second.
        self.frame_samples: int = 2 * self.feature_extractor.hop_length

    def forward(self, audio: Tensor, audio_attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features `[B, T, D]` and their mask `[B, T]` of audio `[B, S]`, with or without a mask `[B, S]`."""
        if audio_attention_mask is None:
            audio_attention_mask = torch.ones_like(audio, dtype=torch.long)
        # Padding must not affect the features.
        windows = torch.split(audio * audio_attention_mask, self.window_samples, dim=1)
        features_BTD = torch.cat([self.encode_window(window_BS) for window_BS in windows], dim=1)
        num_frames_B = (audio_attention_mask.sum(dim=1) + self.frame_samples - 1) // self.frame_samples
        mask_BT = torch.arange(features_BTD.shape[1], device=audio.device) < num_frames_B[:, None]
        return features_BTD, mask_BT.long()

    def encode_window(self, window_BS: Tensor) -> Tensor:
        """Features `[B, T, D]` of at most 30 s of every clip, without the frames of trailing silence."""
        spectra = self.feature_extractor(
            list(window_BS.cpu().numpy()),
            sampling_rate=self.feature_extractor.sampling_rate,
            return_tensors="pt",
            # The batch's spectrogram is computed on this device, but returned on the CPU.
            device=str(window_BS.device),
        )
        hidden_BTD: Tensor = self.encoder(spectra["input_features"].to(window_BS.device)).last_hidden_state
        return hidden_BTD[:, : -(-window_BS.shape[1] // self.frame_samples)]
