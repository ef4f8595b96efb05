"""The LALM: a linear projector in front of a decoder language model. It knows nothing of datasets or files.

Shapes, over all sequences of a batch: N positions, of them F audio frames, M tokens of text, T targets; D `output_dim`,
H hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from xares_bench.config.recipe import TrainingRecipe
from xares_bench.core.errors import UsageError
from xares_bench.lalm.attention import Layout, Packing, pack
from xares_bench.lalm.batch import Batch
from xares_bench.lalm.decoder import let_read_packed, load_decoder, position_limit
from xares_bench.lalm.llama import llama_layers
from xares_bench.lalm.lora import merge_lora
from xares_bench.lalm.operations import take
from xares_bench.runtime.determinism import seeded

WEIGHTS_FILE = "trained.safetensors"

# Sequences are padded to a multiple of this number of positions where few shapes are wanted.
_PADDED_TO = 64


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
        self._layers = llama_layers(decoder) if reads_packed else None
        self._limit = position_limit(decoder)
        self._is_compiled = False

    def place(self, batch: Batch, device: torch.device) -> Batch:
        """Return a batch on a device, padded where that is faster.

        A GPU computes padding in less time than it takes to start the operations that do without it. Compiled layers
        are compiled for each shape that occurs. A decoder that counts positions itself may have none for padding.
        """
        is_padded = self.reads_packed and (self._is_compiled or device.type != "cpu")
        return (self.padded(batch) if is_padded else batch).to(device)

    def padded(self, batch: Batch) -> Batch:
        """Return a batch padded so that few shapes occur."""
        return batch.padded(_PADDED_TO)

    def embed(self, batch: Batch) -> torch.Tensor:
        """Return the decoder's input `[N, H]`: projected features for audio, token embeddings for text.

        Raises:
            UsageError: A sequence is longer than the decoder allows.
        """
        self.check_length(max(batch.lengths))
        embeddings_MH: torch.Tensor = self.decoder.get_input_embeddings()(batch.text_ids_M)
        projected_FH = self.projector(batch.frames_FD.to(self.projector.weight.dtype)).to(embeddings_MH.dtype)
        return take(torch.cat([projected_FH, embeddings_MH]), batch.sources_N)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the sum of the cross-entropy over targets and EOS, in nats.

        The output layer, the widest of all, is computed only at positions that predict a target.
        """
        predict = self._predict_packed if self.reads_packed else self._predict_padded
        return functional.cross_entropy(predict(batch).float(), batch.target_ids_T, reduction="sum")

    def read(
        self, inputs_NH: torch.Tensor, layout: Layout, position_ids_N: torch.Tensor, places_T: torch.Tensor
    ) -> torch.Tensor:
        """Return the logits `[T, V]` of packed sequences at some places; only for decoders that can read them.

        Args:
            inputs_NH: Input from `embed`.
            layout: Where sequences begin.
            position_ids_N: Number of each position in its sequence.
            places_T: Places of the logits, all different.
        """
        if self._layers is None or self._is_compiled:
            output = self.decoder(
                inputs_embeds=inputs_NH[None],
                position_ids=position_ids_N[None],
                use_cache=False,
                layout=layout,
                logits_to_keep=places_T,
            )
            return cast(torch.Tensor, output.logits[0])
        hidden_TH = take(self._layers(inputs_NH, layout, position_ids_N), places_T)
        output_layer: nn.Module = self.decoder.get_output_embeddings()  # type: ignore[no-untyped-call]
        return cast(torch.Tensor, output_layer(hidden_TH))

    def _predict_packed(self, batch: Batch) -> torch.Tensor:
        """Return the logits `[T, V]` at the positions that predict a target."""
        return self.read(self.embed(batch), _packing(batch), batch.position_ids_N, batch.predicting_places_T)

    def _predict_padded(self, batch: Batch) -> torch.Tensor:
        """The same for sequences padded on the right: with causal attention no position sees the padding behind it."""
        packing = _packing(batch)
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
        UsageError: The decoder cannot be used; see `load_decoder` and `let_read_packed`.
    """
    with seeded(recipe.seed, torch.device("cpu")):
        model = load_decoder(decoder, recipe)
        return LALM(model, output_dim, reads_packed=let_read_packed(model))


def _packing(batch: Batch) -> Packing:
    """Return the layout of a batch."""
    if batch.row_length is None:
        return pack(batch.lengths, batch.sources_N.device)
    return Packing(
        num_sequences=len(batch.lengths),
        longest=batch.row_length,
        places_N=None,
        position_ids_N=batch.position_ids_N,
    )


def _cpu_compile_options() -> dict[str, int]:
    """Options that keep code compiled for one processor from running on another.

    torch caches the C++ that it generates under a key without the processor's instruction set. In a cache folder that
    machines share, code for vectors of 256 bits then met a processor with 512: every store wrote twice as much as there
    was room for (docs/log.md, 2026-11-26). A stated width, 0 for no vectors, is part of the key.
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    return {"cpp.simdlen": pick_vec_isa().bit_width()}
