"""Random numbers as features: the scores of an encoder that ignores the audio.

    pytest bench --preset=mini --encoder=examples/dummy_encoder.py

It has no weights and shows the minimum that an encoder needs. The contract check warns that it is not repeatable, and
that ten frames are few for 30 s; its scores should be near chance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DummyEncoder(nn.Module):
    """Ten frames of 256 random numbers for every clip, different on each call."""

    def __init__(self) -> None:
        """Set the one required attribute, the width of the features."""
        super().__init__()
        self.output_dim = 256

    def forward(self, audio: Tensor, audio_attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Features `[B, 10, 256]` of audio `[B, samples]`.

        The second result would be the mask of the ten frames. Returning the audio's mask instead is allowed: it counts
        as no mask, so all frames are valid.
        """
        features = torch.randn(len(audio), 10, self.output_dim, device=audio.device)
        return features, audio_attention_mask
