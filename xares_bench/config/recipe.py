"""The recipe: every hyper-parameter of training and generation, with its type and range."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from xares_bench.core.errors import CatalogueError
from xares_bench.core.parsing import Section, shown

Adaptation = Literal["lora", "full"]
FeatureDtype = Literal["encoder", "float16"]

# Smallest values that make sense; values that are not named here must be above 0.
_AT_LEAST = {"seed": 0, "warmup_steps": 0}
_AT_LEAST_ZERO = {"weight_decay", "lora_dropout", "max_dropped_share", "adam_beta1", "adam_beta2"}
_BELOW_ONE = {"lora_dropout", "adam_beta1", "adam_beta2"}


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """Hyper-parameters of training, all of which a trained LALM depends on.

    Attributes:
        seed: Seed of the projector's (and a new decoder's) weights, dropout, and the order of the samples.
        steps: Optimiser steps; None: as many as the mix has.
        batch_size: Samples per optimiser step.
        learning_rate: Peak of the schedule.
        weight_decay: AdamW's weight decay, on matrices only (not on biases and norms).
        adam_beta1: AdamW's decay of the first moment.
        adam_beta2: AdamW's decay of the second moment.
        adam_epsilon: AdamW's epsilon.
        warmup_steps: Steps of linear warm-up; then the learning rate falls linearly to 0 at the last step.
        max_grad_norm: Gradients are clipped at this norm.
        adaptation: `lora`: adapters on all linear layers of the decoder; `full`: all parameters of the decoder are
            trained.
        lora_rank: Rank of the adapters.
        lora_alpha: Scale of the adapters, times 1 / rank.
        lora_dropout: Dropout before the adapters.
        max_audio_s: Longer training clips are cropped to a random window of this many seconds (to the first, if
            they are longer by 40 ms or less).
        shuffle_buffer: Size of the shuffle buffer, in rows.
        sort_window: Number of rows that are sorted by length, longest first, before they are batched.
        deterministic: Use deterministic algorithms.
        compile: Compile the decoder's layers (torch.compile); worth it only in long trainings, and needs a compiler.
        cuda_graphs: On a GPU, start the kernels of a training step together, as one CUDA graph.
        max_dropped_share: Largest share of unusable samples in a split; more are an error.
        feature_dtype: Type of features on disk and in use: `encoder`: the encoder's; `float16`: half the disk space.
        frame_pool: So many neighbouring frames are averaged to one before the projector; cached features stay whole.
    """

    seed: int
    steps: int | None
    batch_size: int
    learning_rate: float
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    warmup_steps: int
    max_grad_norm: float
    adaptation: Adaptation
    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    max_audio_s: float
    shuffle_buffer: int
    sort_window: int
    deterministic: bool
    compile: bool
    cuda_graphs: bool
    max_dropped_share: float
    feature_dtype: FeatureDtype
    frame_pool: int


@dataclass(frozen=True, kw_only=True)
class GenerationRecipe:
    """Hyper-parameters of greedy decoding.

    Attributes:
        repetition_penalty: Divides the logits of tokens that were generated before.
        max_new_tokens: Maximal number of tokens per clip.
        generation_batch_size: Maximal number of clips in a batch.
        generation_positions: Maximal number of positions in the cache of a batch; a longer clip is a batch of its own.
        cuda_graphs: On a GPU, start the kernels of a token together, as one CUDA graph.
    """

    repetition_penalty: float
    max_new_tokens: int
    generation_batch_size: int
    generation_positions: int
    cuda_graphs: bool


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All hyper-parameters, in two groups: trained LALMs depend on the first only, scores on both.

    `cuda_graphs` is in both.
    """

    training: TrainingRecipe
    generation: GenerationRecipe

    def values(self) -> dict[str, Any]:
        """Return every hyper-parameter by name."""
        return {**dataclasses.asdict(self.training), **dataclasses.asdict(self.generation)}

    def replace(self, changes: Mapping[str, Any]) -> Recipe:
        """Return the recipe with some values changed.

        Raises:
            CatalogueError: A value is unknown, of the wrong type or out of range.
        """
        return read_recipe(Section(Path("--set"), "", {**self.values(), **changes}, CatalogueError))


def read_recipe(section: Section) -> Recipe:
    """Return the recipe that a mapping of all its values describes.

    Raises:
        UsageError: Of the section's type: a value is missing, unknown, of the wrong type or out of range.
    """
    names = (field.name for part in (TrainingRecipe, GenerationRecipe) for field in dataclasses.fields(part))
    section.only(*dict.fromkeys(names))
    return Recipe(
        training=TrainingRecipe(**_read_values(section, TrainingRecipe)),
        generation=GenerationRecipe(**_read_values(section, GenerationRecipe)),
    )


def _read_values(section: Section, part: type[TrainingRecipe] | type[GenerationRecipe]) -> dict[str, Any]:
    """Return the values of one part of a recipe, each checked for the type and range of its field."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        name, value = field.name, section.values.get(field.name)
        match field.type:
            case "int":
                values[name] = section.integer(name, at_least=_AT_LEAST.get(name, 1))
            case "int | None":
                values[name] = None if value is None else section.integer(name, at_least=1)
            case "float":
                values[name] = section.number(name, above=-1 if name in _AT_LEAST_ZERO else 0)
                if values[name] < 0 or (name in _BELOW_ONE and values[name] >= 1):
                    bound = "0 or more and below 1" if name in _BELOW_ONE else "0 or more"
                    section.fail(name, f"found {value!r}, expected {bound}")
            case "bool":
                values[name] = section.boolean(name)
            case "Adaptation" | "FeatureDtype":
                words = get_args(Adaptation if field.type == "Adaptation" else FeatureDtype)
                if value not in words:
                    section.fail(name, f"found {shown(value)}, expected one of {', '.join(words)}")
                values[name] = value
            case _:
                raise AssertionError(field)
    return values
