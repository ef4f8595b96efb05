"""Token steps, and what they are recorded as; tests/lalm/test_generation.py has the texts that come of them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import MakeClips
from tests.plain_lalm import FAMILIES, Float64, save_decoder
from tests.tape import TapeRecorder
from xares_bench.config.recipe import GenerationRecipe, Recipe
from xares_bench.lalm import token_steps
from xares_bench.lalm.attention import Cache, pack
from xares_bench.lalm.batch import Utterance, collate
from xares_bench.lalm.model import LALM, build_lalm
from xares_bench.lalm.token_steps import Texts, TokenSteps

CPU = torch.device("cpu")
NUM_ROWS, NUM_TOKENS = 7, 6
LENGTHS = (9, 4, 12)
RECIPE = GenerationRecipe(
    repetition_penalty=1.5,
    max_new_tokens=NUM_TOKENS,
    generation_batch_size=NUM_ROWS,
    generation_positions=1000,
    cuda_graphs=True,
)


@pytest.fixture
def prompts(make_clips: MakeClips) -> list[Utterance]:
    return [
        Utterance(clip=clip, prompt_ids=(5, 9), target_ids=())
        for clip in make_clips([length - 2 for length in LENGTHS])
    ]


def lalm_of(family: str, folder: Path, recipe: Recipe, **changes: Any) -> LALM:
    """In float64, where rounding that depends on the number of rows decides nothing."""
    return build_lalm(save_decoder(folder, family, vocab_size=40, **changes), 6, recipe.training).eval().double()


@pytest.fixture
def lalm(mini_recipe: Recipe, tmp_path: Path) -> LALM:
    return lalm_of("llama", tmp_path, mini_recipe)


def begun(lalm: LALM, prompts: Sequence[Utterance], num_positions: int = max(LENGTHS) + NUM_TOKENS) -> Texts:
    """Texts of one token."""
    texts = Texts(lalm, Cache(num_rows=NUM_ROWS, num_positions=num_positions), RECIPE, CPU)
    batch = collate(prompts)
    packing = pack(batch.lengths, CPU, cache=texts.cache, rows=slice(0, len(prompts)))
    last_places_B = torch.tensor(batch.lengths).cumsum(0) - 1
    logits_BV = lalm.read(lalm.embed(batch), packing, packing.position_ids_N, last_places_B)
    texts.begin(slice(0, len(prompts)), logits_BV)
    texts.locate(batch.lengths, [1] * len(prompts))
    return texts


def said(texts: Texts, num_texts: int = len(LENGTHS)) -> list[list[int]]:
    return [texts.tokens(row, NUM_TOKENS) for row in range(num_texts)]


def generated(lalm: LALM, prompts: Sequence[Utterance], recorder: TapeRecorder | None) -> list[list[int]]:
    """All tokens, for whatever shape is exact."""
    with torch.inference_mode(), Float64():
        texts = begun(lalm, prompts)
        step = TokenSteps(texts, recorder)
        for number in range(NUM_TOKENS - 1):
            step(len(prompts), max(prompt.num_positions for prompt in prompts) + number + 1)
        return said(texts, len(prompts))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_every_decoder_that_reads_packed_can_be_recorded_and_waits_for_nothing(
    family: str, prompts: list[Utterance], mini_recipe: Recipe, tmp_path: Path
) -> None:
    lalm = lalm_of(family, tmp_path, mini_recipe)
    if not lalm.reads_packed:
        pytest.skip("transformers generates")
    recorder = TapeRecorder()
    assert generated(lalm, prompts, recorder) == generated(lalm, prompts, None)
    assert recorder.problem is None
    assert (recorder.num_recorded, recorder.num_repeated) == (1, NUM_TOKENS - 2)


def test_a_decoder_that_waits_for_a_value_is_not_recorded(
    prompts: list[Utterance], mini_recipe: Recipe, tmp_path: Path
) -> None:
    """This rotary scaling asks in Python which position is the last."""
    rotary = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 8.0}
    lalm = lalm_of("llama", tmp_path, mini_recipe, max_position_embeddings=40, rope_parameters=rotary)
    expected = generated(lalm, prompts, None)
    with pytest.warns(RuntimeWarning, match="waits for a value"):
        assert generated(lalm, prompts, TapeRecorder()) == expected


def test_texts_are_those_of_each_prompt_alone(lalm: LALM, prompts: list[Utterance]) -> None:
    together = generated(lalm, prompts, None)
    assert together == [generated(lalm, [prompt], None)[0] for prompt in prompts]
    assert len({tuple(tokens) for tokens in together}) == len(prompts)


def test_no_token_is_penalised_that_is_not_in_its_text(
    lalm: LALM, prompts: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The penalty gets rows of one length, however long their texts are."""
    penalised: list[list[set[int]]] = []

    def penalise(tokens_BT: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
        penalised.append([set(row) for row in tokens_BT.tolist()])
        return logits_BV

    monkeypatch.setattr(token_steps, "RepetitionPenaltyLogitsProcessor", lambda penalty: penalise)
    tokens = generated(lalm, prompts, None)
    expected = [[set(row[:number]) for row in tokens] for number in range(1, NUM_TOKENS)]
    assert penalised == expected
    assert len(expected[-1][0]) > 1


def test_shapes_are_rounded_up_so_that_few_graphs_occur(
    lalm: LALM, prompts: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = begun(lalm, prompts, num_positions=700)
    shapes: list[tuple[int, int]] = []
    monkeypatch.setattr(texts, "step", lambda *shape: shapes.append(shape))
    step = TokenSteps(texts, TapeRecorder())
    for num_rows in range(1, NUM_ROWS + 1):
        for num_positions in range(1, 701):
            step(num_rows, num_positions)
    assert sorted(set(shapes)) == [(rows, positions) for rows in (1, 4, 7) for positions in (128, 256, 512, 700)]
    exact = TokenSteps(texts, None)
    shapes.clear()
    exact(3, 11)
    assert shapes == [(3, 11)]


def test_rows_without_a_text_change_no_other(
    lalm: LALM, prompts: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven rows are computed for three texts, up to the last token that there is room for."""
    monkeypatch.setattr(token_steps, "_ROWS_FACTOR", 100)
    assert generated(lalm, prompts, TapeRecorder()) == generated(lalm, prompts, None)


def test_a_moved_text_goes_on_in_its_new_row(lalm: LALM, prompts: list[Utterance]) -> None:
    with torch.inference_mode(), Float64():
        whole = begun(lalm, prompts)
        for _ in range(NUM_TOKENS - 1):
            whole.step(3, max(LENGTHS) + NUM_TOKENS)
        texts = begun(lalm, prompts)
        texts.step(3, max(LENGTHS) + NUM_TOKENS)
        texts.move(2, 0, LENGTHS[2] + 1)
        texts.locate([LENGTHS[2] + 1, LENGTHS[1] + 1], [2, 2])
        for _ in range(NUM_TOKENS - 2):
            texts.step(2, max(LENGTHS) + NUM_TOKENS)
        assert said(texts, 2) == [said(whole)[2], said(whole)[1]]


def test_texts_that_have_a_token_are_found(lalm: LALM, prompts: list[Utterance]) -> None:
    with torch.inference_mode(), Float64():
        texts = begun(lalm, prompts)
        first = said(texts)[0][0]
        assert texts.have(first, 3) == [tokens[0] == first for tokens in said(texts)]
        texts.step(3, max(LENGTHS) + 1)
        for token_id in range(40):
            assert texts.have(token_id, 3) == [token_id in tokens[:2] for tokens in said(texts)]


def test_the_cache_and_its_recordings_are_gone_with_the_last_who_uses_them(
    lalm: LALM, prompts: list[Utterance]
) -> None:
    """At once, without Python's search for cycles: the next cache needs the memory."""
    texts = begun(lalm, prompts)
    steps = TokenSteps(texts, TapeRecorder())
    with torch.inference_mode():
        for number in range(4):
            steps(3, max(LENGTHS) + 1 + number)
    gone: list[weakref.ref[Any]] = [weakref.ref(texts), weakref.ref(texts.cache)]
    gc.disable()
    try:
        del texts, steps
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()
