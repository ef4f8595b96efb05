"""Tiny caption judges, untrained, in the formats of the published ones."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer

from xares_bench.metrics.captions.files import CHECKPOINT, SENTENCE_MODEL

WORDS = ["a", "dog", "bird", "man", "woman", "barks", "sings", "talks", "loudly", "softly", "while", "rain", "falls"]
WORDS += ["on", "the", "roof", "and", "music", "plays"]
DETECTOR_BASE = "bert-base-uncased"
COMMIT = "0123456789abcdef" * 2 + "01234567"
# Where the vocabulary of the published models has its special tokens; mecat relies on it.
_SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
_NUM_KINDS_OF_ERRORS = 6


def write_judges(folder: Path, *, seed: int = 0) -> Path:
    """Write both judges and the detector's base into a folder for `$XARES_CAPTION_MODELS`, and return it."""
    write_sentence_model(folder / "paraphrase-TinyBERT-L6-v2", seed)
    write_detector_base(folder / DETECTOR_BASE)
    write_checkpoint(folder / CHECKPOINT, seed)
    return folder


def write_hub_cache(folder: Path, *, seed: int = 0) -> tuple[Path, Path]:
    """Write the content of `HF_HUB_CACHE` and `FENSE_DATA` after the downloads, and return both folders.

    The detector's base has weights, as mecat loads them before it replaces them.
    """
    cache, fense_data = folder / "hub", folder / "fense_data"
    for repository in (SENTENCE_MODEL, DETECTOR_BASE):
        repository_folder = cache / f"models--{repository.replace('/', '--')}"
        snapshot = repository_folder / "snapshots" / COMMIT
        if repository == SENTENCE_MODEL:
            write_sentence_model(snapshot, seed)
        else:
            write_detector_base(snapshot)
            _bert(seed + 2).save_pretrained(snapshot)
        (repository_folder / "refs").mkdir()
        (repository_folder / "refs/main").write_text(COMMIT, encoding="utf-8")
    write_checkpoint(fense_data / CHECKPOINT, seed)
    return cache, fense_data


def write_sentence_model(folder: Path, seed: int = 0) -> None:
    """Write a sentence encoder in the sentence-transformers format: a BERT, and a mean over its tokens."""
    write_detector_base(folder)
    (folder / "config.json").unlink()
    _bert(seed).save_pretrained(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    pooling = {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    (folder / "1_Pooling").mkdir()
    for name, content in (
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False}),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def write_detector_base(folder: Path) -> None:
    """Write config and tokeniser of the BERT."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = [_SPECIAL.get(index, f"[unused{index}]") for index in range(104)]
    tokens += [*letters, *(f"##{letter}" for letter in letters), *(word for word in WORDS if len(word) > 1)]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    BertTokenizer.from_pretrained(folder, model_max_length=512).save_pretrained(folder)
    _config(len(tokens)).save_pretrained(folder)


def write_checkpoint(path: Path, seed: int = 0, base: str = DETECTOR_BASE) -> None:
    """Write a fluency detector in the format of FENSE; it finds an error in about a third of random sentences."""
    torch.manual_seed(seed + 1)
    head = nn.Linear(32, _NUM_KINDS_OF_ERRORS)
    nn.init.normal_(head.weight, std=2.0)
    state = {f"encoder.{name}": tensor for name, tensor in _bert(seed + 1).state_dict().items()}
    state |= {f"clf.{name}": tensor.detach() for name, tensor in head.state_dict().items()}
    state["encoder.embeddings.position_ids"] = torch.arange(512)[None]
    content = {"model_type": base, "num_classes": _NUM_KINDS_OF_ERRORS, "state_dict": state}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def random_captions(seed: int, num_rows: int) -> tuple[list[str], list[str]]:
    """References and predictions that share most of their words; some predictions repeat."""
    rng = random.Random(seed)
    references: list[str] = []
    hypotheses: list[str] = []
    for _ in range(num_rows):
        words = rng.choices(WORDS, k=rng.randint(2, 12))
        references.append(" ".join(words))
        repeated = hypotheses and rng.random() < 0.3
        kept = [word if rng.random() < 0.7 else rng.choice([*WORDS, "zebra2"]) for word in words]
        hypotheses.append(rng.choice(hypotheses) if repeated else " ".join(kept))
    return references, hypotheses


def _bert(seed: int) -> BertModel:
    torch.manual_seed(seed)
    return BertModel(_config(104 + 2 * 36 + sum(len(word) > 1 for word in WORDS)))


def _config(num_tokens: int) -> BertConfig:
    return BertConfig(
        vocab_size=num_tokens,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.3,  # far enough from zero that different texts differ
    )
