"""The identity of an encoder: what it is made of, and what it does.

The structure (`fingerprint`) cannot see everything: a table that is read at the first call, an environment variable, a
file of a server. So every session runs the encoder on two short clips, and compares the features with those that an
encoder of this structure had when the store first met it. If they differ by more than rounding, it is another encoder,
with keys of its own; the store remembers it, too. Features are compared and not digested, because their last bits
change with processors and threads, and an encoder must not.

Shapes: S samples, T frames, D = output_dim.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xares_bench.core.digests import code_digest, digest_of
from xares_bench.core.store import Entry, Store, write_atomically
from xares_bench.encoders.loading import FrozenEncoder
from xares_bench.runtime.determinism import seeded
from xares_bench.runtime.variables import keyed_variables

KIND = "behaviours"
_SAMPLE_RATE_HZ = 16_000
_CLIP_S = 1.0
# Of these the mask leaves the first part: a shorter clip, and the way that padded clips go.
_PADDED_S, _MASKED_S = 0.7, 0.5
# An encoder that takes longer for the first clip is run on that one alone. Windows of 30 s do on a CPU, for any clip.
_SLOW_S = 0.1


def identified(encoder: FrozenEncoder, store: Store) -> FrozenEncoder:
    """Return the encoder with a fingerprint that covers its behaviour, and the number of others of its structure.

    An encoder that gives other features at every call cannot be compared: it has the fingerprint of the first one.

    Raises:
        EncoderError: The encoder raised, or its result breaks the contract.
        DiskError: The store cannot be written.
    """
    known = store.use(KIND, _key(encoder, 0))
    found = _probe(encoder, None if known is None else len(known.manifest["files"]))
    for number in itertools.count():
        entry = store.obtain(KIND, _key(encoder, number), functools.partial(_save, found))
        first = _load(entry)
        if len(first) != len(found):  # of another process, which was faster or slower
            found = _probe(encoder, len(first))
        if _agree(encoder, found, first) or (number == 0 and not _agree(encoder, found, _probe(encoder, len(first)))):
            break
    files = [entry.manifest["files"][name]["sha256"] for name in sorted(entry.manifest["files"])]
    return dataclasses.replace(
        encoder, fingerprint=digest_of({"structure": encoder.fingerprint, "features": files}), num_before=number
    )


def rounding_tolerance(encoder: FrozenEncoder, features: Tensor) -> float:
    """Return the largest relative difference that rounding explains, at the coarsest precision in use."""
    weights = encoder.module.parameters()
    dtypes = {features.dtype, *(weight.dtype for weight in weights if weight.is_floating_point())}
    epsilon = max(torch.finfo(dtype).eps for dtype in dtypes)
    if features.is_cuda:
        # Convolutions and products may run in TF32, which has ten bits.
        epsilon = max(epsilon, 2**-10)
    return max(1e-4, 8 * epsilon)


def _probe(encoder: FrozenEncoder, num_clips: int | None) -> list[Tensor]:
    """Return the features `[T, D]` of a clip without a mask, and of a shorter, quieter one behind a mask.

    Args:
        encoder: The encoder.
        num_clips: How many clips; None: one if the encoder is slow, else two.
    """
    mask_S = (torch.arange(int(_PADDED_S * _SAMPLE_RATE_HZ)) < _MASKED_S * _SAMPLE_RATE_HZ).long()
    with seeded(0, encoder.device):
        start_s = time.perf_counter()
        whole_BTD, _ = encoder(_noise(_CLIP_S, 0, 0.9)[None])
        if num_clips == 1 or (num_clips is None and time.perf_counter() - start_s > _SLOW_S):
            return [whole_BTD[0]]
        padded_BTD, frame_mask_BT = encoder((_noise(_PADDED_S, 1, 0.1) * mask_S)[None], mask_S[None])
    return [whole_BTD[0], padded_BTD[0] if frame_mask_BT is None else padded_BTD[0][frame_mask_BT[0]]]


def _noise(duration_s: float, seed: int, peak: float) -> Tensor:
    """Float32 `[S]` of white noise. It leaves no band empty, where a logarithm would enlarge rounding."""
    audio = np.random.default_rng(seed).standard_normal(int(duration_s * _SAMPLE_RATE_HZ))
    return torch.from_numpy((peak * audio / np.abs(audio).max()).astype(np.float32))


def _agree(encoder: FrozenEncoder, found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether no value differs by more than rounding, relative to the RMS of the features."""
    for found_TD, expected_TD in zip(found, expected, strict=True):
        if found_TD.shape != expected_TD.shape:
            return False
        # On the CPU, as not all devices have float64.
        difference_TD = found_TD.cpu().double() - expected_TD.cpu().double()
        scale = float(expected_TD.cpu().double().square().mean().sqrt())
        if float(difference_TD.abs().max()) > rounding_tolerance(encoder, found_TD) * scale:
            return False
    return True


def _save(features: Sequence[Tensor], folder: Path) -> dict[str, Any]:
    for number, features_TD in enumerate(features):
        content = io.BytesIO()
        np.save(content, features_TD.cpu().float().numpy(), allow_pickle=False)
        write_atomically(folder / f"{number}.npy", content.getvalue())
    return {}


def _load(entry: Entry) -> list[Tensor]:
    names = sorted(entry.manifest["files"])
    return [torch.from_numpy(np.load(entry.folder / name, allow_pickle=False)) for name in names]


def _key(encoder: FrozenEncoder, number: int) -> str:
    return digest_of(
        {
            "structure": encoder.fingerprint,
            "device": encoder.device.type,
            "number": number,
            "variables": keyed_variables(os.environ),
            "code": code_digest(
                "xares_bench.encoders.identity", "xares_bench.encoders.loading", "xares_bench.encoders.returned"
            ),
        }
    )
