"""Resemblyzer's pretrained speaker LSTM as an encoder: what its layers hold at every step, not one vector a clip.

    pip install --no-deps resemblyzer
    pytest bench --preset=mini --encoder=benchmarks/real_parts/speaker_lstm_encoder.py

Only the weights of the package are used: its code needs three more libraries, and gives one vector a clip. Each layer
runs over power-mel frames of 10 ms; the layers' outputs stand side by side, and every fourth step is kept.

Shapes: B clips, S samples at 16 kHz, N steps of 10 ms, T = ceil(N / stride) frames, D = layers * 256.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES, HOP_SAMPLES = 400, 160
NUM_MELS, HIDDEN_SIZE, NUM_LAYERS = 40, 256, 3
# The network was trained on speech that was made at least this loud (root mean square, -30 dB of full scale).
LEAST_LOUDNESS = 10 ** (-30 / 20)
# Below this a clip is silence, which no factor makes speech.
SILENCE_LOUDNESS = 1e-4


class SpeakerLSTMEncoder(nn.Module):
    """Three LSTM layers, frozen as the package `resemblyzer` ships them.

    Attributes:
        output_dim: 768, the three layers side by side.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, stride: int = 4) -> None:
        """Load the weights.

        Args:
            stride: One of so many steps of 10 ms is kept.

        Raises:
            ModuleNotFoundError: The package is not installed.
        """
        super().__init__()
        self.stride = stride
        self.output_dim = NUM_LAYERS * HIDDEN_SIZE
        sizes = [NUM_MELS, *[HIDDEN_SIZE] * (NUM_LAYERS - 1)]
        self.layers = nn.ModuleList(nn.LSTM(size, HIDDEN_SIZE, batch_first=True) for size in sizes)
        weights: dict[str, Tensor] = torch.load(_weights_file(), map_location="cpu", weights_only=True)["model_state"]
        for number, layer in enumerate(self.layers):
            own = layer.state_dict()
            layer.load_state_dict({name: weights[f"lstm.{name[:-1]}{number}"] for name in own})
        filters_FM: Any = mel_filter_bank(
            num_frequency_bins=WINDOW_SAMPLES // 2 + 1,
            num_mel_filters=NUM_MELS,
            min_frequency=0.0,
            max_frequency=SAMPLE_RATE_HZ / 2,
            sampling_rate=SAMPLE_RATE_HZ,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("window", torch.hann_window(WINDOW_SAMPLES), persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters_FM).float(), persistent=False)

    def forward(self, audio: Tensor, audio_attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features `[B, T, D]` and their mask `[B, T]` of audio `[B, S]`, with or without a mask `[B, S]`."""
        if audio_attention_mask is None:
            audio_attention_mask = torch.ones_like(audio, dtype=torch.long)
        num_samples_B = audio_attention_mask.sum(dim=1)
        audio = audio * audio_attention_mask
        loudness_B = (audio.square().sum(dim=1) / num_samples_B).sqrt()
        factor_B = (LEAST_LOUDNESS / loudness_B.clamp(min=SILENCE_LOUDNESS)).clamp(min=1)
        spectrum_BFN = torch.stft(
            audio * factor_B[:, None],
            WINDOW_SAMPLES,
            HOP_SAMPLES,
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        values_BND = spectrum_BFN.abs().square().transpose(1, 2) @ self.filters
        outputs = []
        for layer in self.layers:
            values_BND, _ = layer(values_BND)
            outputs.append(values_BND)
        features_BTD = torch.cat(outputs, dim=2)[:, :: self.stride]
        # A step is the clip's own while its window's middle lies within the clip. What comes later cannot change
        # what these layers have said before.
        num_steps_B = 1 + num_samples_B // HOP_SAMPLES
        num_frames_B = (num_steps_B + self.stride - 1) // self.stride
        mask_BT = torch.arange(features_BTD.shape[1], device=audio.device) < num_frames_B[:, None]
        return features_BTD, mask_BT.long()


def _weights_file() -> Path:
    """The weights inside the installed package, found without importing it."""
    spec = importlib.util.find_spec("resemblyzer")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the package resemblyzer is not installed; pip install --no-deps resemblyzer")
    return Path(spec.submodule_search_locations[0]) / "pretrained.pt"
