from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from tests.audio_models import noise, padded
from xares_bench.config.encoder_spec import EncoderSpec, parse_encoder_spec
from xares_bench.encoders.contract import check_contract
from xares_bench.encoders.loading import load_encoder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("dasheng") is None, reason="the package dasheng is not installed: pip install dasheng"
)

FILE = Path(__file__).parents[2] / "examples" / "dasheng_base_encoder.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two layers in the library's own format, with windows of one second."""
    from dasheng.pretrained.pretrained import Dasheng

    config = {"embed_dim": 32, "depth": 2, "num_heads": 4, "target_length": 100}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Dasheng(**config)
    file = tmp_path_factory.mktemp("dasheng") / "tiny.pt"
    torch.save({"model": model.state_dict(), "config": config}, file)
    return file


@pytest.fixture(scope="module")
def spec(checkpoint: Path) -> EncoderSpec:
    return parse_encoder_spec(str(FILE), json.dumps({"model_name": str(checkpoint)}))


def test_keeps_every_clause_and_honours_the_mask(spec: EncoderSpec) -> None:
    report = check_contract(spec, CPU)
    assert {name: o.message for name, o in report.outcomes.items() if o.status != "passed"} == {}
    assert report.honours_mask
    assert report.frames_per_second == pytest.approx(25, abs=0.05)


def test_padded_clips_have_the_features_that_the_library_gives_each_alone(spec: EncoderSpec, checkpoint: Path) -> None:
    from dasheng.pretrained.pretrained import Dasheng

    # The second clip is so faint that 120 decibels below the loudest of the batch would lie above its floor.
    clips = [30 * noise(3.3, seed=1), 1e-5 * noise(1.0, seed=2), noise(0.7003, seed=3), noise(0.1, seed=4)]
    features, mask = load_encoder(spec, CPU)(*padded(clips))
    assert mask is not None
    library = Dasheng.from_pretrained(str(checkpoint)).eval()
    for clip, clip_features, clip_mask in zip(clips, features, mask, strict=True):
        with torch.no_grad():
            expected = library(clip[None])[0]
        torch.testing.assert_close(clip_features[clip_mask], expected, rtol=1e-3, atol=1e-4)


def test_a_clip_too_short_for_a_frame_is_filled_up_with_silence(spec: EncoderSpec) -> None:
    features, mask = load_encoder(spec, CPU)(noise(0.01)[None])
    assert features.shape == (1, 1, 32)
    assert mask is not None
    assert mask.all()
