"""The machine's limit: how fast it multiplies matrices, and how close a training step comes to that.

pytest benchmarks/test_limits.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.comparison import Comparison
from benchmarks.ours import bare_lalm, published_recipe, train_ours
from benchmarks.sizes import Size
from benchmarks.sounds import labelled_sounds
from xares_bench.encoders.loading import FrozenEncoder
from xares_bench.features.encoding import ClipEncoder
from xares_bench.lalm.batch import Batch, TextTokenizer
from xares_bench.lalm.model import build_lalm
from xares_bench.training.dataloader import training_batches

_PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm"}


def decoder_products(
    weights: list[torch.Tensor], output_OI: torch.Tensor, batch: Batch
) -> tuple[Callable[[], None], int]:
    """All products with the decoder's weights that a step cannot do without, and how many operations they are.

    Forward with every weight at every position, and backward to its inputs; of the output layer only where a target is
    predicted. The weights are frozen, so that no gradient of theirs is needed.
    """
    sizes = [(sum(batch.lengths), weight) for weight in weights] + [(int(batch.num_targets), output_OI)]
    pairs = [
        (torch.randn(num, weight.shape[1]), torch.randn(num, weight.shape[0]), weight.detach()) for num, weight in sizes
    ]

    def multiply() -> None:
        for inputs_NI, grad_NO, weight_OI in pairs:
            torch.mm(inputs_NI, weight_OI.T)
            torch.mm(grad_NO, weight_OI)

    return multiply, sum(4 * num * weight.numel() for num, weight in sizes)


def share_of_large_products(profiled: profile, rank: int) -> float:
    """Share of a profile's time in products of matrices none of whose sides is an adapter's rank."""
    events = [event for event in profiled.key_averages(group_by_input_shape=True) if event.self_cpu_time_total > 0]
    total_us: float = sum(event.self_cpu_time_total for event in events)
    large_us: float = sum(
        event.self_cpu_time_total
        for event in events
        if event.key in _PRODUCTS and min(size for shape in event.input_shapes for size in shape) > rank
    )
    return large_us / total_us


def test_step_beside_its_matrix_products(
    comparison: Comparison, size: Size, encoder: FrozenEncoder, tokenizer: TextTokenizer
) -> None:
    """What is left of a step above the products with the decoder's weights alone, on the same positions."""
    recipe = published_recipe(size).training
    draws = [sound.draw() for sound in labelled_sounds(size.num_steps * recipe.batch_size, seed=41)]
    lalm = build_lalm(size.decoder, encoder.output_dim, recipe)
    bare = bare_lalm(size, encoder.output_dim, recipe).decoder
    output_OI = bare.get_output_embeddings().weight  # type: ignore[no-untyped-call]
    linear = [module.weight for module in bare.modules() if isinstance(module, torch.nn.Linear)]
    weights = [weight for weight in linear if weight is not output_OI]
    batches = training_batches(iter(draws), ClipEncoder(encoder=encoder, honours_mask=True), tokenizer, recipe)
    products = [
        decoder_products(weights, output_OI, batch) for _, batch in zip(range(size.num_steps), batches, strict=False)
    ]

    def multiply_all() -> None:
        for multiply, _ in products:
            multiply()

    arguments: dict[str, Any] = {"encoder": encoder, "tokenizer": tokenizer, "recipe": recipe}
    medians = comparison.measure(
        lambda: train_ours(lalm, draws, num_steps=size.num_steps, **arguments),
        {"matrix products alone": multiply_all},
        per=size.num_steps,
    )
    num_operations = statistics.fmean(operations for _, operations in products)
    rate = num_operations / medians["matrix products alone"]
    used = num_operations / medians["ours"]
    comparison.say(f"{rate / 1e9:.0f} GFLOPS in the products alone, {used / 1e9:.0f} of them in the step")
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        train_ours(lalm, draws, num_steps=2, **arguments)
    share = share_of_large_products(profiled, recipe.lora_rank)
    comparison.say(f"{share:.0%} of the time of a profiled step is in products with the decoder's weights")
    comparison.note(products_flops=rate, step_flops=used, profiled_share=share)


@pytest.mark.parametrize("length", [1024, 200])
def test_matrix_products(length: int, comparison: Comparison) -> None:
    """Float32, 1024 by 1024 as everybody measures, and as many rows as a step has positions."""
    left, right = torch.randn(length, 1024), torch.randn(1024, 1024)
    num = 20
    medians = comparison.measure(lambda: [left @ right for _ in range(num)], {}, per=num)
    rate = 2 * length * 1024 * 1024 / medians["ours"]
    comparison.say(f"{rate / 1e9:.0f} GFLOPS")
    comparison.note(flops=rate)
