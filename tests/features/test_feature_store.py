from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn

from tests.shard_factory import encode, shard_at, tone, write_members, write_shard
from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.core.digests import digest_of
from xares_bench.core.errors import CacheWarning, DataError, EncoderError
from xares_bench.core.store import MANIFEST, Store
from xares_bench.datasets.corruptions import Corruption, parse_corruptions
from xares_bench.datasets.shards import Shard
from xares_bench.encoders.loading import FrozenEncoder, load_encoder
from xares_bench.features.cached_shard import SAMPLES_FILE
from xares_bench.features.chunks import Pending
from xares_bench.features.disk_budget import FeatureBudget
from xares_bench.features.encoding import AudioClip, Clip, ClipEncoder, StoredFrames
from xares_bench.features.feature_store import FeatureStore, features_parts
from xares_bench.runtime.signals import defer_interrupts
from xares_bench.scores.records import DroppedSample

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

    @property
    def reused(self) -> bool:
        """Whether the features were there already."""
        return all(isinstance(clip.features, StoredFrames) for clip in self.clips)


def read(
    store: Store,
    encoder: FrozenEncoder,
    shard: Shard,
    *,
    honours_mask: bool = False,
    half_precision: bool = False,
    max_clips: int | None = None,
    max_bytes: int | None = None,
    num_threads: int | None = None,
) -> Read:
    """All of a shard, as a process that has just been started reads it."""
    clips = ClipEncoder(encoder=encoder, honours_mask=honours_mask, half_precision=half_precision)
    store = Store(root=store.root)
    features = FeatureStore(store, clips, FeatureBudget(store, max_bytes))
    samples = list(features.read(shard, max_clips=max_clips, num_threads=num_threads))
    return Read(
        clips=[sample for sample in samples if isinstance(sample, Clip)],
        dropped=[sample for sample in samples if isinstance(sample, DroppedSample)],
    )


def pass_over(
    features: FeatureStore, shard: Shard, *, max_audio_s: float | None, seed: str = "", num_threads: int = 0
) -> list[Clip | AudioClip | DroppedSample]:
    """What has become of every sample of a shard in one pass of a training."""
    samples = features.open(shard, max_audio_s=max_audio_s, max_clips=None, seed=seed)
    made = []
    for sample, result in features.resolve(samples, lambda sample: sample, num_threads):
        item = sample if result is None else result
        assert not isinstance(item, Pending)
        made.append(item)
    return made


def files_of(store: Store) -> list[str]:
    """What lies below the features' folder, but for locks and leases."""
    paths = (path for path in (store.root / "features").rglob("*") if path.suffix not in (".lock", ".keys"))
    return sorted(path.name for path in paths if path.is_file())


def digest_of_frames(clips: Sequence[Clip | DroppedSample]) -> str:
    """Digest of the bits of every clip's features."""
    frames = (clip.frames() for clip in clips if isinstance(clip, Clip))
    return hashlib.sha256(b"".join(frames_TD.numpy().tobytes() for frames_TD in frames)).hexdigest()


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
    features = read(Store(root=tmp_path / "store"), encoder, shard, honours_mask=honours_mask)
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


def test_features_are_computed_once_and_follow_everything_they_depend_on(
    encoder: FrozenEncoder, tmp_path: Path
) -> None:
    store = Store(root=tmp_path / "store")
    shard = shard_of(tmp_path / "a.tar", [0.1, 0.2])
    first = read(store, encoder, shard)
    num_calls = len(calls(encoder))
    again = read(store, encoder, shard)
    assert (first.reused, again.reused, len(calls(encoder))) == (False, True, num_calls)
    assert [clip.key for clip in again.clips] == ["c0", "c1"]
    assert torch.equal(first.clips[1].frames(), again.clips[1].frames())

    moved = shard_at(shard.path.rename(tmp_path / "another-name.tar"))
    assert read(store, encoder, moved).reused
    changed = shard_of(tmp_path / "a.tar", [0.1, 0.3])
    assert not read(store, encoder, changed).reused
    assert not read(store, encoder, moved, max_clips=1).reused
    edited = load(tmp_path, ENCODER + "\nx = 1")
    assert not read(store, edited, moved).reused


def test_the_window_of_an_own_long_clip_does_not_depend_on_where_its_tar_lies(
    encoder: FrozenEncoder, tmp_path: Path
) -> None:
    ramp = np.linspace(0, 0.9, 16_000, dtype=np.float32)
    starts = []
    for place in ("here", "far/away", "other"):
        content = (ramp if place != "other" else ramp / 2).astype(np.float32)
        path = write_shard(tmp_path / place / "a.tar", [("long", content, {"label": "x"})])
        shard = dataclasses.replace(shard_at(path), name=str(path))  # as of the user's own tars
        store = FeatureStore(Store(root=tmp_path / place / "store"), ClipEncoder(encoder=encoder, honours_mask=False))
        (window,) = pass_over(store, shard, max_audio_s=0.5, seed="pass 0")
        assert isinstance(window, AudioClip)
        starts.append(float(window.waveform[0]) / float(content[-1]))
    assert starts[0] == starts[1] != pytest.approx(starts[2], abs=1e-3), "another tar has another window"


def test_a_window_of_a_long_clip_is_another_one_at_every_pass_and_never_cached(
    encoder: FrozenEncoder, tmp_path: Path
) -> None:
    ramp = np.linspace(0, 0.9, 16_000, dtype=np.float32)
    clips = [("short", tone(0.1), {"label": "x"}), ("long", ramp, {"label": "x"}), ("brief", tone(0.2), {"label": "x"})]
    shard = shard_at(write_shard(tmp_path / "a.tar", clips))
    store = Store(root=tmp_path / "store")
    clip_encoder = ClipEncoder(encoder=encoder, honours_mask=False)
    passes = [
        pass_over(FeatureStore(store, clip_encoder), shard, max_audio_s=0.5, seed=seed)
        for seed in ("pass 0", "pass 1", "pass 0")
    ]
    for made in passes:
        assert [item.key for item in made if not isinstance(item, DroppedSample)] == ["short", "long", "brief"]
    windows = [made[1] for made in passes]
    starts = [float(window.waveform[0]) for window in windows if isinstance(window, AudioClip)]
    assert starts[0] == starts[2] != starts[1]
    assert all(isinstance(window, AudioClip) and window.duration_s == 0.5 and window.is_window for window in windows)
    assert [isinstance(made[0], Clip) and isinstance(made[0].features, StoredFrames) for made in passes] == [
        False,
        True,
        True,
    ]
    assert len(calls(encoder)) == 2, "a call for each of the short clips, which differ in length"
    (entry,) = store.entries("features")
    assert entry.manifest["files"]["00000.safetensors"]["size_bytes"] < 30 * 2 * 4 + 200, "30 frames and a header"


def test_a_clip_of_30_013_s_is_encoded_once_and_one_of_31_s_has_a_new_window_at_every_pass(
    encoder: FrozenEncoder, tmp_path: Path
) -> None:
    ramp = np.linspace(0, 0.9, 31 * 16_000, dtype=np.float32)
    clips = [("gtzan", ramp[: round(30.013 * 16_000)], {"label": "x"}), ("longer", ramp, {"label": "x"})]
    shard = shard_at(write_shard(tmp_path / "a.tar", clips))
    features = FeatureStore(Store(root=tmp_path / "store"), ClipEncoder(encoder=encoder, honours_mask=False))
    passes = [pass_over(features, shard, max_audio_s=30.0, seed=f"pass {number}") for number in range(3)]
    gtzan = [clip for clip, _ in passes if isinstance(clip, Clip)]
    assert [(clip.duration_s, clip.num_frames) for clip in gtzan] == [(30.0, 3000)] * 3, "as long as the reference's"
    assert [isinstance(clip.features, StoredFrames) for clip in gtzan] == [False, True, True]
    assert len({digest_of_frames([clip]) for clip in gtzan}) == 1
    windows = [window for _, window in passes if isinstance(window, AudioClip)]
    assert all(window.duration_s == 30.0 and window.is_window for window in windows)
    assert len({float(window.waveform[0]) for window in windows}) == 3
    assert len(calls(encoder)) == 1, "the windows are encoded with the batch that uses them"


def test_a_cached_shard_is_opened_again_only_for_windows(encoder: FrozenEncoder, tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "a.tar", [0.1, 0.4])
    features = FeatureStore(Store(root=tmp_path / "store"), ClipEncoder(encoder=encoder, honours_mask=False))
    for max_audio_s in (0.2, 0.5):
        pass_over(features, shard, max_audio_s=max_audio_s)
    shard.path.write_bytes(b"no tar any more")
    assert len(pass_over(features, shard, max_audio_s=0.5)) == 2
    with pytest.raises(DataError, match=r"a\.tar"):
        pass_over(features, shard, max_audio_s=0.2)


def test_what_is_read_is_never_cropped(encoder: FrozenEncoder, tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "a.tar", [0.5, 0.1])
    assert [clip.num_frames for clip in read(Store(root=tmp_path / "s"), encoder, shard).clips] == [50, 10]


def test_unusable_samples_are_named_and_the_others_cached(encoder: FrozenEncoder, tmp_path: Path) -> None:
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
        features = read(store, encoder, shard)
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


def test_a_clip_that_breaks_the_encoder_is_named_and_nothing_is_cached(tmp_path: Path) -> None:
    encoder = load(tmp_path, ENCODER.replace("BROKEN = False", "BROKEN = True"))
    clips = [("fine", tone(0.1), {"label": "x"}), ("loud", tone(0.2, amplitude=0.95), {"label": "x"})]
    shard = shard_at(write_shard(tmp_path / "a.tar", clips))
    with pytest.raises(EncoderError, match=r"loud of a\.tar") as raised:
        read(Store(root=tmp_path / "store"), encoder, shard)
    assert raised.value.clause == "features-finite"
    assert not files_of(Store(root=tmp_path / "store"))


def test_random_encoders_draw_the_same_for_the_same_shard_and_leave_the_generator_alone(tmp_path: Path) -> None:
    source = ENCODER.replace("frames.abs().sum(-1)", "torch.randn(frames.shape[:2])")
    encoder = load(tmp_path, source)
    shard = shard_of(tmp_path / "a.tar", [0.1, 0.2])
    state = torch.get_rng_state()
    first, second = (read(Store(root=tmp_path / name), encoder, shard) for name in "ab")
    assert torch.equal(first.clips[0].frames(), second.clips[0].frames())
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_features_stay_half_precision(tmp_path: Path) -> None:
    encoder = load(tmp_path, ENCODER.replace("dim=-1)\n", "dim=-1).bfloat16()\n", 1))
    shard = shard_of(tmp_path / "a.tar", [0.1])
    clip = read(Store(root=tmp_path / "store"), encoder, shard).clips[0]
    assert clip.frames().dtype == torch.bfloat16


def test_chunks_and_files_do_not_show(encoder: FrozenEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = shard_of(tmp_path / "a.tar", [0.1, 0.2, 0.3, 0.1, 0.2])
    whole = read(Store(root=tmp_path / "a"), encoder, shard)
    monkeypatch.setattr("xares_bench.features.chunks._CHUNK_CLIPS", 2)
    monkeypatch.setattr("xares_bench.features.cached_shard._FILE_BYTES", 200)
    _, chunked = (read(Store(root=tmp_path / "b"), encoder, shard) for _ in range(2))
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
    read(Store(root=tmp_path / "s"), encoder, shard_of(tmp_path / "a.tar", [0.1, 0.1]))
    assert torch.equal(norm.running_mean, before)  # type: ignore[arg-type]
    assert not any(value.requires_grad for value in encoder.module.parameters())


@pytest.fixture
def chunks_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two clips, and a file as soon as there are frames."""
    monkeypatch.setattr("xares_bench.features.chunks._CHUNK_CLIPS", 2)
    monkeypatch.setattr("xares_bench.features.cached_shard._FILE_BYTES", 1)


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_features_are_the_same_bits_computed_or_cached_whatever_the_threads(
    num_threads: int, encoder: FrozenEncoder, tmp_path: Path, chunks_of_two: None
) -> None:
    shard = shard_of(tmp_path / "a.tar", [0.1 + 0.013 * i for i in range(7)])
    store = Store(root=tmp_path / "store")
    expected_digest = digest_of_frames(read(Store(root=tmp_path / "plain"), encoder, shard, num_threads=0).clips)
    uncached, computed, cached = (
        read(store, encoder, shard, max_bytes=max_bytes, num_threads=num_threads, honours_mask=False)
        for max_bytes in (0, None, None)
    )
    assert (uncached.reused, computed.reused, cached.reused) == (False, False, True)
    assert {digest_of_frames(result.clips) for result in (uncached, computed, cached)} == {expected_digest}


def test_float16_takes_half_the_bytes(encoder: FrozenEncoder, tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "a.tar", [2.0])
    sizes = []
    for name, half_precision in (("whole", False), ("half", True)):
        store = Store(root=tmp_path / name)
        computed, cached = (read(store, encoder, shard, half_precision=half_precision) for _ in range(2))
        assert cached.reused
        dtype = torch.float16 if half_precision else torch.float32
        assert computed.clips[0].frames().dtype == cached.clips[0].frames().dtype == dtype
        torch.testing.assert_close(cached.clips[0].frames().float(), expected(0, 2.0), rtol=2e-3, atol=0.03)
        (entry,) = store.entries("features")
        sizes.append((entry.folder / "00000.safetensors").stat().st_size)
    num_values = 200 * 2
    assert sizes[0] - sizes[1] == 2 * num_values


@pytest.mark.parametrize("file", ["00001.safetensors", SAMPLES_FILE])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_damaged_features_are_found_reported_and_recomputed(
    damage: str, file: str, encoder: FrozenEncoder, tmp_path: Path, chunks_of_two: None
) -> None:
    shard = shard_of(tmp_path / "a.tar", [0.1, 0.2, 0.3, 0.15])
    store = Store(root=tmp_path / "store")
    made = digest_of_frames(read(store, encoder, shard).clips)
    (entry,) = store.entries("features")
    path = entry.folder / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(bytes(content) if damage == "flipped" else content[:-1])
    with pytest.warns(CacheWarning, match=rf"{file} is damaged; it is recomputed$") as warned:
        again = read(store, encoder, shard)
    assert len(warned) == 1
    assert not again.reused
    assert digest_of_frames(again.clips) == made
    assert read(store, encoder, shard).reused


def test_a_used_up_budget_warns_once_and_leaves_nothing_half_written(
    encoder: FrozenEncoder, tmp_path: Path, chunks_of_two: None
) -> None:
    shards = [shard_of(tmp_path / f"{i}.tar", [0.1 + 0.01 * i, 0.2, 0.3, 0.2]) for i in range(3)]
    plain = Store(root=tmp_path / "plain")
    expected_digests = [digest_of_frames(read(plain, encoder, shard).clips) for shard in shards]
    (smallest, *_) = sorted(entry.size_bytes for entry in plain.entries("features"))
    store = Store(root=tmp_path / "store")
    budget = FeatureBudget(store, int(1.5 * smallest))
    features = FeatureStore(store, ClipEncoder(encoder=encoder, honours_mask=False), budget)
    with pytest.warns(CacheWarning, match="the features' budget is used up") as warned:
        digests = [
            digest_of_frames(
                [clip for clip in features.read(shard, max_clips=None, num_threads=0) if isinstance(clip, Clip)]
            )
            for _ in range(2)
            for shard in shards
        ]
    assert len(warned) == 1
    assert digests == expected_digests * 2
    assert [entry.manifest["shard"] for entry in store.entries("features")] == ["0.tar"]
    assert budget.cached_bytes <= budget.max_bytes
    assert files_of(store) == ["00000.safetensors", "00001.safetensors", MANIFEST, SAMPLES_FILE]


def test_a_budget_of_nothing_caches_nothing_and_does_not_warn(encoder: FrozenEncoder, tmp_path: Path) -> None:
    store = Store(root=tmp_path / "store")
    with warnings.catch_warnings(action="error"):
        assert len(read(store, encoder, shard_of(tmp_path / "a.tar", [0.1]), max_bytes=0).clips) == 1
    assert not store.root.exists()


@contextlib.contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Every file that is written further fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("room_bytes", "failing"), [(300, "the first frames"), (1200, "the list of samples"), (2600, "the manifest")]
)
def test_a_full_disk_ends_the_caching_and_not_the_run(
    room_bytes: int, failing: str, encoder: FrozenEncoder, tmp_path: Path
) -> None:
    shard = tmp_path / "a.tar"
    fields = {"label": "x", "notes": "y" * 400}
    # 800 bytes of frames in a file of their own, then a list of samples of 2200 bytes.
    write_shard(shard, [(f"c{i}", tone(0.2, 200 + 30 * i), fields) for i in range(5)])
    store = Store(root=tmp_path / "store")
    plain = digest_of_frames(read(Store(root=tmp_path / "plain"), encoder, shard_at(shard)).clips)
    with files_of_at_most(room_bytes), pytest.warns(CacheWarning, match="features are not cached: ") as warned:
        made = read(store, encoder, shard_at(shard))
    assert len(warned) == 1
    assert digest_of_frames(made.clips) == plain
    assert files_of(store) == [], failing
    assert not read(store, encoder, shard_at(shard)).reused
    assert read(store, encoder, shard_at(shard)).reused


# Reads shards, as a process of its own: argv is encoder, root of the store, and shards; prints digests of their frames.
READER = """
import sys, time
from pathlib import Path
from tests.features.test_feature_store import digest_of_frames, shard_at
from xares_bench.features.encoding import ClipEncoder
from xares_bench.features import cached_shard, chunks as module
from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.encoders.loading import load_encoder
from xares_bench.features.feature_store import FeatureStore
from xares_bench.core.store import Store
import torch

module._CHUNK_CLIPS, cached_shard._FILE_BYTES = 2, 1
encoder, root, pause_s, *shards = sys.argv[1:]
clips = ClipEncoder(encoder=load_encoder(parse_encoder_spec(encoder, None), torch.device("cpu")), honours_mask=False)
features = FeatureStore(Store(root=Path(root)), clips)
print("ready", flush=True)
sys.stdin.readline()
for path in shards:
    made = []
    for clip in features.read(shard_at(Path(path)), max_clips=None, num_threads=1):
        made.append(clip)
        print("clip", flush=True)
        time.sleep(float(pause_s))
    print(digest_of_frames(made), flush=True)
"""


def start_reader(folder: Path, store: Store, shards: Sequence[Shard], pause_s: float) -> subprocess.Popen[str]:
    """A process that reads these shards, once it is told to."""
    arguments = [str(folder / "counting.py"), str(store.root), str(pause_s), *(str(shard.path) for shard in shards)]
    process = subprocess.Popen(
        [sys.executable, "-c", READER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_process_killed_while_writing_leaves_nothing_in_use(
    encoder: FrozenEncoder, tmp_path: Path, chunks_of_two: None
) -> None:
    shard = shard_of(tmp_path / "a.tar", [0.1 + 0.01 * i for i in range(6)])
    store = Store(root=tmp_path / "store")
    with start_reader(tmp_path, store, [shard], pause_s=60) as process:
        tell(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "clip\n"
        process.send_signal(signal.SIGKILL)
    assert files_of(store) == ["00000.safetensors"], "it was killed half-way"
    assert store.entries("features") == []
    made = read(store, encoder, shard)
    plain = read(Store(root=tmp_path / "plain"), encoder, shard)
    assert not made.reused
    assert digest_of_frames(made.clips) == digest_of_frames(plain.clips)
    assert read(store, encoder, shard).reused


def test_processes_at_once_read_the_same_and_neither_waits_for_the_other(
    encoder: FrozenEncoder, tmp_path: Path, chunks_of_two: None
) -> None:
    shards = [shard_of(tmp_path / f"{i}.tar", [0.1 + 0.01 * i, 0.2, 0.3, 0.25]) for i in range(3)]
    plain = [digest_of_frames(read(Store(root=tmp_path / "plain"), encoder, shard).clips) for shard in shards]
    store = Store(root=tmp_path / "store")
    orders = [shards, shards[::-1]]
    processes = [start_reader(tmp_path, store, order, pause_s=0.02) for order in orders]
    for process in processes:
        tell(process)
    outputs = [process.communicate(timeout=900)[0].split() for process in processes]
    digests = [[line for line in output if line != "clip"] for output in outputs]
    assert digests == [plain, plain[::-1]]
    assert len(store.entries("features")) == 3
    assert read(store, encoder, shards[0]).reused


def test_two_readers_of_a_shard_in_turns_are_both_right_and_one_of_them_caches(
    encoder: FrozenEncoder, tmp_path: Path, chunks_of_two: None
) -> None:
    shard = shard_of(tmp_path / "a.tar", [0.1, 0.2, 0.3, 0.25, 0.1])
    store = Store(root=tmp_path / "store")
    clips = ClipEncoder(encoder=encoder, honours_mask=False)
    readers = [FeatureStore(store, clips).read(shard, max_clips=None, num_threads=0) for _ in range(2)]
    for one, other in zip(*readers, strict=True):
        assert isinstance(one, Clip)
        assert isinstance(other, Clip)
        assert one.key == other.key
        assert torch.equal(one.frames(), other.frames())
    assert len(store.entries("features")) == 1


def test_a_shard_that_is_not_read_to_its_end_leaves_nothing_and_lets_others_in(
    encoder: FrozenEncoder, tmp_path: Path, chunks_of_two: None
) -> None:
    shard = shard_of(tmp_path / "a.tar", [0.1, 0.2, 0.3, 0.25, 0.1])
    store = Store(root=tmp_path / "store")
    clips = ClipEncoder(encoder=encoder, honours_mask=False)
    features = FeatureStore(store, clips, FeatureBudget(store, 10_000))
    samples = features.read(shard, max_clips=None, num_threads=0)
    assert len(list(itertools.islice(samples, 3))) == 3
    assert files_of(store) != []
    samples.close()  # type: ignore[attr-defined]
    assert files_of(store) == []
    assert features.budget.reserve(10_000), "nothing is reserved any more"
    assert not read(store, encoder, shard).reused
    assert read(store, encoder, shard).reused


# Several processes of a launcher, which need the same shards at the same time.


def sharing(root: Path, encoder: FrozenEncoder, num_processes: int = 3, max_bytes: int | None = None) -> FeatureStore:
    store = Store(root=root)
    clips = ClipEncoder(encoder=encoder, honours_mask=False)
    return FeatureStore(store, clips, FeatureBudget(store, max_bytes), num_processes)


def prepare(features: FeatureStore, shards: Sequence[Shard], max_clips: int | None = None) -> None:
    features.prepare(shards[0], shards[1:], max_audio_s=0.25, max_clips=max_clips, num_threads=0)


def is_cached(features: FeatureStore, shard: Shard, max_clips: int | None = None) -> bool:
    return features.budget.use(features.key(shard, 0.25, max_clips)) is not None


def claim_of(features: FeatureStore, root: Path, shard: Shard) -> FileLock:
    file = root / "features" / "claims" / f"{features.key(shard, 0.25, None)}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file)


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Shard]:
    """Five shards of two chunks, each with a clip of which windows are taken and one that cannot be read."""
    monkeypatch.setattr("xares_bench.features.chunks._CHUNK_CLIPS", 2)
    made = []
    for number in range(5):
        clips: list[tuple[str, object, dict[str, object]]] = [
            (f"clip-{i}", tone(0.1 * (1 + i), 200 + 70 * i + 11 * number), {"label": "x"}) for i in range(4)
        ]
        clips[1] = ("silent", b"no audio", {"label": "x"})
        made.append(shard_at(write_shard(tmp_path / f"shard-{number}.tar", clips)))  # type: ignore[arg-type]
    return made


def same_pass(one: Sequence[object], other: Sequence[object]) -> bool:
    def content(item: object) -> object:
        if isinstance(item, Clip):
            return item.key, item.duration_s, item.frames().numpy().tobytes()
        return (item.key, item.waveform.tobytes()) if isinstance(item, AudioClip) else item

    return list(map(content, one)) == list(map(content, other))


def test_a_process_alone_prepares_nothing(encoder: FrozenEncoder, tmp_path: Path, shards: list[Shard]) -> None:
    features = sharing(tmp_path / "store", encoder, 1)
    prepare(features, shards)
    assert not is_cached(features, shards[0])


def test_what_was_prepared_has_the_bits_of_what_was_encoded_while_it_was_used(
    encoder: FrozenEncoder, tmp_path: Path, shards: list[Shard]
) -> None:
    together, alone = sharing(tmp_path / "together", encoder), sharing(tmp_path / "alone", encoder, 1)
    prepare(together, shards)
    assert [is_cached(together, shard) for shard in shards] == [True, False, False, False, False], (
        "nobody else is there"
    )
    first, second = (pass_over(features, shards[0], max_audio_s=0.25, seed="1") for features in (together, alone))
    assert {type(item) for item in first} == {Clip, AudioClip, DroppedSample}
    assert same_pass(first, second)
    for features in (together, alone):
        features.abandon_unfinished()
    contents = [
        {
            path.name: path.read_bytes()
            for path in (tmp_path / name).glob(f"features/{together.key(shards[0], 0.25, None)}/*")
            if path.name != MANIFEST
        }
        for name in ("together", "alone")
    ]
    assert contents[0] == contents[1]
    assert SAMPLES_FILE in contents[0]


def test_while_another_encodes_a_shard_the_next_ones_are_and_then_it_is_waited_for(
    encoder: FrozenEncoder, tmp_path: Path, shards: list[Shard]
) -> None:
    features, other = (sharing(tmp_path / "store", encoder) for _ in range(2))
    with claim_of(features, tmp_path / "store", shards[0]), claim_of(features, tmp_path / "store", shards[1]):
        thread = threading.Thread(target=prepare, args=(features, shards))
        thread.start()
        while not is_cached(other, shards[2]):
            time.sleep(0.01)
        time.sleep(0.2)
        assert thread.is_alive()
        list(other.resolve(other.open(shards[0], max_audio_s=0.25, max_clips=None, seed=""), lambda item: item, 0))
    thread.join(60)
    assert not thread.is_alive()
    assert [is_cached(other, shard) for shard in shards] == [True, False, True, False, False], "two in advance at most"


def test_a_shard_whose_process_was_killed_is_encoded_by_the_next(
    encoder: FrozenEncoder, tmp_path: Path, shards: list[Shard]
) -> None:
    features = sharing(tmp_path / "store", encoder)
    with claim_of(features, tmp_path / "store", shards[0]):
        thread = threading.Thread(target=prepare, args=(features, shards[:1]))
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive()
    thread.join(60)
    assert is_cached(features, shards[0])


def test_nobody_waits_for_a_process_alone_that_encodes_a_shard_while_it_trains(
    encoder: FrozenEncoder, tmp_path: Path, shards: list[Shard]
) -> None:
    slow, features = sharing(tmp_path / "store", encoder, 1), sharing(tmp_path / "store", encoder)
    samples = slow.open(shards[0], max_audio_s=0.25, max_clips=None, seed="")
    next(samples)
    prepare(features, shards[:1])
    assert not is_cached(features, shards[0])
    assert len(pass_over(features, shards[0], max_audio_s=0.25)) == 4
    slow.abandon_unfinished()


@pytest.mark.parametrize("max_bytes", [0, 100, 350])
def test_without_room_everything_is_as_it_was(
    encoder: FrozenEncoder, tmp_path: Path, shards: list[Shard], max_bytes: int
) -> None:
    features, alone = sharing(tmp_path / "none", encoder, 3, max_bytes), sharing(tmp_path / "alone", encoder, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        prepare(features, shards)
        assert features.not_cached_reason is not None
        found = pass_over(features, shards[0], max_audio_s=0.25, seed="1")
    assert same_pass(found, pass_over(alone, shards[0], max_audio_s=0.25, seed="1"))
    assert not is_cached(features, shards[0])


def test_where_nothing_can_be_claimed_nothing_is_cached(
    encoder: FrozenEncoder, tmp_path: Path, shards: list[Shard]
) -> None:
    """On a disk that is full or read-only, for example."""
    features = sharing(tmp_path / "store", encoder)
    (tmp_path / "store" / "features").mkdir(parents=True)
    (tmp_path / "store" / "features" / "claims").touch()
    with pytest.warns(CacheWarning, match="features are not cached: .*claims"):
        prepare(features, shards)
    assert len(pass_over(features, shards[0], max_audio_s=0.25)) == 4


def test_with_a_limit_only_the_shard_itself_is_encoded(
    encoder: FrozenEncoder, tmp_path: Path, shards: list[Shard]
) -> None:
    """How many samples of the next ones are needed is not known yet."""
    features = sharing(tmp_path / "store", encoder)
    with claim_of(features, tmp_path / "store", shards[0]):
        prepare(features, shards, max_clips=3)
    assert is_cached(features, shards[0], 3)
    assert not any(is_cached(features, shard, max_clips) for shard in shards[1:] for max_clips in (3, None))


def test_a_damaged_shard_is_an_error_only_for_whoever_needs_it(
    encoder: FrozenEncoder, tmp_path: Path, shards: list[Shard]
) -> None:
    features = sharing(tmp_path / "store", encoder)
    shards[1].path.write_bytes(shards[1].path.read_bytes()[:3000])
    damaged = shard_at(shards[1].path)
    with claim_of(features, tmp_path / "store", shards[0]):
        thread = threading.Thread(target=prepare, args=(features, [shards[0], damaged, shards[2]]))
        thread.start()
        while not is_cached(features, shards[2]):
            time.sleep(0.01)
    thread.join(60)
    assert is_cached(features, shards[0])
    with pytest.raises(DataError, match="shard-1"):
        prepare(features, [damaged])
    assert not list((tmp_path / "store" / "features").glob(f"{features.key(damaged, 0.25, None)}/*"))


@pytest.mark.parametrize(("patience_s", "expected"), [(-1.0, False), (600.0, True)])
def test_what_is_encoded_in_advance_does_not_hold_up_the_others(
    encoder: FrozenEncoder,
    tmp_path: Path,
    shards: list[Shard],
    monkeypatch: pytest.MonkeyPatch,
    patience_s: float,
    expected: bool,
) -> None:
    """The shard that all need is there after the first chunk of the next one."""
    monkeypatch.setattr("xares_bench.features.feature_store._PATIENCE_S", patience_s)
    features, other = (sharing(tmp_path / "store", encoder) for _ in range(2))
    encode = features._encode

    def encode_and_let_the_other(*arguments: Any) -> None:
        encode(*arguments)
        if not is_cached(other, shards[0]):
            list(other.resolve(other.open(shards[0], max_audio_s=0.25, max_clips=None, seed=""), lambda item: item, 0))

    monkeypatch.setattr(features, "_encode", encode_and_let_the_other)
    with claim_of(features, tmp_path / "store", shards[0]):
        prepare(features, shards)
    assert [is_cached(features, shard) for shard in shards] == [True, expected, False, False, False]
    assert bool(list((tmp_path / "store").glob(f"features/{features.key(shards[1], 0.25, None)}/*"))) == expected


def test_an_interruption_does_not_wait_for_the_rest_of_a_shard(
    encoder: FrozenEncoder, tmp_path: Path, shards: list[Shard]
) -> None:
    features = sharing(tmp_path / "store", encoder)
    with defer_interrupts():
        signal.raise_signal(signal.SIGINT)
        prepare(features, shards)
        assert not is_cached(features, shards[0])
    prepare(features, shards)
    assert is_cached(features, shards[0])


def test_corrupted_clips_have_features_and_keys_of_their_own_and_clean_ones_keep_theirs(
    tmp_path: Path, encoder: FrozenEncoder
) -> None:
    shard = shard_of(tmp_path / "s.tar", [0.2, 0.3, 0.2])
    clips = ClipEncoder(encoder=encoder, honours_mask=False)
    store = Store(root=tmp_path / "store")
    clean = FeatureStore(store, clips)
    parts = {"shard": shard.digest, "max_clips": None, **features_parts(clips, None)}
    assert clean.key(shard, None, None) == digest_of(parts), "without a corruption, nothing is added to the key"
    found = {}
    for text in ("noise:10", "noise:5", "lowpass:300"):
        (corruption,) = parse_corruptions([text])
        features = clean.corrupted(corruption)
        found[text] = list(features.read(shard, max_clips=None, num_threads=2))
        assert features.key(shard, None, None) not in (clean.key(shard, None, None), clean.key(shard, None, 2))
        num_calls = len(calls(encoder))
        again = list(clean.corrupted(corruption).read(shard, max_clips=None, num_threads=0))
        assert len(calls(encoder)) == num_calls, "cached"
        assert digest_of_frames(again) == digest_of_frames(found[text])
    plain = list(clean.read(shard, max_clips=None, num_threads=None))
    assert len({digest_of_frames(made) for made in (plain, *found.values())}) == 4
    assert len(list((tmp_path / "store" / "features").glob("*/manifest.json"))) == 4


def test_a_clip_that_a_corruption_makes_too_short_for_the_encoder_is_unusable(
    tmp_path: Path, encoder: FrozenEncoder
) -> None:
    shard = shard_of(tmp_path / "s.tar", [0.2, 0.15])
    clips = ClipEncoder(encoder=encoder, honours_mask=False, min_samples=1400)
    features = FeatureStore(Store(root=tmp_path / "store"), clips)
    assert all(isinstance(clip, Clip) for clip in features.read(shard, max_clips=None, num_threads=0))
    faster = features.corrupted(Corruption(name="speed", level=2))
    kept, dropped = faster.read(shard, max_clips=None, num_threads=0)
    assert isinstance(kept, Clip)
    assert kept.duration_s == 0.1
    assert isinstance(dropped, DroppedSample)
    assert dropped.reason == "audio of 75 ms; the encoder takes clips of 87.5 ms and more"
