"""From draws to batches: order, sorting, encoding, and the position to resume from."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tests.conftest import MakeClips
from xares_bench.config.recipe import Recipe
from xares_bench.features.encoding import AudioClip, Clip
from xares_bench.lalm.batch import TextTokenizer
from xares_bench.training.dataloader import past_of, training_batches
from xares_bench.training.sampler import Draw, Past

NO_ENCODER: Any = None  # for clips that are encoded already


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


def test_a_training_at_its_beginning_has_no_past(mini_recipe: Recipe) -> None:
    assert past_of(mini_recipe.training, 0, []) == Past()


def test_draws_that_used_batches_need_no_more_are_skipped_and_the_rest_comes_as_before(
    make_clips: MakeClips, tokenizer: TextTokenizer, mini_recipe: Recipe
) -> None:
    recipe = mini_recipe.replace({"batch_size": 4, "shuffle_buffer": 16, "sort_window": 8}).training
    clips = make_clips([2, 5, 3, 4])

    def batches(past: Past, num_past: int) -> Iterator[torch.Tensor]:
        drawn: Iterator[Draw | None] = (
            draw if number >= past.num_draws or number in past.still_needed else None
            for number, draw in enumerate(endless(clips))
        )
        return (batch.frames_FD for batch in training_batches(drawn, NO_ENCODER, tokenizer, recipe, num_past))

    undisturbed = list(itertools.islice(batches(Past(), 0), 12))
    for num_past in (1, 2, 5):
        past = past_of(recipe, num_past, [])
        assert num_past * recipe.batch_size < past.num_draws
        num_used = num_past * recipe.batch_size // recipe.sort_window * recipe.sort_window  # in whole windows
        assert len(past.still_needed) == past.num_draws - num_used
        rest = itertools.islice(batches(past, num_past), 12 - num_past)
        assert all(torch.equal(a, b) for a, b in zip(rest, undisturbed[num_past:], strict=True))


def test_unusable_draws_count_in_the_position_and_are_never_needed(mini_recipe: Recipe) -> None:
    recipe = mini_recipe.replace({"batch_size": 4, "shuffle_buffer": 16, "sort_window": 8}).training
    plain, with_gaps = past_of(recipe, 3, []), past_of(recipe, 3, [0, 5, 6])
    assert with_gaps.num_draws == plain.num_draws + 3
    assert not with_gaps.still_needed & {0, 5, 6}
    assert len(with_gaps.still_needed) == len(plain.still_needed)
