from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.encoders.contract import check_contract
from xares_bench.encoders.contract_probes import (
    NUM_LONGEST,
    _relative_difference,
    implausible_rate,
    implausible_scale,
    long_probe_clip,
    padded_batch,
    probe_clip,
    shuffled,
    shuffled_middle,
    unheard,
)
from xares_bench.encoders.contract_report import ContractReport

# 40 frames a second of the means of a hundred samples each. The padding may hold anything.
SOURCE = """
import torch

class DrawnEncoder(torch.nn.Module):
    output_dim = 4

    def forward(self, audio, mask=None):
        longest = audio.shape[1]
        hop = 400
        LINES
        frames = audio.unfold(1, hop, hop)[..., : 4 * (hop // 4)].unflatten(-1, (4, -1)).abs().mean(-1)
        return frames, None if mask is None else mask.unfold(1, hop, hop)[..., -1]
"""


def report_of(*lines: str) -> ContractReport:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "enc.py")
        file.write_text(SOURCE.replace("LINES", "\n        ".join(lines)))
        return check_contract(parse_encoder_spec(str(file)), torch.device("cpu"))


def test_the_encoder_that_is_drawn_from_keeps_every_clause() -> None:
    report = report_of()
    assert report.failure is None
    assert report.warnings == ()
    assert report.honours_mask


@settings(max_examples=10, deadline=None)
@given(threshold=st.integers(1600, NUM_LONGEST - 1), hop=st.sampled_from([160, 320, 401, 800]))
@example(threshold=10 * 16_000, hop=800)
def test_a_hop_that_depends_on_the_longest_clip_keeps_clips_of_different_lengths_apart(
    threshold: int, hop: int
) -> None:
    assert not report_of(f"hop = {hop} if longest > {threshold} else hop").honours_mask


@settings(max_examples=10, deadline=None)
@given(
    threshold=st.integers(1600, NUM_LONGEST - 1),
    share=st.floats(0.1, 1.0),
    statistic=st.sampled_from(["mean", "std"]),
)
def test_padding_that_is_heard_in_long_batches_keeps_clips_of_different_lengths_apart(
    threshold: int, share: float, statistic: str
) -> None:
    """Such as by a normalisation over time."""
    line = f"audio = audio + {share} * audio.{statistic}(1, keepdim=True) if longest > {threshold} else audio"
    assert not report_of(line).honours_mask


@settings(max_examples=10, deadline=None)
@given(deaf_s=st.floats(0.1, 60.0), leaks=st.booleans())
@example(deaf_s=30.0, leaks=False)
@example(deaf_s=60.0, leaks=True)
def test_an_encoder_that_is_deaf_after_some_time_is_warned_of_with_that_time(deaf_s: float, leaks: bool) -> None:
    normalised = "audio = audio / (audio.abs().amax(1, keepdim=True) + audio.std(1, keepdim=True))"
    cut = f"audio = audio[:, :{round(16_000 * deaf_s)}]; mask = None if mask is None else mask[:, : audio.shape[1]]"
    message = dict(report_of(normalised if leaks else "", cut).warnings)["hears-all"]
    found = re.match(r"nothing after (\d+) s of a 61 s clip changes its features", message)
    assert found is not None, message
    # In whole seconds, and a frame that the cut goes through is dropped.
    assert deaf_s - 0.03 <= int(found[1]) < deaf_s + 1


def test_probe_clips_are_fixed_and_band_limited() -> None:
    clip = probe_clip(16000, seed=1)
    assert torch.equal(clip, probe_clip(16000, seed=1))
    assert not torch.equal(clip, probe_clip(16000, seed=2))
    assert clip.dtype == torch.float32
    assert float(clip.abs().max()) == pytest.approx(0.9)
    power = torch.fft.rfft(clip).abs().square()
    assert power[6100:].sum() < 1e-3 * power.sum()


def test_a_long_probe_clip_repeats_a_short_one() -> None:
    clip = long_probe_clip(NUM_LONGEST, seed=1)
    assert len(clip) == NUM_LONGEST
    assert torch.equal(clip[:48_000], probe_clip(48_000, seed=1))
    assert torch.equal(clip[48_000:96_000], clip[:48_000])


def test_shuffling_moves_samples_within_a_part_only() -> None:
    clip = probe_clip(48_000, seed=0)
    found = shuffled(clip, 16_000, 32_000)
    assert torch.equal(found, shuffled_middle(clip))
    changed = (found != clip).nonzero().flatten()
    assert 16_000 <= changed.min() < changed.max() < 32_000
    assert len(changed) > 15_900
    assert torch.equal(found.sort().values, clip.sort().values)


def test_padded_clips_have_a_mask() -> None:
    audio, mask = padded_batch([torch.full((3,), 0.5), torch.full((1,), -1.0)])
    assert audio.tolist() == [[0.5, 0.5, 0.5], [-1.0, 0.0, 0.0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert mask.dtype == torch.long


def test_a_long_clip_is_encoded_once_more_for_its_end_and_once_for_its_middle() -> None:
    clip, calls = long_probe_clip(NUM_LONGEST, seed=0), []

    def encode(clip_N: torch.Tensor) -> torch.Tensor:
        calls.append(clip_N)
        return clip_N[:, None]

    assert unheard(encode, clip, encode(clip), None) == ""
    assert len(calls) == 3
    assert unheard(encode, clip, encode(clip), encode(shuffled_middle(clip))) == ""
    assert len(calls) == 6


@pytest.mark.parametrize(
    ("num_frames", "plausible"),
    [({1: 1, 30: 30}, True), ({1: 1, 30: 29}, False), ({1: 200, 30: 6000}, True), ({1: 201, 30: 6000}, False)],
)
def test_1_to_200_frames_per_second_are_plausible(num_frames: dict[int, int], plausible: bool) -> None:
    assert (implausible_rate(num_frames) == "") == plausible


@pytest.mark.parametrize(
    ("scale", "plausible"), [(0.011, True), (0.009, False), (99.0, True), (101.0, False), (0.0, False)]
)
def test_features_of_an_rms_between_a_hundredth_and_a_hundred_are_plausible(scale: float, plausible: bool) -> None:
    frames_TD = scale * torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    assert (implausible_scale(frames_TD) == "") == plausible


class OnAppleGpu(torch.Tensor):
    """Stands in for a tensor on a device without float64."""

    def double(self, *_: Any, **__: Any) -> torch.Tensor:
        raise TypeError("the MPS framework doesn't support float64")

    def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_features_of_a_device_without_float64_are_compared() -> None:
    ones = torch.ones(5, 3)
    assert _relative_difference((2 * ones).as_subclass(OnAppleGpu), ones.as_subclass(OnAppleGpu)) == 1.0
