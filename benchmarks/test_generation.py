"""Evaluation: the same tokens and scores as the control's, then the time.

    pytest benchmarks/test_generation.py

Both sides start from waveforms and end with the tokens of every row. Ours also merges LoRA, every time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from benchmarks.comparison import Comparison, Report
from benchmarks.control import Control, evaluate_control
from benchmarks.ours import evaluate_ours, published_recipe
from benchmarks.sizes import Size
from benchmarks.sounds import Sound, captioned_sounds, labelled_sounds, with_runaways
from xares_bench.config.recipe import GenerationRecipe
from xares_bench.encoders.loading import FrozenEncoder
from xares_bench.lalm import generation
from xares_bench.lalm.attention import Cache
from xares_bench.lalm.batch import TextTokenizer
from xares_bench.lalm.decoder import load_tokenizer
from xares_bench.lalm.model import LALM
from xares_bench.metrics import registry as metrics


@pytest.fixture(scope="module")
def control(size: Size, encoder: FrozenEncoder, learnt: LALM) -> Control:
    """A control that has learnt the same."""
    made = Control(size.decoder, encoder, published_recipe(size).training).eval()
    made.take_values(learnt)
    return made


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Both sides of an evaluation.

    Attributes:
        lalm: Ours, LoRA not merged yet.
        control: The other, of the same values.
        encoder: Of ours.
        tokenizer: Of ours.
        recipe: Of both.
    """

    lalm: LALM
    control: Control
    encoder: FrozenEncoder
    tokenizer: TextTokenizer
    recipe: GenerationRecipe

    def ours(self, lalm: LALM, sounds: Sequence[Sound]) -> list[str]:
        """Tokens of every row."""
        return evaluate_ours(lalm, sounds, encoder=self.encoder, tokenizer=self.tokenizer, recipe=self.recipe)

    def theirs(self, sounds: Sequence[Sound], batch_size: int) -> list[str]:
        """Tokens of every row."""
        said = evaluate_control(self.control, sounds, batch_size=batch_size, recipe=self.recipe)
        return [" ".join(map(str, token_ids)) for token_ids in said]


Evaluate = Callable[..., list[int]]


@pytest.fixture
def sides(size: Size, encoder: FrozenEncoder, tokenizer: TextTokenizer, learnt: LALM, control: Control) -> Sides:
    """Both sides, with the published recipe."""
    recipe = published_recipe(size).generation
    return Sides(lalm=learnt, control=control, encoder=encoder, tokenizer=tokenizer, recipe=recipe)


@pytest.fixture
def evaluate(size: Size, sides: Sides, comparison: Comparison) -> Evaluate:
    """Compares tokens and score on sounds, measures, and returns how many tokens every row has."""

    def run(sounds: Sequence[Sound], *, batch_size: int, metric: str) -> list[int]:
        tokens = sides.ours(copy.deepcopy(sides.lalm), sounds)
        assert tokens == sides.theirs(sounds, batch_size)
        references = [target for sound in sounds for target in sound.targets]
        lengths = [len(text.split()) for text in tokens]
        # The tokens are the same, so is the score; it tells whether the LALM has learnt anything.
        plain = TextTokenizer(load_tokenizer(size.decoder))
        texts = [plain.text([int(token) for token in text.split()]) for text in tokens]
        score = metrics.score(metric, references, texts)
        comparison.say(f"{len(tokens)} rows of the same tokens, {sum(lengths)} in all; {metric} {score:.3f}")
        comparison.measure(
            lambda lalm: sides.ours(lalm, sounds),
            {f"control in batches of {batch_size}": lambda: sides.theirs(sounds, batch_size)},
            prepare=lambda: copy.deepcopy(sides.lalm),
        )
        return lengths

    return run


@pytest.fixture
def clean(size: Size, sides: Sides) -> list[Sound]:
    """Sounds with a label to each of which the answer ends; to a few it does not, by the LALM's own choice.

    All sounds with the tiny decoder, whose answers end or not as its random weights have it.
    """
    sounds = labelled_sounds(size.num_clips, seed=11)
    if not size.is_real:
        return sounds
    said = sides.ours(copy.deepcopy(sides.lalm), sounds)
    return [sound for sound, text in zip(sounds, said, strict=True) if len(text.split()) < size.max_new_tokens]


def test_clean_classification(size: Size, evaluate: Evaluate, clean: list[Sound]) -> None:
    """Labels of one to four tokens, none of which runs away."""
    lengths = evaluate(clean, batch_size=4, metric="Accuracy")
    assert not size.is_real or max(lengths) < 10


def test_one_row_in_a_hundred_runs_away(size: Size, evaluate: Evaluate, clean: list[Sound]) -> None:
    """The same, but for white noise, to which the answer has no end."""
    sounds = with_runaways(clean, share=0.01, seed=12)
    lengths = evaluate(sounds, batch_size=32, metric="Accuracy")
    runaways = sum(length == size.max_new_tokens for length in lengths)
    assert not size.is_real or runaways == round(0.01 * len(sounds))


def test_captions_with_five_references(size: Size, evaluate: Evaluate) -> None:
    """Captions of some 15 tokens; the control says each five times."""
    lengths = evaluate(captioned_sounds(size.num_clips // 5, seed=13), batch_size=32, metric="chrF")
    assert not size.is_real or 10 <= sum(lengths) / len(lengths) <= 25


def test_memory_of_generation(report: Report, size: Size, sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache holds no more positions than the recipe says, with four times the clips and clips of four times 4 s."""
    positions: list[int] = []

    def counted(*, num_rows: int, num_positions: int) -> Cache:
        positions.append(num_rows * num_positions)
        return Cache(num_rows=num_rows, num_positions=num_positions)

    monkeypatch.setattr(generation, "Cache", counted)
    peaks = []
    for sounds in (
        labelled_sounds(size.num_clips, seed=14),
        labelled_sounds(4 * size.num_clips, seed=14),
        labelled_sounds(size.num_clips, seed=14, durations_s=(4.0, 16.0)),
    ):
        positions.clear()
        sides.ours(copy.deepcopy(sides.lalm), sounds)
        peaks.append(max(positions))
    report(f"{', '.join(map(str, peaks))} positions of {sides.recipe.generation_positions}")
    assert max(peaks) <= sides.recipe.generation_positions
