"""The control: training and evaluation in the reference's way, on transformers and peft alone.

The encoder is called at every draw, on the padded audio of one batch. Sequences are padded to the longest of their
batch, logits are computed at every position, adapters are those of peft, the optimiser is plain AdamW. Evaluation takes
the rows as they come, in batches of a given size, and generates for every row, also where rows share a clip.

It differs from the reference in what would otherwise change the results: padding is never between audio and text, and
the repetition penalty does not depend on the padding of a row. It also gets waveforms instead of files.

Shapes: B sequences, L positions, S samples, T frames, D `output_dim`, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    get_linear_schedule_with_warmup,
)

from benchmarks.sounds import Sound
from xares_bench.config.recipe import GenerationRecipe, TrainingRecipe
from xares_bench.encoders.loading import FrozenEncoder
from xares_bench.lalm.model import LALM
from xares_bench.runtime.determinism import deterministic_algorithms

linear_schedule: Any = get_linear_schedule_with_warmup  # untyped in transformers
_NO_TARGET = -100


class Control(nn.Module):
    """Encoder, projector and decoder in one module.

    Attributes:
        encoder: The user's module, frozen.
        projector: From features to embeddings.
        decoder: The causal language model, wrapped by peft.
        tokenizer: The decoder's.
    """

    def __init__(self, folder: str, encoder: FrozenEncoder, recipe: TrainingRecipe) -> None:
        """Load the decoder of a folder and put fresh adapters and a fresh projector into place."""
        super().__init__()
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        config = LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=recipe.lora_alpha,
            lora_dropout=recipe.lora_dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        self.encoder = encoder.module
        self.projector = nn.Linear(encoder.output_dim, model.config.hidden_size)
        self.decoder: Any = get_peft_model(model, config)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def take_values(self, lalm: LALM) -> None:
        """Copy what is trained from a LALM of ours."""
        theirs = dict(lalm.trained_parameters())
        own = {_own_name(name): value for name, value in self.named_parameters() if value.requires_grad}
        assert own.keys() == theirs.keys()
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(theirs[name])

    def forward(self, sounds: Sequence[Sound]) -> torch.Tensor:
        """Mean cross-entropy over the first targets of sounds and their EOS, in nats."""
        rows, labels = [], []
        for sound, frames_TD in zip(sounds, self._encode(sounds), strict=True):
            target_ids = torch.tensor([*self.tokens(sound.targets[0]), self.tokenizer.eos_token_id])
            row_LH = self._embed(frames_TD, torch.cat([torch.tensor(self.tokens(sound.prompt)), target_ids]))
            label_L = torch.full((len(row_LH),), _NO_TARGET)
            label_L[-len(target_ids) :] = target_ids
            rows.append(row_LH)
            labels.append(label_L)
        mask_BL = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        labels_BL = pad_sequence(labels, batch_first=True, padding_value=_NO_TARGET)
        output = self.decoder(
            inputs_embeds=pad_sequence(rows, batch_first=True), attention_mask=mask_BL, labels=labels_BL
        )
        loss: torch.Tensor = output.loss
        return loss

    @torch.no_grad()
    def generate(self, sounds: Sequence[Sound], recipe: GenerationRecipe) -> list[list[int]]:
        """Generated tokens, up to EOS, of one batch."""
        rows = [
            self._embed(frames_TD, torch.tensor(self.tokens(sound.prompt)))
            for sound, frames_TD in zip(sounds, self._encode(sounds), strict=True)
        ]
        eos_id: int = self.tokenizer.eos_token_id
        mask_BL = pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True, padding_side="left").long()
        token_ids: torch.Tensor = self.decoder.generate(
            inputs_embeds=pad_sequence(rows, batch_first=True, padding_side="left"),
            attention_mask=mask_BL,
            max_new_tokens=recipe.max_new_tokens,
            logits_processor=LogitsProcessorList([RepetitionPenaltyLogitsProcessor(recipe.repetition_penalty)]),
            do_sample=False,
            eos_token_id=eos_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return [row[: row.index(eos_id)] if eos_id in row else row for row in token_ids.tolist()]

    def tokens(self, text: str) -> list[int]:
        """Tokens of a text, nothing added."""
        token_ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return token_ids

    @torch.no_grad()
    def _encode(self, sounds: Sequence[Sound]) -> list[torch.Tensor]:
        """Features `[T, D]` of every sound of a batch, whose audio is padded to the longest."""
        audio_BS = pad_sequence([torch.from_numpy(sound.waveform) for sound in sounds], batch_first=True)
        lengths_B1 = torch.tensor([[len(sound.waveform)] for sound in sounds])
        features_BTD, mask_BT = self.encoder(audio_BS, (torch.arange(audio_BS.shape[1]) < lengths_B1).long())
        return [features_TD[mask_T.bool()] for features_TD, mask_T in zip(features_BTD, mask_BT, strict=True)]

    def _embed(self, frames_TD: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.projector(frames_TD), self.decoder.get_input_embeddings()(token_ids)])


def drawn_batches(control: Control, sounds: Sequence[Sound], recipe: TrainingRecipe) -> list[list[Sound]]:
    """The batches that ours makes of the same sounds without shuffling: sorted within a window, longest first."""

    def length(sound: Sound) -> float:
        return sound.duration_s + len(control.tokens(sound.prompt)) + len(control.tokens(sound.targets[0])) + 1

    batches = []
    for start in range(0, len(sounds), recipe.sort_window):
        window = sorted(sounds[start : start + recipe.sort_window], key=lambda sound: -length(sound))
        batches += [window[first : first + recipe.batch_size] for first in range(0, len(window), recipe.batch_size)]
    return batches


def train_control(
    control: Control, batches: Sequence[Sequence[Sound]], *, num_steps: int, recipe: TrainingRecipe
) -> list[float]:
    """Fit a control, in place; the loss of every step, in nats per token."""
    trained = [(name, value) for name, value in control.named_parameters() if value.requires_grad]
    groups = [
        {"params": [value for name, value in trained if "bias" not in name], "weight_decay": recipe.weight_decay},
        {"params": [value for name, value in trained if "bias" in name], "weight_decay": 0.0},
    ]
    betas = recipe.adam_beta1, recipe.adam_beta2
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, eps=recipe.adam_epsilon)
    schedule = linear_schedule(optimizer, recipe.warmup_steps, num_steps)
    losses = []
    control.train()
    control.encoder.eval()
    with deterministic_algorithms(wanted=recipe.deterministic, required=True):
        for batch in batches[:num_steps]:
            loss = control(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([value for _, value in trained], recipe.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    control.eval()
    return losses


def evaluate_control(
    control: Control, sounds: Sequence[Sound], *, batch_size: int, recipe: GenerationRecipe
) -> list[list[int]]:
    """Generated tokens of every row: of a sound as many times as it has targets."""
    rows = [sound for sound in sounds for _ in sound.targets]
    generated: list[list[int]] = []
    for start in range(0, len(rows), batch_size):
        generated += control.generate(rows[start : start + batch_size], recipe)
    return generated


def _own_name(name: str) -> str:
    """What a LALM of ours calls a parameter of peft's wrapping."""
    return name.replace("decoder.base_model.model.", "decoder.").replace(".default.weight", "")
