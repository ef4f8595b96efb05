"""Random numbers as features: what a score is worth when the encoder hears nothing.

    pytest bench --preset=mini --encoder=examples/dummy_encoder.py

It has no weights and shows the least that an encoder must have. The contract check warns that it is not repeatable;
every score of it should lie near chance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DummyEncoder(nn.Module):
    """Ten frames of 256 random numbers for every clip, drawn anew on each call."""

    def __init__(self) -> None:
        """Set the one attribute that is asked for, the width of the features."""
        super().__init__()
        self.output_dim = 256

    def forward(self, audio: Tensor, audio_attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Features `[B, 10, 256]` of audio `[B, samples]`.

        The second result would be the mask of the ten frames. Handing the audio's mask back instead is tolerated: it
        counts as no mask, which means that all frames are valid.
        """
        features = torch.randn(len(audio), 10, self.output_dim, device=audio.device)
        return features, audio_attention_mask
