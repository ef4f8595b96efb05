"""The judges: a sentence encoder and a fluency detector, from which FENSE and DATE are computed.

The formulas are in `formulas`, the models' files in `files`. All values equal those of the package mecat 1.1.0 for the
same texts, before it rounds them.

Shapes: N texts, B texts of a batch, L tokens, D width of an embedding, V different word pieces of all texts.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from xares_bench.metrics.captions.files import JudgeFiles, locate, read_checkpoint, readable
from xares_bench.metrics.captions.formulas import Array, date_values, fense_values, row_similarities

_DETECTOR_MAX_LENGTH = 256
_BATCH_TEXTS = 64
_BLOCK_WORDS = 512


def check_available() -> None:
    """Download and load the judges, so that scoring does not fail later.

    Raises:
        UsageError: A model is missing or unusable.
    """
    load_judges()


def load_judges() -> Judges:
    """Return the judges, loaded on the first call and cached in main memory.

    Raises:
        UsageError: A model is missing or unusable.
    """
    return _load(locate())


def fense_row_values(references: Sequence[str], hypotheses: Sequence[str]) -> list[float]:
    """Return FENSE of every row of normalised texts.

    Raises:
        UsageError: A model is missing or unusable.
    """
    judging = load_judges()
    with judging.on_device():
        similarities = row_similarities(judging.embeddings(hypotheses), judging.embeddings(references))
        return list(map(float, fense_values(similarities, judging.error_probabilities(hypotheses))))


def date_row_values(references: Sequence[str], hypotheses: Sequence[str]) -> list[float]:
    """Return DATE of every row among all rows of normalised texts.

    Raises:
        UsageError: A model is missing or unusable.
    """
    judging = load_judges()
    with judging.on_device():
        values = date_values(
            judging.weighted_embeddings(hypotheses),
            judging.weighted_embeddings(references),
            judging.error_probabilities(hypotheses),
        )
    return list(map(float, values))


class Judges:
    """Sentence encoder and fluency detector, in float32 and eval mode, on the CPU except inside `on_device`.

    A text's values do not depend on the other texts, except in `weighted_embeddings`; equal texts are computed once.
    """

    def __init__(self, sentence_encoder: _Bert, detector: _Bert, detector_head: nn.Linear) -> None:
        """Take the loaded parts."""
        self._sentence_encoder = sentence_encoder
        self._detector = detector
        self._detector_head = detector_head
        self._device: torch.device | None = None

    @contextlib.contextmanager
    def on_device(self, device: torch.device | str | None = None) -> Iterator[None]:
        """Move the judges to a device inside the block, and back to the CPU after it.

        A nested block does nothing: the outer one decides.

        Args:
            device: None for a GPU if there is one, else the CPU.
        """
        if self._device is not None:
            yield
            return
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            self._move(self._device)
            yield
        finally:
            self._move(torch.device("cpu"))
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            self._device = None

    def embeddings(self, texts: Sequence[str]) -> Array:
        """Return sentence embeddings of unit length, `[N, D]`."""
        bert = self._sentence_encoder

        def embed(ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
            return bert.mean_embeddings(bert.word_embeddings(ids_BL), mask_BL)

        return self._of_unique_texts(bert, texts, embed)

    def weighted_embeddings(self, texts: Sequence[str]) -> Array:
        """Return sentence embeddings of unit length from weighted word pieces, `[N, D]`; they depend on all texts.

        For DATE, mecat multiplies a text's word embeddings by weights before they enter the encoder: `tf_i * idf_i`,
        divided by its mean over the text's word pieces. Similar words count in part, by the squared cosine `s_ij` of
        their static embeddings: `tf_i = sum_j s_ij` over the word pieces j of the text, and
        `idf_i = 1 + ln((N + 1) / (1 + sum_n min(1, sum_j s_ij)))` with j over the word pieces of text n. The first
        token takes the text's largest weight, the last one its smallest. Static embeddings, cosines, squares, sums and
        weights are rounded to half precision where mecat rounds them.
        """
        bert = self._sentence_encoder
        ids = bert.tokens(sorted(set(texts)))
        counts = Counter(texts)
        weights = _word_weights(bert, ids, [counts[text] for text in sorted(set(texts))])

        def embed(ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
            return bert.mean_embeddings(bert.word_embeddings(ids_BL) * weights(ids_BL)[:, :, None], mask_BL)

        return self._of_unique_texts(bert, texts, embed)

    def error_probabilities(self, texts: Sequence[str]) -> Array:
        """Return the probability that a text has a fluency error of any kind, `[N]`."""
        bert = self._detector

        def detect(ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
            first_BD = bert.outputs(bert.word_embeddings(ids_BL), mask_BL)[:, 0]
            # The last class is "any error"; the others are single kinds of error.
            return torch.sigmoid(self._detector_head(first_BD))[:, -1]

        # The detector was trained on texts without punctuation, non-ASCII included.
        return self._of_unique_texts(bert, [re.sub(r"[^\w\s]", "", text).lower() for text in texts], detect)

    @torch.inference_mode()
    def _of_unique_texts(self, bert: _Bert, texts: Sequence[str], compute: Callable[[Tensor, Tensor], Tensor]) -> Array:
        """`compute(ids [B, L], mask [B, L])` of all texts: equal texts once, in batches of similar length."""
        unique = sorted(set(texts))
        rows: list[Tensor] = [torch.empty(0)] * len(unique)
        for indices, ids_BL, mask_BL in bert.batches(bert.tokens(unique)):
            for index, row in zip(indices, compute(ids_BL, mask_BL).float().cpu(), strict=True):
                rows[index] = row
        position = {text: index for index, text in enumerate(unique)}
        result: Array = torch.stack(rows).numpy()[[position[text] for text in texts]]
        return result

    def _move(self, device: torch.device) -> None:
        parts: tuple[nn.Module, ...] = (self._sentence_encoder.model, self._detector.model, self._detector_head)
        for part in parts:
            part.to(device)


@dataclass(frozen=True, kw_only=True)
class _Bert:
    """A BERT with its tokeniser.

    Attributes:
        max_length: Tokens to truncate a text to, including the first and last special tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    max_length: int

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """Token ids per text, with the special tokens that the model expects."""
        ids: list[list[int]] = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        return ids

    def batches(self, ids: list[list[int]]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Indices of the texts, padded ids and mask `[B, L]`, on the model's device, shortest first."""
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        for start in range(0, len(order), _BATCH_TEXTS):
            indices = order[start : start + _BATCH_TEXTS]
            length = max(len(ids[index]) for index in indices)
            padded = [ids[index] + [self.pad_id] * (length - len(ids[index])) for index in indices]
            mask = [[1] * len(ids[index]) + [0] * (length - len(ids[index])) for index in indices]
            yield indices, torch.tensor(padded, device=self.model.device), torch.tensor(mask, device=self.model.device)

    def word_embeddings(self, ids: Tensor) -> Tensor:
        """Static embeddings of tokens, with one more dimension of width D."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        return embeddings

    def outputs(self, embeddings_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """The last layer's outputs, `[B, L, D]`."""
        outputs: Tensor = self.model(inputs_embeds=embeddings_BLD, attention_mask=mask_BL).last_hidden_state
        return outputs

    def mean_embeddings(self, embeddings_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Means of the outputs over each text's tokens, of unit length, `[B, D]`."""
        mask_BL1 = mask_BL[:, :, None].to(embeddings_BLD.dtype)
        summed_BD = (self.outputs(embeddings_BLD, mask_BL) * mask_BL1).sum(1)
        return functional.normalize(summed_BD / mask_BL1.sum(1), dim=-1)

    @property
    def pad_id(self) -> int:
        """The padding token."""
        return int(self.tokenizer.pad_token_id)

    @property
    def first_id(self) -> int:
        """The token before every text."""
        return int(self.tokenizer.cls_token_id)

    @property
    def last_id(self) -> int:
        """The token after every text."""
        return int(self.tokenizer.sep_token_id)


@torch.inference_mode()
def _word_weights(bert: _Bert, ids: list[list[int]], counts: list[int]) -> Callable[[Tensor], Tensor]:
    """The function from token ids `[B, L]` to their weights `[B, L]` that `Judges.weighted_embeddings` describes.

    Args:
        bert: The sentence encoder.
        ids: Tokens of each different text.
        counts: How often each of them occurs; repeated texts count repeatedly in the idf.
    """
    device = bert.model.device
    special = {bert.pad_id, bert.first_id, bert.last_id}
    vocabulary = sorted(set(itertools.chain.from_iterable(ids)) - special)
    num_words = len(vocabulary)
    static_VD = bert.word_embeddings(torch.tensor(vocabulary, dtype=torch.long, device=device))
    # Rounded to half precision but computed in single precision, which gives the same values on every device.
    unit_VD = functional.normalize(static_VD.half(), dim=-1).float()

    position = {word: index for index, word in enumerate(vocabulary)}
    words = [[position[token] for token in text if token in position] for text in ids]
    flat = torch.tensor(list(itertools.chain.from_iterable(words)), dtype=torch.long, device=device)
    text_starts = torch.tensor([0, *itertools.accumulate(map(len, words))][:-1], dtype=torch.long, device=device)
    counts_N = torch.tensor(counts, dtype=torch.float32, device=device)
    blocks = [torch.empty(0, device=device)]
    # In blocks of words: V x V cosines of a large vocabulary would take gigabytes.
    for start in range(0, num_words, _BLOCK_WORDS):
        squares = (unit_VD @ unit_VD[start : start + _BLOCK_WORDS].T).half().square().float()
        sums = functional.embedding_bag(flat, squares, text_starts, mode="sum")
        blocks.append(counts_N @ sums.half().clamp(max=1).float())
    idf_V = torch.log((sum(counts) + 1) / (torch.cat(blocks) + 1)) + 1

    # One more row of zeros, for tokens that are not words.
    unit_VD = torch.cat([unit_VD, unit_VD.new_zeros(1, unit_VD.shape[1])])
    idf_V = torch.cat([idf_V, torch.zeros(1, device=device)])
    index_of_id = torch.full((len(bert.tokenizer),), num_words, device=device)
    index_of_id[torch.tensor(vocabulary, dtype=torch.long, device=device)] = torch.arange(num_words, device=device)

    def weights(ids_BL: Tensor) -> Tensor:
        index_BL = index_of_id[ids_BL]
        is_word_BL = index_BL < num_words
        unit_BLD = unit_VD[index_BL]
        tf_BL = (unit_BLD @ unit_BLD.mT).half().square().float().sum(-1).half().float()
        raw_BL = tf_BL * idf_V[index_BL]
        weights_BL = raw_BL / (raw_BL.sum(1) / is_word_BL.sum(1).clamp(min=1))[:, None].clamp(min=1e-9)
        largest_B = weights_BL.amax(1)
        smallest_B = weights_BL.masked_fill(~is_word_BL, torch.inf).amin(1)
        weights_BL = torch.where(ids_BL == bert.first_id, largest_B[:, None], weights_BL)
        weights_BL = torch.where(ids_BL == bert.last_id, smallest_B[:, None], weights_BL)
        # A text without words keeps its tokens as they are.
        weights_BL = torch.where(is_word_BL.any(1)[:, None], weights_BL, torch.ones_like(weights_BL))
        return weights_BL.half().float()

    return weights


@functools.lru_cache(maxsize=1)
def _load(files: JudgeFiles) -> Judges:
    # Loading a model can draw random numbers, which must not change the training that follows.
    with torch.random.fork_rng(devices=[]):
        detector, head = _load_detector(files)
        return Judges(_load_sentence_encoder(files), detector, head)


def _load_sentence_encoder(files: JudgeFiles) -> _Bert:
    with readable("sentence encoder", files.transformer):
        model, info = AutoModel.from_pretrained(
            files.transformer, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        _check_loaded(sorted(info["missing_keys"]) + [str(key) for key in info["mismatched_keys"]])
        tokenizer = _load_tokenizer(files.transformer)
        max_length = files.max_length or min(tokenizer.model_max_length, model.config.max_position_embeddings)
        return _Bert(tokenizer=tokenizer, model=model.eval(), max_length=max_length)


def _load_detector(files: JudgeFiles) -> tuple[_Bert, nn.Linear]:
    """The detector's BERT and its last layer, which predicts each kind of error."""
    with readable("fluency detector", files.checkpoint):
        content = read_checkpoint(files.checkpoint)
        config = AutoConfig.from_pretrained(files.detector_base, local_files_only=True)
        model: PreTrainedModel = AutoModel.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
        head = nn.Linear(config.hidden_size, content["num_classes"])
        loaded = nn.ModuleDict({"encoder": model, "clf": head}).load_state_dict(content["state_dict"], strict=False)
        # Older versions of transformers saved the positions 0, 1, 2, ... with the weights.
        surplus = set(loaded.unexpected_keys) - {"encoder.embeddings.position_ids"}
        _check_loaded(sorted({*loaded.missing_keys, *surplus}))
        max_length = min(_DETECTOR_MAX_LENGTH, config.max_position_embeddings)
        tokenizer = _load_tokenizer(files.detector_base)
        model.eval()  # type: ignore[no-untyped-call]
        return _Bert(tokenizer=tokenizer, model=model, max_length=max_length), head.eval()


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for name in ("pad_token_id", "cls_token_id", "sep_token_id"):
        if not isinstance(getattr(tokenizer, name), int):
            raise ValueError(f"the tokeniser in {folder} has no {name}")
    return tokenizer


def _check_loaded(wrong: list[str]) -> None:
    """Raise ValueError if weights do not match the config; the pooler's may, as nothing here reads it."""
    wrong = [name for name in wrong if not name.removeprefix("encoder.").startswith("pooler.")]
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights are missing, unexpected or of another size than in the config, such as {wrong[0]}"
        )
