from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.shard_factory import encode, shard_at, tone, write_members, write_shard
from xares_bench.config.catalogue import Dataset, Mix, Split, make_mix
from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.core.errors import DataError
from xares_bench.core.store import Store
from xares_bench.datasets.shards import Shard
from xares_bench.encoders.loading import load_encoder
from xares_bench.features.disk_budget import FeatureBudget
from xares_bench.features.encoding import AudioClip, Clip, ClipEncoder, StoredFrames
from xares_bench.features.feature_store import FeatureStore
from xares_bench.features.rows import SampleCount
from xares_bench.training.sampler import Draw, TrainingData, draws

ENCODER = """
import torch

class FrameEncoder(torch.nn.Module):
    output_dim = 4

    def forward(self, audio, mask=None):
        return audio[:, : audio.shape[1] // 400 * 400].reshape(len(audio), -1, 4), None
"""


def dataset(name: str, prompts: Sequence[str] = ("what?",)) -> Dataset:
    split = Split(shards=(), target_keys=("label",))
    return Dataset(
        name=name, task="task1", prompts=tuple(prompts), metric="Accuracy", metric_arguments={}, train=split, eval=split
    )


def write_shards(folder: Path, name: str, num_shards: int, num_clips: int) -> list[Shard]:
    """Shards of short tones whose targets name dataset, shard and clip."""
    shards = []
    for number in range(num_shards):
        clips = [
            (f"{name}-{number}-{i}", tone(0.1 + 0.01 * i, 200 + 20 * i), {"label": f"{name} {number} {i}"})
            for i in range(num_clips)
        ]
        shards.append(shard_at(write_shard(folder / f"{name}-{number}.tar", clips)))
    return shards


def training_data(
    mix: Mix,
    shards: Mapping[str, Sequence[Shard]],
    *,
    limit: int | None = None,
    seed: int = 1,
    max_audio_s: float = 30,
    max_dropped_share: float = 0.01,
) -> TrainingData:
    sample_counts = {
        part.name: SampleCount(dataset=part.name, max_dropped_share=max_dropped_share) for part in mix.datasets
    }
    return TrainingData(
        mix=mix, shards=shards, sample_counts=sample_counts, seed=seed, max_audio_s=max_audio_s, limit=limit
    )


@pytest.fixture
def clip_encoder(tmp_path: Path) -> ClipEncoder:
    file = tmp_path / "frames.py"
    file.write_text(ENCODER)
    encoder = load_encoder(parse_encoder_spec(str(file), None), torch.device("cpu"))
    return ClipEncoder(encoder=encoder, honours_mask=False)


@pytest.fixture
def features(tmp_path: Path, clip_encoder: ClipEncoder) -> FeatureStore:
    return FeatureStore(Store(root=tmp_path / "store"), clip_encoder)


def take(data: TrainingData, features: FeatureStore, number: int, *, num_threads: int | None = 0) -> list[Draw]:
    """The first draws of a training."""
    with contextlib.closing(draws(data, features, num_threads)) as endless:  # type: ignore[type-var]
        taken = [draw for draw in itertools.islice(endless, number) if draw is not None]
    features.abandon_unfinished()
    return taken


def targets(data: TrainingData, features: FeatureStore, number: int, *, num_threads: int | None = 0) -> list[str]:
    return [draw.target for draw in take(data, features, number, num_threads=num_threads)]


def shown(drawn: Sequence[Draw], clip_encoder: ClipEncoder) -> list[tuple[str, str, str, bytes]]:
    """Prompts, targets, clips and the bits of their features."""
    lines = []
    for draw in drawn:
        clip = clip_encoder.encode([draw.clip], "seed")[0] if isinstance(draw.clip, AudioClip) else draw.clip
        lines.append((draw.prompt, draw.target, f"{clip.shard} {clip.key}", clip.frames().numpy().tobytes()))
    return lines


def write_difficult_data(folder: Path) -> dict[str, list[Shard]]:
    """Two datasets: of clips with several targets or none, undecodable ones, others without audio, and long ones."""
    for number in range(3):
        members: list[tuple[str, bytes]] = []
        for i in range(9):
            sample = [("wav", encode(tone(0.1 + 0.02 * i, 200 + 20 * i + 7 * number)))]
            fields = json.dumps({"label": [f"a {number} {i} {target}" for target in range(1 + i % 3)]}).encode()
            match i:
                case 2:
                    sample = [("wav", b"RIFFnothing")]
                case 4:
                    fields = b'{"other": "x"}'
                case 6:
                    sample = []
            members += [(f"{number}-{i}.{suffix}", data) for suffix, data in [*sample, ("json", fields)]]
        write_members(folder / f"a-{number}.tar", members)
    return {
        "a": [shard_at(folder / f"a-{number}.tar") for number in range(3)],
        "b": write_shards(folder, "b", 2, 5),
    }


@pytest.mark.parametrize("limit", [None, 12])
@pytest.mark.parametrize("honours_mask", [False, True])
def test_draws_are_the_same_bits_whatever_is_kept_and_whatever_decodes(
    honours_mask: bool, limit: int | None, tmp_path: Path, clip_encoder: ClipEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xares_bench.features.chunks._CHUNK_CLIPS", 4)
    monkeypatch.setattr("xares_bench.features.cached_shard._FILE_BYTES", 2000)
    # This encoder lets padding show, so that with a mask a clip's features tell which others it was encoded with.
    clip_encoder = dataclasses.replace(clip_encoder, honours_mask=honours_mask)
    mix = make_mix("mix", [dataset("a", ["x?", "y?"]), dataset("b")], [3, 1], steps=1)
    shards = write_difficult_data(tmp_path)

    def run(store: Store, max_bytes: int | None, num_threads: int) -> tuple[list[Draw], TrainingData]:
        features = FeatureStore(Store(root=store.root), clip_encoder, FeatureBudget(store, max_bytes))
        data = training_data(mix, shards, limit=limit, max_audio_s=0.2, max_dropped_share=0.5)
        return take(data, features, 150, num_threads=num_threads), data

    plain, plain_data = run(Store(root=tmp_path / "unkept"), 0, 0)
    expected = shown(plain, clip_encoder)
    windows = {draw.clip.waveform.tobytes() for draw in plain if draw.clip.key == "0-8"}  # type: ignore[union-attr]
    assert len(windows) > 1, "0.26 s are longer than a window, and it is another one at every pass"
    for num_threads in (0, 1, 3):
        store = Store(root=tmp_path / f"kept-{num_threads}")
        for max_bytes, evict in ((0, False), (None, False), (None, False), (None, True), (3000, False), (3000, False)):
            if evict:
                for entry in store.entries("features")[::2]:
                    store.remove("features", entry.folder.name)
            drawn, data = run(store, max_bytes, num_threads)
            assert shown(drawn, clip_encoder) == expected, (num_threads, max_bytes, evict)
            assert data.sample_counts == plain_data.sample_counts, "counted alike, however far ahead"
        assert len(store.entries("features")) >= 2
    dropped = {(sample.clip, sample.reason.partition(":")[0][:12]) for sample in plain_data.sample_counts["a"].dropped}
    assert {("0-2", "unreadable a"), ("0-4", "none of the "), ("0-6", "no audio mem")} <= dropped
    assert plain_data.sample_counts["a"].num_samples == (12 if limit else 27)


def test_decoding_and_encoding_leave_the_generator_of_the_dropout_alone(tmp_path: Path, features: FeatureStore) -> None:
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    shards = {"a": write_shards(tmp_path, "a", 1, 3)}
    state = torch.get_rng_state()
    take(training_data(mix, shards), features, 5)
    assert torch.equal(torch.get_rng_state(), state)


def test_datasets_are_drawn_by_weight_and_every_row_once_a_pass(tmp_path: Path, features: FeatureStore) -> None:
    mix = make_mix("mix", [dataset("often"), dataset("rarely")], [3, 1], steps=1)
    shards = {"often": write_shards(tmp_path, "often", 3, 5), "rarely": write_shards(tmp_path, "rarely", 2, 2)}
    drawn = Counter(targets(training_data(mix, shards), features, 2000))
    often = [count for target, count in drawn.items() if target.startswith("often")]
    assert len(often) == 15
    assert len(drawn) == 19
    assert abs(sum(often) / 2000 - 0.75) < 0.04
    assert max(often) - min(often) <= 1


def test_the_order_of_shards_changes_with_the_pass_and_with_the_seed_and_samples_keep_theirs(
    tmp_path: Path, features: FeatureStore
) -> None:
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    shards = {"a": write_shards(tmp_path, "a", 8, 2)}
    first, second = (targets(training_data(mix, shards, seed=seed), features, 32) for seed in (1, 2))
    assert first != second
    assert first[:16] != first[16:]
    assert sorted(first[:16]) == sorted(first[16:])
    assert all(one[:-1] == other[:-1] for one, other in zip(first[::2], first[1::2], strict=True))
    assert [target[-1] for target in first] == ["0", "1"] * 16


def test_a_clip_with_several_targets_is_several_draws_of_one_clip(tmp_path: Path, features: FeatureStore) -> None:
    clips = [("one", tone(0.1), {"captions": ["a", "b", "c"]}), ("two", tone(0.2), {"captions": ["d"]})]
    mix = make_mix("mix", [dataset("a"), dataset("b")], [1, 1], steps=1)
    shards = {"a": [shard_at(write_shard(tmp_path / "a.tar", clips))], "b": write_shards(tmp_path, "b", 1, 2)}
    for max_audio_s in (30.0, 0.05):  # clips, at first encoded and then kept, and windows
        drawn = take(training_data(mix, shards, max_audio_s=max_audio_s), features, 60)
        captioned = [draw for draw in drawn if draw.clip.shard == "a.tar"]
        assert [draw.target for draw in captioned][:8] == list("abcdabcd")
        for i in (0, 4):
            assert captioned[i].clip is captioned[i + 1].clip is captioned[i + 2].clip
            assert captioned[i + 3].clip.key == "two"


def test_long_recordings_are_cropped_to_another_window_at_every_pass(tmp_path: Path, features: FeatureStore) -> None:
    ramp = np.linspace(0, 1, 16_000, dtype=np.float32)
    shards = {"a": [shard_at(write_shard(tmp_path / "a.tar", [("ramp", ramp, {"label": "x"})]))]}
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    windows = [[draw.clip for draw in take(training_data(mix, shards, max_audio_s=0.5), features, 6)] for _ in range(2)]
    waveforms = [[clip.waveform for clip in run if isinstance(clip, AudioClip)] for run in windows]
    assert all(len(waveform) == 8000 for waveform in waveforms[0])
    assert len({float(waveform[0]) for waveform in waveforms[0]}) == 6
    assert [float(w[0]) for w in waveforms[0]] == [float(w[0]) for w in waveforms[1]]


def test_a_recording_longer_by_a_frame_is_encoded_in_the_first_pass_only(
    tmp_path: Path, features: FeatureStore
) -> None:
    ramp = np.linspace(0, 1, 8_000 + 208, dtype=np.float32)  # 13 ms, as GTZAN's beside 30 s
    shards = {"a": [shard_at(write_shard(tmp_path / "a.tar", [("ramp", ramp, {"label": "x"})]))]}
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    clips = [draw.clip for draw in take(training_data(mix, shards, max_audio_s=0.5), features, 6)]
    assert all(isinstance(clip, Clip) and clip.duration_s == 0.5 for clip in clips)
    assert isinstance(clips[-1], Clip)
    assert isinstance(clips[-1].features, StoredFrames)


def test_a_limit_draws_the_same_first_samples_at_every_pass(tmp_path: Path, features: FeatureStore) -> None:
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    shards = {"a": write_shards(tmp_path, "a", 3, 2)}
    expected = ["a 0 0", "a 0 1", "a 1 0"] * 2
    for _ in range(2):
        assert targets(training_data(mix, shards, limit=3), features, 6) == expected


@pytest.mark.parametrize("num_threads", [0, 2])
def test_unusable_samples_are_passed_over_and_counted_once(
    num_threads: int, tmp_path: Path, features: FeatureStore
) -> None:
    good = [(f"good{i}.{suffix}", data) for i in range(300) for suffix, data in sample(f"good {i}")]
    bad = [("a.wav", b"RIFFnothing"), ("a.json", b'{"label": "x"}'), ("b.wav", encode(tone(0.1))), ("b.json", b"{}")]
    shards = {"a": [shard_at(write_members(tmp_path / "a.tar", [*good[:200], *bad, *good[200:]]))]}
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    data = training_data(mix, shards)
    drawn = targets(data, features, 900, num_threads=num_threads)
    assert drawn[:300] == [f"good {i}" for i in range(300)] == drawn[300:600]
    sample_count = data.sample_counts["a"]
    assert sample_count.num_samples == 302
    assert [dropped.clip for dropped in sample_count.dropped] == ["a", "b"]


@pytest.mark.parametrize("num_threads", [0, 2])
def test_only_what_was_drawn_is_counted(num_threads: int, tmp_path: Path, features: FeatureStore) -> None:
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    data = training_data(mix, {"a": write_shards(tmp_path, "a", 2, 8)})
    assert len(targets(data, features, 11, num_threads=num_threads)) == 11
    assert data.sample_counts["a"].num_samples == 11


def sample(label: str) -> list[tuple[str, bytes]]:
    return [("wav", encode(tone(0.05))), ("json", f'{{"label": "{label}"}}'.encode())]


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize("what", ["audio", "label"])
def test_a_dataset_of_which_nothing_can_be_used_ends_the_draws(
    what: str, num_threads: int, tmp_path: Path, features: FeatureStore
) -> None:
    audio = b"RIFFnothing" if what == "audio" else encode(tone(0.1))
    fields = {"label": "x"} if what == "audio" else {"other": "x"}
    shards = {"a": [shard_at(write_shard(tmp_path / "a.tar", [(f"{i}", audio, fields) for i in range(3)]))]}
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    with pytest.raises(DataError, match=r"a: 3 of 3 samples are unusable"):
        take(training_data(mix, shards), features, 1, num_threads=num_threads)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_too_many_unusable_samples_are_told_at_the_end_of_a_shard(
    num_threads: int, tmp_path: Path, features: FeatureStore
) -> None:
    clips = [(f"{i}", b"garbage" if i % 4 == 0 else tone(0.03), {"label": f"{i}"}) for i in range(100)]
    shards = {"a": [shard_at(write_shard(tmp_path / f"{name}.tar", clips)) for name in ("one", "two")]}
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    assert len(targets(training_data(mix, shards), features, 75, num_threads=num_threads)) == 75
    with pytest.raises(DataError, match=r"a: 25 of 100 samples are unusable, more than the allowed share of 1.0%"):
        targets(training_data(mix, shards), features, 76, num_threads=num_threads)


@pytest.mark.parametrize("num_threads", [0, 1])
def test_a_damaged_shard_is_an_error_of_the_draws_and_nothing_of_it_is_kept(
    num_threads: int, tmp_path: Path, features: FeatureStore
) -> None:
    (shard,) = write_shards(tmp_path, "a", 1, 50)
    shard.path.write_bytes(shard.path.read_bytes()[:-30_000])
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    with pytest.raises(DataError, match=r"damaged archive"):
        take(training_data(mix, {"a": [shard]}), features, 60, num_threads=num_threads)
    features.abandon_unfinished()
    assert not [
        path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.suffix not in (".lock", ".keys")
    ]
