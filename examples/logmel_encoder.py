"""Log-mel energies as features: no training, no weights, a simple baseline for learned encoders.

    pytest bench --preset=mini --encoder=examples/logmel_encoder.py
    pytest bench --preset=mini --encoder=examples/logmel_encoder.py --encoder-args='{"num_mels": 80, "stack": 4}'

Copy it to write an encoder that needs a spectrogram. It shows how to use the mask: a padded clip gets the same features
as the clip alone, so clips of different lengths can share a batch.

Shapes: B clips, S samples at 16 kHz, N windows of 25 ms, F frequencies of the Fourier transform, M mel bands,
T = ceil(N / stack) frames, D = stack * M.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
FFT_SAMPLES = 512
FLOOR_ENERGY = 1e-6
SILENCE = 0.5 * (math.log10(FLOOR_ENERGY) + 1)


class LogMelEncoder(nn.Module):
    """Log-mel energies; `stack` neighbouring windows are joined into one frame.

    A value is `0.5 (log10(energy + 1e-6) + 1)`: fixed numbers that bring recordings of usual loudness near mean 0 and
    spread 1. Normalising by the clip's own level would discard its loudness.

    Attributes:
        output_dim: `stack * num_mels`, by default 512.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, num_mels: int = 64, stack: int = 8) -> None:
        """Compute the mel filters and the window.

        Args:
            num_mels: Number of mel bands between 0 and 8 kHz.
            stack: Number of windows per frame, 10 ms apart.
        """
        super().__init__()
        self.stack = stack
        self.output_dim = stack * num_mels
        # Buffers move with .to(device); persistent=False keeps constants out of checkpoints.
        self.register_buffer("window", torch.hann_window(WINDOW_SAMPLES), persistent=False)
        self.register_buffer("filters", mel_filters(num_mels), persistent=False)

    def forward(self, audio: Tensor, audio_attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features `[B, T, D]` and their mask `[B, T]` of audio `[B, S]`, with or without a mask `[B, S]`.

        Clips shorter than a window are padded with silence.
        """
        if audio_attention_mask is None:
            audio_attention_mask = torch.ones_like(audio, dtype=torch.long)
        num_samples_B = audio_attention_mask.sum(dim=1)
        # Padding must not affect the features.
        audio = audio * audio_attention_mask
        if audio.shape[1] < WINDOW_SAMPLES:
            audio = nn.functional.pad(audio, (0, WINDOW_SAMPLES - audio.shape[1]))

        windows_BNS = audio.unfold(1, WINDOW_SAMPLES, HOP_SAMPLES) * self.window
        energy_BNF = torch.fft.rfft(windows_BNS, n=FFT_SAMPLES).abs().square()
        features_BNM = 0.5 * (torch.log10(energy_BNF @ self.filters + FLOOR_ENERGY) + 1)

        # Only windows that lie within the clip count; the last frame of a clip is padded with silence, wherever
        # the clip ends in the batch.
        num_windows_B = 1 + (num_samples_B - WINDOW_SAMPLES).clamp(min=0) // HOP_SAMPLES
        is_valid_BN = torch.arange(features_BNM.shape[1], device=audio.device) < num_windows_B[:, None]
        features_BNM = features_BNM.masked_fill(~is_valid_BN[:, :, None], SILENCE)
        num_missing = -features_BNM.shape[1] % self.stack
        features_BNM = nn.functional.pad(features_BNM, (0, 0, 0, num_missing), value=SILENCE)

        features_BTD = features_BNM.reshape(len(audio), -1, self.output_dim)
        num_frames_B = (num_windows_B + self.stack - 1) // self.stack
        mask_BT = torch.arange(features_BTD.shape[1], device=audio.device) < num_frames_B[:, None]
        return features_BTD, mask_BT.long()


def mel_filters(num_mels: int) -> Tensor:
    """Triangular filters `[FFT bins, M]`, evenly spaced on the mel scale `2595 log10(1 + f / 700)`, peak 1."""
    highest_mel = 2595 * math.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    corners_hz = 700 * (10 ** (torch.linspace(0, highest_mel, num_mels + 2) / 2595) - 1)
    bins_hz = torch.linspace(0, SAMPLE_RATE_HZ / 2, FFT_SAMPLES // 2 + 1)
    widths_hz = corners_hz.diff()
    rising = (bins_hz[:, None] - corners_hz[:-2]) / widths_hz[:-1]
    falling = (corners_hz[2:] - bins_hz[:, None]) / widths_hz[1:]
    return torch.minimum(rising, falling).clamp(min=0)
