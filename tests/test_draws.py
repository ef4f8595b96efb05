from __future__ import annotations

import itertools
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.shard_factory import encode, shard_at, tone, write_members, write_shard
from xares_bench.catalogue import Dataset, Mix, Split, make_mix
from xares_bench.clips import Clip, ClipEncoder, Recording
from xares_bench.draws import Draw, TrainingData, stored_draws, streamed_draws
from xares_bench.encoder_spec import parse_encoder_spec
from xares_bench.encoders import load_encoder
from xares_bench.errors import DataError
from xares_bench.features import FeatureStore
from xares_bench.rows import Tally
from xares_bench.shards import Shard
from xares_bench.store import Store

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
    mix: Mix, shards: Mapping[str, Sequence[Shard]], *, limit: int | None = None, seed: int = 1, max_audio_s: float = 30
) -> TrainingData:
    tallies = {part.name: Tally(dataset=part.name, max_dropped_share=0.01) for part in mix.datasets}
    return TrainingData(mix=mix, shards=shards, tallies=tallies, seed=seed, max_audio_s=max_audio_s, limit=limit)


@pytest.fixture
def clip_encoder(tmp_path: Path) -> ClipEncoder:
    file = tmp_path / "frames.py"
    file.write_text(ENCODER)
    encoder = load_encoder(parse_encoder_spec(str(file), None), torch.device("cpu"))
    return ClipEncoder(encoder=encoder, honours_mask=False)


def targets(draws: Iterator[Draw], number: int) -> list[str]:
    return [draw.target for draw in itertools.islice(draws, number)]


def test_draws_do_not_depend_on_the_number_of_workers_and_kept_features_are_drawn_alike(
    tmp_path: Path, clip_encoder: ClipEncoder
) -> None:
    mix = make_mix("mix", [dataset("a", ["x?", "y?"]), dataset("b")], [2, 1], steps=1)
    shards = {"a": write_shards(tmp_path, "a", 3, 4), "b": write_shards(tmp_path, "b", 1, 5)}
    data = training_data(mix, shards)
    alone, helped = (
        list(itertools.islice(streamed_draws(training_data(mix, shards), num_workers), 60)) for num_workers in (0, 2)
    )
    kept = list(itertools.islice(stored_draws(data, FeatureStore(Store(root=tmp_path / "store"), clip_encoder)), 60))
    for one, other, stored in zip(alone, helped, kept, strict=True):
        assert (one.target, one.prompt) == (other.target, other.prompt) == (stored.target, stored.prompt)
        assert isinstance(one.clip, Recording)
        assert isinstance(other.clip, Recording)
        assert isinstance(stored.clip, Clip)
        np.testing.assert_array_equal(one.clip.waveform, other.clip.waveform)
        (encoded,) = clip_encoder.encode([one.clip], "seed")
        assert torch.equal(encoded.frames(), stored.clip.frames())
    assert {draw.prompt for draw in alone if draw.target.startswith("a")} == {"x?", "y?"}


def test_decoding_leaves_the_generator_of_the_dropout_alone(tmp_path: Path) -> None:
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    shards = {"a": write_shards(tmp_path, "a", 1, 3)}
    state = torch.get_rng_state()
    list(itertools.islice(streamed_draws(training_data(mix, shards), 0), 5))
    assert torch.equal(torch.get_rng_state(), state)


def test_datasets_are_drawn_by_weight_and_every_row_once_a_pass(tmp_path: Path) -> None:
    mix = make_mix("mix", [dataset("often"), dataset("rarely")], [3, 1], steps=1)
    shards = {"often": write_shards(tmp_path, "often", 3, 5), "rarely": write_shards(tmp_path, "rarely", 2, 2)}
    drawn = Counter(targets(streamed_draws(training_data(mix, shards), 0), 2000))
    often = [count for target, count in drawn.items() if target.startswith("often")]
    assert len(often) == 15
    assert len(drawn) == 19
    assert abs(sum(often) / 2000 - 0.75) < 0.04
    assert max(often) - min(often) <= 1


def test_the_order_of_shards_changes_with_the_pass_and_with_the_seed_and_samples_keep_theirs(tmp_path: Path) -> None:
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    shards = {"a": write_shards(tmp_path, "a", 8, 2)}
    first, second = (targets(streamed_draws(training_data(mix, shards, seed=seed), 0), 32) for seed in (1, 2))
    assert first != second
    assert first[:16] != first[16:]
    assert sorted(first[:16]) == sorted(first[16:])
    assert all(one[:-1] == other[:-1] for one, other in zip(first[::2], first[1::2], strict=True))
    assert [target[-1] for target in first] == ["0", "1"] * 16


def test_a_clip_with_several_targets_is_several_draws_of_one_recording(tmp_path: Path) -> None:
    clips = [("one", tone(0.1), {"captions": ["a", "b", "c"]}), ("two", tone(0.2), {"captions": ["d"]})]
    mix = make_mix("mix", [dataset("a"), dataset("b")], [1, 1], steps=1)
    shards = {"a": [shard_at(write_shard(tmp_path / "a.tar", clips))], "b": write_shards(tmp_path, "b", 1, 2)}
    draws = list(itertools.islice(streamed_draws(training_data(mix, shards), 0), 60))
    captioned = [draw for draw in draws if draw.clip.shard == "a.tar"]
    assert [draw.target for draw in captioned][:8] == list("abcdabcd")
    assert captioned[0].clip is captioned[1].clip is captioned[2].clip
    assert captioned[3].clip.key == "two"


def test_long_recordings_are_cropped_to_another_window_at_every_pass(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 16_000, dtype=np.float32)
    shards = {"a": [shard_at(write_shard(tmp_path / "a.tar", [("ramp", ramp, {"label": "x"})]))]}
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    windows = [
        [draw.clip for draw in itertools.islice(streamed_draws(training_data(mix, shards, max_audio_s=0.5), 0), 6)]
        for _ in range(2)
    ]
    waveforms = [[clip.waveform for clip in run if isinstance(clip, Recording)] for run in windows]
    assert all(len(waveform) == 8000 for waveform in waveforms[0])
    assert len({float(waveform[0]) for waveform in waveforms[0]}) == 6
    assert [float(w[0]) for w in waveforms[0]] == [float(w[0]) for w in waveforms[1]]


def test_a_limit_draws_the_same_first_samples_at_every_pass(tmp_path: Path, clip_encoder: ClipEncoder) -> None:
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    shards = {"a": write_shards(tmp_path, "a", 3, 2)}
    expected = ["a 0 0", "a 0 1", "a 1 0"] * 2
    assert targets(streamed_draws(training_data(mix, shards, limit=3), 0), 6) == expected
    features = FeatureStore(Store(root=tmp_path / "store"), clip_encoder)
    assert targets(stored_draws(training_data(mix, shards, limit=3), features), 6) == expected


def test_unusable_samples_are_passed_over_and_counted_once(tmp_path: Path) -> None:
    good = [(f"good{i}.{suffix}", data) for i in range(300) for suffix, data in sample(f"good {i}")]
    bad = [("a.wav", b"RIFFnothing"), ("a.json", b'{"label": "x"}'), ("b.wav", encode(tone(0.1))), ("b.json", b"{}")]
    shards = {"a": [shard_at(write_members(tmp_path / "a.tar", [*good[:200], *bad, *good[200:]]))]}
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    data = training_data(mix, shards)
    drawn = targets(streamed_draws(data, 0), 900)
    assert drawn[:300] == [f"good {i}" for i in range(300)] == drawn[300:600]
    tally = data.tallies["a"]
    assert tally.num_samples == 302
    assert sorted(dropped.clip for dropped in tally.dropped) == ["a", "b"]


def sample(label: str) -> list[tuple[str, bytes]]:
    return [("wav", encode(tone(0.05))), ("json", f'{{"label": "{label}"}}'.encode())]


@pytest.mark.parametrize("what", ["audio", "label"])
def test_a_dataset_of_which_nothing_can_be_used_ends_the_draws(what: str, tmp_path: Path) -> None:
    audio = b"RIFFnothing" if what == "audio" else encode(tone(0.1))
    fields = {"label": "x"} if what == "audio" else {"other": "x"}
    shards = {"a": [shard_at(write_shard(tmp_path / "a.tar", [(f"{i}", audio, fields) for i in range(3)]))]}
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    with pytest.raises(DataError, match=r"a: 3 of 3 samples are unusable"):
        next(streamed_draws(training_data(mix, shards), 0))


def test_too_many_unusable_samples_are_told_at_the_end_of_a_shard(tmp_path: Path) -> None:
    clips = [(f"{i}", b"garbage" if i % 4 == 0 else tone(0.02), {"label": f"{i}"}) for i in range(100)]
    shards = {"a": [shard_at(write_shard(tmp_path / f"{name}.tar", clips)) for name in ("one", "two")]}
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    with pytest.raises(DataError, match=r"a: 25 of 100 samples are unusable, more than the allowed share of 1.0%"):
        targets(streamed_draws(training_data(mix, shards), 0), 80)


def test_a_decoding_process_that_dies_is_one_line(tmp_path: Path) -> None:
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    draws = streamed_draws(training_data(mix, {"a": write_shards(tmp_path, "a", 1, 8)}), 1)
    next(draws)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(DataError, match=r"^a process that decodes audio has died \(.*num_training_workers"):
        targets(draws, 1000)


def test_a_damaged_shard_is_an_error_of_the_draws(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, "a", 1, 50)
    shard.path.write_bytes(shard.path.read_bytes()[:-30_000])
    mix = make_mix("mix", [dataset("a")], [1], steps=1)
    for num_workers in (0, 1):
        with pytest.raises(DataError, match=r"damaged archive"):
            targets(streamed_draws(training_data(mix, {"a": [shard]}), num_workers), 60)
