"""The LALM: a linear projector in front of a decoder language model. It knows no dataset and no file of features.

Shapes: B sequences, L positions, N audio frames of all sequences together, D `output_dim`, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from xares_bench.batches import IGNORED_LABEL, Batch
from xares_bench.digests import digest_of, file_digest
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

    def embed(self, batch: Batch) -> torch.Tensor:
        """What the decoder reads, `[B, L, H]`: token embeddings, and projected features where there is audio."""
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
        return functional.cross_entropy(
            output.logits[:, :-1].flatten(0, 1).float(),
            labels_BL[:, first:].flatten(),
            ignore_index=IGNORED_LABEL,
            reduction="sum",
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
    """
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = _load_decoder(decoder)
        if recipe.adaptation == "lora":
            model = _add_adapters(model, recipe)
        return LALM(model, output_dim)


def load_tokenizer(decoder: str) -> PreTrainedTokenizerBase:
    """The decoder's own tokeniser."""
    return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(decoder))


def decoder_digest(decoder: str) -> str:
    """Digest of a decoder's files, or of its name where it is not a folder."""
    folder = Path(decoder)
    if not folder.is_dir():
        return digest_of({"name": decoder})
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest_of({path.relative_to(folder).as_posix(): file_digest(path) for path in files})


def _load_decoder(decoder: str) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM
    folder = Path(decoder)
    if folder.is_dir() and not (any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))):
        return cast(PreTrainedModel, auto.from_config(AutoConfig.from_pretrained(decoder)))
    return cast(PreTrainedModel, auto.from_pretrained(decoder, dtype=torch.float32))


def _add_adapters(decoder: PreTrainedModel, recipe: TrainingRecipe) -> PreTrainedModel:
    """LoRA on every linear layer of the decoder but the output layer; the base weights are frozen."""
    from peft import LoraConfig, get_peft_model

    config: Any = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    return cast(PreTrainedModel, get_peft_model(decoder, config))
