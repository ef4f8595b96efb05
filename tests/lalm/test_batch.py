from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import MakeClips
from xares_bench.config.recipe import Recipe
from xares_bench.features.encoding import AudioClip, Clip
from xares_bench.lalm.batch import TextTokenizer, Utterance, collate
from xares_bench.training.dataloader import example_of, training_batches
from xares_bench.training.sampler import Draw

NO_ENCODER: Any = None  # for clips that are encoded already


def example(tokenizer: TextTokenizer, clip: Clip, target: str, prompt: str) -> Utterance:
    """An example whose clip is encoded."""
    made = example_of(Draw(clip=clip, target=target, prompt=prompt), tokenizer)
    return Utterance(clip=clip, prompt_ids=made.prompt_ids, target_ids=made.target_ids)


def test_a_sequence_is_audio_prompt_target_eos_without_holes(make_clips: MakeClips, tokenizer: TextTokenizer) -> None:
    clips = make_clips([3, 1])
    sequences = [
        example(tokenizer, clips[0], "ab", "?"),
        example(tokenizer, clips[1], "c", "?"),
    ]
    prompt, a, b, c = (tokenizer.tokens(letter)[0] for letter in "?abc")
    batch = collate(sequences)
    assert batch.lengths == (7, 4)
    # a a a ? a b EOS | a ? c EOS
    assert batch.frame_places_F.tolist() == [0, 1, 2, 7]
    assert batch.text_places_M.tolist() == [3, 4, 5, 6, 8, 9, 10]
    assert batch.text_ids_M.tolist() == [prompt, a, b, tokenizer.eos_id, prompt, c, tokenizer.eos_id]
    assert batch.predicting_places_T.tolist() == [3, 4, 5, 8, 9]
    assert batch.target_ids_T.tolist() == [a, b, tokenizer.eos_id, c, tokenizer.eos_id]
    assert batch.num_targets == 5
    assert torch.equal(batch.frames_FD, torch.cat([clip.frames() for clip in clips]))


def test_a_prompt_predicts_nothing_yet(make_clips: MakeClips, tokenizer: TextTokenizer) -> None:
    batch = collate([tokenizer.prompt(clip, "go") for clip in make_clips([4, 2])])
    assert batch.lengths == (6, 4)
    assert batch.num_targets == len(batch.predicting_places_T) == 0


def endless(clips: list[Clip], seed: int = 0) -> Iterator[Draw]:
    """Draws of clips in random order, targets as long as the clips."""
    rng = random.Random(seed)
    while True:
        clip = rng.choice(clips)
        yield Draw(clip=clip, target="a" * clip.num_frames, prompt="?")


def test_batches_follow_the_draws_and_the_seed_alone(
    make_clips: MakeClips, tokenizer: TextTokenizer, mini_recipe: Recipe
) -> None:
    def first_batches(seed: int) -> list[torch.Tensor]:
        recipe = mini_recipe.replace({"seed": seed, "batch_size": 4, "shuffle_buffer": 8, "sort_window": 4}).training
        batches = training_batches(endless(make_clips([2, 5, 3, 4])), NO_ENCODER, tokenizer, recipe)
        return [batch.frames_FD for batch in itertools.islice(batches, 6)]

    again = first_batches(1)
    assert all(torch.equal(a, b) for a, b in zip(first_batches(1), again, strict=True))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first_batches(2), again, strict=True))


def test_the_buffer_shuffles_and_loses_nothing(
    make_clips: MakeClips, tokenizer: TextTokenizer, mini_recipe: Recipe
) -> None:
    recipe = mini_recipe.replace({"batch_size": 1, "shuffle_buffer": 16, "sort_window": 1}).training
    clips = make_clips(list(range(1, 41)))
    draws = (Draw(clip=clip, target="x", prompt="?") for clip in clips)
    lengths = [len(batch.frames_FD) for batch in training_batches(draws, NO_ENCODER, tokenizer, recipe)]
    assert sorted(lengths) == list(range(1, 41))
    assert lengths != sorted(lengths)
    assert all(length <= place + 17 for place, length in enumerate(lengths, start=1))


def test_batches_are_sorted_by_length_within_a_window(
    make_clips: MakeClips, tokenizer: TextTokenizer, mini_recipe: Recipe
) -> None:
    recipe = mini_recipe.replace({"batch_size": 4, "shuffle_buffer": 8, "sort_window": 8}).training
    batches = training_batches(endless(make_clips([2, 5, 3, 4, 9])), NO_ENCODER, tokenizer, recipe)
    for first, second in itertools.islice(zip(batches, batches, strict=False), 20):
        num_positions = [length for batch in (first, second) for length in batch.lengths]
        # Targets are as long as the clips, whose frames are a tenth of a second each: prompt, target, EOS, frames.
        num_frames = [(length - 2) // 2 for length in num_positions]
        assert num_frames == sorted(num_frames, reverse=True)


def test_recordings_are_encoded_a_window_at_a_time_and_once_each(tokenizer: TextTokenizer, mini_recipe: Recipe) -> None:
    encoded: list[list[str]] = []

    class Encoder:
        def encode(self, recordings: list[AudioClip], seed: str) -> list[Clip]:
            encoded.append(sorted(recording.key for recording in recordings))
            return [
                Clip(
                    key=recording.key,
                    shard="s",
                    duration_s=recording.duration_s,
                    num_frames=2,
                    fields={},
                    features=torch.full((2, 3), float(recording.key)),
                )
                for recording in recordings
            ]

    recordings = [
        AudioClip(key=str(i), shard="s", fields={}, waveform=np.zeros(1600, dtype=np.float32)) for i in range(4)
    ]
    draws = (Draw(clip=recordings[i // 2 % 4], target=f"{i % 10}", prompt="?") for i in range(24))
    recipe = mini_recipe.replace({"batch_size": 4, "shuffle_buffer": 1, "sort_window": 8}).training
    batches = list(training_batches(draws, Encoder(), tokenizer, recipe))  # type: ignore[arg-type]
    assert encoded == [["0", "1", "2", "3"]] * 3
    assert torch.cat([batch.frames_FD for batch in batches]).shape == (48, 3)
    assert torch.cat([batch.frames_FD for batch in batches])[:, 0].int().bincount().tolist() == [12] * 4


def test_a_tokeniser_without_eos_is_refused() -> None:
    class Tokenizer:
        eos_token_id = None

    with pytest.raises(ValueError, match="EOS"):
        TextTokenizer(Tokenizer())  # type: ignore[arg-type]
