"""Families of Hugging Face audio models, and how clips get through each.

`FAMILIES` has a wrapper for every model type that needs one of its own; all other types share `GenericWrapper`.
CONTRIBUTING.md says how to add one.

Whatever the family, a clip gets the features that it has alone, whatever it is batched with.

Shapes: B clips, N samples or frames of one clip, W windows, C channels, T frames, D = output_dim.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperFeatureExtractor

from xares_bench.encoders.hugging_face_models import HubModel

# Windows that go through a model at once.
_MAX_WINDOWS = 32


class ModelWrapper(nn.Module, abc.ABC):
    """A model, its feature extractor, and how clips get through both.

    Attributes:
        output_dim: Width of the features.
        num_states: How many hidden states the model has.
        layer: The hidden state to take, or None for the last.
    """

    def __init__(self, model: Any, extractor: Any) -> None:
        """Take a loaded model and its feature extractor."""
        super().__init__()
        self.model = model
        self.extractor = extractor
        self.layer: int | None = None
        self.output_dim: int = model.config.hidden_size
        self.num_states: int = model.config.num_hidden_layers + 1

    @classmethod
    def fits(cls, config: Any) -> bool:
        """Return whether models with this config can be wrapped; `GenericWrapper` takes the others."""
        return True

    @abc.abstractmethod
    def encode(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Return the features `[T, D]` of every clip `[N]`."""

    def hidden(self, **inputs: Tensor | None) -> Tensor:
        """Return the chosen hidden state `[B, T, D]`."""
        outputs = self.model(**inputs, output_hidden_states=self.layer is not None)
        state: Tensor = outputs.last_hidden_state if self.layer is None else outputs.hidden_states[self.layer]
        return state

    def extracted(self, clips: Sequence[Tensor], **options: Any) -> dict[str, Tensor]:
        """Return the output of the feature extractor for clips, on their device."""
        arrays = [clip_N.cpu().numpy() for clip_N in clips]
        made = self.extractor(arrays, sampling_rate=self.extractor.sampling_rate, return_tensors="pt", **options)
        return {name: value.to(clips[0].device) for name, value in made.items()}


class WindowWrapper(ModelWrapper):
    """A model for windows of a fixed length: clips are cut into windows, and the frames of their windows joined.

    Attributes:
        window_samples: Samples in a window.
    """

    window_samples: int

    def encode(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Return the features `[T, D]` of every clip `[N]`."""
        windows = [torch.split(clip_N, self.window_samples) for clip_N in clips]
        flat = [window_N for of_clip in windows for window_N in of_clip]
        frames: list[Tensor] = []
        for start in range(0, len(flat), _MAX_WINDOWS):
            frames.extend(self.encode_windows(flat[start : start + _MAX_WINDOWS]))
        in_order = iter(frames)
        return [torch.cat([next(in_order) for _ in of_clip]) for of_clip in windows]

    @abc.abstractmethod
    def encode_windows(self, windows: Sequence[Tensor]) -> list[Tensor]:
        """Return the features `[T, D]` of every window `[N]`, without frames after its end."""


class WhisperWrapper(WindowWrapper):
    """The encoder of Whisper; one frame for every 20 ms that have begun."""

    def __init__(self, model: Any, extractor: Any) -> None:
        """Take a loaded model and its feature extractor."""
        super().__init__(model.get_encoder(), extractor)
        self.window_samples = extractor.n_samples
        self.frame_samples: int = extractor.hop_length * self.model.conv1.stride[0] * self.model.conv2.stride[0]

    def encode_windows(self, windows: Sequence[Tensor]) -> list[Tensor]:
        """Return the features `[T, D]` of every window `[N]`."""
        inputs = self.extracted(windows, device=str(windows[0].device))
        hidden_WTD = self.hidden(input_features=inputs["input_features"])
        num_frames = [-(-len(window_N) // self.frame_samples) for window_N in windows]
        return [frames_TD[:num] for frames_TD, num in zip(hidden_WTD, num_frames, strict=True)]


class SpectrogramWrapper(WindowWrapper):
    """AST: the mean over frequencies of the patches of each moment; the two summary tokens are left out."""

    # Of the feature extractor's spectrogram, in samples at 16 kHz.
    _spectrum_samples = 400
    _hop_samples = 160

    def __init__(self, model: Any, extractor: Any) -> None:
        """Take a loaded model and its feature extractor."""
        super().__init__(model, extractor)
        config = model.config
        self.window_samples = extractor.max_length * self._hop_samples
        self.num_bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        self.patch_spectra: int = config.time_stride

    def encode_windows(self, windows: Sequence[Tensor]) -> list[Tensor]:
        """Return the features `[T, D]` of every window `[N]`, one frame for each patch that begins in it."""
        windows = [with_silence(window_N, self._spectrum_samples) for window_N in windows]
        hidden_WPD = self.hidden(**self.extracted(windows))[:, 2:]
        hidden_WTD = hidden_WPD.reshape(len(windows), self.num_bands, -1, self.output_dim).mean(dim=1)
        num_spectra = [1 + (len(window_N) - self._spectrum_samples) // self._hop_samples for window_N in windows]
        num_frames = [-(-num // self.patch_spectra) for num in num_spectra]
        return [frames_TD[:num] for frames_TD, num in zip(hidden_WTD, num_frames, strict=True)]


class WaveformWrapper(ModelWrapper):
    """wav2vec2 and its like: waveforms of different lengths in one batch, with a mask."""

    @classmethod
    def fits(cls, config: Any) -> bool:
        """Return whether neither an adapter nor a batch norm mixes a clip with its padding."""
        return not getattr(config, "add_adapter", False) and not getattr(config, "conv_pos_batch_norm", False)

    def __init__(self, model: Any, extractor: Any) -> None:
        """Take a loaded model and its feature extractor."""
        super().__init__(model, extractor)
        first = model.feature_extractor.conv_layers[0]
        self.norm: _ClipNorm | None = None
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            self.norm = first.layer_norm = _ClipNorm(first.layer_norm, first.conv)

    def encode(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Return the features `[T, D]` of every clip `[N]`."""
        if self.extractor.do_normalize:
            clips = [(clip_N - clip_N.mean()) / (clip_N.var(correction=0) + 1e-7).sqrt() for clip_N in clips]
        audio_BS = pad_sequence(list(clips), batch_first=True)
        lengths_B = torch.tensor([len(clip_N) for clip_N in clips], device=audio_BS.device)
        mask_BS = torch.arange(audio_BS.shape[1], device=audio_BS.device) < lengths_B[:, None]
        if self.norm is not None:
            self.norm.lengths_B = lengths_B
        # A mask of ones changes nothing, and attention without a mask is faster.
        hidden_BTD = self.hidden(input_values=audio_BS, attention_mask=None if mask_BS.all() else mask_BS.long())
        num_frames = self.model._get_feat_extract_output_lengths(lengths_B).tolist()
        return [frames_TD[:num] for frames_TD, num in zip(hidden_BTD, num_frames, strict=True)]


class _ClipNorm(nn.Module):
    """A group norm over time with statistics of the clip alone; the library's own includes the padding.

    Attributes:
        lengths_B: Number of samples of each clip in the next batch.
    """

    lengths_B: Tensor

    def __init__(self, norm: nn.GroupNorm, conv: nn.Conv1d) -> None:
        super().__init__()
        assert norm.num_groups == norm.num_channels, norm
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]

    def forward(self, frames_BCN: Tensor) -> Tensor:
        """Return normalised frames `[B, C, N]`."""
        num_frames_B11 = ((self.lengths_B - self.kernel) // self.stride + 1)[:, None, None]
        is_valid_B1N = torch.arange(frames_BCN.shape[2], device=frames_BCN.device) < num_frames_B11
        mean_BC1 = (frames_BCN * is_valid_B1N).sum(dim=2, keepdim=True) / num_frames_B11
        centred_BCN = frames_BCN - mean_BC1
        variance_BC1 = (centred_BCN.square() * is_valid_B1N).sum(dim=2, keepdim=True) / num_frames_B11
        return centred_BCN * (variance_BC1 + self.eps).rsqrt() * self.weight[:, None] + self.bias[:, None]


class GenericWrapper(ModelWrapper):
    """Any model whose feature extractor takes audio: clips of equal length together, so that none is padded.

    Attributes:
        min_samples: Shorter clips are followed by silence; some models need more than 0.1 s for a frame.
    """

    def __init__(self, model: Any, extractor: Any) -> None:
        """Take a loaded model and its feature extractor."""
        # Not the base class's: such a model's config may have other names for its sizes, so a second of noise shows
        # them.
        nn.Module.__init__(self)
        self.model = model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model
        self.extractor = extractor
        self.layer = None
        outputs = self._output_for_noise(extractor.sampling_rate)
        shape = list(outputs.last_hidden_state.shape)
        if len(shape) != 3 or shape[0] != 1:
            raise ValueError(f"last_hidden_state has the shape {shape}, not [1, T, D]")
        self.output_dim = shape[2]
        self.num_states = len(outputs.hidden_states or ())
        self.min_samples = self._shortest()

    def is_of_fixed_length(self) -> bool:
        """Whether the feature extractor gives clips of 1 s and 2 s the same shape."""
        rate = self.extractor.sampling_rate
        shapes = [
            {name: value.shape for name, value in self.inputs([torch.ones(num)]).items()} for num in (rate, 2 * rate)
        ]
        return all(shape == shapes[1][name] for name, shape in shapes[0].items())

    def _output_for_noise(self, num_samples: int) -> Any:
        noise_N = torch.randn(num_samples, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            return self.eval().model(**self.inputs([0.1 * noise_N]), output_hidden_states=True)

    def _shortest(self) -> int:
        """Samples of the first of 0.1, 0.2, 0.4, 0.8 and 1 s that the model gives a frame for."""
        for share in (0.1, 0.2, 0.4, 0.8):
            num_samples: int = round(share * self.extractor.sampling_rate)
            # Whatever a foreign model raises for a clip that is too short for it.
            with contextlib.suppress(Exception):
                if self._output_for_noise(num_samples).last_hidden_state.shape[1]:
                    return num_samples
        return int(self.extractor.sampling_rate)

    def inputs(self, clips: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return what the model takes for clips of equal length."""
        return self.extracted(clips)

    def encode(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Return the features `[T, D]` of every clip `[N]`."""
        clips = [with_silence(clip_N, self.min_samples) for clip_N in clips]
        frames: dict[int, Tensor] = {}
        for length in {len(clip_N) for clip_N in clips}:
            indices = [index for index, clip_N in enumerate(clips) if len(clip_N) == length]
            inputs = self.inputs([clips[index] for index in indices])
            hidden_BTD = self.hidden(**inputs)
            mask_BT = inputs.get("attention_mask")
            if mask_BT is None or mask_BT.shape != hidden_BTD.shape[:2]:
                mask_BT = torch.ones(hidden_BTD.shape[:2], device=hidden_BTD.device)
            frames.update(zip(indices, (f[m.bool()] for f, m in zip(hidden_BTD, mask_BT, strict=True)), strict=True))
        return [frames[index] for index in range(len(clips))]


class FixedWindowWrapper(GenericWrapper, WindowWrapper):
    """Any model behind Whisper's feature extractor, which makes windows of one length: clips are cut into windows.

    A frame is kept if the audio goes on when it begins, as with Whisper.
    """

    def __init__(self, model: Any, extractor: Any) -> None:
        """Take a loaded model and its feature extractor."""
        super().__init__(model, extractor)
        self.window_samples = extractor.n_samples

    def _shortest(self) -> int:
        return 1  # any clip becomes a window

    def inputs(self, clips: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return what the model takes for windows. Without a mask: like Whisper, it hears silence behind a clip."""
        return {"input_features": self.extracted(clips, device=str(clips[0].device))["input_features"]}

    def encode(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Return the features `[T, D]` of every clip `[N]`."""
        return WindowWrapper.encode(self, clips)

    def encode_windows(self, windows: Sequence[Tensor]) -> list[Tensor]:
        """Return the features `[T, D]` of every window `[N]`, without frames after its end."""
        hidden_WTD = self.hidden(**self.inputs(windows))
        num_all = hidden_WTD.shape[1]
        num_frames = [-(-len(window_N) * num_all // self.window_samples) for window_N in windows]
        return [frames_TD[:num] for frames_TD, num in zip(hidden_WTD, num_frames, strict=True)]


# By model type, as the model's config names it. Relatives of wav2vec2 that let padding into a clip (data2vec, SEW) are
# missing on purpose.
FAMILIES: Mapping[str, type[ModelWrapper]] = MappingProxyType(
    {
        "whisper": WhisperWrapper,
        "audio-spectrogram-transformer": SpectrogramWrapper,
        "wav2vec2": WaveformWrapper,
        "hubert": WaveformWrapper,
        "wavlm": WaveformWrapper,
        "unispeech": WaveformWrapper,
        "unispeech-sat": WaveformWrapper,
    }
)


def wrap(found: HubModel) -> ModelWrapper:
    """Wrap a model in the wrapper of its family.

    Raises:
        EncoderError: The model has no family, and gives no features for a second of audio, or as many for two.
    """
    family = FAMILIES.get(found.model_type)
    if family is not None and family.fits(found.model.config):
        return family(found.model, found.extractor)
    try:
        if isinstance(found.extractor, WhisperFeatureExtractor):
            return FixedWindowWrapper(found.model, found.extractor)
        wrapper = GenericWrapper(found.model, found.extractor)
        is_fixed = wrapper.is_of_fixed_length()
    except Exception as error:
        # Whatever it raises, the model is not made for this.
        found.refuse(f"that gives no features for a second of audio ({type(error).__name__}: {error})")
    if is_fixed:
        found.refuse(
            f"behind a {type(found.extractor).__name__} that makes windows of one length of all clips, so nothing says "
            "where a clip ends"
        )
    return wrapper


def with_silence(clip_N: Tensor, min_samples: int) -> Tensor:
    """Return the clip, followed by silence up to `min_samples` if it is shorter."""
    return nn.functional.pad(clip_N, (0, max(min_samples - len(clip_N), 0)))
