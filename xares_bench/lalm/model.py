"""The LALM: a linear projector in front of a decoder language model. It knows nothing of datasets or files.

Shapes, over all sequences of a batch: N positions, of them F audio frames, M tokens of text, T targets; D `output_dim`,
H hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional
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
from xares_bench.lalm.attention import Layout, pack
from xares_bench.lalm.attention import register as register_packed_attention
from xares_bench.lalm.batch import Batch
from xares_bench.lalm.lora import add_lora, merge_lora
from xares_bench.runtime.determinism import seeded
from xares_bench.runtime.patches import foreign_functions

WEIGHTS_FILE = "trained.safetensors"

# Compiled steps have a multiple of this number of positions, so that few different shapes are compiled.
_POSITIONS_COMPILED_FOR = 64


class LALM(nn.Module):
    """Projector and decoder, as one module to train.

    Attributes:
        projector: Linear map from the encoder's features to the decoder's embeddings, with bias.
        decoder: A causal language model, with LoRA or trained in full.
        reads_packed: Whether the decoder can read packed sequences (see `attention`); otherwise they are padded.
    """

    def __init__(self, decoder: PreTrainedModel, output_dim: int, *, reads_packed: bool) -> None:
        """Put a new projector, initialised from torch's global generator, in front of a decoder."""
        super().__init__()
        embeddings = cast(nn.Embedding, decoder.get_input_embeddings())
        self.projector = nn.Linear(output_dim, embeddings.weight.shape[1])
        self.decoder = decoder
        self.reads_packed = reads_packed
        self._limit = _position_limit(decoder)
        self._is_compiled = False

    def embed(self, batch: Batch) -> torch.Tensor:
        """Return the decoder's input `[N, H]`: projected features for audio, token embeddings for text.

        Raises:
            UsageError: A sequence is longer than the decoder allows.
        """
        self.check_length(max(batch.lengths))
        embeddings_MH: torch.Tensor = self.decoder.get_input_embeddings()(batch.text_ids_M)
        projected_FH = self.projector(batch.frames_FD.to(self.projector.weight.dtype)).to(embeddings_MH.dtype)
        inputs_NH = embeddings_MH.new_empty(sum(batch.lengths), embeddings_MH.shape[1])
        inputs_NH = inputs_NH.index_copy(0, batch.frame_places_F, projected_FH)
        return inputs_NH.index_copy(0, batch.text_places_M, embeddings_MH)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the sum of the cross-entropy over targets and EOS, in nats.

        The output layer, the widest of all, is computed only at positions that predict a target.
        """
        predict = self._predict_packed if self.reads_packed else self._predict_padded
        return functional.cross_entropy(predict(batch).float(), batch.target_ids_T, reduction="sum")

    def read(self, inputs_NH: torch.Tensor, layout: Layout, position_ids_N: torch.Tensor, **arguments: Any) -> Any:
        """Return the decoder's output for packed sequences; only for decoders that can read them.

        Args:
            inputs_NH: Input from `embed`.
            layout: Where sequences begin.
            position_ids_N: Number of each position in its sequence.
            arguments: Further arguments of the decoder.
        """
        return self.decoder(
            inputs_embeds=inputs_NH[None],
            position_ids=position_ids_N[None],
            use_cache=False,
            layout=layout,
            **arguments,
        )

    def _predict_packed(self, batch: Batch) -> torch.Tensor:
        """Return the logits `[T, V]` at the positions that predict a target."""
        multiple = _POSITIONS_COMPILED_FOR if self._is_compiled else 1
        packing = pack(batch.lengths, batch.text_ids_M.device, multiple=multiple)
        inputs_NH = functional.pad(self.embed(batch), (0, 0, 0, packing.num_fillers))
        output = self.read(inputs_NH, packing, packing.position_ids_N, logits_to_keep=batch.predicting_places_T)
        return cast(torch.Tensor, output.logits[0])

    def _predict_padded(self, batch: Batch) -> torch.Tensor:
        """The same for sequences padded on the right: with causal attention no position sees the padding behind it."""
        packing = pack(batch.lengths, batch.text_ids_M.device)
        output = self.decoder(inputs_embeds=packing.unpacked(self.embed(batch)), use_cache=False)
        logits_NV = packing.packed(output.logits)
        return logits_NV[batch.predicting_places_T]

    def check_length(self, num_positions: int) -> None:
        """Check that a sequence is not too long for the decoder.

        Raises:
            UsageError: The sequence has more positions than the decoder has in its table, or more than its rotary
                scaling leaves alone.
        """
        if self._limit is not None and num_positions > self._limit.num_positions:
            raise UsageError(
                f"a sequence of audio frames and tokens needs {num_positions} positions, the decoder "
                f"{type(self.decoder).__name__} has {self._limit.num_positions}{self._limit.reason}; take another "
                "decoder, an encoder with fewer frames per second, or shorter clips (in training: --set "
                "max_audio_s=...)"
            )

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name and value of every trained parameter."""
        return ((name, value) for name, value in self.named_parameters() if value.requires_grad)

    @contextlib.contextmanager
    def compiled(self, device: torch.device) -> Iterator[None]:
        """Compile the decoder's layers within a `with` block; on a GPU their kernels are replayed as CUDA graphs.

        The number of positions is rounded up, so that few different shapes have to be compiled or recorded.

        Raises:
            UsageError: The decoder does not say which of its modules are layers.
        """
        names = set(getattr(self.decoder, "_no_split_modules", None) or ())
        layers = [module for module in self.decoder.modules() if type(module).__name__ in names]
        if not (layers and self.reads_packed):
            raise UsageError(f"compile=true: {type(self.decoder).__name__} has no layers that can be compiled here")
        for layer in layers:
            if device.type == "cuda":
                layer.compile(mode="reduce-overhead")
            else:
                layer.compile(options=_cpu_compile_options())
        self._is_compiled = True
        try:
            yield
        finally:
            self._is_compiled = False
            for layer in layers:
                layer._compiled_call_impl = None  # torch has no public function for it

    def merge_lora(self) -> None:
        """Add LoRA's additions to the decoder's weights, for good: generation is faster without them."""
        merge_lora(self.decoder)

    def save(self, folder: Path) -> None:
        """Write the trained parameters; the others are in the decoder's own files."""
        state = {name: value.detach().cpu().contiguous() for name, value in self.trained_parameters()}
        (folder / WEIGHTS_FILE).write_bytes(save(state))

    def load(self, folder: Path) -> None:
        """Load the parameters that `save` wrote."""
        state = load_file(folder / WEIGHTS_FILE)
        own = dict(self.trained_parameters())
        assert state.keys() == own.keys(), sorted(state.keys() ^ own.keys())
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state[name])


def build_lalm(decoder: str, output_dim: int, recipe: TrainingRecipe) -> LALM:
    """Return an untrained LALM; equal arguments give equal LALMs.

    Args:
        decoder: Hugging Face name or folder of a causal language model. If a folder has a config and no weights, the
            decoder starts from random ones.
        output_dim: Width of the encoder's features.
        recipe: Seed, and how the decoder is adapted.

    Raises:
        UsageError: The decoder lacks weights, is not a causal language model, does not accept embeddings as input,
            cannot be adapted as the recipe says, or has classes that are patched.
    """
    with seeded(recipe.seed, torch.device("cpu")):
        model = _load_decoder(decoder)
        _refuse_foreign_functions(model)
        _check_decoder(decoder, model)
        if recipe.adaptation == "lora":
            _add_lora(decoder, model, recipe)
        return LALM(model, output_dim, reads_packed=_let_read_packed(model))


def load_tokenizer(decoder: str) -> PreTrainedTokenizerBase:
    """Return the decoder's tokeniser."""
    return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(decoder))


def _load_decoder(decoder: str) -> PreTrainedModel:
    """Load a decoder in float32, whatever its files contain.

    Raises:
        UsageError: Its files lack weights.
    """
    auto: Any = AutoModelForCausalLM
    folder = Path(decoder)
    model: Any
    if folder.is_dir() and not (any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))):
        model = auto.from_config(AutoConfig.from_pretrained(decoder), dtype=torch.float32)
    else:
        model, loading = auto.from_pretrained(decoder, dtype=torch.float32, output_loading_info=True)
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


def _refuse_foreign_functions(model: nn.Module) -> None:
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


def _check_decoder(decoder: str, model: Any) -> None:
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


def _let_read_packed(model: PreTrainedModel) -> bool:
    """Switch a decoder to attention over packed sequences if its output stays the same; return whether it does.

    The probe reads two short sequences, packed and each alone. A decoder may compute attention by code of its own, mix
    positions outside of attention, or count positions itself; the probe finds all of these without a list of models.
    Then it numbers the positions of the second sequence as if it were the last part of the longest sequence that
    `LALM.check_length` allows: what positions mean may depend on the largest one that is read.

    Raises:
        UsageError: It does. Padding would not help.
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


def _add_lora(decoder: str, model: PreTrainedModel, recipe: TrainingRecipe) -> None:
    """Add LoRA to every linear layer of a decoder except the output layer, in place.

    Raises:
        UsageError: The decoder has no linear layers, or uses their weights directly.
    """
    name = f"--decoder={decoder}: LoRA cannot be added to {type(model).__name__}"
    advice = "choose another decoder, or train it in full with --set adaptation=full"
    try:
        add_lora(model, recipe)
        _check_decoder(decoder, model)
    except (UsageError, ValueError) as error:
        raise UsageError(f"{name} ({_first_line(error)}); {advice}") from error


def _are_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-4 * expected.norm())


@dataclass(frozen=True, kw_only=True)
class _PositionLimit:
    """The longest sequence that a decoder reads as it would read it alone, and why, as words of a message."""

    num_positions: int
    reason: str = ""


def _position_limit(decoder: PreTrainedModel) -> _PositionLimit | None:
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
        return _PositionLimit(num_positions=cast(int, max_positions)) if is_size else None
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
    return _PositionLimit(num_positions=num_positions, reason=reason)


def _farthest(decoder: PreTrainedModel) -> int:
    """Return the length of the longest sequence to probe: the limit, or more than the decoder is made for."""
    limit = _position_limit(decoder)
    if limit is not None:
        return limit.num_positions
    config: Any = decoder.config.get_text_config(decoder=True)
    return 2 * max(getattr(config, "max_position_embeddings", None) or 0, 4096)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _cpu_compile_options() -> dict[str, int]:
    """Options that keep code compiled for one processor from running on another.

    torch caches the C++ that it generates under a key without the processor's instruction set. In a cache folder that
    machines share, code for vectors of 256 bits then met a processor with 512: every store wrote twice as much as there
    was room for (docs/log.md, 2026-11-26). A stated width, 0 for no vectors, is part of the key.
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    return {"cpp.simdlen": pick_vec_isa().bit_width()}
