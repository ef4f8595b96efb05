"""A real encoder's cost: from the second epoch on, features come from disk.

    pytest benchmarks/test_encoder.py

The control runs the encoder at every draw, in every epoch. How much of a step that is depends on how many frames the
encoder hands out: they are the decoder's positions.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.comparison import Comparison
from benchmarks.control import Control, drawn_batches, train_control
from benchmarks.ours import loss_ours, published_recipe, train_ours
from benchmarks.sizes import Size, load_frozen
from benchmarks.sounds import Sound, labelled_sounds
from tests.shard_factory import encode, shard_at, write_shard
from xares_bench.core.store import Store
from xares_bench.encoders.loading import FrozenEncoder
from xares_bench.features.encoding import Clip, ClipEncoder
from xares_bench.features.feature_store import FeatureStore
from xares_bench.lalm.batch import TextTokenizer
from xares_bench.lalm.model import build_lalm
from xares_bench.training.sampler import Draw

DURATION_S = 10.0


@pytest.fixture(params=[1, 4, 10], ids=["50 frames a second", "12.5 frames a second", "5 frames a second"])
def whisper_sized(request: pytest.FixtureRequest, size: Size) -> FrozenEncoder:
    """An encoder of Whisper base's size; in the reduced form of one layer."""
    shape = "" if size.is_real else ', "num_layers": 1, "width": 64'
    file = Path(__file__).parent / "whisper_sized_encoder.py"
    return load_frozen(file, f'{{"joined_frames": {request.param}{shape}}}')


def stored_clips(sounds: list[Sound], encoder: FrozenEncoder, folder: Path) -> list[Clip]:
    """The clips of sounds, their features on disk."""
    waveforms = [encode(sound.waveform, subtype="FLOAT") for sound in sounds]
    path = write_shard(folder / "train.tar", [(f"{number:04}", wave, {}) for number, wave in enumerate(waveforms)])
    store = FeatureStore(Store(root=folder / "store"), ClipEncoder(encoder=encoder, honours_mask=True))
    for _ in range(2):  # the first time the frames are made and written, the second time they are found
        samples = list(store.read(shard_at(path), max_clips=None, num_threads=0))
    clips = [sample for sample in samples if isinstance(sample, Clip)]
    assert len(clips) == len(sounds)
    return clips


def test_step_of_the_third_epoch(
    comparison: Comparison, size: Size, whisper_sized: FrozenEncoder, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    """Steps of four clips of 10 s whose features are on disk since the first epoch."""
    recipe = published_recipe(size).training
    num_steps = 4
    sounds = labelled_sounds(num_steps * recipe.batch_size, seed=21, durations_s=(DURATION_S, DURATION_S))
    clips = stored_clips(sounds, whisper_sized, tmp_path)
    lalm = build_lalm(size.decoder, whisper_sized.output_dim, recipe)
    control = Control(size.decoder, whisper_sized, recipe).eval()
    control.take_values(lalm)
    batches = drawn_batches(control, sounds, recipe)
    with torch.no_grad():
        expected = float(control(sounds[: recipe.batch_size]))
    pairs = list(zip(sounds, clips, strict=True))
    assert loss_ours(lalm, pairs[: recipe.batch_size], tokenizer) == pytest.approx(expected, rel=1e-5)

    draws = [Draw(prompt=sound.prompt, target=sound.targets[0], clip=clip) for sound, clip in pairs]
    comparison.measure(
        lambda: train_ours(lalm, draws, encoder=whisper_sized, tokenizer=tokenizer, num_steps=num_steps, recipe=recipe),
        {"control": lambda: train_control(control, batches, num_steps=num_steps, recipe=recipe)},
        per=num_steps,
    )
