from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from tests.conftest import MakeClips
from xares_bench.batches import IGNORED_LABEL, Encoding, collate, training_batches
from xares_bench.catalogue import Dataset, Mix, Split, make_mix
from xares_bench.recipe import Recipe
from xares_bench.rows import Row


def dataset(name: str, prompt: str = "what?") -> Dataset:
    split = Split(shards=(), target_keys=("label",))
    return Dataset(
        name=name, task="task1", prompt=prompt, metric="Accuracy", metric_arguments={}, train=split, eval=split
    )


def test_a_sequence_is_audio_prompt_target_eos_without_holes(make_clips: MakeClips, encoding: Encoding) -> None:
    clips = make_clips([3, 1])
    sequences = [
        encoding.example(Row(clip=clips[0], target="ab"), "?"),
        encoding.example(Row(clip=clips[1], target="c"), "?"),
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


@pytest.fixture
def mix() -> Mix:
    return make_mix("mix", [dataset("often"), dataset("rarely", "why?")], [3, 1], steps=1)


def rows_of(make_clips: MakeClips) -> dict[str, list[Row]]:
    often = [Row(clip=clip, target="yes") for clip in make_clips([2, 5, 3, 4], seed=1)]
    rarely = [Row(clip=clip, target="no") for clip in make_clips([6, 1], seed=2)]
    return {"often": often, "rarely": rarely}


def test_batches_follow_the_seed_alone(
    make_clips: MakeClips, encoding: Encoding, mix: Mix, mini_recipe: Recipe
) -> None:
    def first_batches(seed: int) -> list[torch.Tensor]:
        recipe = mini_recipe.replace({"seed": seed, "batch_size": 4, "shuffle_buffer": 8, "sort_window": 4}).training
        batches = training_batches(mix, rows_of(make_clips), encoding, recipe)
        return [batch.frames_ND for batch in itertools.islice(batches, 6)]

    again = first_batches(1)
    assert all(torch.equal(a, b) for a, b in zip(first_batches(1), again, strict=True))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first_batches(2), again, strict=True))


def test_datasets_are_drawn_by_weight_and_every_row_once_a_pass(
    make_clips: MakeClips, encoding: Encoding, mix: Mix, mini_recipe: Recipe
) -> None:
    recipe = mini_recipe.replace({"batch_size": 10, "shuffle_buffer": 16, "sort_window": 10}).training
    drawn: Counter[float] = Counter()
    num_draws = 0
    for batch in itertools.islice(training_batches(mix, rows_of(make_clips), encoding, recipe), 400):
        drawn.update(int(is_audio.sum()) for is_audio in batch.is_audio_BL)
        num_draws += len(batch.token_ids_BL)
    often, rarely = sum(drawn[length] for length in (2, 3, 4, 5)), drawn[1] + drawn[6]
    assert often + rarely == num_draws == 4000
    assert abs(often / num_draws - 0.75) < 0.03
    # Passes over all rows keep the counts of a dataset's rows together; independent draws would spread by about 27.
    assert max(drawn[length] for length in (2, 3, 4, 5)) - min(drawn[length] for length in (2, 3, 4, 5)) < 10


def test_batches_are_sorted_by_length_within_a_window(
    make_clips: MakeClips, encoding: Encoding, mix: Mix, mini_recipe: Recipe
) -> None:
    recipe = mini_recipe.replace({"batch_size": 4, "shuffle_buffer": 8, "sort_window": 8}).training
    batches = training_batches(mix, rows_of(make_clips), encoding, recipe)
    for first, second in itertools.islice(zip(batches, batches, strict=False), 20):
        num_positions = torch.cat([batch.attention_mask_BL.sum(dim=1) for batch in (first, second)])
        num_frames = torch.cat([batch.is_audio_BL.sum(dim=1) for batch in (first, second)])
        sort_lengths = (num_frames / 10 + num_positions - num_frames).tolist()
        assert sort_lengths == sorted(sort_lengths, reverse=True)


def test_a_tokeniser_without_eos_is_refused() -> None:
    class Tokenizer:
        eos_token_id = None

    with pytest.raises(ValueError, match="EOS"):
        Encoding(Tokenizer())  # type: ignore[arg-type]
