"""The decoder: a causal language model of the Hugging Face hub or a folder, loaded, adapted and checked.

Shapes: B sequences, L tokens, N positions of packed sequences, H hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import get_verbosity, set_verbosity, set_verbosity_error

from xares_bench.config.recipe import TrainingRecipe
from xares_bench.core.errors import UsageError
from xares_bench.lalm.attention import IMPLEMENTATION as PACKED_ATTENTION
from xares_bench.lalm.attention import pack
from xares_bench.lalm.attention import register as register_packed_attention
from xares_bench.lalm.lora import add_lora
from xares_bench.runtime.patches import foreign_functions


def load_decoder(decoder: str, recipe: TrainingRecipe) -> PreTrainedModel:
    """Return a decoder in float32, adapted as the recipe says; new weights come from torch's global generator.

    Args:
        decoder: Hugging Face name or folder of a causal language model. If a folder has a config and no weights, the
            decoder starts from random ones.
        recipe: How the decoder is adapted.

    Raises:
        UsageError: It lacks weights, is not a causal language model, does not accept embeddings as input, cannot be
            adapted as the recipe says, or has classes that somebody has patched.
    """
    model = _load(decoder)
    _refuse_patched(model)
    _check(decoder, model)
    if recipe.adaptation == "lora":
        _adapt(decoder, model, recipe)
    return model


def load_tokenizer(decoder: str) -> PreTrainedTokenizerBase:
    """Return the decoder's tokeniser."""
    return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(decoder, trust_remote_code=False))


def _load(decoder: str) -> PreTrainedModel:
    """Load a decoder in float32, whatever its files contain.

    Raises:
        UsageError: Its files lack weights.
    """
    auto: Any = AutoModelForCausalLM
    folder = Path(decoder)
    model: Any
    if folder.is_dir() and not (any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))):
        config = AutoConfig.from_pretrained(decoder, trust_remote_code=False)
        model = auto.from_config(config, dtype=torch.float32)
    else:
        # Said, as transformers would else ask in a terminal.
        model, loading = auto.from_pretrained(
            decoder, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
        missing = sorted(loading["missing_keys"])
        if missing:
            raise UsageError(
                f"--decoder={decoder}: its files lack {len(missing)} tensors of {type(model).__name__}, the first is "
                f"{missing[0]}; expected a causal language model with all its weights"
            )
    # A model may come with sampling, penalties and lengths of its own. The recipe's count.
    empty: Any = GenerationConfig
    model.generation_config = empty()
    return cast(PreTrainedModel, model)


def _refuse_patched(model: nn.Module) -> None:
    """Refuse a decoder whose computation somebody's code has changed: its scores would be of another LALM.

    Raises:
        UsageError: Methods of its classes are replaced.
    """
    foreign = list(foreign_functions({type(module) for module in model.modules()}))
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UsageError(
            f"methods of the decoder's library are replaced: {foreign[0]}{more}; derive a class of your own in the "
            "encoder's file instead"
        )


def _check(decoder: str, model: Any) -> None:
    """Check that embeddings can replace tokens, and that the model is causal.

    Raises:
        UsageError: They cannot, or it does not.
    """
    name = f"--decoder={decoder}: {type(model).__name__}"
    advice = "choose another causal language model"
    if "inputs_embeds" not in inspect.signature(model.prepare_inputs_for_generation).parameters:
        raise UsageError(f"{name} cannot generate from embeddings in this version of transformers; {advice}")
    embeddings = cast(nn.Embedding, model.get_input_embeddings())
    text_BL = torch.linspace(0, len(embeddings.weight) - 1, 6).long()[None, 1:]
    model.eval()
    try:
        with torch.no_grad():
            by_token_BLV = model(input_ids=text_BL, use_cache=False).logits[:, :-1]
            inputs_BLH = embeddings(text_BL)
            # Like audio, the last embedding is none of a token. Earlier positions must not depend on it.
            inputs_BLH[:, -1] *= -1
            by_embedding_BLV = model(inputs_embeds=inputs_BLH, use_cache=False).logits[:, :-1]
    except Exception as error:
        # Whatever a foreign model raises: it cannot be used.
        raise UsageError(f"{name} does not accept embeddings as input ({_first_line(error)}); {advice}") from error
    # Written so that a NaN does not pass.
    if not (by_token_BLV - by_embedding_BLV).norm() <= 1e-3 * by_token_BLV.norm():
        raise UsageError(
            f"{name} is not causal, or its output for embeddings differs from that for the same tokens; {advice}"
        )


def let_read_packed(model: PreTrainedModel) -> bool:
    """Switch a decoder to attention over packed sequences if its output stays the same; return whether it does.

    The probe reads two short sequences, packed and each alone. A decoder may compute attention by code of its own, mix
    positions outside of attention, or count positions itself; the probe finds all of these without a list of models.
    Then it numbers the positions of the second sequence as if it were the last part of the longest sequence that
    `LALM.check_length` allows: what positions mean may depend on the largest one that is read.

    Raises:
        UsageError: The first sequence is read in another way where the second one is far; padding would not help.
    """
    register_packed_attention()
    before = model.config._attn_implementation
    embeddings = cast(nn.Embedding, model.get_input_embeddings())
    texts = [torch.linspace(0, len(embeddings.weight) - 1, 3 + length).long()[2:-1] for length in (7, 4)]
    packing = pack([len(text) for text in texts], torch.device("cpu"))
    with torch.no_grad(), _quiet_transformers():
        alone_NV = torch.cat([model(inputs_embeds=embeddings(text)[None], use_cache=False).logits[0] for text in texts])
        try:
            model.set_attn_implementation(PACKED_ATTENTION)

            def read(position_ids_N: torch.Tensor) -> torch.Tensor:
                output = model(
                    inputs_embeds=embeddings(torch.cat(texts))[None],
                    position_ids=position_ids_N[None],
                    use_cache=False,
                    layout=packing,
                    logits_to_keep=torch.arange(len(position_ids_N)),
                )
                return cast(torch.Tensor, output.logits[0])

            first = slice(len(texts[0]))
            far_N = packing.position_ids_N.clone()
            far_N[first.stop :] += _farthest(model) - len(texts[1])
            equal = _are_close(read(packing.position_ids_N), alone_NV)
            is_independent = not equal or _are_close(read(far_N)[first], alone_NV[first])
        except Exception:
            # Whatever it raises: this decoder gets padded sequences, and attention as its authors wrote it.
            equal, is_independent = False, True
        if not equal:
            model.set_attn_implementation(before)
    if not is_independent:
        raise UsageError(
            f"the decoder {type(model).__name__} reads a sequence in another way beside one of {_farthest(model)} "
            "positions; choose another causal language model"
        )
    return equal


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Suppress the warning that a decoder does not support an attention implementation."""
    before = get_verbosity()
    set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        set_verbosity(before)


def _adapt(decoder: str, model: PreTrainedModel, recipe: TrainingRecipe) -> None:
    """Add LoRA to every linear layer of a decoder except the output layer, in place.

    Raises:
        UsageError: The decoder has no linear layers, or uses their weights directly.
    """
    name = f"--decoder={decoder}: LoRA cannot be added to {type(model).__name__}"
    advice = "choose another decoder, or train it in full with --set adaptation=full"
    try:
        add_lora(model, recipe)
        _check(decoder, model)
    except (UsageError, ValueError) as error:
        raise UsageError(f"{name} ({_first_line(error)}); {advice}") from error


def _are_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-4 * expected.norm())


@dataclass(frozen=True, kw_only=True)
class PositionLimit:
    """The longest sequence that a decoder reads as it would read it alone, and why, as words of a message."""

    num_positions: int
    reason: str = ""


def position_limit(decoder: PreTrainedModel) -> PositionLimit | None:
    """Return the limit of the decoder's positions; None if they are computed, one like the other.

    Two rotary scalings are computed for the longest sequence of a batch: `longrope` changes all frequencies when a
    sequence is longer than the decoder's first training allowed, and `dynamic` changes them with every position after
    that, and keeps them for later batches. So a sequence would depend on its neighbours, and a text on its batch. Up to
    the limit neither changes anything.
    """
    config: Any = decoder.config.get_text_config(decoder=True)
    max_positions = getattr(config, "max_position_embeddings", None)
    rotary = getattr(config, "rope_parameters", None)
    if rotary is None:
        is_size = isinstance(max_positions, int) and max_positions > 0
        return PositionLimit(num_positions=cast(int, max_positions)) if is_size else None
    found = []
    # One for all layers, or one for each type of layer.
    for parameters in [rotary] if "rope_type" in rotary else [one for one in rotary.values() if isinstance(one, dict)]:
        rope_type = str(parameters.get("rope_type"))
        if rope_type == "longrope":
            found.append((parameters["original_max_position_embeddings"], rope_type))
        elif "dynamic" in rope_type:
            found.append((max_positions, rope_type))
    if not found:
        return None
    num_positions, rope_type = min(found)
    reason = f" before its rotary scaling ({rope_type}) makes every sequence depend on the longest of its batch"
    return PositionLimit(num_positions=num_positions, reason=reason)


def _farthest(decoder: PreTrainedModel) -> int:
    """Return the length of the longest sequence to probe: the limit, or more than the decoder is made for."""
    limit = position_limit(decoder)
    if limit is not None:
        return limit.num_positions
    config: Any = decoder.config.get_text_config(decoder=True)
    return 2 * max(getattr(config, "max_position_embeddings", None) or 0, 4096)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
