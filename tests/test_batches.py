from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import MakeClips
from xares_bench.batches import IGNORED_LABEL, Encoding, Utterance, collate, training_batches
from xares_bench.clips import Clip, Recording
from xares_bench.draws import Draw
from xares_bench.recipe import Recipe

NO_ENCODER: Any = None  # for clips that are encoded already


def example(encoding: Encoding, clip: Clip, target: str, prompt: str) -> Utterance:
    """An example whose clip is encoded."""
    made = encoding.example(Draw(clip=clip, target=target, prompt=prompt))
    return Utterance(clip=clip, prompt_ids=made.prompt_ids, target_ids=made.target_ids)


def test_a_sequence_is_audio_prompt_target_eos_without_holes(make_clips: MakeClips, encoding: Encoding) -> None:
    clips = make_clips([3, 1])
    sequences = [
        example(encoding, clips[0], "ab", "?"),
        example(encoding, clips[1], "c", "?"),
    ]
    prompt, a, b, c = (encoding._tokens(letter)[0] for letter in "?abc")
    batch = collate(sequences, pad_id=encoding.pad_id, padding="right")
    assert batch.is_audio_BL.tolist() == [[True] * 3 + [False] * 4, [True] + [False] * 6]
    assert batch.attention_mask_BL.tolist() == [[1] * 7, [1] * 4 + [0] * 3]
    assert batch.token_ids_BL[0, 3:].tolist() == [prompt, a, b, encoding.eos_id]
    assert batch.token_ids_BL[1, 1:4].tolist() == [prompt, c, encoding.eos_id]
    hidden = IGNORED_LABEL
    assert batch.labels_BL.tolist() == [
        [hidden] * 4 + [a, b, encoding.eos_id],
        [hidden] * 2 + [c, encoding.eos_id] + [hidden] * 3,
    ]
    assert batch.num_targets == 5
    assert torch.equal(batch.frames_ND, torch.cat([clip.frames() for clip in clips]))


def test_padding_on_the_left_only_moves_sequences(make_clips: MakeClips, encoding: Encoding) -> None:
    sequences = [encoding.prompt(clip, "go") for clip in make_clips([4, 2])]
    left = collate(sequences, pad_id=encoding.pad_id, padding="left")
    right = collate(sequences, pad_id=encoding.pad_id, padding="right")
    assert left.attention_mask_BL.tolist() == [[1] * 6, [0] * 2 + [1] * 4]
    assert torch.equal(left.token_ids_BL[1, 2:], right.token_ids_BL[1, :4])
    assert torch.equal(left.frames_ND, right.frames_ND)


def endless(clips: list[Clip], seed: int = 0) -> Iterator[Draw]:
    """Draws of clips in random order, targets as long as the clips."""
    rng = random.Random(seed)
    while True:
        clip = rng.choice(clips)
        yield Draw(clip=clip, target="a" * clip.num_frames, prompt="?")


def test_batches_follow_the_draws_and_the_seed_alone(
    make_clips: MakeClips, encoding: Encoding, mini_recipe: Recipe
) -> None:
    def first_batches(seed: int) -> list[torch.Tensor]:
        recipe = mini_recipe.replace({"seed": seed, "batch_size": 4, "shuffle_buffer": 8, "sort_window": 4}).training
        batches = training_batches(endless(make_clips([2, 5, 3, 4])), NO_ENCODER, encoding, recipe)
        return [batch.frames_ND for batch in itertools.islice(batches, 6)]

    again = first_batches(1)
    assert all(torch.equal(a, b) for a, b in zip(first_batches(1), again, strict=True))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first_batches(2), again, strict=True))


def test_the_buffer_shuffles_and_loses_nothing(make_clips: MakeClips, encoding: Encoding, mini_recipe: Recipe) -> None:
    recipe = mini_recipe.replace({"batch_size": 1, "shuffle_buffer": 16, "sort_window": 1}).training
    clips = make_clips(list(range(1, 41)))
    draws = (Draw(clip=clip, target="x", prompt="?") for clip in clips)
    lengths = [len(batch.frames_ND) for batch in training_batches(draws, NO_ENCODER, encoding, recipe)]
    assert sorted(lengths) == list(range(1, 41))
    assert lengths != sorted(lengths)
    assert all(length <= place + 17 for place, length in enumerate(lengths, start=1))


def test_batches_are_sorted_by_length_within_a_window(
    make_clips: MakeClips, encoding: Encoding, mini_recipe: Recipe
) -> None:
    recipe = mini_recipe.replace({"batch_size": 4, "shuffle_buffer": 8, "sort_window": 8}).training
    batches = training_batches(endless(make_clips([2, 5, 3, 4, 9])), NO_ENCODER, encoding, recipe)
    for first, second in itertools.islice(zip(batches, batches, strict=False), 20):
        num_positions = torch.cat([batch.attention_mask_BL.sum(dim=1) for batch in (first, second)])
        num_frames = torch.cat([batch.is_audio_BL.sum(dim=1) for batch in (first, second)])
        sort_lengths = (num_frames / 10 + num_positions - num_frames).tolist()
        assert sort_lengths == sorted(sort_lengths, reverse=True)


def test_recordings_are_encoded_a_window_at_a_time_and_once_each(encoding: Encoding, mini_recipe: Recipe) -> None:
    encoded: list[list[str]] = []

    class Encoder:
        def encode(self, recordings: list[Recording], seed: str) -> list[Clip]:
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
        Recording(key=str(i), shard="s", fields={}, waveform=np.zeros(1600, dtype=np.float32)) for i in range(4)
    ]
    draws = (Draw(clip=recordings[i // 2 % 4], target=f"{i % 10}", prompt="?") for i in range(24))
    recipe = mini_recipe.replace({"batch_size": 4, "shuffle_buffer": 1, "sort_window": 8}).training
    batches = list(training_batches(draws, Encoder(), encoding, recipe))  # type: ignore[arg-type]
    assert encoded == [["0", "1", "2", "3"]] * 3
    assert torch.cat([batch.frames_ND for batch in batches]).shape == (48, 3)
    assert torch.cat([batch.frames_ND for batch in batches])[:, 0].int().bincount().tolist() == [12] * 4


def test_a_tokeniser_without_eos_is_refused() -> None:
    class Tokenizer:
        eos_token_id = None

    with pytest.raises(ValueError, match="EOS"):
        Encoding(Tokenizer())  # type: ignore[arg-type]
