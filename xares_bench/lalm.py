"""The LALM: a linear projector in front of a decoder language model. It knows no dataset and no file of features.

Shapes: B sequences, L positions, N audio frames of all sequences together, D `output_dim`, H hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
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

from xares_bench.batches import IGNORED_LABEL, Batch
from xares_bench.determinism import seeded
from xares_bench.errors import UsageError
from xares_bench.recipe import TrainingRecipe

WEIGHTS_FILE = "trained.safetensors"


class LALM(nn.Module):
    """Projector and decoder, as one module to train.

    Attributes:
        projector: Linear map from the encoder's features to the decoder's embeddings, with bias.
        decoder: A causal language model, with LoRA adapters or trained whole.
    """

    def __init__(self, decoder: PreTrainedModel, output_dim: int) -> None:
        """Put a fresh projector (drawn from torch's global generator) in front of a decoder."""
        super().__init__()
        embeddings = cast(nn.Embedding, decoder.get_input_embeddings())
        self.projector = nn.Linear(output_dim, embeddings.weight.shape[1])
        self.decoder = decoder
        self._max_positions = _max_positions(decoder)

    def embed(self, batch: Batch) -> torch.Tensor:
        """What the decoder reads, `[B, L, H]`: token embeddings, and projected features where there is audio.

        Raises:
            UsageError: The decoder has fewer than L positions.
        """
        self.check_length(batch.token_ids_BL.shape[1])
        embeddings_BLH: torch.Tensor = self.decoder.get_input_embeddings()(batch.token_ids_BL)
        projected_NH = self.projector(batch.frames_ND.to(self.projector.weight.dtype))
        return embeddings_BLH.masked_scatter(batch.is_audio_BL[..., None], projected_NH.to(embeddings_BLH.dtype))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Sum of the cross-entropy over targets and EOS, in nats, of a batch padded on the right.

        Padding on the right is never attended to by what stands before it, and nothing behind it is scored, so the
        decoder needs no mask and counts positions from the first audio frame.
        """
        labels_BL = batch.labels_BL
        # The output layer is the widest of all: it is computed only from where the first label is predicted.
        first = int((labels_BL != IGNORED_LABEL).any(dim=0).int().argmax())
        num_kept = labels_BL.shape[1] - first + 1
        output = self.decoder(inputs_embeds=self.embed(batch), use_cache=False, logits_to_keep=num_kept)
        # Some decoders do not know `logits_to_keep` and return the logits of every position.
        logits_BLV = output.logits[:, -num_kept:-1]
        return functional.cross_entropy(
            logits_BLV.flatten(0, 1).float(),
            labels_BL[:, first:].flatten(),
            ignore_index=IGNORED_LABEL,
            reduction="sum",
        )

    def check_length(self, num_positions: int) -> None:
        """Make sure that a sequence fits the decoder.

        Raises:
            UsageError: The decoder has a table of positions, and fewer of them.
        """
        if self._max_positions is not None and num_positions > self._max_positions:
            raise UsageError(
                f"a sequence of audio frames and tokens needs {num_positions} positions, the decoder "
                f"{type(self.decoder).__name__} has {self._max_positions}; take another decoder, an encoder with fewer "
                "frames per second, or shorter clips (in training: --set max_audio_s=...)"
            )

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and values of what training changes."""
        return ((name, value) for name, value in self.named_parameters() if value.requires_grad)

    def save(self, folder: Path) -> None:
        """Write what training changed, and nothing that the decoder's own files hold already."""
        state = {name: value.detach().cpu().contiguous() for name, value in self.trained_parameters()}
        save_file(state, folder / WEIGHTS_FILE)

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote."""
        state = load_file(folder / WEIGHTS_FILE)
        own = dict(self.trained_parameters())
        assert state.keys() == own.keys(), sorted(state.keys() ^ own.keys())
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state[name])


def build_lalm(decoder: str, output_dim: int, recipe: TrainingRecipe) -> LALM:
    """An untrained LALM; the same one for the same arguments.

    Args:
        decoder: Hugging Face name or folder of a causal language model. A folder that holds a config and no weights
            is a decoder that starts from random ones.
        output_dim: Size of the encoder's features.
        recipe: Seed, and how the decoder is adapted.

    Raises:
        UsageError: The decoder lacks weights, is no causal language model, cannot be driven by embeddings, or cannot
            be adapted as the recipe says.
    """
    with seeded(recipe.seed, torch.device("cpu")):
        model = _load_decoder(decoder)
        _check_decoder(decoder, model)
        if recipe.adaptation == "lora":
            _add_adapters(decoder, model, recipe)
        return LALM(model, output_dim)


def load_tokenizer(decoder: str) -> PreTrainedTokenizerBase:
    """The decoder's own tokeniser."""
    return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(decoder))


def _load_decoder(decoder: str) -> PreTrainedModel:
    """A decoder in float32, whatever it is stored in.

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
    # Sampling, penalties and lengths that a model suggests for itself are not the recipe's.
    empty: Any = GenerationConfig
    model.generation_config = empty()
    return cast(PreTrainedModel, model)


def _check_decoder(decoder: str, model: Any) -> None:
    """Make sure that embeddings can stand for tokens and that the model reads from left to right.

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
            # At the end something that is no token, as audio is; what comes before must not know.
            inputs_BLH[:, -1] *= -1
            by_embedding_BLV = model(inputs_embeds=inputs_BLH, use_cache=False).logits[:, :-1]
    except Exception as error:
        # Whatever a model of somebody else's raises, it cannot be used.
        raise UsageError(f"{name} cannot be driven by embeddings ({_first_line(error)}); {advice}") from error
    # A norm that is NaN must not pass.
    if not (by_token_BLV - by_embedding_BLV).norm() <= 1e-3 * by_token_BLV.norm():
        raise UsageError(
            f"{name} sees what comes later in a text, or reads embeddings differently from the tokens they belong to; "
            f"{advice}"
        )


def _add_adapters(decoder: str, model: PreTrainedModel, recipe: TrainingRecipe) -> None:
    """LoRA on every linear layer of the decoder but the output layer, in place; the base weights are frozen.

    Raises:
        UsageError: peft refuses this kind of model.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config: Any = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    # Into the model, not around it as peft's own wrapper does: that refuses embeddings as input for some families.
    try:
        inject_adapter_in_model(config, cast(Any, model))
    except ValueError as error:
        raise UsageError(
            f"--decoder={decoder}: peft cannot add LoRA to all linear layers of {type(model).__name__} "
            f"({_first_line(error)}); choose another decoder, or train it whole with --set adaptation=full"
        ) from error


def _max_positions(decoder: PreTrainedModel) -> int | None:
    """Positions that the decoder has a table for; None where they are computed, as rotary ones mostly are."""
    config: Any = decoder.config.get_text_config(decoder=True)
    if getattr(config, "rope_parameters", None) is not None:
        return None
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
