"""What an encoder returns: features and a mask, checked on every call.

Shapes: B clips, S samples (16 kHz), T frames, D = output_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xares_bench.core.errors import EncoderError


def checked_result(
    result: object, audio_BS: Tensor, mask_BS: Tensor | None, output_dim: int
) -> tuple[Tensor, Tensor | None]:
    """Return the features `[B, T, D]` and the bool mask `[B, T]`, or None, of an encoder's result.

    The audio's own mask, returned instead of a mask of the frames, counts as None.

    Raises:
        EncoderError: The result breaks a clause of the contract.
    """
    if not isinstance(result, tuple | list) or len(result) != 2:
        found = f"{kind_of(result)} of {len(result)}" if isinstance(result, tuple | list) else kind_of(result)
        raise EncoderError("two-results", f"forward returned {found}; return the two (features, mask or None)")
    features_BTD, returned_mask = result
    _check_features(features_BTD, audio_BS, output_dim)
    if returned_mask is None or hands_mask_back(result, mask_BS):
        return features_BTD.clone(), None
    _check_mask(returned_mask, features_BTD)
    # Cloned, because tensors made in inference mode cannot be used in training.
    return features_BTD.clone(), returned_mask.bool()


def hands_mask_back(result: object, mask_BS: Tensor | None) -> bool:
    """Whether a result's mask is the audio's own `[B, S]` mask instead of one for its T frames."""
    if mask_BS is None or not isinstance(result, tuple | list) or len(result) != 2:
        return False
    features, returned = result
    if not (isinstance(features, Tensor) and isinstance(returned, Tensor)) or features.ndim != 3:
        return False
    if returned.shape != mask_BS.shape or returned.device != mask_BS.device:
        return False
    return returned.shape[1] != features.shape[1] and bool((returned == mask_BS).all())


def _check_features(features: object, audio_BS: Tensor, output_dim: int) -> None:
    is_dense = isinstance(features, Tensor) and features.layout is torch.strided
    if not isinstance(features, Tensor) or not is_dense or not features.is_floating_point():
        found = f"{features.dtype} {features.layout}" if isinstance(features, Tensor) else kind_of(features)
        raise EncoderError("features-float", f"the features are {found}; return a dense floating-point tensor")
    batch_size, shape = len(audio_BS), list(features.shape)
    expected = f"[{batch_size}, T, {output_dim}] with T >= 1 (batch, frames, output_dim)"
    if features.ndim != 3 or shape[0] != batch_size or shape[2] != output_dim or shape[1] == 0:
        raise EncoderError("features-shape", f"the features have the shape {shape}; expected {expected}")
    if features.device != audio_BS.device:
        raise EncoderError(
            "device",
            f"the features are on {features.device}, the audio on {audio_BS.device}; "
            "make new tensors with device=audio.device and register constants as buffers",
        )
    num_bad = features.numel() - int(torch.isfinite(features).sum())
    if num_bad:
        raise EncoderError(
            "features-finite",
            f"{num_bad} of {features.numel()} feature values are NaN or infinite; "
            "look for a log of zero, a division by zero or an overflow",
        )


def _check_mask(mask: object, features_BTD: Tensor) -> None:
    num_frames = features_BTD.shape[1]
    expected = f"return None or [{len(features_BTD)}, {num_frames}] of 0 and 1 (1 keeps a frame)"
    if not isinstance(mask, Tensor):
        raise EncoderError("mask-shape", f"the mask is {kind_of(mask)}; {expected}")
    if mask.shape != features_BTD.shape[:2]:
        raise EncoderError(
            "mask-shape", f"the mask has the shape {list(mask.shape)} for {num_frames} frames; {expected}"
        )
    if mask.device != features_BTD.device:
        raise EncoderError(
            "device", f"the mask is on {mask.device}, the features on {features_BTD.device}; keep both on one device"
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        odd = next(value for value in mask.flatten().tolist() if value not in (0, 1))
        raise EncoderError("mask-shape", f"the mask contains {odd:g}; {expected}")
    empty = (~mask.bool().any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise EncoderError("mask-shape", f"the mask keeps no frame of clip {empty[0]}; keep at least one per clip")


def kind_of(value: object) -> str:
    """Return what a value is, for a message."""
    if value is None:
        return "None"
    names = {Tensor: "a bare tensor", list: "a list", tuple: "a tuple", dict: "a dict"}
    return names.get(type(value), f"an object of type {type(value).__name__}")
