"""The machine that `benchmarks.gpu` measures on, and what its parts are given to compute."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.sizes import REPOSITORY
from xares_bench.config.catalogue import load_catalogue
from xares_bench.features.encoding import Clip
from xares_bench.lalm.batch import Batch, Utterance, collate
from xares_bench.lalm.model import LALM, build_lalm

OUTPUT_DIM = 512
_SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
_TINY = {"hidden_size": 72, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 2048}
# Frames of the four clips of a batch.
_LENGTHS = {
    "10 s, 25 frames/s": (250, 240, 225, 200),
    "10 s, 50 frames/s": (500, 480, 450, 400),
    "30 s, 50 frames/s": (1500, 1498, 1490, 1470),
}
_TINY_LENGTHS = {"tiny": (9, 8, 7, 6)}
_GB = 1e9


class Machine:
    """What the parts run on.

    Attributes:
        device: The GPU; the CPU where the parts are tiny.
        is_tiny: Whether only the parts themselves are tested.
        folder: For files of this part.
    """

    def __init__(self, folder: Path, *, is_tiny: bool, device: torch.device | None = None) -> None:
        """Find the device, unless one is given.

        Raises:
            SystemExit: There is no GPU.
        """
        if not is_tiny and device is None and not torch.cuda.is_available():
            raise SystemExit("torch finds no GPU here; --tiny runs the parts on a CPU")
        self.device = device or torch.device("cpu" if is_tiny else "cuda")
        self.is_tiny = is_tiny
        self.folder = folder
        self.lengths = _TINY_LENGTHS if is_tiny else _LENGTHS
        self.recipe = load_catalogue("full").preset.recipe

    @property
    def decoder(self) -> str:
        """A folder with a config of the decoder's shape and a tokeniser, without weights."""
        folder = self.folder / "decoder"
        if not folder.exists():
            source = REPOSITORY / "fixtures" / "mini-decoder"
            folder.mkdir(parents=True)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(source / name, folder / name)
            own = json.loads((source / "config.json").read_text(encoding="utf-8"))
            tokens = {name: own.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
            heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192}
            values: dict[str, Any] = {**(_TINY if self.is_tiny else _SMOLLM2), **heads, **tokens}
            LlamaConfig(**values, tie_word_embeddings=True).save_pretrained(folder)
        return str(folder)

    def lalm(self) -> LALM:
        """A LALM with LoRA and the same weights every time, on the CPU."""
        torch.manual_seed(0)
        return build_lalm(self.decoder, OUTPUT_DIM, self.recipe.training)

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_gb(self) -> float | None:
        """The most memory that tensors took, in GB; None on a CPU."""
        return round(torch.cuda.max_memory_allocated() / _GB, 2) if self.device.type == "cuda" else None


def batch_of(frames: Sequence[int]) -> Batch:
    """Clips of so many frames, 8 tokens of prompt and 6 of target each."""
    prompts = prompts_of(frames)
    return collate([dataclasses.replace(prompt, target_ids=tuple(range(40, 46))) for prompt in prompts])


def prompts_of(frames: Sequence[int]) -> list[Utterance]:
    """Clips of so many frames, random ones, with 8 tokens of prompt each."""
    random = torch.Generator().manual_seed(1)
    return [
        Utterance(
            clip=Clip(
                key=str(number),
                shard="",
                duration_s=1.0,
                num_frames=num_frames,
                fields={},
                features=torch.randn(num_frames, OUTPUT_DIM, generator=random),
            ),
            prompt_ids=tuple(range(20, 28)),
            target_ids=(),
        )
        for number, num_frames in enumerate(frames)
    ]


class PeftModel(nn.Module):
    """A projector and the decoder, wrapped by peft."""

    def __init__(self, projector: nn.Linear, decoder: Any) -> None:
        """Put the two together."""
        super().__init__()
        self.projector = projector
        self.decoder = decoder


def peft_model(machine: Machine, *, dropout: float) -> PeftModel:
    """In train mode on the device, with the same weights every time."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig

    training = machine.recipe.training
    lora = LoraConfig(
        r=training.lora_rank,
        lora_alpha=training.lora_alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(machine.decoder)
    bare: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model = PeftModel(nn.Linear(OUTPUT_DIM, config.hidden_size), get_peft_model(bare, lora))
    return model.to(machine.device).train()


def split_frames(frames_FD: torch.Tensor, frames: Sequence[int]) -> list[torch.Tensor]:
    """The frames of every clip."""
    ends = [sum(frames[: number + 1]) for number in range(len(frames))]
    return [frames_FD[end - length : end] for end, length in zip(ends, frames, strict=True)]
