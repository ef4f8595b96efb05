"""How many kernels a step and a token start on a GPU, counted without one; each costs some microseconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import MakeClips
from tests.launches import META, Launches, pretend_kernels_of_a_gpu
from tests.plain_lalm import save_decoder
from xares_bench.config.catalogue import load_catalogue
from xares_bench.lalm.attention import Cache, NextPositions
from xares_bench.lalm.batch import Utterance, collate
from xares_bench.lalm.model import LALM, build_lalm

# Operations that wait until the GPU has computed a value or a shape.
WAITING = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.masked_select.default"}


@pytest.fixture
def lalm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LALM:
    """As many layers and heads as SmolLM2-135M has, all of them narrow, with the published recipe's LoRA."""
    sizes = {"num_hidden_layers": 30, "hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3}
    made = build_lalm(save_decoder(tmp_path, "llama", **sizes), 6, load_catalogue("full").preset.recipe.training)
    pretend_kernels_of_a_gpu(monkeypatch)
    return made


def test_a_training_step_starts_at_most_3700_kernels(lalm: LALM, make_clips: MakeClips) -> None:
    """Of clips of different lengths, forward and backward; torch clips gradients and updates weights in a few dozen."""
    clips = make_clips([7, 2, 12, 5], output_dim=6)
    batch = collate([Utterance(clip=clip, prompt_ids=(5, 6), target_ids=(7, 8, 1)) for clip in clips])
    lalm.to(META).train()
    placed = lalm.place(batch, META)
    with Launches() as launches:
        loss = lalm(placed) / placed.num_targets
        loss.backward()
    assert launches.number <= 3700, launches
    assert not launches.by_name.keys() & WAITING


def test_a_token_starts_at_most_680_kernels(lalm: LALM) -> None:
    lalm.merge_lora()
    lalm.to(META).eval()
    rows_B, lengths_B = torch.arange(3, device=META), torch.tensor([3, 5, 4], device=META)
    layout = NextPositions(cache=Cache(num_rows=4, num_positions=20), rows_B=rows_B, lengths_B=lengths_B, longest=5)
    with torch.inference_mode():
        inputs_BH = torch.zeros(3, 36, device=META)
        lalm.read(inputs_BH, layout, lengths_B, rows_B)  # makes the cache
        with Launches() as launches:
            lalm.read(inputs_BH, layout, lengths_B, rows_B)
    assert launches.number <= 680, launches
    assert not launches.by_name.keys() & WAITING
