from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.shard_factory import encode, tone
from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.core.errors import EncoderError, OutOfMemory
from xares_bench.datasets.shards import Sample
from xares_bench.encoders.loading import load_encoder
from xares_bench.features.encoding import AudioClip, Clip, ClipEncoder, StoredFrames, read_clip
from xares_bench.runtime.determinism import deterministic_algorithms
from xares_bench.scores.records import DroppedSample

ENCODER = """
import torch

class FrameEncoder(torch.nn.Module):
    output_dim = 2

    def forward(self, audio, mask=None):
        if OFF_LIMITS:
            torch.zeros(3).put_(torch.zeros(2, dtype=torch.long), torch.ones(2), accumulate=False)
        assert audio.abs().max() < 0.9, "too loud"
        return audio[:, : audio.shape[1] // 2 * 2].reshape(len(audio), -1, 2), None

OFF_LIMITS = False
"""


def clip_encoder(folder: Path, source: str = ENCODER) -> ClipEncoder:
    file = folder / "frames.py"
    file.write_text(source)
    encoder = load_encoder(parse_encoder_spec(str(file), None), torch.device("cpu"))
    return ClipEncoder(encoder=encoder, honours_mask=False)


def recordings(*lengths: int, amplitude: float = 0.5) -> list[AudioClip]:
    return [
        AudioClip(
            key=f"c{i}", shard="s.tar", fields={"n": i}, waveform=np.full(length, amplitude / (i + 1), np.float32)
        )
        for i, length in enumerate(lengths)
    ]


def test_recordings_keep_their_order_their_fields_and_their_features(tmp_path: Path) -> None:
    made = recordings(200, 600, 200, 4)
    clips = clip_encoder(tmp_path).encode(made, "seed")
    assert [clip.key for clip in clips] == ["c0", "c1", "c2", "c3"]
    for recording, clip in zip(made, clips, strict=True):
        assert isinstance(clip, Clip)
        assert (clip.fields, clip.duration_s) == (recording.fields, recording.duration_s)
        assert clip.num_frames == len(clip.frames()) == len(recording.waveform) // 2
        assert torch.equal(clip.frames().flatten(), torch.from_numpy(recording.waveform))


def test_no_recordings_give_no_clips(tmp_path: Path) -> None:
    assert clip_encoder(tmp_path).encode([], "seed") == []


def test_a_recording_that_breaks_the_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"too loud.*\(on c0 of s\.tar\)"):
        clip_encoder(tmp_path).encode(recordings(200, amplitude=0.95), "seed")


def test_an_operation_without_a_deterministic_algorithm_is_no_reason_to_refuse_an_encoder(tmp_path: Path) -> None:
    encoder = clip_encoder(tmp_path, ENCODER.replace("OFF_LIMITS = False", "OFF_LIMITS = True"))
    with deterministic_algorithms(wanted=True, required=True), pytest.warns(UserWarning, match="deterministic"):
        assert len(encoder.encode(recordings(200), "seed")) == 1


@pytest.fixture
def samples() -> Iterator[Sample]:
    return (
        Sample(key=key, audio=audio, suffix="wav", fields={"label": "x"})
        for key, audio in (("good", encode(tone(1.0))), ("bad", b"garbage"))
    )


def test_a_sample_becomes_a_recording_or_a_reason(samples: Iterator[Sample]) -> None:
    good, bad = (read_clip(sample, "s.tar", 0.25, "seed") for sample in samples)
    assert isinstance(good, AudioClip)
    assert (good.key, good.shard, good.fields, good.duration_s) == ("good", "s.tar", {"label": "x"}, 0.25)
    assert isinstance(bad, DroppedSample)
    assert (bad.clip, bad.shard) == ("bad", "s.tar")
    assert "unreadable audio" in bad.reason
    silent = read_clip(Sample(key="k", audio=None, fields={}, problem="no audio member"), "s.tar", None, "seed")
    assert silent == DroppedSample(shard="s.tar", clip="k", reason="no audio member")


def test_a_clip_shorter_than_the_encoder_takes_is_a_reason() -> None:
    sample = Sample(key="k", audio=encode(tone(0.0125)), suffix="wav", fields={})
    assert isinstance(read_clip(sample, "s.tar", None, "seed", 200), AudioClip)
    assert read_clip(sample, "s.tar", None, "seed", 201) == DroppedSample(
        shard="s.tar", clip="k", reason="audio of 12.5 ms; the encoder takes clips of 12.56 ms and more"
    )


@pytest.mark.parametrize("place", ["soxr.resample", "soundfile.SoundFile.read", "numpy.abs"])
def test_too_little_memory_names_the_clip(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the run: without the clip, the score would depend on the memory at hand."""

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    audio = encode(tone(0.5, rate_hz=48_000), rate_hz=48_000)
    sample = Sample(key="deep/clip", audio=audio, suffix="wav", fields={})
    assert isinstance(read_clip(sample, "s.tar", None, "seed"), AudioClip)
    monkeypatch.setattr(place, fail)
    with pytest.raises(
        OutOfMemory, match=r"^s\.tar: deep/clip: too little memory to read this clip \(\d+ bytes of \.wav"
    ):
        read_clip(sample, "s.tar", None, "seed")


def test_any_other_error_names_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault of the program")

    monkeypatch.setattr("soxr.resample", fail)
    audio = encode(tone(0.5, rate_hz=48_000), rate_hz=48_000)
    sample = Sample(key="clip", audio=audio, suffix="wav", fields={})
    with pytest.raises(ZeroDivisionError, match="a fault of the program") as caught:
        read_clip(sample, "s.tar", None, "seed")
    assert caught.value.__notes__ == ["This happened while the audio of clip of s.tar was read."]


@pytest.mark.parametrize("num_frames", [1, 3, 4, 6, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pooled_frames_are_means_and_the_last_is_of_what_is_left(
    num_frames: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    frames_TD = torch.arange(2.0 * num_frames).reshape(num_frames, 2).to(dtype)
    save_file({"frames": frames_TD}, tmp_path / "frames.safetensors")
    stored = StoredFrames(file=tmp_path / "frames.safetensors", start=0, num_frames=num_frames)
    for features in (frames_TD, stored):
        clip = Clip(key="k", shard="s", duration_s=1.0, num_frames=num_frames, fields={}, features=features)
        assert clip.pooled(1) is clip
        pooled = clip.pooled(4)
        expected = [
            part.float().mean(dim=0).tolist() for part in frames_TD.tensor_split(tuple(range(4, num_frames, 4)))
        ]
        assert pooled.frames().tolist() == expected
        assert pooled.frames().dtype == dtype
        assert pooled.num_frames == len(expected)
        assert pooled.pooled(2).num_frames == (len(expected) + 1) // 2
