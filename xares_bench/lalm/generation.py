"""Generation: greedy decoding, one text for each of many clips.

Clips of similar length are decoded together, each in one row of a cache of keys and values. A finished row makes room
for the next clip, so a text without an end does not hold up the others.

The tokens, and how far each text is, stay on the device. The host only looks which texts have ended: on a CPU after
every token, on a GPU, which would wait for it, after a few.

Shapes: B sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from xares_bench.config.recipe import GenerationRecipe
from xares_bench.core.errors import OutOfMemory
from xares_bench.core.progress import Progress
from xares_bench.lalm.attention import Cache, pack
from xares_bench.lalm.batch import TextTokenizer, Utterance, collate
from xares_bench.lalm.hugging_face_generation import generate_padded, until
from xares_bench.lalm.model import LALM
from xares_bench.lalm.token_steps import Texts, TokenSteps
from xares_bench.runtime.memory import is_out_of_memory, prepare_smaller_batches
from xares_bench.runtime.recording import Recorder

# Maximal number of prompt positions that are read at once.
_MAX_POSITIONS_READ = 4096
# New clips are taken in once this share of the rows is free. Reading a prompt costs a pass over the decoder's weights,
# whether it is for one clip or for many.
_FREE_SHARE = 0.25


def generate(
    lalm: LALM,
    prompts: Sequence[Utterance],
    *,
    tokenizer: TextTokenizer,
    recipe: GenerationRecipe,
    device: torch.device,
    progress: Progress,
    description: str = "generating",
) -> list[str]:
    """Return the text that the LALM generates for every prompt, in the given order.

    Raises:
        UsageError: The decoder has too few positions for a clip and its text.
        OutOfMemory: Memory does not suffice for one clip.
    """
    order = sorted(range(len(prompts)), key=lambda index: (-prompts[index].num_positions, index))
    longest_first = [prompts[index] for index in order]
    texts = [""] * len(prompts)
    generate_tokens = _generate_packed if lalm.reads_packed else generate_padded
    with torch.inference_mode(), progress.bar(description, len(prompts)) as advance:
        if longest_first:
            lalm.check_length(longest_first[0].num_positions + recipe.max_new_tokens)
        for place, token_ids in generate_tokens(lalm, longest_first, tokenizer=tokenizer, recipe=recipe, device=device):
            texts[order[place]] = tokenizer.text(token_ids)
            advance()
    return texts


def _generate_packed(
    lalm: LALM,
    prompts: Sequence[Utterance],
    *,
    tokenizer: TextTokenizer,
    recipe: GenerationRecipe,
    device: torch.device,
) -> Iterator[tuple[int, list[int]]]:
    """Yield index and generated tokens of every prompt when its text ends; `prompts` must be sorted, longest first."""
    waiting = list(enumerate(prompts))[::-1]
    most = recipe.generation_batch_size
    while waiting:
        # All rows of a cache have the length that its longest clip needs. Once clips are half as long, a new cache with
        # more rows is worth its cost.
        num_positions = waiting[-1][1].num_positions + recipe.max_new_tokens
        num_rows = min(most, max(1, recipe.generation_positions // num_positions))
        rows = _Rows(lalm, tokenizer, recipe, device, Cache(num_rows=num_rows, num_positions=num_positions))
        try:
            yield from _generate_in(
                rows, waiting, 0 if num_rows == most else num_positions // 2 - recipe.max_new_tokens
            )
            continue
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if num_rows == 1:
                raise OutOfMemory(f"{error}: not enough memory for generation of one clip") from None
        # Outside the handler, because the exception holds references to the tensors of the frames that it left.
        waiting.extend(sorted(((row.index, row.prompt) for row in rows.in_use), reverse=True))
        del rows
        most = num_rows // 2
        prepare_smaller_batches("generation", num_rows)


def _generate_in(rows: _Rows, waiting: list[tuple[int, Utterance]], shortest: int) -> Iterator[tuple[int, list[int]]]:
    """Generate for waiting prompts, longest first, down to the length `shortest`; yields index and tokens."""
    num_rows = rows.num_free
    while True:
        if rows.num_free >= max(1, _FREE_SHARE * num_rows):
            taken = _take(waiting, rows.num_free, shortest)
            if taken:
                yield from rows.begin(taken)
        if not rows.in_use:
            return
        yield from rows.advance()


def _take(waiting: list[tuple[int, Utterance]], num_free: int, shortest: int) -> list[tuple[int, Utterance]]:
    """Remove the next prompts to read together: at most `num_free`, not too long in total, none under `shortest`."""
    taken: list[tuple[int, Utterance]] = []
    num_positions = 0
    while waiting and len(taken) < num_free and waiting[-1][1].num_positions >= shortest:
        num_positions += waiting[-1][1].num_positions
        if taken and num_positions > _MAX_POSITIONS_READ:
            break
        taken.append(waiting.pop())
    return taken


@dataclass(kw_only=True)
class _Row:
    """A text that is being generated.

    Attributes:
        index: Index of its prompt.
        prompt: The prompt that it continues.
        length: Number of positions that the decoder has read.
    """

    index: int
    prompt: Utterance
    length: int

    @property
    def num_tokens(self) -> int:
        """Number of generated tokens; the decoder has not read the last one yet."""
        return self.length - self.prompt.num_positions + 1


class _Rows:
    """The rows of a cache. Those in use are always the first ones, so that a step computes a slice of the cache."""

    def __init__(
        self, lalm: LALM, tokenizer: TextTokenizer, recipe: GenerationRecipe, device: torch.device, cache: Cache
    ) -> None:
        self.in_use: list[_Row] = []
        self._lalm = lalm
        self._eos_id = tokenizer.eos_id
        self._max_new_tokens = recipe.max_new_tokens
        self._device = device
        self._texts = Texts(lalm, cache, recipe, device)
        self._step = TokenSteps(self._texts, _recorder(recipe, device))

    @property
    def num_free(self) -> int:
        """Number of rows without a clip."""
        return self._texts.cache.num_rows - len(self.in_use)

    def begin(self, prompts: Sequence[tuple[int, Utterance]]) -> list[tuple[int, list[int]]]:
        """Read prompts into free rows and generate their first tokens; return the texts that end with it."""
        rows = slice(len(self.in_use), len(self.in_use) + len(prompts))
        self.in_use.extend(_Row(index=index, prompt=prompt, length=prompt.num_positions) for index, prompt in prompts)
        batch = collate([prompt for _, prompt in prompts]).to(self._device)
        packing = pack(batch.lengths, self._device, cache=self._texts.cache, rows=rows)
        last_places_B = torch.tensor(batch.lengths).cumsum(0).to(self._device) - 1
        self._texts.begin(
            rows, self._lalm.read(self._lalm.embed(batch), packing, packing.position_ids_N, last_places_B)
        )
        return self._release()

    def advance(self) -> list[tuple[int, list[int]]]:
        """Generate the next tokens of every row in use; return the texts that end with one of them."""
        rows = self.in_use
        self._texts.locate([row.length for row in rows], [row.num_tokens for row in rows])
        for _ in range(min(_tokens_at_once(self._device), *(self._max_new_tokens - row.num_tokens for row in rows))):
            self._step(len(rows), max(row.length for row in rows) + 1)
            for row in rows:
                row.length += 1
        return self._release()

    def _release(self) -> list[tuple[int, list[int]]]:
        """Remove finished texts from their rows and return them; the last row moves into each gap."""
        ended: list[tuple[int, list[int]]] = []
        have_eos = self._texts.have(self._eos_id, len(self.in_use))
        for place in reversed(range(len(self.in_use))):
            row = self.in_use[place]
            if not have_eos[place] and row.num_tokens < self._max_new_tokens:
                continue
            ended.append((row.index, until(self._texts.tokens(place, row.num_tokens), self._eos_id)))
            last = self.in_use.pop()
            if last is not row:
                self._texts.move(len(self.in_use), place, last.length)
                self.in_use[place] = last
        return ended


def _tokens_at_once(device: torch.device) -> int:
    """Number of tokens that are generated before the next look at which texts have ended.

    A GPU waits while the host looks; a CPU does not, and tokens behind an end cost it time. More than a few would cost
    a GPU time, too: most texts are short.
    """
    return 1 if device.type == "cpu" else 4


def _recorder(recipe: GenerationRecipe, device: torch.device) -> Recorder | None:
    """Return a recorder for the tokens of one cache: the memory that recordings share ends with the last of them."""
    return Recorder(device) if recipe.cuda_graphs and device.type == "cuda" else None
