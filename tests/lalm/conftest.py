"""Parts that several tests of the LALM begin with."""

from __future__ import annotations

import pytest

from tests.conftest import MakeClips
from xares_bench.lalm.batch import TextTokenizer, Utterance


@pytest.fixture
def examples(make_clips: MakeClips, tokenizer: TextTokenizer) -> list[Utterance]:
    targets = ["yes", "a longer answer", "no", "four"]
    return [
        Utterance(
            clip=clip,
            prompt_ids=tokenizer.prompt(clip, "say it").prompt_ids,
            target_ids=(*tokenizer.prompt(clip, target).prompt_ids, tokenizer.eos_id),
        )
        for clip, target in zip(make_clips([7, 2, 12, 5]), targets, strict=True)
    ]
