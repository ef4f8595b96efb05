"""Decoders of many families in the real format, and a LALM computed by transformers and peft alone.

Shapes: L positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from xares_bench.config.recipe import Recipe
from xares_bench.lalm.batch import TextTokenizer, Utterance
from xares_bench.lalm.model import LALM

OUTPUT_DIM = 6
NUM_NEW_TOKENS = 20
PENALTY = 1.05

_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "qwen3": {**_LLAMA_LIKE, "head_dim": 8},
    # Attention to the last few positions only, fewer than a sequence has.
    "mistral": {**_LLAMA_LIKE, "sliding_window": 8},
    "phi3": _LLAMA_LIKE,
    # Embeddings are scaled by the square root of the hidden size.
    "gemma": {**_LLAMA_LIKE, "head_dim": 8},
    "gemma3_text": {**_LLAMA_LIKE, "head_dim": 8, "sliding_window": 8},
    "gpt_neox": _LLAMA_LIKE,
    # Tables of positions.
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
        "ffn_dim": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    },
    # Distances instead of positions.
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 3, "n_heads": 4},
    # Returns the logits of every position, whichever it is asked for.
    "trocr": {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 64, "decoder_attention_heads": 4},
    # Positions count from the padding on, so that only clips of equal length may share a batch.
    "bart": {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 64, "decoder_attention_heads": 4},
}
NO_LORA_FAMILIES: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},
}


class TokenIdTokenizer(TextTokenizer):
    """A tokenizer whose texts are the token ids themselves, so that no difference is lost in decoding."""

    def text(self, token_ids: Sequence[int]) -> str:
        return " ".join(map(str, token_ids))


def save_decoder(folder: Path, family: str, **changes: Any) -> str:
    """Write config and weights, drawn large enough that different inputs give different texts; the folder's name."""
    values = {"vocab_size": 384, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = CONFIG_MAPPING[family](**{**values, **{**FAMILIES, **NO_LORA_FAMILIES}[family], **changes})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for value in model.parameters():
                if value.ndim >= 2:
                    value.normal_(std=0.3)
                else:
                    value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(folder)
    return str(folder)


class Float64(TorchFunctionMode):
    """Within the block no operation rounds to float32, as the norms and softmaxes of many models do on purpose.

    Two computations of the same thing then differ by 1e-12 or so on any processor, whatever the order of their sums.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.view:  # of bytes that were read from a file
            return func(*args, **(kwargs or {}))
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


class Plain(nn.Module):
    """A LALM by transformers and peft alone, with the values of one of ours."""

    def __init__(self, folder: str, lalm: LALM, recipe: Recipe) -> None:
        super().__init__()
        training = recipe.training
        decoder: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        if training.adaptation == "lora":
            config = LoraConfig(
                r=8,
                lora_alpha=32,
                lora_dropout=training.lora_dropout,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
            decoder = get_peft_model(decoder, config).get_base_model()
        self.decoder = decoder
        self.projector = nn.Linear(OUTPUT_DIM, lalm.projector.out_features)
        own = {_own_name(name): value for name, value in self.named_parameters() if value.requires_grad}
        theirs = dict(lalm.trained_parameters())
        assert own.keys() == theirs.keys()
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(theirs[name])

    def named_gradients(self) -> dict[str, torch.Tensor]:
        """Gradients by the names that a LALM of ours gives to its parameters."""
        return {_own_name(name): value.grad for name, value in self.named_parameters() if value.grad is not None}

    def named_values(self) -> dict[str, torch.Tensor]:
        """Parameters by the names that a LALM of ours gives to them."""
        return {_own_name(name): value for name, value in self.named_parameters()}

    def inputs(self, utterance: Utterance, token_ids: Sequence[int]) -> torch.Tensor:
        tokens_LH = self.decoder.get_input_embeddings()(torch.tensor(token_ids))
        frames_TD = utterance.clip.frames().to(tokens_LH.dtype)
        return torch.cat([self.projector(frames_TD), tokens_LH])[None]

    def loss(self, utterance: Utterance) -> torch.Tensor:
        """Summed cross-entropy of one sequence."""
        token_ids = (*utterance.prompt_ids, *utterance.target_ids)
        logits_LV = self.decoder(inputs_embeds=self.inputs(utterance, token_ids), use_cache=False).logits[0]
        num_targets = len(utterance.target_ids)
        log_probabilities = torch.log_softmax(logits_LV[-num_targets - 1 : -1], dim=-1)
        return -log_probabilities[torch.arange(num_targets), torch.tensor(utterance.target_ids)].sum()

    def greedy(self, utterance: Utterance, eos_id: int) -> tuple[list[int], list[float]]:
        """Greedy decoding that recomputes the whole sequence for every token.

        Returns:
            The tokens before EOS; and for each, and for EOS, by how many standard deviations of the logits it led.
        """
        tokens: list[int] = []
        leads: list[float] = []
        with torch.no_grad():
            while len(tokens) < NUM_NEW_TOKENS:
                inputs_1LH = self.inputs(utterance, (*utterance.prompt_ids, *tokens))
                logits_V = self.decoder(inputs_embeds=inputs_1LH, use_cache=False).logits[0, -1]
                for token in set(tokens):
                    logits_V[token] *= PENALTY if logits_V[token] < 0 else 1 / PENALTY
                (best, second), (token, _) = (values.tolist() for values in logits_V.topk(2))
                leads.append((best - second) / float(logits_V.std()))
                if token == eos_id:
                    break
                tokens.append(token)
        return tokens, leads


def _own_name(name: str) -> str:
    """What a LALM of ours calls a parameter of peft's."""
    return name.replace(".base_layer.", ".base.").replace(".default.weight", "")
