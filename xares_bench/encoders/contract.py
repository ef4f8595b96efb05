"""The contract check: does an encoder do what the benchmark relies on, clause by clause.

The check calls the encoder some two dozen times, with some seven minutes of audio in all. For a large encoder that
would be most of the time of a session that finds everything else cached, so the report is cached, too.

Shapes: B clips, S samples, T frames, D = output_dim.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xares_bench.config.encoder_spec import EncoderSpec
from xares_bench.core.digests import code_digest, digest_of, library_versions
from xares_bench.core.errors import EncoderError
from xares_bench.core.store import Store
from xares_bench.encoders.contract_probes import (
    NUM_LONGEST,
    SAMPLE_RATE_HZ,
    difference,
    implausible_rate,
    implausible_scale,
    long_probe_clip,
    padded_batch,
    padding_finding,
    probe_clip,
    shuffled_middle,
    unheard,
)
from xares_bench.encoders.contract_report import ContractReport, Outcome, Status, completed, stopped
from xares_bench.encoders.fingerprint import weight_digests
from xares_bench.encoders.identity import identified
from xares_bench.encoders.loading import FrozenEncoder, load_encoder, refuse_stuck
from xares_bench.encoders.returned import checked_result, hands_mask_back
from xares_bench.encoders.shortest_clip import shortest_clip
from xares_bench.runtime.determinism import seeded
from xares_bench.runtime.variables import keyed_variables

# Modules whose code a cached report depends on. A test compares the list with what these modules import
# (`tests/suite/test_keys.py`).
CONTRACT_MODULES = (
    "encoders.clauses",
    "encoders.contract",
    "encoders.contract_probes",
    "encoders.contract_report",
    "encoders.fingerprint",
    "encoders.held_state",
    "encoders.identity",
    "encoders.loading",
    "encoders.main_code",
    "encoders.returned",
    "encoders.shortest_clip",
    "runtime.determinism",
    "runtime.patches",
    "runtime.process_state",
    "runtime.settings",
    "runtime.torch_settings",
    "runtime.variables",
)

_NUM_SECOND = SAMPLE_RATE_HZ
_NUM_SHORT = SAMPLE_RATE_HZ // 10
# A bit more than 0.7 s: a multiple of no usual hop, window or patch, which is where masks are rounded wrongly.
_NUM_ODD = 11_205
_NUM_LONG = 30 * SAMPLE_RATE_HZ

_LOADING = ("loads", "is-module", "arguments", "output-dim")
_FIRST_CALL = ("no-mask", "two-results", "features-float", "features-shape", "device", "features-finite", "mask-shape")

_NOT_REPEATABLE = "the same clip gives different features each time, so nothing can be compared"
_HONOURED = "honoured: clips of different lengths may be encoded together"
_APART = "clips of different lengths are encoded apart"
_NOT_CROPPED = (
    "training clips are cropped to 30 s, but test clips are not: encode longer ones in windows and join the frames"
)
_HANDED_BACK = "it returns the audio mask, which is no mask of its frames: clips are encoded without a mask"


def check_contract(spec: EncoderSpec, device: torch.device, store: Store | None = None) -> ContractReport:
    """Load an encoder and check every clause of `CLAUSES`.

    An error of the user's code becomes the outcome of a clause. The session's random state does not change.

    Args:
        spec: Which encoder.
        device: Where it computes.
        store: The store that caches reports without failures, of encoders that repeat themselves; or None.
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
        if entry is not None:
            return ContractReport.from_json(entry.manifest, encoder)
        report = _check(encoder)
        # One that draws random numbers may do something else the next time.
        if report.failure is None and report.outcomes["repeatable"].status == "passed":
            store.obtain("contracts", key, lambda _: report.to_json())
        return report


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
            self.fail(error.clause if error.clause in ("mask-shape", "process") else clause, f"{what}: {error}")
            return None

    @property
    def has_failed(self) -> bool:
        """Whether a clause does not hold."""
        return any(outcome.status == "failed" for outcome in self.outcomes.values())

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
    long_TD, realtime_factor = _check_long_clip(check, long_clip)
    _check_plausible(check, alone_TD, long_TD)
    _check_repeatable(check, second_clip, alone_TD)
    _check_neighbours(check, second_clip, alone_TD, long_clip, long_TD)
    honours_mask = False
    if short is not None and check.holds("batches"):
        honours_mask = _check_mask(check, second_clip, alone_TD, short_clip, short.frames[0])
    if long_TD is not None and not check.has_failed:
        shorter = {"30 s": (long_clip, long_TD), "1 s": (second_clip, alone_TD)}
        honours_mask = _check_longest(check, shorter, honours_mask=honours_mask)
    min_samples = 1
    if check.holds("lengths"):
        min_samples = shortest_clip(encoder, second_clip if short is None else short_clip, padded=honours_mask)
    _check_frozen(check)
    try:
        refuse_stuck(encoder.settings)
    except EncoderError as error:
        check.fail("process", str(error))
    check.settle("process", "passed", f"sets {encoder.settings} for itself" if str(encoder.settings) else "")
    check.settle("input-unchanged", "passed")
    return ContractReport(
        encoder=encoder,
        outcomes=completed(check.outcomes),
        honours_mask=honours_mask,
        min_samples=min_samples,
        frames_per_second=None if long_TD is None else _frames_per_second(long_TD, long_clip),
        realtime_factor=realtime_factor,
    )


def _check_long_clip(check: _Check, long_clip: Tensor) -> tuple[Tensor | None, float | None]:
    """Frames of a 30 s clip and the real-time factor, or None."""
    duration_s = len(long_clip) / SAMPLE_RATE_HZ
    start_s = time.perf_counter()
    long = check.try_encode("lengths", f"a {duration_s:g} s clip", long_clip[None])
    if long is None:
        return None, None
    if check.encoder.device.type == "cuda":
        torch.cuda.synchronize(check.encoder.device)
    realtime_factor = (time.perf_counter() - start_s) / duration_s
    long_TD = long.frames[0]
    frames_per_second = _frames_per_second(long_TD, long_clip)
    check.settle(
        "lengths", "passed", f"{frames_per_second:.4g} frames per second, real-time factor {realtime_factor:.2g}"
    )
    return long_TD, realtime_factor


def _frames_per_second(frames_TD: Tensor, clip_N: Tensor) -> float:
    return len(frames_TD) / (len(clip_N) / SAMPLE_RATE_HZ)


def _check_plausible(check: _Check, alone_TD: Tensor, long_TD: Tensor | None) -> None:
    """Warn of a frame rate or a scale of the features that no usual encoder has."""
    if long_TD is None:
        return
    rate = implausible_rate({1: len(alone_TD), 30: len(long_TD)})
    check.settle("frame-rate", "warning" if rate else "passed", rate)
    scale = implausible_scale(long_TD)
    check.settle("scale", "warning" if scale else "passed", scale)


def _check_repeatable(check: _Check, clip: Tensor, alone_TD: Tensor) -> None:
    again = check.try_encode("repeatable", "the same clip once more", clip[None])
    if again is None:
        return
    found = difference(check.encoder, again.frames[0], alone_TD)
    if found is None:
        check.settle("repeatable", "passed")
    else:
        check.settle(
            "repeatable",
            "warning",
            f"the same clip twice gives {found}; remove what is random or kept between calls, "
            "or accept that the scores are those of one draw",
        )


def _check_neighbours(check: _Check, clip: Tensor, alone_TD: Tensor, long_clip: Tensor, long_TD: Tensor | None) -> None:
    # In the middle, so that leaning on the first or the last clip of a batch shows as well.
    batch_BS = torch.stack([probe_clip(len(clip), seed=1), clip, probe_clip(len(clip), seed=2)])
    batch = check.try_encode("batches", "a batch of 3", batch_BS)
    if batch is None:
        return
    long_batch = None
    if long_TD is not None:
        long_BS = torch.stack([long_probe_clip(len(long_clip), seed=1), long_clip])
        long_batch = check.try_encode("batches", "a batch of 2 clips of 30 s", long_BS)
        if long_batch is None:
            return
    check.settle("batches", "passed")
    if not check.holds("repeatable"):
        check.settle("others", "not tested", _NOT_REPEATABLE)
        return
    what, found = "a clip in a batch of 3", difference(check.encoder, batch.frames[1], alone_TD)
    if found is None and long_batch is not None and long_TD is not None:
        what, found = "a 30 s clip in a batch of 2", difference(check.encoder, long_batch.frames[1], long_TD)
    if found is None:
        check.settle("others", "passed")
    else:
        check.fail(
            "others",
            f"{what} has {found} compared with the clip alone; "
            "compute nothing over the batch dimension (statistics, maxima, first clip)",
        )


def _check_mask(check: _Check, clip: Tensor, alone_TD: Tensor, short_clip: Tensor, short_alone_TD: Tensor) -> bool:
    """Return whether padded clips with a mask have the features of the clips alone; settles `with-mask`, `padding`."""
    odd_clip = probe_clip(_NUM_ODD, seed=3)
    padded = check.try_encode(
        "with-mask", "a padded batch of 3 with a mask", *padded_batch([clip, odd_clip, short_clip])
    )
    if padded is None:
        return False
    check.settle("with-mask", "passed", _HANDED_BACK if padded.hands_mask_back else "")
    if not check.holds("repeatable"):
        check.settle("padding", "not tested", _NOT_REPEATABLE)
        return False
    if not padded.has_mask:
        finding = "it returns the audio mask" if padded.hands_mask_back else "it returns no mask for a padded batch"
    else:
        odd = check.try_encode("lengths", "a 0.7 s clip", odd_clip[None])
        if odd is None:
            return False
        expected = {"1 s": alone_TD, "0.7 s": odd.frames[0], "0.1 s": short_alone_TD}
        finding = padding_finding(check.encoder, "1 s", padded.frames, expected)
    check.settle("padding", "passed", f"not honoured: {finding}; {_APART}" if finding else _HONOURED)
    return not finding


def _check_longest(check: _Check, shorter: Mapping[str, tuple[Tensor, Tensor]], *, honours_mask: bool) -> bool:
    """Return whether clips of very different lengths may share a batch; settles `hears-all` and `padding-long`.

    Args:
        check: The check so far.
        shorter: Clips and the frames that they have alone, by what messages call them.
        honours_mask: Whether short clips may share a batch.
    """
    if not check.holds("repeatable"):
        for clause in ("hears-all", "padding-long"):
            check.settle(clause, "not tested", _NOT_REPEATABLE)
        return False
    clip = long_probe_clip(NUM_LONGEST, seed=0)
    finding, middle_TD = "", None
    try:
        frames_TD = check.encode(clip[None]).frames[0]
        if honours_mask:
            finding, middle_TD = _long_padding(check, shuffled_middle(clip), shorter)
        problem = unheard(lambda clip_N: check.encode(clip_N[None]).frames[0], clip, frames_TD, middle_TD)
    except EncoderError as error:
        finding, problem = "a 61 s clip cannot be encoded", f"a 61 s clip: {error}"
    check.settle("hears-all", "warning" if problem else "passed", f"{problem}; {_NOT_CROPPED}" if problem else "")
    if not honours_mask:
        check.settle("padding-long", "passed", f"not needed: {_APART}")
        return False
    check.settle("padding-long", "passed", f"not honoured: {finding}; {_APART}" if finding else _HONOURED)
    return not finding


def _long_padding(
    check: _Check, clip: Tensor, shorter: Mapping[str, tuple[Tensor, Tensor]]
) -> tuple[str, Tensor | None]:
    """How clips beside one of 61 s differ from the clips alone, or nothing; then also the frames of the long one."""
    try:
        padded = check.encode(*padded_batch([clip, *(clip_N for clip_N, _ in shorter.values())]))
    except EncoderError as error:
        return f"a batch with a 61 s clip: {error}", None
    if not padded.has_mask:
        return "it returns no mask for a batch with a 61 s clip", None
    expected = {label: alone_TD for label, (_, alone_TD) in shorter.items()}
    finding = padding_finding(check.encoder, "61 s", padded.frames[1:], expected)
    return finding, None if finding else padded.frames[0]


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


def _report_key(encoder: FrozenEncoder) -> str:
    """Digest of all that the report of an encoder which loads depends on."""
    device = encoder.device
    return digest_of(
        {
            "encoder": encoder.fingerprint,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "code": code_digest(*(f"xares_bench.{name}" for name in CONTRACT_MODULES)),
            "libraries": library_versions(("numpy", "torch")),
            "variables": keyed_variables(os.environ),
        }
    )
