"""The contract check: does an encoder do what the benchmark relies on, clause by clause.

The check calls the encoder seven times, with 40 seconds of audio in all, and with a dozen clips of up to 0.1 s. For a
large encoder that would be most of the time of a session that finds everything else cached, so the report of an encoder
that keeps every clause is cached, too.

Shapes: B clips, S samples, T frames, D = output_dim.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xares_bench.config.encoder_spec import EncoderSpec
from xares_bench.core.digests import code_digest, digest_of, library_versions
from xares_bench.core.errors import EncoderError
from xares_bench.core.store import Store
from xares_bench.encoders.contract_report import ContractReport, Outcome, Status, completed, stopped
from xares_bench.encoders.fingerprint import weight_digests
from xares_bench.encoders.identity import identified, rounding_tolerance
from xares_bench.encoders.loading import FrozenEncoder, checked_result, hands_mask_back, load_encoder
from xares_bench.encoders.shortest_clip import shortest_clip
from xares_bench.runtime.determinism import seeded

# Modules whose code a cached report depends on. A test compares the list with what these modules import
# (`tests/suite/test_keys.py`).
CONTRACT_MODULES = (
    "encoders.clauses",
    "encoders.contract",
    "encoders.contract_report",
    "encoders.fingerprint",
    "encoders.held_state",
    "encoders.identity",
    "encoders.loading",
    "encoders.shortest_clip",
    "runtime.determinism",
    "runtime.process_state",
)

SAMPLE_RATE_HZ = 16_000

_NUM_SECOND = SAMPLE_RATE_HZ
_NUM_SHORT = SAMPLE_RATE_HZ // 10
# A bit more than 0.7 s: a multiple of no usual hop, window or patch, which is where masks are rounded wrongly.
_NUM_ODD = 11_205
_NUM_LONG = 30 * SAMPLE_RATE_HZ

_LOADING = ("loads", "is-module", "arguments", "output-dim")
_FIRST_CALL = ("no-mask", "two-results", "features-float", "features-shape", "device", "features-finite", "mask-shape")

_NOT_REPEATABLE = "the same clip gives different features each time, so nothing can be compared"
_HANDED_BACK = "it returns the audio mask, which is no mask of its frames: clips are encoded without a mask"


def check_contract(spec: EncoderSpec, device: torch.device, store: Store | None = None) -> ContractReport:
    """Load an encoder and check every clause of `CLAUSES`.

    An error of the user's code becomes the outcome of a clause. The session's random state does not change.

    Args:
        spec: Which encoder.
        device: Where it computes.
        store: The store that caches reports without failures and warnings, or None.
    """
    with seeded(0, device):
        try:
            encoder = load_encoder(spec, device)
        except EncoderError as error:
            return stopped(None, {}, _LOADING, error)
        if store is None:
            return _check(encoder)
        try:
            encoder = identified(encoder, store)
        except EncoderError:
            return _check(encoder)  # which runs into the same error, and names its clause
        key = _report_key(encoder)
        entry = store.find("contracts", key)
        if entry is not None and not encoder.settings.stuck:
            return ContractReport.from_json(entry.manifest, encoder)
        report = _check(encoder)
        if report.failure is None and not report.warnings:
            store.obtain("contracts", key, lambda _: report.to_json())
        return report


def probe_clip(num_samples: int, seed: int) -> Tensor:
    """Float32 `[S]` of noise between 100 Hz and 6 kHz with three tones, peak 0.9; the same for the same seed."""
    generator = np.random.default_rng(seed)
    frequencies_hz = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ)
    spectrum = np.fft.rfft(generator.standard_normal(num_samples))
    audio = np.fft.irfft(spectrum * ((frequencies_hz > 100) & (frequencies_hz < 6000)), num_samples)
    audio /= np.abs(audio).max()
    time_s = np.arange(num_samples) / SAMPLE_RATE_HZ
    for tone_hz in generator.uniform(150, 4000, size=3):
        audio += 0.5 * np.sin(2 * np.pi * tone_hz * time_s)
    return torch.from_numpy((0.9 * audio / np.abs(audio).max()).astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    """What one call of the encoder returned.

    Attributes:
        frames: The valid frames `[T, D]` of each clip.
        has_mask: Whether the encoder returned a mask of its own.
        hands_mask_back: Whether it returned the audio's mask instead.
    """

    frames: Sequence[Tensor]
    has_mask: bool
    hands_mask_back: bool


class _Check:
    """One encoder under test, and the outcomes so far."""

    def __init__(self, encoder: FrozenEncoder) -> None:
        self.encoder = encoder
        self.outcomes: dict[str, Outcome] = {}

    def encode(self, audio_BS: Tensor, mask_BS: Tensor | None = None) -> _Encoded:
        """Call the encoder once, watching its inputs.

        Raises:
            EncoderError: The encoder raised, or its result breaks a clause.
        """
        audio_BS, mask_BS = self.encoder.placed(audio_BS, mask_BS)
        given_BS, given_mask_BS = audio_BS.clone(), None if mask_BS is None else mask_BS.clone()
        result = self.encoder.run(given_BS, given_mask_BS)
        if not torch.equal(given_BS, audio_BS):
            self.fail("input-unchanged", "forward writes into its audio; work on audio.clone()")
        if mask_BS is not None and given_mask_BS is not None and not torch.equal(given_mask_BS, mask_BS):
            self.fail("input-unchanged", "forward writes into its mask; work on a clone of it")
        features_BTD, frame_mask_BT = checked_result(result, audio_BS, mask_BS, self.encoder.output_dim)
        frames = list(features_BTD)
        if frame_mask_BT is not None:
            frames = [clip_TD[mask_T] for clip_TD, mask_T in zip(features_BTD, frame_mask_BT, strict=True)]
        return _Encoded(
            frames=frames, has_mask=frame_mask_BT is not None, hands_mask_back=hands_mask_back(result, mask_BS)
        )

    def try_encode(self, clause: str, what: str, audio_BS: Tensor, mask_BS: Tensor | None = None) -> _Encoded | None:
        """Call the encoder once; None, and a failure of the clause, if that goes wrong."""
        try:
            return self.encode(audio_BS, mask_BS)
        except EncoderError as error:
            self.fail("mask-shape" if error.clause == "mask-shape" else clause, f"{what}: {error}")
            return None

    def holds(self, clause: str) -> bool:
        return clause not in self.outcomes or self.outcomes[clause].status == "passed"

    def fail(self, clause: str, message: str) -> None:
        """Record a failure; the first message of a clause stays."""
        if self.holds(clause):
            self.outcomes[clause] = Outcome(status="failed", message=message)

    def settle(self, clause: str, status: Status, message: str = "") -> None:
        """Record an outcome, unless the clause has one."""
        self.outcomes.setdefault(clause, Outcome(status=status, message=message))


def _check(encoder: FrozenEncoder) -> ContractReport:
    check = _Check(encoder)
    long_clip = probe_clip(_NUM_LONG // 10, seed=0).repeat(10)
    second_clip, short_clip = long_clip[:_NUM_SECOND], long_clip[:_NUM_SHORT]
    try:
        alone_TD = check.encode(second_clip[None]).frames[0]
    except EncoderError as error:
        return stopped(encoder, check.outcomes, (*_LOADING, *_FIRST_CALL), error)
    for clause in (*_LOADING, *_FIRST_CALL):
        check.settle(clause, "passed")

    short = check.try_encode("lengths", "a 0.1 s clip", short_clip[None])
    frames_per_second, realtime_factor = _check_long_clip(check, long_clip)
    _check_repeatable(check, second_clip, alone_TD)
    _check_neighbours(check, second_clip, alone_TD)
    honours_mask = False
    if short is not None and check.holds("batches"):
        honours_mask = _check_mask(check, second_clip, alone_TD, short_clip, short.frames[0])
    min_samples = 1
    if check.holds("lengths"):
        min_samples = shortest_clip(encoder, second_clip if short is None else short_clip, padded=honours_mask)
    _check_frozen(check)
    for name, change in encoder.settings.stuck.items():
        check.fail("process", f"it changes {name} ({change}), which cannot be undone; remove that")
    check.settle("process", "passed", f"sets {encoder.settings} for itself" if encoder.settings.values else "")
    check.settle("input-unchanged", "passed")
    return ContractReport(
        encoder=encoder,
        outcomes=completed(check.outcomes),
        honours_mask=honours_mask,
        min_samples=min_samples,
        frames_per_second=frames_per_second,
        realtime_factor=realtime_factor,
    )


def _check_long_clip(check: _Check, long_clip: Tensor) -> tuple[float | None, float | None]:
    """Frames per second and real-time factor of a 30 s clip, or None."""
    duration_s = len(long_clip) / SAMPLE_RATE_HZ
    start_s = time.perf_counter()
    long = check.try_encode("lengths", f"a {duration_s:g} s clip", long_clip[None])
    if long is None:
        return None, None
    if check.encoder.device.type == "cuda":
        torch.cuda.synchronize(check.encoder.device)
    realtime_factor = (time.perf_counter() - start_s) / duration_s
    frames_per_second = len(long.frames[0]) / duration_s
    check.settle(
        "lengths", "passed", f"{frames_per_second:.4g} frames per second, real-time factor {realtime_factor:.2g}"
    )
    return frames_per_second, realtime_factor


def _check_repeatable(check: _Check, clip: Tensor, alone_TD: Tensor) -> None:
    again = check.try_encode("repeatable", "the same clip once more", clip[None])
    if again is None:
        return
    difference = _difference(check.encoder, again.frames[0], alone_TD)
    if difference is None:
        check.settle("repeatable", "passed")
    else:
        check.settle(
            "repeatable",
            "warning",
            f"the same clip twice gives {difference}; remove what is random or kept between calls, "
            "or accept that the scores are those of one draw",
        )


def _check_neighbours(check: _Check, clip: Tensor, alone_TD: Tensor) -> None:
    # In the middle, so that leaning on the first or the last clip of a batch shows as well.
    batch_BS = torch.stack([probe_clip(len(clip), seed=1), clip, probe_clip(len(clip), seed=2)])
    batch = check.try_encode("batches", "a batch of 3", batch_BS)
    if batch is None:
        return
    check.settle("batches", "passed")
    if not check.holds("repeatable"):
        check.settle("others", "not tested", _NOT_REPEATABLE)
        return
    difference = _difference(check.encoder, batch.frames[1], alone_TD)
    if difference is None:
        check.settle("others", "passed")
    else:
        check.fail(
            "others",
            f"a clip in a batch of 3 has {difference} compared with the clip alone; "
            "compute nothing over the batch dimension (statistics, maxima, first clip)",
        )


def _check_mask(check: _Check, clip: Tensor, alone_TD: Tensor, short_clip: Tensor, short_alone_TD: Tensor) -> bool:
    """Return whether padded clips with a mask have the features of the clips alone; settles `with-mask`, `padding`."""
    odd_clip = probe_clip(_NUM_ODD, seed=3)
    clips = [clip, odd_clip, short_clip]
    audio_BS = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    mask_BS = torch.nn.utils.rnn.pad_sequence([torch.ones(len(c), dtype=torch.long) for c in clips], batch_first=True)
    padded = check.try_encode("with-mask", "a padded batch of 3 with a mask", audio_BS, mask_BS)
    if padded is None:
        return False
    check.settle("with-mask", "passed", _HANDED_BACK if padded.hands_mask_back else "")
    if not check.holds("repeatable"):
        check.settle("padding", "not tested", _NOT_REPEATABLE)
        return False
    finding: str | None = None
    if not padded.has_mask:
        finding = "it returns the audio mask" if padded.hands_mask_back else "it returns no mask for a padded batch"
    else:
        odd = check.try_encode("lengths", "a 0.7 s clip", odd_clip[None])
        if odd is None:
            return False
        expected = {"1 s": alone_TD, "0.7 s": odd.frames[0], "0.1 s": short_alone_TD}
        for found_TD, (label, expected_TD) in zip(padded.frames, expected.items(), strict=True):
            difference = _difference(check.encoder, found_TD, expected_TD)
            if difference is not None:
                finding = f"a {label} clip padded to 1 s has {difference} compared with the clip alone"
                break
    if finding is None:
        check.settle("padding", "passed", "honoured: clips of different lengths may be encoded together")
    else:
        check.settle("padding", "passed", f"not honoured: {finding}; clips of different lengths are encoded apart")
    return finding is None


def _check_frozen(check: _Check) -> None:
    encoder, name = check.encoder, check.encoder.name
    training = [child or name for child, module in encoder.module.named_modules() if module.training]
    if training:
        check.fail("frozen", f"{training[0]} is in training mode after a call; do not call train() in forward")
    after = weight_digests(encoder.module)
    parameters = [key for key, _ in encoder.module.named_parameters(remove_duplicate=False)]
    moved = [key for key in parameters if key in encoder.weights and encoder.weights[key] != after[key]]
    if moved:
        check.fail("frozen", f"forward changes the parameter {moved[0]}; an encoder's weights must stay as they are")
    check.settle("frozen", "passed")


def _difference(encoder: FrozenEncoder, found_TD: Tensor, expected_TD: Tensor) -> str | None:
    """How two features `[T, D]` of one clip differ beyond rounding, in words; None if they do not."""
    if found_TD.shape != expected_TD.shape:
        return f"{len(found_TD)} frames instead of {len(expected_TD)}"
    scale = float(expected_TD.double().square().mean().sqrt())
    error = float((found_TD.double() - expected_TD.double()).square().mean().sqrt())
    if error <= rounding_tolerance(encoder, expected_TD) * scale:
        return None
    return f"features that differ by {error / scale if scale else float('inf'):.2g} of their RMS"


def _report_key(encoder: FrozenEncoder) -> str:
    """Digest of all that the report of an encoder which loads depends on."""
    device = encoder.device
    return digest_of(
        {
            "encoder": encoder.fingerprint,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "code": code_digest(*(f"xares_bench.{name}" for name in CONTRACT_MODULES)),
            "libraries": library_versions(("numpy", "torch")),
        }
    )
