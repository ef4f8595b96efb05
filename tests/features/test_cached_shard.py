"""Files of cached features: written and read back, and the awkward ends of a shard, of a disk, of a process."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.shard_factory import encode, shard_at, tone, write_members, write_shard
from xares_bench.config.catalogue import Dataset, Split, make_mix
from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.core.errors import CacheWarning
from xares_bench.core.store import Store
from xares_bench.datasets.shards import Sample, Shard, read_samples
from xares_bench.encoders.loading import load_encoder
from xares_bench.features.cached_shard import CachedShardWriter, read_cached_shard
from xares_bench.features.disk_budget import KIND, FeatureBudget
from xares_bench.features.encoding import AudioClip, Clip, ClipEncoder
from xares_bench.features.feature_store import FeatureStore
from xares_bench.features.rows import SampleCount
from xares_bench.scores.records import DroppedSample
from xares_bench.training.sampler import Draw, TrainingData, draws

ENCODER = """
import torch

class FrameEncoder(torch.nn.Module):
    output_dim = 4

    def forward(self, audio, mask=None):
        return audio[:, : audio.shape[1] // 400 * 400].reshape(len(audio), -1, 4), None
"""

PLENTY_BYTES = 1 << 30


class CountingClipEncoder(ClipEncoder):
    """Writes down the keys of all that it encodes."""

    def encode(self, recordings: Sequence[AudioClip], seed: str) -> list[Clip]:
        ENCODED.extend(recording.key for recording in recordings)
        return super().encode(recordings, seed)


ENCODED: list[str] = []


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(root=tmp_path / "store")


@pytest.fixture
def features(tmp_path: Path, store: Store) -> Callable[..., FeatureStore]:
    """Makes feature stores of one encoder, as every session has one."""
    file = tmp_path / "frames.py"
    file.write_text(ENCODER)
    encoder = load_encoder(parse_encoder_spec(str(file), None), torch.device("cpu"))
    clips = CountingClipEncoder(encoder=encoder, honours_mask=False)
    ENCODED.clear()
    return lambda budget_bytes=PLENTY_BYTES: FeatureStore(store, clips, FeatureBudget(store, budget_bytes))


def drawn(features: FeatureStore, shards: Sequence[Shard], number: int, num_threads: int = 0) -> list[Draw]:
    """The first draws of a mix of one dataset."""
    split = Split(shards=(), target_keys=("label",))
    dataset = Dataset(
        name="a", task="task1", prompts=("?",), metric="Accuracy", metric_arguments={}, train=split, eval=split
    )
    data = TrainingData(
        mix=make_mix("mix", [dataset], [1], steps=1),
        shards={"a": shards},
        sample_counts={"a": SampleCount(dataset="a", max_dropped_share=0.9)},
        seed=1,
        max_audio_s=30,
        limit=None,
    )
    taken = [draw for draw in itertools.islice(draws(data, features, num_threads), number) if draw is not None]
    features.abandon_unfinished()
    return taken


def same_draws(first: Sequence[Draw], second: Sequence[Draw]) -> bool:
    """Whether draws are of the same clips with the same bits."""

    def frames(draw: Draw) -> torch.Tensor:
        assert isinstance(draw.clip, Clip)
        return draw.clip.frames()

    return [draw.clip.key for draw in first] == [draw.clip.key for draw in second] and all(
        torch.equal(frames(one), frames(other)) for one, other in zip(first, second, strict=True)
    )


def a_clip(key: str, num_frames: int) -> Clip:
    features = torch.arange(4.0 * num_frames).reshape(num_frames, 4) + ord(key)
    fields = {"label": key}
    return Clip(key=key, shard="a.tar", duration_s=0.1, num_frames=num_frames, fields=fields, features=features)


def a_sample(key: str, problem: str | None = None) -> Sample:
    return Sample(key=key, audio=None, fields={} if problem else {"label": key}, problem=problem)


def a_writer(store: Store, max_bytes: int, reasons: list[str]) -> CachedShardWriter:
    unfinished = store.begin(KIND, "0" * 64, wait=False)
    assert unfinished is not None
    return CachedShardWriter(unfinished, "a.tar", FeatureBudget(store, max_bytes), reasons.append)


def test_chunks_that_arrive_out_of_order_are_read_back_in_the_order_of_the_shard(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xares_bench.features.cached_shard._FILE_BYTES", 100)  # several files
    chunks = [[a_clip("a", 3), a_clip("b", 5)], [a_clip("c", 2)], [a_clip("d", 4), a_clip("e", 1)]]
    writer = a_writer(store, PLENTY_BYTES, [])
    for number in (1, 0):
        writer.add(number, [a_sample(clip.key) for clip in chunks[number]], chunks[number])
    writer.expect(3)
    assert store.find(KIND, "0" * 64) is None, "a chunk is missing"
    writer.add(2, [a_sample(clip.key) for clip in chunks[2]], chunks[2])
    entry = store.find(KIND, "0" * 64)
    assert entry is not None
    read = list(read_cached_shard(entry, Shard(path=Path("none"), name="a.tar", digest="")))
    assert [clip.key for clip in read if isinstance(clip, Clip)] == list("abcde")
    for clip, written in zip(read, itertools.chain(*chunks), strict=True):
        assert isinstance(clip, Clip)
        assert torch.equal(clip.frames(), written.frames())
        assert (clip.num_frames, clip.fields) == (written.num_frames, written.fields)
    assert len(list(entry.folder.glob("*.safetensors"))) > 1


def test_windows_and_unusable_samples_come_back_as_what_is_to_be_done_with_them(tmp_path: Path, store: Store) -> None:
    shard = shard_at(write_shard(tmp_path / "a.tar", [(key, tone(0.1), {"label": key}) for key in "abc"]))
    samples = [*read_samples(shard), a_sample("d", "no .json member")]
    window = AudioClip(key="b", shard="a.tar", fields={}, waveform=tone(0.05), is_window=True)
    silent = DroppedSample(shard="a.tar", clip="c", reason="silence")
    keyless = DroppedSample(shard="a.tar", clip="d", reason="no .json member")
    writer = a_writer(store, PLENTY_BYTES, [])
    writer.add(0, samples, [a_clip("a", 3), window, silent, keyless])
    writer.expect(1)
    entry = store.find(KIND, "0" * 64)
    assert entry is not None
    clip, again, unusable, dropped = read_cached_shard(entry, shard_at(shard.path))
    assert isinstance(clip, Clip)
    assert again == samples[1], "the whole sample, of which another window is drawn"
    assert unusable == Sample(key="c", audio=None, fields={"label": "c"}, problem="silence"), (
        "drawn, then found unusable"
    )
    assert isinstance(dropped, DroppedSample), "never drawn"


def test_a_writer_without_room_gives_its_reason_and_leaves_nothing(store: Store) -> None:
    reasons: list[str] = []
    writer = a_writer(store, 100, reasons)
    writer.add(0, [a_sample("a")], [a_clip("a", 10)])
    assert not writer.is_open
    assert reasons == ["the features' budget is used up (--feature-budget)"]
    writer.add(1, [a_sample("b")], [a_clip("b", 1)])
    writer.expect(2)
    writer.abandon()
    assert len(reasons) == 1
    assert not (store.root / KIND / ("0" * 64)).exists()
    assert store.begin(KIND, "0" * 64, wait=False) is not None, "the lock was released"


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize("useless", [slice(0, 2), slice(2, 4), slice(4, 5), slice(0, 4)], ids=str)
@pytest.mark.parametrize("fault", ["no target", "no audio"])
def test_a_shard_is_cached_although_all_of_a_chunk_is_unusable(
    tmp_path: Path,
    store: Store,
    features: Callable[..., FeatureStore],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    useless: slice,
    num_threads: int,
) -> None:
    monkeypatch.setattr("xares_bench.features.chunks._CHUNK_CLIPS", 2)
    names = [f"c{i}" for i in range(5)]
    members: list[tuple[str, bytes]] = []
    for number, name in enumerate(names):
        is_useless = name in names[useless]
        if not (is_useless and fault == "no audio"):
            members.append((f"{name}.wav", encode(tone(0.1 + 0.01 * number))))
        label = b"{}" if is_useless and fault == "no target" else b'{"label": "x"}'
        members.append((f"{name}.json", label))
    shard = shard_at(write_members(tmp_path / "a.tar", members))
    first = drawn(features(), [shard], 20, num_threads)
    assert len(store.entries(KIND)) == 1
    num_encoded = len(ENCODED)
    assert same_draws(first, drawn(features(), [shard], 20, num_threads))
    assert len(ENCODED) == num_encoded, "a later session encodes nothing"
    assert {draw.clip.key for draw in first} == set(names) - set(names[useless])


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_disk_that_is_full_when_a_shard_ends_stops_the_caching_and_not_the_training(
    tmp_path: Path, store: Store, features: Callable[..., FeatureStore], num_threads: int
) -> None:
    clips = [(f"c{i}", tone(2.0, 200 + 20 * i), {"label": "x"}) for i in range(8)]
    shard = shard_at(write_shard(tmp_path / "a.tar", clips))
    wanted = drawn(features(0), [shard], 20)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # of a frames file of 1 MB
    try:
        with pytest.warns(CacheWarning, match="features are not cached") as warned:
            got = drawn(features(), [shard], 20, num_threads)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert same_draws(got, wanted)
    assert len(warned) == 1
    assert not list((store.root / KIND).glob("*/*.safetensors")), "nothing half-written stays"


def test_a_session_does_not_evict_what_it_has_just_written(
    tmp_path: Path, store: Store, features: Callable[..., FeatureStore]
) -> None:
    shards = [
        shard_at(write_shard(tmp_path / f"{k}.tar", [(f"{k}-{i}", tone(1.0), {"label": "x"}) for i in range(10)]))
        for k in range(4)
    ]
    list(features().read(shards[0], max_clips=None, num_threads=0))
    shard_bytes = store.entries(KIND)[0].size_bytes
    for entry in store.entries(KIND):
        store.remove(KIND, entry.folder.name)
    ENCODED.clear()
    with pytest.warns(CacheWarning, match="budget is used up"):
        drawn(features(round(2.5 * shard_bytes)), shards, 10 * 4 * 10)
    assert len(store.entries(KIND)) == 2
    # Ten passes: the two shards that there is room for once, the two others ten times.
    assert len(ENCODED) == 2 * 10 + 2 * 10 * 10


def test_what_a_killed_process_left_unfinished_is_removed_when_room_is_needed(
    tmp_path: Path, store: Store, features: Callable[..., FeatureStore]
) -> None:
    killed = tmp_path / "killed.py"
    killed.write_text(
        f"""
import os, signal
from pathlib import Path
from xares_bench.core.store import Store

unfinished = Store(root=Path({str(store.root)!r})).begin({KIND!r}, "0" * 64, wait=False)
(unfinished.folder / "00000.safetensors").write_bytes(b"half")
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    status = subprocess.run([sys.executable, str(killed)], env={**os.environ}, check=False).returncode
    assert status == -signal.SIGKILL
    left = store.root / KIND / ("0" * 64)
    assert left.is_dir()
    open_elsewhere = store.begin(KIND, "1" * 64, wait=False)
    assert open_elsewhere is not None
    shard = shard_at(write_shard(tmp_path / "a.tar", [("c", tone(0.2), {"label": "x"})]))
    list(features().read(shard, max_clips=None, num_threads=0))
    assert not left.exists()
    assert open_elsewhere.folder.is_dir(), "a folder that is being filled stays"
    assert len(store.entries(KIND)) == 1
    open_elsewhere.abandon()


def session(folder: Path, *options: str) -> list[str]:
    """The lines of a whole session on the folder's own data."""
    command = [sys.executable, "-m", "pytest", str(REPOSITORY / "bench"), "-p", "no:cacheprovider", "--preset=mini"]
    command += [f"--encoder={folder / 'frames.py'}", f"--train={folder / 'train.yaml'}"]
    command += [f"--eval={folder / 'eval.yaml'}", f"--runs-dir={folder / 'runs'}", "--set", "steps=2"]
    command += ["--set", "batch_size=4", "-k", "mine"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """An encoder and a mix of two shards, one of them also the test split."""
    (tmp_path / "frames.py").write_text(ENCODER)
    for number in range(2):
        clips = [(f"{number}-{i}", tone(0.3, 300 + 50 * i), {"label": str(i)}) for i in range(4)]
        write_shard(tmp_path / f"train{number}.tar", clips)
    train = f"train_data:\n  mine: {{prompt: Which?, data: ['{tmp_path}/train{{0..1}}.tar'], key: label}}\n"
    (tmp_path / "train.yaml").write_text(train)
    evaluation = f"{{data: ['{tmp_path}/train0.tar'], key: label, prompt: Which?}}"
    (tmp_path / "eval.yaml").write_text(f"mine: {{data: {evaluation}, metric: Accuracy}}\n")
    return tmp_path


def test_the_header_counts_only_shards_that_a_limit_reaches_and_says_what_features_take(own_data: Path) -> None:
    options = ("--limit=4", "--feature-budget=5MB")
    first = session(own_data, *options)
    assert any(line.endswith("; features take 0 bytes of 5.0 MB allowed") for line in first)
    again = session(own_data, *options)
    place = again.index("LALM train.yaml: cached")
    assert again[place + 1].startswith("cached: features of 2 of 2 shards, 1 of 1 scores; ")
    kept_bytes = sum(path.stat().st_size for path in own_data.glob(f"runs/store/{KIND}/*/*[!n].*[!k]"))
    results = json.loads(next(own_data.glob("runs/*/results.json")).read_text())
    assert results["lalms"][0]["features_not_cached"] is None
    assert results["lalms"][0]["feature_budget_bytes"] == 5_000_000
    assert 0 < results["lalms"][0]["feature_bytes"] <= kept_bytes


def test_results_say_why_features_are_not_cached(own_data: Path) -> None:
    lines = session(own_data, "--feature-budget=0")
    assert any(line.endswith("; features take 0 bytes of 0 bytes allowed") for line in lines)
    results = json.loads(next(own_data.glob("runs/*/results.json")).read_text())
    assert results["lalms"][0]["features_not_cached"] == "--feature-budget=0"
    assert not list(own_data.glob(f"runs/store/{KIND}/*/manifest.json"))
