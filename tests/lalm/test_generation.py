from __future__ import annotations

import dataclasses
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, ByT5Tokenizer, GenerationConfig, GPT2Config

from tests.conftest import MakeClips
from tests.plain_lalm import Float64, TokenIdTokenizer, save_decoder
from tests.tape import TapeRecorder
from xares_bench.config.recipe import GenerationRecipe, Recipe
from xares_bench.core.errors import ShortageWarning, UsageError
from xares_bench.core.progress import Progress
from xares_bench.lalm import generation, token_steps
from xares_bench.lalm.attention import Cache
from xares_bench.lalm.batch import TextTokenizer, Utterance
from xares_bench.lalm.generation import generate
from xares_bench.lalm.hugging_face_generation import generate_padded
from xares_bench.lalm.model import LALM, build_lalm

CPU = torch.device("cpu")
NUM_TEXTS = 400
RECIPE = GenerationRecipe(
    repetition_penalty=1.05, max_new_tokens=12, generation_batch_size=3, generation_positions=200, cuda_graphs=True
)


@pytest.fixture
def token_id_tokenizer() -> TextTokenizer:
    return TokenIdTokenizer(ByT5Tokenizer())


def plain_greedy(lalm: LALM, frames_TD: torch.Tensor, prompt_ids: tuple[int, ...], eos_id: int) -> list[int]:
    """Greedy decoding written out: one clip, no padding, no cache, the whole sequence again for every token."""
    embed = lalm.decoder.get_input_embeddings()
    said: list[int] = []
    for _ in range(RECIPE.max_new_tokens):
        tokens = torch.tensor((*prompt_ids, *said), dtype=torch.long)
        inputs_LH = torch.cat([lalm.projector(frames_TD.double()), embed(tokens)])
        scores_V = lalm.decoder(inputs_embeds=inputs_LH[None]).logits[0, -1]
        for token in set(said):
            scores_V[token] = scores_V[token] / 1.05 if scores_V[token] > 0 else scores_V[token] * 1.05
        said.append(int(scores_V.argmax()))
        if said[-1] == eos_id:
            return said[:-1]
    return said


@pytest.mark.versions
def test_texts_equal_plain_greedy_decoding_of_each_clip_alone(
    make_clips: MakeClips, decoder_folder: str, tokenizer: TextTokenizer, mini_recipe: Recipe
) -> None:
    lalm = build_lalm(decoder_folder, 6, mini_recipe.training).eval().double()
    clips = make_clips([2, 9, 4, 17, 6, 1, 8])
    prompts = [tokenizer.prompt(clip, "say") for clip in clips]
    with Float64():
        texts = generate(lalm, prompts, tokenizer=tokenizer, recipe=RECIPE, device=CPU, progress=Progress())
    lalm.decoder.set_attn_implementation("eager")
    with torch.no_grad(), Float64():
        expected = [
            tokenizer.text(
                plain_greedy(lalm, clip.frames(), tokenizer.prompt(clip, "say").prompt_ids, tokenizer.eos_id)
            )
            for clip in clips
        ]
    assert texts == expected
    assert len(set(texts)) > 3, "the decoder says the same to everything, which tests nothing"


def lalm_that_ends_now_and_then(folder: Path, family: str, recipe: Recipe) -> LALM:
    """Of so few tokens that one in about thirty is EOS, with a projector that lets the audio be heard.

    In float64: among some ten thousand tokens are a few of which rounding to float32 would choose another.
    """
    torch.manual_seed(0)
    lalm = build_lalm(save_decoder(folder, family, vocab_size=40), 6, recipe.training).eval().double()
    with torch.no_grad():
        lalm.projector.weight.normal_()
    return lalm


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_hundreds_of_texts_equal_those_of_transformers_generate_and_no_token_more_is_computed(
    family: str, make_clips: MakeClips, token_id_tokenizer: TextTokenizer, mini_recipe: Recipe, tmp_path: Path
) -> None:
    """Rows end at any time, some run to the limit, and the rows of a cache are used again and again."""
    lalm = lalm_that_ends_now_and_then(tmp_path, family, mini_recipe)
    rng = random.Random(0)
    clips = make_clips([rng.randint(1, 40) for _ in range(NUM_TEXTS)])
    prompts = [
        Utterance(clip=clip, prompt_ids=tuple(rng.choices(range(3, 40), k=rng.randint(1, 5))), target_ids=())
        for clip in clips
    ]
    recipe = GenerationRecipe(
        repetition_penalty=1.5, max_new_tokens=30, generation_batch_size=24, generation_positions=900, cuda_graphs=True
    )
    computed: list[int] = []
    output_layer = lalm.decoder.get_output_embeddings()  # type: ignore[no-untyped-call]
    handle = output_layer.register_forward_hook(
        lambda _module, _inputs, output: computed.append(output[..., 0].numel())
    )
    arguments: dict[str, Any] = {"tokenizer": token_id_tokenizer, "recipe": recipe, "device": CPU}
    with Float64():
        texts = generate(lalm, prompts, progress=Progress(), **arguments)
    handle.remove()

    lalm.decoder.set_attn_implementation("sdpa")
    with torch.inference_mode(), Float64():
        theirs = {
            index: token_id_tokenizer.text(token_ids)
            for index, token_ids in generate_padded(lalm, prompts, **arguments)
        }
    assert texts == [theirs[index] for index in range(NUM_TEXTS)]
    lengths = [len(text.split()) for text in texts]
    assert len(set(texts)) > 100
    assert lengths.count(30) > 20, "nothing runs to the limit"
    assert sum(length < 15 for length in lengths) > 3, "hardly anything ends early"
    assert sum(computed) == sum(min(length + 1, 30) for length in lengths), "tokens, and the EOS of what ended"


MakeRecorder = Callable[[], TapeRecorder]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, MakeRecorder | None], None]:
    """Lets generation look for ends after so many tokens, and record for every cache with a recorder that is made."""

    def set_to(tokens_at_once: int, make_recorder: MakeRecorder | None) -> None:
        monkeypatch.setattr(generation, "_tokens_at_once", lambda device: tokens_at_once)
        monkeypatch.setattr(generation, "_recorder", lambda recipe, device: make_recorder() if make_recorder else None)
        monkeypatch.setattr(token_steps, "_FEWEST_POSITIONS", 8)  # so that shapes change

    return set_to


def random_prompts(make_clips: MakeClips, number: int) -> list[Utterance]:
    rng = random.Random(1)
    clips = make_clips([rng.randint(1, 40) for _ in range(number)])
    return [
        Utterance(clip=clip, prompt_ids=tuple(rng.choices(range(3, 40), k=rng.randint(1, 5))), target_ids=())
        for clip in clips
    ]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_texts_depend_neither_on_when_ends_are_looked_for_nor_on_recording(
    family: str,
    as_on_a_gpu: Callable[[int, MakeRecorder | None], None],
    make_clips: MakeClips,
    token_id_tokenizer: TextTokenizer,
    mini_recipe: Recipe,
    tmp_path: Path,
) -> None:
    """Rows go on behind their end, are moved, and are used again; more rows are computed than have texts."""
    lalm = lalm_that_ends_now_and_then(tmp_path, family, mini_recipe)
    prompts = random_prompts(make_clips, 40)
    recorders: list[TapeRecorder] = []

    def make_recorder() -> TapeRecorder:
        recorders.append(TapeRecorder())
        return recorders[-1]

    def texts(max_new_tokens: int = 20) -> list[str]:
        recipe = GenerationRecipe(
            repetition_penalty=1.5,
            max_new_tokens=max_new_tokens,
            generation_batch_size=9,
            generation_positions=500,
            cuda_graphs=True,
        )
        with Float64():
            return generate(lalm, prompts, tokenizer=token_id_tokenizer, recipe=recipe, device=CPU, progress=Progress())

    # The end is a token that about half of the texts have, by this decoder's choice.
    occurrences = Counter(token for text in texts() for token in set(text.split()))
    token_id_tokenizer.eos_id = int(min(occurrences, key=lambda token: (abs(occurrences[token] - 20), token)))
    expected = texts()
    lengths = [len(text.split()) for text in expected]
    assert lengths.count(20) > 3, "nothing runs to the limit"
    assert len(set(lengths)) > 3, "hardly anything ends early"
    as_on_a_gpu(2, None)
    assert texts() == expected
    for tokens_at_once in (1, 8):
        recorders.clear()
        as_on_a_gpu(tokens_at_once, make_recorder)
        assert texts() == expected
        assert all(recorder.problem is None for recorder in recorders)
        assert len(recorders) > 1, "all clips share one cache"
        num_recorded = sum(recorder.num_recorded for recorder in recorders)
        assert num_recorded > len(recorders), "one shape a cache"
        assert sum(recorder.num_repeated for recorder in recorders) > 3 * num_recorded
    for max_new_tokens in (1, 5):
        assert texts(max_new_tokens) == [" ".join(text.split()[:max_new_tokens]) for text in expected]


@pytest.mark.parametrize("num_without_memory", [0, 1])
def test_texts_are_the_same_where_nothing_can_be_recorded(
    num_without_memory: int,
    as_on_a_gpu: Callable[[int, MakeRecorder | None], None],
    make_clips: MakeClips,
    decoder_folder: str,
    tokenizer: TextTokenizer,
    mini_recipe: Recipe,
) -> None:
    """Whether recording itself fails, or there is no memory for the first cache's steps, recorded or not."""
    lalm = build_lalm(decoder_folder, 6, mini_recipe.training).eval().double()
    prompts = random_prompts(make_clips, 20)
    recorders: list[TapeRecorder] = []

    class Failing(TapeRecorder):
        def __init__(self) -> None:
            super().__init__()
            recorders.append(self)
            self.has_memory = len(recorders) > num_without_memory

        def run(self, work: Callable[[], object]) -> None:
            if self.problem is not None and not self.has_memory:
                raise MemoryError
            super().run(work)

        def record(self, work: Callable[[], object]) -> Callable[[], None]:
            raise RuntimeError("operation not permitted when stream is capturing") if self.has_memory else MemoryError

    def texts() -> list[str]:
        with Float64():
            return generate(lalm, prompts, tokenizer=tokenizer, recipe=RECIPE, device=CPU, progress=Progress())

    expected = texts()
    as_on_a_gpu(4, Failing)
    with pytest.warns() as noted:
        assert texts() == expected
    assert sum(issubclass(one.category, ShortageWarning) for one in noted) == num_without_memory
    assert any("cannot be recorded as a CUDA graph" in str(one.message) for one in noted)
    assert len(recorders) > num_without_memory


def test_the_cache_holds_no_more_positions_than_the_recipe_allows(
    make_clips: MakeClips,
    decoder_folder: str,
    tokenizer: TextTokenizer,
    mini_recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clip that is longer than that has a cache of its own; shorter clips then share one of more rows."""
    caches: list[tuple[int, int]] = []

    def record(*, num_rows: int, num_positions: int) -> Cache:
        caches.append((num_rows, num_positions))
        return Cache(num_rows=num_rows, num_positions=num_positions)

    monkeypatch.setattr("xares_bench.lalm.generation.Cache", record)
    lalm = build_lalm(decoder_folder, 6, mini_recipe.training).eval()
    prompts = [tokenizer.prompt(clip, "say") for clip in make_clips([300, 80, 70, *range(30, 1, -1)])]
    recipe = dataclasses.replace(RECIPE, generation_batch_size=8, generation_positions=200, cuda_graphs=True)
    texts = generate(lalm, prompts, tokenizer=tokenizer, recipe=recipe, device=CPU, progress=Progress())
    assert len(texts) == len(prompts)
    assert caches[0] == (1, 300 + 3 + RECIPE.max_new_tokens)
    assert len(caches) < 8
    assert all(num_rows * num_positions <= 200 for num_rows, num_positions in caches[1:])
    assert [num_rows for num_rows, _ in caches] == sorted(num_rows for num_rows, _ in caches)
    assert caches[-1][0] > 3


def test_merged_adapters_say_the_same(
    make_clips: MakeClips, token_id_tokenizer: TextTokenizer, mini_recipe: Recipe, tmp_path: Path
) -> None:
    lalm = lalm_that_ends_now_and_then(tmp_path, "llama", mini_recipe.replace({"adaptation": "lora"}))
    with torch.no_grad():
        for name, value in lalm.trained_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    prompts = [Utterance(clip=clip, prompt_ids=(5, 9), target_ids=()) for clip in make_clips(list(range(1, 60)))]

    def texts() -> list[str]:
        with Float64():
            return generate(lalm, prompts, tokenizer=token_id_tokenizer, recipe=RECIPE, device=CPU, progress=Progress())

    before = texts()
    lalm.merge_lora()
    assert texts() == before
    assert len(set(before)) > 20


def test_what_a_decoder_suggests_for_its_own_generation_does_not_count(
    make_clips: MakeClips, decoder_folder: str, tokenizer: TextTokenizer, mini_recipe: Recipe, tmp_path: Path
) -> None:
    """Only the recipe does: as in a folder that says nothing."""
    folders = [tmp_path / "silent", tmp_path / "chatty"]
    for folder in folders:
        shutil.copytree(decoder_folder, folder)
    config: Any = GenerationConfig
    suggested = config(no_repeat_ngram_size=1, min_new_tokens=12, suppress_tokens=list(range(3, 200)))
    suggested.save_pretrained(folders[1])
    lalm = build_lalm(str(folders[0]), 6, mini_recipe.training)
    lalm.decoder.save_pretrained(folders[0])
    shutil.copy(folders[0] / "model.safetensors", folders[1])
    prompts = [tokenizer.prompt(clip, "say") for clip in make_clips([2, 9, 4, 17])]
    silent, chatty = (
        generate(
            build_lalm(str(folder), 6, mini_recipe.training).eval(),
            prompts,
            tokenizer=tokenizer,
            recipe=RECIPE,
            device=CPU,
            progress=Progress(),
        )
        for folder in folders
    )
    assert chatty == silent


def test_a_text_that_the_table_of_positions_is_too_short_for_is_refused_before_generation(
    make_clips: MakeClips, tokenizer: TextTokenizer, mini_recipe: Recipe, tmp_path: Path
) -> None:
    config = GPT2Config(vocab_size=384, n_embd=32, n_layer=1, n_head=4, n_positions=40)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    lalm = build_lalm(str(tmp_path), 6, mini_recipe.training).eval()

    def generate_for(num_frames: int) -> list[str]:
        prompts = [tokenizer.prompt(clip, "say") for clip in make_clips([2, num_frames])]
        return generate(lalm, prompts, tokenizer=tokenizer, recipe=RECIPE, device=CPU, progress=Progress())

    assert len(generate_for(25)) == 2  # and 3 tokens of prompt and 12 new ones
    with pytest.raises(UsageError, match=r"needs 41 positions, the decoder GPT2LMHeadModel has 40"):
        generate_for(26)


def test_nothing_is_said_to_no_prompts(decoder_folder: str, tokenizer: TextTokenizer, mini_recipe: Recipe) -> None:
    lalm = build_lalm(decoder_folder, 6, mini_recipe.training).eval()
    assert generate(lalm, [], tokenizer=tokenizer, recipe=RECIPE, device=CPU, progress=Progress()) == []
