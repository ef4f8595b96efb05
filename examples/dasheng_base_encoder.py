"""Dasheng, a general audio encoder, through its authors' library (`pip install dasheng`).

    pytest bench --encoder=examples/dasheng_base_encoder.py
    pytest bench --encoder=examples/dasheng_base_encoder.py --encoder-args='{"model_name": "dasheng_06B"}'

It uses the library rather than the hub's model of the same name: the library accepts clip lengths, and the hub's model
runs Python code from its repository. The library downloads the weights from its authors' page and unpickles them.

Shapes: B clips, S samples at 16 kHz, N spectra 10 ms apart, M mel bands, T frames (25 a second), D = output_dim.
"""

from __future__ import annotations

from pathlib import Path

import dasheng
import torch
from dasheng.pretrained.pretrained import Dasheng
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

# The shortest clip with four spectra, which make one frame; the spectrogram mirrors the ends of a clip.
MIN_SAMPLES = 480


class DashengEncoder(nn.Module):
    """Dasheng and its spectrogram.

    Attributes:
        output_dim: Width of the model, 768 for the base one.
    """

    def __init__(self, model_name: str = "dasheng_base") -> None:
        """Load the model.

        Args:
            model_name: `dasheng_base`, `dasheng_06B`, `dasheng_12B`, or a checkpoint file of the library.
        """
        super().__init__()
        is_file = Path(model_name).is_file()
        self.model = Dasheng.from_pretrained(model_name) if is_file else getattr(dasheng, model_name)()
        self.output_dim: int = self.model.embed_dim
        self.frame_spectra: int = self.model.patch_stride[-1]

    def forward(self, audio: Tensor, audio_attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features `[B, T, D]` and their mask `[B, T]` of audio `[B, S]`, with or without a mask `[B, S]`."""
        if audio_attention_mask is None:
            audio_attention_mask = torch.ones_like(audio, dtype=torch.long)
        audio = nn.functional.pad(audio, (0, max(MIN_SAMPLES - audio.shape[1], 0)))
        num_samples_B = audio_attention_mask.sum(dim=1).clamp(min=MIN_SAMPLES)
        # Clip by clip: the library mirrors the end of its input, and its decibels depend on the loudest clip.
        spectra = [
            self.model.forward_to_spec(clip_S[None, :num])[0, 0].T
            for clip_S, num in zip(audio, num_samples_B.tolist(), strict=True)
        ]
        num_frames_B = torch.tensor([len(clip_NM) for clip_NM in spectra], device=audio.device) // self.frame_spectra
        spectra_B1MN = pad_sequence(spectra, batch_first=True).transpose(1, 2)[:, None]
        # The library expects lengths in samples; these give our number of frames.
        features_BTD = self.model.forward_spectrogram(
            spectra_B1MN, x_length=num_frames_B * self.frame_spectra * self.model.hop_size
        )
        mask_BT = torch.arange(features_BTD.shape[1], device=audio.device) < num_frames_B[:, None]
        return features_BTD, mask_BT.long()
