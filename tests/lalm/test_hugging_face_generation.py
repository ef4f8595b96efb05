"""Generation by transformers: which prompts share a batch; tests/lalm/test_generation.py compares its texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import MakeClips
from tests.plain_lalm import save_decoder
from xares_bench.config.recipe import Recipe
from xares_bench.lalm import hugging_face_generation as module
from xares_bench.lalm.batch import TextTokenizer
from xares_bench.lalm.hugging_face_generation import _batches, generate_padded, until
from xares_bench.lalm.model import build_lalm

CPU = torch.device("cpu")


def test_prompts_of_all_lengths_share_batches_unless_padding_changes_the_output(
    make_clips: MakeClips, tokenizer: TextTokenizer
) -> None:
    prompts = [tokenizer.prompt(clip, "?") for clip in make_clips([9, 9, 9, 4, 4, 2])]
    assert [list(batch) for batch in _batches(prompts, 4, False)] == [[0, 1, 2, 3], [4, 5]]
    assert [list(batch) for batch in _batches(prompts, 2, True)] == [[0, 1], [2], [3, 4], [5]]


@pytest.mark.parametrize("ignores_padding", [True, False])
def test_tokens_are_the_same_however_prompts_are_batched(
    make_clips: MakeClips,
    tokenizer: TextTokenizer,
    mini_recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    ignores_padding: bool,
) -> None:
    lalm = build_lalm(save_decoder(tmp_path, "bloom"), 6, mini_recipe.training).eval()
    assert not lalm.reads_packed
    prompts = [tokenizer.prompt(clip, "what?") for clip in make_clips([9, 9, 4, 2])]
    recipe = mini_recipe.replace({"max_new_tokens": 5}).generation
    arguments: dict[str, Any] = {"tokenizer": tokenizer, "recipe": recipe, "device": CPU}
    alone = [next(iter(generate_padded(lalm, [prompt], **arguments)))[1] for prompt in prompts]
    monkeypatch.setattr(module, "_ignores_padding", lambda *_: ignores_padding)
    together = list(generate_padded(lalm, prompts, **arguments))
    assert together == list(enumerate(alone))
    assert any(alone)


def test_nothing_is_generated_for_no_prompts(
    tokenizer: TextTokenizer, decoder_folder: str, mini_recipe: Recipe
) -> None:
    lalm = build_lalm(decoder_folder, 6, mini_recipe.training)
    assert list(generate_padded(lalm, [], tokenizer=tokenizer, recipe=mini_recipe.generation, device=CPU)) == []


def test_tokens_end_before_eos() -> None:
    assert until([5, 6, 1, 1], 1) == [5, 6]
    assert until([5, 6], 1) == [5, 6]
