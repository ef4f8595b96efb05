from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import MakeClips
from xares_bench.features.encoding import Clip
from xares_bench.lalm.batch import Batch, TextTokenizer, Utterance, collate
from xares_bench.training.dataloader import example_of
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
    # Frames are rows 0 to 3, tokens rows 4 to 10.
    assert batch.sources_N.tolist() == [0, 1, 2, 4, 5, 6, 7, 3, 8, 9, 10]
    assert batch.position_ids_N.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3]
    assert batch.text_ids_M.tolist() == [prompt, a, b, tokenizer.eos_id, prompt, c, tokenizer.eos_id]
    assert batch.predicting_places_T.tolist() == [3, 4, 5, 8, 9]
    assert batch.target_ids_T.tolist() == [a, b, tokenizer.eos_id, c, tokenizer.eos_id]
    assert batch.num_targets == 5
    assert torch.equal(batch.frames_FD, torch.cat([clip.frames() for clip in clips]))


def test_a_padded_batch_has_the_same_sequences_in_shapes_that_do_not_depend_on_them(
    make_clips: MakeClips, tokenizer: TextTokenizer
) -> None:
    clips = make_clips([3, 1])
    batch = collate([example(tokenizer, clips[0], "ab", "?"), example(tokenizer, clips[1], "c", "?")])
    padded = batch.padded(8)
    assert padded.lengths == batch.lengths
    assert padded.num_positions == 16
    assert set(padded.shapes) == {(16, 6), (16,), (8,), ()}

    def shown(which: Batch) -> list[str]:
        frames = [f"frame {number}" for number in range(len(which.frames_FD))]
        return [[*frames, *map(str, which.text_ids_M.tolist())][source] for source in which.sources_N]

    assert shown(padded)[:7] + shown(padded)[8:12] == shown(batch)
    assert [padded.position_ids_N[place] for place in (*range(7), *range(8, 12))] == batch.position_ids_N.tolist()
    assert padded.position_ids_N.max() == 6
    assert len(set(padded.sources_N.tolist())) == 16
    assert len(set(padded.predicting_places_T.tolist())) == 8
    assert padded.predicting_places_T[:5].tolist() == [3, 4, 5, 9, 10]
    assert padded.target_ids_T.tolist() == [*batch.target_ids_T.tolist(), -100, -100, -100]
    assert padded.num_targets == 5
    other = collate([example(tokenizer, clips[1], "abcd", "??"), example(tokenizer, clips[1], "", "?")]).padded(8)
    assert other.shapes == padded.shapes
    padded.copy_(other)
    assert all(torch.equal(value, other.tensors()[name]) for name, value in padded.tensors().items())


def test_a_prompt_predicts_nothing_yet(make_clips: MakeClips, tokenizer: TextTokenizer) -> None:
    batch = collate([tokenizer.prompt(clip, "go") for clip in make_clips([4, 2])])
    assert batch.lengths == (6, 4)
    assert batch.num_targets == len(batch.predicting_places_T) == 0


def test_a_tokeniser_without_eos_is_refused() -> None:
    class Tokenizer:
        eos_token_id = None

    with pytest.raises(ValueError, match="EOS"):
        TextTokenizer(Tokenizer())  # type: ignore[arg-type]
