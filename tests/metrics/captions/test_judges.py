"""The caption judges compared with plain computations and with mecat, and their side effects."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoTokenizer, BertConfig, BertModel

from tests.metrics.captions.factory import DETECTOR_BASE, random_captions, write_hub_cache, write_judges
from xares_bench.metrics.captions import judges
from xares_bench.metrics.captions.files import CHECKPOINT, FOLDER_VARIABLE
from xares_bench.metrics.captions.judges import Judges, date_row_values, fense_row_values, load_judges
from xares_bench.metrics.parts import normalise

SENTENCE_FOLDER = "paraphrase-TinyBERT-L6-v2"
# Texts of increasing length from empty to more than the encoder's 24 tokens, and one of unknown characters only.
TEXTS = [" ".join(["a", "dog", "barks", "loudly"] * 9)[:length] for length in range(0, 120, 3)] + ["今天 天气"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judges(tmp_path_factory.mktemp("judges"))


@pytest.fixture(autouse=True)
def _judges_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))


class PlainJudges:
    """The published definitions, one text at a time, without batches, blocks or this package's modules."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder / SENTENCE_FOLDER)
        self.encoder = BertModel.from_pretrained(folder / SENTENCE_FOLDER).train(False)
        content = torch.load(folder / CHECKPOINT, weights_only=True)
        parts: dict[str, dict[str, torch.Tensor]] = {"encoder": {}, "clf": {}}
        for name, tensor in content["state_dict"].items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = tensor
        self.detector = BertModel(BertConfig.from_pretrained(folder / DETECTOR_BASE)).train(False)
        self.detector.load_state_dict(
            {name: tensor for name, tensor in parts["encoder"].items() if "position_ids" not in name}
        )
        self.head = parts["clf"]

    def ids(self, text: str, max_length: int) -> torch.Tensor:
        return torch.tensor([self.tokenizer(text, truncation=True, max_length=max_length)["input_ids"]])

    @torch.inference_mode()
    def embedding(self, text: str) -> torch.Tensor:
        return functional.normalize(self.encoder(self.ids(text, 24)).last_hidden_state[0].mean(0), dim=0)

    @torch.inference_mode()
    def error_probability(self, text: str) -> float:
        # Padded to the detector's length, as FENSE and mecat call it.
        ids = functional.pad(self.ids(re.sub(r"[^\w\s]", "", text), 256), (0, 250))[:, :256]
        outputs = self.detector(ids, attention_mask=(ids != 0).long()).last_hidden_state[0, 0]
        return float(torch.sigmoid(outputs @ self.head["weight"].T + self.head["bias"])[-1])

    @torch.inference_mode()
    def weighted_embeddings(self, texts: list[str]) -> list[torch.Tensor]:
        static = self.encoder.embeddings.word_embeddings.weight.numpy().astype(np.float64)
        unit = static / np.linalg.norm(static, axis=1, keepdims=True).clip(1e-9)  # padding is zero
        rows = [self.ids(text, 24)[0].tolist() for text in texts]
        embeddings = []
        for row in rows:
            words = [token for token in row if token not in (0, 101, 102)]
            raw = []
            for word in words:
                tf = sum((unit[word] @ unit[other]) ** 2 for other in words)
                num_texts = sum(
                    min(1.0, sum((unit[word] @ unit[other]) ** 2 for other in text if other not in (101, 102)))
                    for text in rows
                )
                raw.append(tf * (1 + math.log((len(texts) + 1) / (1 + num_texts))))
            weights = [value / (sum(raw) / len(raw)) for value in raw]
            factors = torch.tensor([max(weights), *weights, min(weights)] if weights else [1.0, 1.0])
            embedded = torch.from_numpy(static[row]).float() * factors[:, None].float()
            outputs = self.encoder(inputs_embeds=embedded[None]).last_hidden_state[0].mean(0)
            embeddings.append(functional.normalize(outputs, dim=0))
        return embeddings


@pytest.fixture(scope="module")
def plain(folder: Path) -> PlainJudges:
    return PlainJudges(folder)


# --- values


def test_embeddings_are_those_of_each_text_alone(plain: PlainJudges) -> None:
    computed = load_judges().embeddings(TEXTS)
    assert computed.shape == (len(TEXTS), 32)
    assert computed.dtype == np.float32
    for text, embedding in zip(TEXTS, computed, strict=True):
        assert embedding == pytest.approx(plain.embedding(text).numpy(), abs=1e-5), text


def test_error_probabilities_are_those_of_each_text_alone(plain: PlainJudges) -> None:
    texts = [*TEXTS, *random_captions(0, 60)[1], "a dog\u3002 barks\u2014", "a " * 300]
    computed = load_judges().error_probabilities(texts)
    assert (computed > 0.9).sum() > 3
    assert (computed < 0.9).sum() > 3
    assert computed == pytest.approx([plain.error_probability(text) for text in texts], abs=1e-5)


@pytest.mark.parametrize("block_words", [3, 512])
def test_weighted_embeddings_follow_the_formula(
    plain: PlainJudges, block_words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "_BLOCK_WORDS", block_words)
    texts = [*random_captions(1, 25)[1], "", "今天", "a dog", "a dog"]
    expected = np.stack([embedding.numpy() for embedding in plain.weighted_embeddings(texts)])
    unweighted = load_judges().embeddings(texts)
    assert np.abs(expected - unweighted).max() > 0.05
    # The formula in double precision; the judges round to half precision as mecat does.
    assert np.abs(load_judges().weighted_embeddings(texts) - expected).max() < 4e-3


def test_weights_depend_on_all_texts_and_on_repetitions() -> None:
    texts = random_captions(2, 12)[1]
    alone = load_judges().weighted_embeddings(texts)[:3]
    twice = load_judges().weighted_embeddings([*texts, *[texts[0]] * 8])[:3]
    assert np.abs(alone - twice).max() > 1e-4


def test_texts_without_words_are_embedded() -> None:
    for texts in ([""], ["", ""], ["", "a dog"]):
        for embeddings in (load_judges().embeddings(texts), load_judges().weighted_embeddings(texts)):
            assert np.linalg.norm(embeddings, axis=1) == pytest.approx([1] * len(texts))
        assert np.isfinite(load_judges().error_probabilities(texts)).all()


def test_a_text_does_not_depend_on_its_neighbours_or_on_their_order() -> None:
    references, hypotheses = random_captions(3, 60)
    together = fense_row_values(references, hypotheses)
    apart = [fense_row_values([text], [other])[0] for text, other in zip(references, hypotheses, strict=True)]
    assert together == pytest.approx(apart, abs=1e-5)
    order = np.random.default_rng(0).permutation(60)
    shuffled = [references[row] for row in order], [hypotheses[row] for row in order]
    assert fense_row_values(*shuffled) == [together[row] for row in order]
    assert date_row_values(*shuffled) == [date_row_values(references, hypotheses)[row] for row in order]


def test_identical_texts_are_computed_once() -> None:
    num_texts = []

    def count(_module: torch.nn.Module, _arguments: object, keywords: dict[str, torch.Tensor]) -> None:
        num_texts.append(len(keywords["inputs_embeds"]))

    judging = load_judges()
    handle = judging._sentence_encoder.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        embeddings = judging.embeddings(["a dog", "rain falls", "a dog"] * 50)
    finally:
        handle.remove()
    assert num_texts == [2]
    assert (embeddings[0] == embeddings[2]).all()
    assert (embeddings[0] != embeddings[1]).any()


# --- compared with mecat

_MECAT = """
import json, sys
from mecat import evaluate
from mecat.DATE import DATEEvaluator
kind, source, target = sys.argv[1:]
references, hypotheses = json.load(open(source))
evaluator = DATEEvaluator(device="cpu", return_type=kind)
wrapped = [[text] for text in references]
keys = list(range(len(references)))
evaluator.corpus_score(hypotheses, wrapped, save_dataframe_path=target + ".csv", sample_keys=keys)
import pandas
rows = pandas.read_csv(target + ".csv")["similarity" if kind == "fense" else "date"].tolist()
predicted = [[text] for text in hypotheses]
table = evaluate(predicted, reference_data=wrapped, task="caption", subtask="long", metrics=[kind], device="cpu")
json.dump([rows, float(table[kind][0])], open(target, "w"))
"""


@pytest.mark.skipif(importlib.util.find_spec("mecat") is None, reason="mecat 1.1.0 is not installed")
@pytest.mark.parametrize("kind", ["fense", "date"])
def test_rows_and_corpus_are_those_of_mecat(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, fense_data = write_hub_cache(tmp_path)
    texts = [[normalise(text) for text in column] for column in random_captions(4, 90)]
    texts[1][7] = ""
    (tmp_path / "rows.json").write_text(json.dumps(texts), encoding="utf-8")
    places = {"HF_HUB_CACHE": str(cache), "FENSE_DATA": str(fense_data), "HF_HUB_OFFLINE": "1"}
    arguments = [kind, str(tmp_path / "rows.json"), str(tmp_path / "mecat.json")]
    subprocess.run(
        [sys.executable, "-c", _MECAT, *arguments], env={**os.environ, **places}, check=True, capture_output=True
    )
    rows, corpus = json.loads((tmp_path / "mecat.json").read_text())

    monkeypatch.setenv(FOLDER_VARIABLE, str(write_judges(tmp_path / "given")))
    values = (fense_row_values if kind == "fense" else date_row_values)(*texts)
    assert (load_judges().error_probabilities(texts[1]) > 0.9).sum() > 3
    # Both round word weights to half precision, after sums in different orders.
    assert values == pytest.approx(rows, abs=1e-6 if kind == "fense" else 1e-3)
    assert np.abs(np.subtract(values, rows)).mean() < 1e-5
    assert sum(values) / len(values) == pytest.approx(corpus, abs=6e-5)  # mecat rounds to four digits


# --- loading


def test_they_are_loaded_once_and_are_deterministic() -> None:
    assert load_judges() is load_judges()
    references, hypotheses = random_captions(5, 20)
    assert date_row_values(references, hypotheses) == date_row_values(references, hypotheses)


def test_they_are_frozen_in_float32_and_eval_mode() -> None:
    judging = load_judges()
    for part in (judging._sentence_encoder.model, judging._detector.model, judging._detector_head):
        assert not any(module.training for module in part.modules())
        assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}


def test_loading_does_not_change_the_random_state(folder: Path) -> None:
    judges._load.cache_clear()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    judges.check_available()
    assert torch.equal(torch.rand(3), expected)


def test_weights_are_those_of_the_files(folder: Path) -> None:
    weights = load_file(folder / SENTENCE_FOLDER / "model.safetensors")
    loaded = load_judges()._sentence_encoder.model.state_dict()
    assert torch.equal(loaded["encoder.layer.1.output.dense.weight"], weights["encoder.layer.1.output.dense.weight"])


# --- devices


class WatchedJudges(Judges):
    """Judges that record where they are moved."""

    def __init__(self) -> None:
        known = load_judges()
        super().__init__(known._sentence_encoder, known._detector, known._detector_head)
        self.moves: list[str] = []

    def _move(self, device: torch.device) -> None:
        self.moves.append(str(device))


@pytest.fixture
def watched() -> WatchedJudges:
    return WatchedJudges()


def test_they_leave_the_device_at_the_end_of_the_block(watched: WatchedJudges) -> None:
    with watched.on_device("meta"):
        assert watched.moves == ["meta"]
    assert watched.moves == ["meta", "cpu"]


def test_they_leave_the_device_if_the_block_fails(watched: WatchedJudges) -> None:
    with pytest.raises(RuntimeError, match="out of"), watched.on_device("meta"):
        raise RuntimeError("out of something")
    with watched.on_device("meta"):
        pass
    assert watched.moves == ["meta", "cpu"] * 2


def test_an_outer_block_decides(watched: WatchedJudges) -> None:
    with watched.on_device("meta"):
        with watched.on_device("cpu"):
            pass
        assert watched.moves == ["meta"]


def test_every_part_is_moved() -> None:
    known = load_judges()
    copy = Judges(known._sentence_encoder, known._detector, known._detector_head)
    parts = (known._sentence_encoder.model, known._detector.model, known._detector_head)
    try:
        copy._move(torch.device("meta"))
        assert {parameter.device.type for part in parts for parameter in part.parameters()} == {"meta"}
    finally:
        judges._load.cache_clear()  # tensors on "meta" are gone


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_values() -> None:
    references, hypotheses = random_captions(6, 100)
    with load_judges().on_device("cpu"):
        expected = date_row_values(references, hypotheses)
    with load_judges().on_device("cuda"):
        assert date_row_values(references, hypotheses) == pytest.approx(expected, abs=1e-3)
