from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.shard_factory import shard_at, tone, write_members, write_shard
from xares_bench.clips import Clip, ClipEncoder, StoredFrames
from xares_bench.encoder_spec import parse_encoder_spec
from xares_bench.encoders import FrozenEncoder, load_encoder
from xares_bench.errors import EncoderError
from xares_bench.features import FeatureStore
from xares_bench.records import DroppedSample
from xares_bench.shards import Shard
from xares_bench.store import Store

ENCODER = """
import torch

class CountingEncoder(torch.nn.Module):
    output_dim = 2
    calls = []

    def forward(self, audio, mask=None):
        type(self).calls.append((tuple(audio.shape), mask is not None))
        num_frames = -(-audio.shape[1] // 160)
        padded = torch.nn.functional.pad(audio, (0, num_frames * 160 - audio.shape[1]))
        frames = padded.reshape(len(audio), num_frames, 160)
        features = torch.stack([frames.abs().sum(-1), frames.square().sum(-1)], dim=-1)
        if BROKEN:
            features = torch.where(audio.abs().amax() > 0.9, torch.nan, features)
        if mask is None:
            return features, None
        lengths = -(-mask.sum(1) // 160)
        return features, (torch.arange(num_frames) < lengths[:, None]).long()

BROKEN = False
"""


@pytest.fixture
def encoder(tmp_path: Path) -> FrozenEncoder:
    return load(tmp_path, ENCODER)


def load(folder: Path, source: str) -> FrozenEncoder:
    file = folder / "counting.py"
    file.write_text(source)
    return load_encoder(parse_encoder_spec(str(file), None), torch.device("cpu"))


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a feature store says of a shard."""

    clips: list[Clip]
    dropped: list[DroppedSample]
    reused: bool


def obtain(
    store: Store,
    encoder: FrozenEncoder,
    shard: Shard,
    *,
    honours_mask: bool = False,
    max_audio_s: float | None = None,
    max_clips: int | None = None,
) -> Read:
    features = FeatureStore(store, ClipEncoder(encoder=encoder, honours_mask=honours_mask))
    entry = features.obtain(shard, max_audio_s=max_audio_s, max_clips=max_clips, num_workers=None)
    samples = list(features.read(shard, max_audio_s=max_audio_s, max_clips=max_clips, num_workers=None))
    return Read(
        clips=[sample for sample in samples if isinstance(sample, Clip)],
        dropped=[sample for sample in samples if isinstance(sample, DroppedSample)],
        reused=entry.reused,
    )


def calls(encoder: FrozenEncoder) -> list[tuple[tuple[int, int], bool]]:
    made: list[tuple[tuple[int, int], bool]] = getattr(type(encoder.module), "calls")  # noqa: B009
    return made


def shard_of(path: Path, durations_s: Sequence[float]) -> Shard:
    clips = [(f"c{i}", tone(duration_s, 200 + 30 * i), {"label": str(i)}) for i, duration_s in enumerate(durations_s)]
    return shard_at(write_shard(path, clips))


def expected(index: int, duration_s: float) -> torch.Tensor:
    """Features of a clip alone, written out."""
    audio = np.round(tone(duration_s, 200 + 30 * index) * 32767) / 32768  # as 16-bit WAV keeps it
    num_frames = -(-len(audio) // 160)
    frames = np.pad(audio, (0, num_frames * 160 - len(audio))).reshape(num_frames, 160)
    return torch.tensor(np.stack([np.abs(frames).sum(-1), (frames**2).sum(-1)], axis=-1), dtype=torch.float32)


@pytest.mark.parametrize("honours_mask", [False, True])
def test_every_clip_has_the_features_of_the_clip_alone(
    honours_mask: bool, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    durations_s = [0.3, 0.05, 0.3, 0.121, 0.3]
    shard = shard_of(tmp_path / "a.tar.gz", durations_s)
    features = obtain(Store(root=tmp_path / "store"), encoder, shard, honours_mask=honours_mask)
    assert [clip.key for clip in features.clips] == [f"c{i}" for i in range(5)]
    assert [clip.fields["label"] for clip in features.clips] == list("01234")
    for index, (clip, duration_s) in enumerate(zip(features.clips, durations_s, strict=True)):
        assert clip.num_frames == len(clip.frames()) == len(expected(index, duration_s))
        assert clip.duration_s == pytest.approx(duration_s, abs=1e-4)
        torch.testing.assert_close(clip.frames(), expected(index, duration_s), rtol=1e-3, atol=0.02)
    if honours_mask:
        assert calls(encoder) == [((5, 4800), True)]
    else:
        assert calls(encoder) == [((3, 4800), False), ((1, 1936), False), ((1, 800), False)]


def test_features_are_made_once_and_follow_everything_they_depend_on(encoder: FrozenEncoder, tmp_path: Path) -> None:
    store = Store(root=tmp_path / "store")
    shard = shard_of(tmp_path / "a.tar", [0.1, 0.2])
    first = obtain(store, encoder, shard)
    num_calls = len(calls(encoder))
    again = obtain(store, encoder, shard)
    assert (first.reused, again.reused, len(calls(encoder))) == (False, True, num_calls)
    assert [clip.key for clip in again.clips] == ["c0", "c1"]
    assert torch.equal(first.clips[1].frames(), again.clips[1].frames())

    moved = shard_at(shard.path.rename(tmp_path / "another-name.tar"))
    assert obtain(store, encoder, moved).reused
    changed = shard_of(tmp_path / "a.tar", [0.1, 0.3])
    assert not obtain(store, encoder, changed).reused
    assert not obtain(store, encoder, moved, max_audio_s=0.15).reused
    assert not obtain(store, encoder, moved, max_clips=1).reused
    edited = load(tmp_path, ENCODER + "\nx = 1")
    assert not obtain(store, edited, moved).reused


def test_long_clips_are_cropped_only_where_asked(encoder: FrozenEncoder, tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "a.tar", [0.5, 0.1])
    store = Store(root=tmp_path / "store")
    assert [clip.num_frames for clip in obtain(store, encoder, shard, max_audio_s=0.2).clips] == [20, 10]
    assert [clip.num_frames for clip in obtain(store, encoder, shard).clips] == [50, 10]


def test_unusable_samples_are_named_and_the_others_kept(encoder: FrozenEncoder, tmp_path: Path) -> None:
    from tests.shard_factory import encode

    members = [
        ("good.wav", encode(tone(0.1))),
        ("good.json", b'{"label": "x"}'),
        ("garbage.wav", b"RIFFnothing"),
        ("garbage.json", b'{"label": "x"}'),
        ("nan.wav", encode(np.full(100, np.nan, dtype=np.float32), subtype="FLOAT")),
        ("nan.json", b'{"label": "x"}'),
        ("silent.json", b'{"label": "x"}'),
    ]
    shard = shard_at(write_members(tmp_path / "bad.tar", members))
    store = Store(root=tmp_path / "store")
    for reused in (False, True):  # also when they are read back
        features = obtain(store, encoder, shard)
        assert features.reused is reused
        assert [clip.key for clip in features.clips] == ["good"]
        assert [(sample.clip, sample.shard) for sample in features.dropped] == [
            ("garbage", "bad.tar"),
            ("nan", "bad.tar"),
            ("silent", "bad.tar"),
        ]
        reasons = [sample.reason for sample in features.dropped]
        assert "unreadable audio" in reasons[0]
        assert "NaN" in reasons[1]
        assert "no audio member" in reasons[2]


def test_a_clip_that_breaks_the_encoder_is_named_and_nothing_is_kept(tmp_path: Path) -> None:
    encoder = load(tmp_path, ENCODER.replace("BROKEN = False", "BROKEN = True"))
    clips = [("fine", tone(0.1), {"label": "x"}), ("loud", tone(0.2, amplitude=0.95), {"label": "x"})]
    shard = shard_at(write_shard(tmp_path / "a.tar", clips))
    with pytest.raises(EncoderError, match=r"loud of a\.tar") as raised:
        obtain(Store(root=tmp_path / "store"), encoder, shard)
    assert raised.value.clause == "features-finite"
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_random_encoders_draw_the_same_for_the_same_shard_and_leave_the_generator_alone(tmp_path: Path) -> None:
    source = ENCODER.replace("frames.abs().sum(-1)", "torch.randn(frames.shape[:2])")
    encoder = load(tmp_path, source)
    shard = shard_of(tmp_path / "a.tar", [0.1, 0.2])
    state = torch.get_rng_state()
    first, second = (obtain(Store(root=tmp_path / name), encoder, shard) for name in "ab")
    assert torch.equal(first.clips[0].frames(), second.clips[0].frames())
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_features_stay_half_precision(tmp_path: Path) -> None:
    encoder = load(tmp_path, ENCODER.replace("dim=-1)\n", "dim=-1).bfloat16()\n", 1))
    shard = shard_of(tmp_path / "a.tar", [0.1])
    clip = obtain(Store(root=tmp_path / "store"), encoder, shard).clips[0]
    assert clip.frames().dtype == torch.bfloat16


def test_chunks_and_files_do_not_show(encoder: FrozenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = shard_of(tmp_path / "a.tar", [0.1, 0.2, 0.3, 0.1, 0.2])
    whole = obtain(Store(root=tmp_path / "a"), encoder, shard)
    monkeypatch.setattr("xares_bench.clips._CHUNK_CLIPS", 2)
    monkeypatch.setattr("xares_bench.features._FILE_BYTES", 200)
    chunked = obtain(Store(root=tmp_path / "b"), encoder, shard)
    assert len({clip.features.file for clip in chunked.clips if isinstance(clip.features, StoredFrames)}) == 3
    for a, b in zip(whole.clips, chunked.clips, strict=True):
        assert a.key == b.key
        torch.testing.assert_close(a.frames(), b.frames())


def test_the_encoder_stays_frozen(tmp_path: Path) -> None:
    constructor = "    def __init__(self):\n        super().__init__()\n        self.norm = torch.nn.BatchNorm1d(2)\n"
    normalise = "        features = self.norm(features.transpose(1, 2)).transpose(1, 2)\n"
    source = ENCODER.replace("    output_dim = 2\n", "    output_dim = 2\n" + constructor)
    source = source.replace("        if mask is None:", normalise + "        if mask is None:")
    encoder = load(tmp_path, source)
    encoder.module.train()
    norm = encoder.module.norm
    assert isinstance(norm, nn.BatchNorm1d)
    before = norm.running_mean.clone()  # type: ignore[union-attr]
    obtain(Store(root=tmp_path / "s"), encoder, shard_of(tmp_path / "a.tar", [0.1, 0.1]))
    assert torch.equal(norm.running_mean, before)  # type: ignore[arg-type]
    assert not any(value.requires_grad for value in encoder.module.parameters())
