"""The layers of decoders that are built like Llama, such as SmolLM2, Qwen2 and Mistral, in fewer and cheaper steps.

transformers' own forward starts about twice as many kernels for the same numbers. It is what these layers are checked
against when a decoder is loaded, and what all other decoders use.

Shapes: N positions of packed sequences, H hidden size, D size of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from xares_bench.lalm.attention import Layout, pack
from xares_bench.lalm.operations import rms_norm, rotate

_PARTS = {
    "model": {"embed_tokens", "layers", "norm", "rotary_emb"},
    "layer": {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}


class LlamaLayers:
    """Reads packed sequences with the modules of a decoder; it has no parameters of its own."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        """Take a decoder for which `is_built_like_llama`."""
        self._model: Any = decoder.model

    def __call__(self, inputs_NH: torch.Tensor, layout: Layout, position_ids_N: torch.Tensor) -> torch.Tensor:
        """Return the hidden states `[N, H]` that the output layer takes."""
        cos_1ND, sin_1ND = self._model.rotary_emb(inputs_NH, position_ids_N[None])
        cos_ND, sin_ND = cos_1ND[0], sin_1ND[0]
        half = cos_ND.shape[1] // 2
        signed_sin_ND = torch.cat([-sin_ND[:, :half], sin_ND[:, half:]], dim=1)
        hidden_NH = inputs_NH
        for layer in self._model.layers:
            hidden_NH, normed_NH = _norm(layer.input_layernorm, hidden_NH)
            hidden_NH = hidden_NH + _attend(layer.self_attn, normed_NH, layout, cos_ND, signed_sin_ND)
            hidden_NH, normed_NH = _norm(layer.post_attention_layernorm, hidden_NH)
            hidden_NH = hidden_NH + layer.mlp(normed_NH)
        return _norm(self._model.norm, hidden_NH)[1]


def llama_layers(decoder: PreTrainedModel) -> LlamaLayers | None:
    """Return the layers of a decoder that reads packed sequences; None if it is not built like Llama.

    Whether a decoder with the same modules also computes the same is found by comparison, on two short sequences.
    """
    if not is_built_like_llama(decoder):
        return None
    layers = LlamaLayers(decoder)
    model: Any = decoder.model
    embeddings: Any = decoder.get_input_embeddings()
    tokens_N = torch.linspace(0, len(embeddings.weight) - 1, 9).long()
    packing = pack([5, 4], torch.device("cpu"))
    with torch.no_grad():
        inputs_NH = embeddings(tokens_N)
        expected_NH = model(
            inputs_embeds=inputs_NH[None], position_ids=packing.position_ids_N[None], use_cache=False, layout=packing
        ).last_hidden_state[0]
        try:
            found_NH = layers(inputs_NH, packing, packing.position_ids_N)
        except Exception:
            # Whatever modules with familiar names raise: this decoder keeps the forward of its authors.
            return None
    return layers if (found_NH - expected_NH).norm() <= 1e-4 * expected_NH.norm() else None


def is_built_like_llama(decoder: PreTrainedModel) -> bool:
    """Whether a decoder has the modules that `LlamaLayers` computes with, and no sliding window."""
    model = getattr(decoder, "model", None)
    if model is None or _names(model) != _PARTS["model"] or not len(model.layers):
        return False
    layer_types = set(getattr(decoder.config, "layer_types", None) or ())
    return layer_types <= {"full_attention"} and _is_norm(model.norm) and all(map(_is_known, model.layers))


def _is_known(layer: nn.Module) -> bool:
    if _names(layer) != _PARTS["layer"]:
        return False
    attention: Any = layer.self_attn
    return (
        _names(attention) == _PARTS["self_attn"]
        and _names(layer.mlp) == _PARTS["mlp"]
        and all(hasattr(attention, name) for name in ("head_dim", "scaling", "attention_dropout"))
        and getattr(attention.config, "sliding_window", None) is None
        and _is_norm(layer.input_layernorm)
        and _is_norm(layer.post_attention_layernorm)
    )


def _is_norm(module: Any) -> bool:
    return hasattr(module, "variance_epsilon")


def _names(module: Any) -> set[str]:
    return {name for name, _ in module.named_children()}


def _norm(norm: Any, hidden_NH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return rms_norm(hidden_NH, norm.weight, norm.variance_epsilon)


def _attend(
    attention: Any, normed_NH: torch.Tensor, layout: Layout, cos_ND: torch.Tensor, signed_sin_ND: torch.Tensor
) -> torch.Tensor:
    """Return the addition `[N, H]` of a layer's attention."""

    def heads(projection: nn.Module) -> torch.Tensor:
        projected: torch.Tensor = projection(normed_NH)
        return projected.view(len(projected), -1, attention.head_dim)

    attended_NHD = layout.attend(
        attention,
        rotate(heads(attention.q_proj), cos_ND, signed_sin_ND),
        rotate(heads(attention.k_proj), cos_ND, signed_sin_ND),
        heads(attention.v_proj),
        scale=attention.scaling,
        window=None,
        dropout=attention.attention_dropout if attention.training else 0.0,
    )
    out: torch.Tensor = attention.o_proj(attended_NHD.flatten(1))
    return out
