"""`--encoder=hf:NAME_OR_FOLDER[@REVISION]`: a Hugging Face audio model as an encoder.

Shapes: B clips, S samples, N samples of one clip, T frames, D = output_dim.
"""

from __future__ import annotations

import soxr
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from xares_bench.core.errors import EncoderError
from xares_bench.encoders.hugging_face_families import with_silence, wrap
from xares_bench.encoders.hugging_face_models import load_hub_model

SAMPLE_RATE_HZ = 16_000
# Shorter clips are filled up with silence: models need some 25 ms for a frame.
_MIN_SAMPLES = SAMPLE_RATE_HZ // 10


class HubEncoder(nn.Module):
    """A Hugging Face audio model behind its own feature extractor.

    Attributes:
        output_dim: Width of the features.
        commit: The commit of the model's files, or None for a folder.
    """

    def __init__(
        self, model: str, revision: str | None = None, layer: int | None = None, trust_remote_code: bool = False
    ) -> None:
        """Load the model, in float32.

        Args:
            model: Name on the hub, or a folder.
            revision: Branch, tag or commit on the hub; None: the default branch.
            layer: Which of the model's `hidden_states` to take: 0 enters the first layer, n leaves the n-th, -1 the
                last. None: `last_hidden_state`.
            trust_remote_code: Whether Python code that comes with the model may run.

        Raises:
            EncoderError: There is no such model, it cannot be wrapped, or it has no such layer.
        """
        super().__init__()
        found = load_hub_model(model, revision, trust_remote_code=trust_remote_code)
        self.commit = found.commit
        self.sample_rate_hz: int = found.extractor.sampling_rate
        self.wrapper = wrap(found)
        self.output_dim = self.wrapper.output_dim
        self.wrapper.layer = _checked_layer(layer, self.wrapper.num_states, found.label)

    def forward(self, audio: Tensor, audio_attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return features `[B, T, D]` and mask `[B, T]` of audio `[B, S]` at 16 kHz, with a mask `[B, S]` or None."""
        clips = list(audio)
        if audio_attention_mask is not None:
            clips = [clip_S[:num] for clip_S, num in zip(audio, audio_attention_mask.sum(dim=1).tolist(), strict=True)]
        clips = [with_silence(clip_N, _MIN_SAMPLES) for clip_N in clips]
        if self.sample_rate_hz != SAMPLE_RATE_HZ:
            clips = [_resampled(clip_N, self.sample_rate_hz) for clip_N in clips]
        frames = self.wrapper.encode(clips)
        mask_BT = pad_sequence([torch.ones(len(clip_TD), device=audio.device) for clip_TD in frames], batch_first=True)
        return pad_sequence(frames, batch_first=True), mask_BT.long()


def _checked_layer(layer: int | None, num_states: int, label: str) -> int | None:
    if layer is None:
        return None
    expected = f"{label} has {num_states} hidden states, so layer is from {-num_states} to {num_states - 1}"
    if isinstance(layer, bool) or not isinstance(layer, int) or not -num_states <= layer < num_states:
        raise EncoderError("arguments", f"layer {layer!r}: {expected}, or null for its last_hidden_state")
    return layer


def _resampled(clip_N: Tensor, sample_rate_hz: int) -> Tensor:
    resampled = soxr.resample(clip_N.cpu().numpy(), SAMPLE_RATE_HZ, sample_rate_hz)
    return torch.from_numpy(resampled).to(clip_N.device)
