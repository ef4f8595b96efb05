from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    BertConfig,
    BertModel,
    EncodecConfig,
    EncodecFeatureExtractor,
    EncodecModel,
    LlamaConfig,
    LlamaForCausalLM,
    MoonshineConfig,
    MoonshineModel,
    ViTConfig,
    ViTModel,
)

from tests.audio_models import (
    FIXED_WINDOWS,
    NUM_LAYERS,
    WAVEFORM_KINDS,
    WIDTH,
    noise,
    padded,
    save_ast,
    save_fixed_window_encoder,
    save_lasr,
    save_wav2vec2_bert,
    save_waveform_extractor,
    save_waveform_model,
    save_whisper,
)
from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.core.errors import EncoderError
from xares_bench.encoders.contract import check_contract
from xares_bench.encoders.loading import FrozenEncoder, load_encoder

CPU = torch.device("cpu")
BATCHED_WITH_A_MASK = {
    "wav2vec2 with group norm",
    "wav2vec2 with layer norm",
    "wav2vec2 of a recogniser",
    "hubert with group norm",
    "hubert with layer norm",
    "wavlm with group norm",
    "wavlm with layer norm",
    "unispeech",
    "unispeech-sat",
}


def save_moonshine(folder: Path) -> Path:
    """An encoder and a decoder that take waveforms, of a type that the wrapper has no word for."""
    config = MoonshineConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        intermediate_size=64,
        encoder_num_hidden_layers=NUM_LAYERS,
        decoder_num_hidden_layers=1,
        encoder_num_attention_heads=4,
        decoder_num_attention_heads=4,
    )
    MoonshineModel(config).save_pretrained(folder)
    save_waveform_extractor(folder, do_normalize=False)
    return folder


def save_kind(folder: Path, kind: str) -> Path:
    makers: dict[str, Callable[[Path], Path]] = {
        "whisper": lambda folder: save_whisper(folder, chunk_length=2),
        "audio-spectrogram-transformer": lambda folder: save_ast(folder, max_length=128),
        "wav2vec2-bert": save_wav2vec2_bert,
        "moonshine": save_moonshine,
        "lasr_encoder": save_lasr,
        **{name: functools.partial(save_fixed_window_encoder, kind=name) for name in FIXED_WINDOWS},
    }
    return makers[kind](folder) if kind in makers else save_waveform_model(folder, kind)


Saved = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Folders with a model each, to be read only."""
    root = tmp_path_factory.mktemp("models")

    @functools.cache
    def save(kind: str) -> Path:
        return save_kind(root / kind, kind)

    return save


GENERIC_KINDS = ["wav2vec2-bert", "moonshine", "lasr_encoder"]
KINDS = ["whisper", "audio-spectrogram-transformer", *GENERIC_KINDS, *FIXED_WINDOWS, *WAVEFORM_KINDS]


def load(folder: Path, **arguments: Any) -> FrozenEncoder:
    return load_encoder(parse_encoder_spec(f"hf:{folder}", json.dumps(arguments)), CPU)


def refusal(folder: Path, **arguments: Any) -> EncoderError:
    with pytest.raises(EncoderError) as caught:
        load(folder, **arguments)
    assert "\n" not in str(caught.value)
    return caught.value


def library_state(folder: Path, clip: torch.Tensor, layer: int | None = None) -> torch.Tensor:
    """A hidden state `[T, D]` as the library computes it for one clip, with nothing of ours."""
    extractor = AutoFeatureExtractor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    model = AutoModel.from_pretrained(folder).eval()
    inputs = extractor(clip.numpy(), sampling_rate=extractor.sampling_rate, return_tensors="pt")
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    with torch.no_grad():
        outputs = model(inputs[model.main_input_name], output_hidden_states=True)
    state: torch.Tensor = (outputs.last_hidden_state if layer is None else outputs.hidden_states[layer])[0]
    return state


def assert_padded_clips_are_as_alone(encoder: FrozenEncoder) -> None:
    clips = [noise(2.5, seed=1), noise(0.7003, seed=2), noise(0.1, seed=3), noise(0.02, seed=4), noise(2.5, seed=5)]
    features, mask = encoder(*padded(clips))
    assert mask is not None
    for clip, clip_features, clip_mask in zip(clips, features, mask, strict=True):
        alone, alone_mask = encoder(clip[None])
        assert alone_mask is not None
        assert alone_mask.all()
        assert clip_mask[: len(alone[0])].all()
        torch.testing.assert_close(clip_features[clip_mask], alone[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_keeps_every_clause_and_honours_the_mask(saved: Saved, kind: str) -> None:
    spec = parse_encoder_spec(f"hf:{saved(kind)}")
    report = check_contract(spec, CPU)
    assert {name: o.message for name, o in report.outcomes.items() if o.status != "passed"} == {}
    assert report.honours_mask
    assert report.encoder is not None
    assert report.encoder.output_dim == WIDTH
    assert report.encoder.name == kind.replace(" ", "-")
    assert_padded_clips_are_as_alone(report.encoder)


@pytest.mark.parametrize("kind", [*GENERIC_KINDS, *WAVEFORM_KINDS])
def test_features_are_those_of_the_library(saved: Saved, kind: str) -> None:
    folder, clip = saved(kind), noise(1.2)
    for layer in (None, 0, 1, -1):
        features, _ = load(folder, layer=layer)(clip[None])
        expected = library_state(folder, clip, layer)[: features.shape[1]]
        torch.testing.assert_close(features[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(BATCHED_WITH_A_MASK))
def test_models_that_may_be_padded_are_called_once_for_a_batch(saved: Saved, kind: str) -> None:
    encoder = load(saved(kind))
    wrapper: Any = encoder.module.wrapper
    batch_sizes = []
    hook = wrapper.model.register_forward_pre_hook(
        lambda module, args, kwargs: batch_sizes.append(len(kwargs["input_values"])), with_kwargs=True
    )
    encoder(*padded([noise(1.0), noise(0.5), noise(0.7)]))
    hook.remove()
    assert batch_sizes == [3]


@pytest.mark.versions
@pytest.mark.parametrize("layer", [None, 1, -1])
def test_whisper_is_heard_in_windows_as_far_as_the_clip_goes(tmp_path: Path, layer: int | None) -> None:
    folder, clip = save_whisper(tmp_path, chunk_length=2), noise(5.01)
    encoder = load(folder, layer=layer)
    features, _ = encoder(clip[None])
    # Two windows of 100 frames, and 51 frames that begin in the last 1.01 s.
    windows = [library_state(folder, window, layer) for window in torch.split(clip, 32_000)]
    expected = torch.cat([windows[0], windows[1], windows[2][:51]])
    torch.testing.assert_close(features[0], expected, rtol=1e-3, atol=1e-4)
    assert [name for name, _ in encoder.module.named_parameters() if "decoder" in name] == []


@pytest.mark.parametrize("layer", [None, 1, -1])
@pytest.mark.parametrize("kind", FIXED_WINDOWS)
def test_a_model_of_a_fixed_window_is_heard_in_windows_as_far_as_the_clip_goes(
    saved: Saved, kind: str, layer: int | None
) -> None:
    folder, clip = saved(kind), noise(61.01)
    features, _ = load(folder, layer=layer)(clip[None])
    windows = [library_state(folder, window, layer) for window in torch.split(clip, 480_000)]
    # Of the last window, the frames that begin in its 1.01 s.
    rate = len(windows[0]) // 30
    expected = torch.cat([*windows[:2], windows[2][: math.ceil(1.01 * rate)]])
    assert rate == (25 if kind == "qwen2_audio_encoder" and layer != 1 else 50)
    torch.testing.assert_close(features[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", FIXED_WINDOWS)
@pytest.mark.parametrize("mask", [False, True])
def test_frames_of_a_fixed_window_follow_the_length_of_the_clip(tmp_path: Path, kind: str, mask: bool) -> None:
    folder = save_fixed_window_encoder(tmp_path, kind)
    changed("preprocessor_config.json", return_attention_mask=mask)(folder)
    encoder = load(folder)
    rate = 25 if kind == "qwen2_audio_encoder" else 50
    assert [encoder(noise(s)[None])[0].shape[1] for s in (0.1, 1, 30, 35)] == [
        math.ceil(0.1 * rate),
        rate,
        30 * rate,
        35 * rate,
    ]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(num_samples=st.integers(1, 70 * 16_000), kind=st.sampled_from(sorted(FIXED_WINDOWS)))
def test_a_frame_of_a_fixed_window_is_kept_if_the_clip_goes_on_when_it_begins(
    saved: Saved, num_samples: int, kind: str
) -> None:
    hop = 640 if kind == "qwen2_audio_encoder" else 320
    features, _ = load(saved(kind))(noise(num_samples / 16_000)[None])
    assert features.shape[1] == math.ceil(max(num_samples, 1600) / hop)


def test_a_clip_that_is_too_short_for_a_model_is_followed_by_silence(saved: Saved) -> None:
    folder, clip = saved("lasr_encoder"), noise(0.1)
    features, _ = load(folder)(clip[None])
    filled = torch.nn.functional.pad(clip, (0, 1600))
    torch.testing.assert_close(features[0], library_state(folder, filled), rtol=1e-3, atol=1e-4)


def test_many_windows_go_through_the_model_in_parts(tmp_path: Path) -> None:
    clip = noise(70)
    encoder = load(save_whisper(tmp_path, chunk_length=2))
    features, _ = encoder(torch.stack([clip, noise(70, seed=1)]))
    alone, _ = encoder(clip[None])
    assert features.shape[1] == 3500
    torch.testing.assert_close(features[:1], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layer", [None, 1])
def test_ast_gives_a_frame_for_each_moment(tmp_path: Path, layer: int | None) -> None:
    folder, clip = save_ast(tmp_path, max_length=1024), noise(12)
    features, _ = load(folder, layer=layer)(clip[None])
    frames = []
    for window in torch.split(clip, 163_840):
        # Two tokens of no moment, then 12 bands of 101 moments, 100 ms apart.
        patches = library_state(folder, window, layer)[2:]
        assert len(patches) == 12 * 101
        num_spectra = 1 + (len(window) - 400) // 160
        for moment in range(101):
            if 10 * moment < num_spectra:
                frames.append(torch.stack([patches[101 * band + moment] for band in range(12)]).mean(dim=0))
    assert len(frames) == 101 + 18
    torch.testing.assert_close(features[0], torch.stack(frames), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["wavlm with layer norm", "data2vec-audio"])
def test_a_model_for_another_sampling_rate_gets_it(tmp_path: Path, kind: str) -> None:
    folder, clip = save_waveform_model(tmp_path, kind, sampling_rate=24_000), noise(1.0)
    encoder = load(folder)
    features, _ = encoder(clip[None])
    resampled = torch.from_numpy(soxr.resample(clip.numpy(), 16_000, 24_000).astype(np.float32))
    torch.testing.assert_close(features[0], library_state(folder, resampled), rtol=1e-3, atol=1e-4)
    assert_padded_clips_are_as_alone(encoder)


@pytest.mark.parametrize("layer", [NUM_LAYERS + 1, -NUM_LAYERS - 2, "1", 1.0, True])
@pytest.mark.parametrize("kind", ["whisper", "wavlm with group norm", "wav2vec2-bert"])
def test_a_layer_that_is_not_there_is_an_error(saved: Saved, kind: str, layer: object) -> None:
    error = refusal(saved(kind), layer=layer)
    assert error.clause == "arguments"
    assert f"layer {layer!r}: " in str(error)
    assert "has 3 hidden states, so layer is from -3 to 2" in str(error)


def test_an_unknown_argument_is_an_error(saved: Saved) -> None:
    error = refusal(saved("whisper"), layers=1)
    assert error.clause == "arguments"
    assert "unexpected keyword argument 'layers'" in str(error)


def test_weights_of_half_precision_are_computed_in_float32(tmp_path: Path) -> None:
    folder = save_kind(tmp_path, "wavlm with group norm")
    save_file(
        {name: t.half() for name, t in load_file(folder / "model.safetensors").items()}, folder / "model.safetensors"
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    features, _ = load(folder)(noise(0.5)[None])
    assert features.dtype == torch.float32


# What cannot be wrapped.


def save_text_model(folder: Path) -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def save_bert(folder: Path) -> None:
    config = BertConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    BertModel(config).save_pretrained(folder)
    # A feature extractor in the same folder makes no audio model of it.
    save_waveform_extractor(folder)


def save_vision_model(folder: Path) -> None:
    ViTModel(
        ViTConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(folder)
    save_an_image_processor(folder)


def save_an_image_processor(folder: Path) -> None:
    settings = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 8, "width": 8}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def save_codec(folder: Path) -> None:
    config = EncodecConfig(num_filters=4, hidden_size=16, num_lstm_layers=1, codebook_size=16, codebook_dim=16)
    EncodecModel(config).save_pretrained(folder)
    EncodecFeatureExtractor(sampling_rate=24_000).save_pretrained(folder)


def save_without(file: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        save_kind(folder, "wavlm with group norm")
        (folder / file).unlink()

    return save


def save_with_config(**changes: Any) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        save_kind(folder, "wavlm with group norm")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return save


def save_lacking_a_weight(folder: Path) -> None:
    save_kind(folder, "wavlm with group norm")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layers.1.feed_forward.output_dense.weight"]
    save_file(weights, folder / "model.safetensors")


def save_a_broken_config(folder: Path) -> None:
    save_kind(folder, "wavlm with group norm")
    (folder / "config.json").write_text("{")


def save_broken_weights(folder: Path) -> None:
    save_kind(folder, "wavlm with group norm")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("save", "words"),
    [
        (lambda folder: folder.mkdir(), ["has no config.json", "save_pretrained"]),
        (save_text_model, ["is a llama model, which takes input_ids, not audio", "supported are the audio models"]),
        (save_bert, ["is a bert model, which takes input_ids, not audio", "class of your own"]),
        (save_vision_model, ["is a vit model, which takes pixel_values, not audio", "class of your own"]),
        (save_codec, ["is a encodec model that gives no features for a second of audio", "class of your own"]),
        (save_without("preprocessor_config.json"), ["gives no feature extractor (preprocessor_config.json)"]),
        (save_without("model.safetensors"), ["gives no model", "model.safetensors"]),
        (save_with_config(model_type=None), ["a config.json without a model_type", "class of your own"]),
        (save_with_config(model_type="brand-new"), ["'brand-new' model, a type that this transformers does not know"]),
        (save_lacking_a_weight, ["lacks 1 of its weights", "layers.1.feed_forward.output_dense.weight"]),
        (save_a_broken_config, ["config.json that cannot be read", "fix"]),
        (save_broken_weights, ["gives no model"]),
    ],
)  # fmt: skip
def test_what_cannot_be_wrapped_is_named(tmp_path: Path, save: Callable[[Path], None], words: list[str]) -> None:
    folder = tmp_path / "model"
    save(folder)
    error = refusal(folder)
    assert error.clause == "loads"
    assert str(error).startswith(f"hf:{folder} ")
    assert [word for word in words if word not in str(error)] == []


REMOTE_CODE = """
from pathlib import Path
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

Path(r"FOLDER", "has_run").touch()

class OwnConfig(PreTrainedConfig):
    model_type = "brand-new"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    main_input_name = "input_values"

    def __init__(self, config):
        super().__init__(config)
        self.conv = torch.nn.Conv1d(1, 8, 400, 320)
        self.post_init()

    def forward(self, input_values, attention_mask=None, output_hidden_states=False):
        return BaseModelOutput(last_hidden_state=self.conv(input_values[:, None]).transpose(1, 2))
"""


@pytest.fixture
def remote_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that comes with code of its own, which leaves a file behind when it runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "remote"
    folder.mkdir()
    (folder / "own.py").write_text(REMOTE_CODE.replace("FOLDER", str(folder)))
    config = {"model_type": "brand-new", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    save_waveform_extractor(folder)
    torch.manual_seed(0)
    save_file({"conv.weight": torch.randn(8, 1, 400), "conv.bias": torch.zeros(8)}, folder / "model.safetensors")
    return folder


def test_code_that_comes_with_a_model_runs_only_when_asked_for(remote_folder: Path) -> None:
    error = refusal(remote_folder)
    assert error.clause == "loads"
    assert """--encoder-args='{"trust_remote_code": true}'""" in str(error)
    assert not (remote_folder / "has_run").exists()
    encoder = load(remote_folder, trust_remote_code=True)
    assert (remote_folder / "has_run").exists()
    assert encoder.output_dim == 8
    assert_padded_clips_are_as_alone(encoder)


# The fingerprint.


def changed(file: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def change_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer_norm.bias"] += 1e-6
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        changed("preprocessor_config.json", do_normalize=False),
        changed("config.json", layer_norm_eps=1e-3),
        change_a_weight,
    ],
)
def test_what_the_files_say_enters_the_fingerprint(tmp_path: Path, change: Callable[[Path], None]) -> None:
    folder = save_kind(tmp_path / "model", "wavlm with group norm")
    before = load(folder).fingerprint
    assert load(folder).fingerprint == before
    change(folder)
    assert load(folder).fingerprint != before


def test_the_layer_enters_the_fingerprint_and_the_place_does_not(tmp_path: Path) -> None:
    folder = save_kind(tmp_path / "model", "wavlm with group norm")
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert load(tmp_path / "elsewhere").fingerprint == load(folder).fingerprint
    assert load(folder, layer=1).fingerprint != load(folder).fingerprint
    assert load(folder, layer=1).fingerprint != load(folder, layer=2).fingerprint


def test_the_code_of_the_wrapper_enters_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_kind(tmp_path, "wavlm with group norm")
    before = load(folder).fingerprint
    for part in ("", "_families", "_models"):
        module = f"xares_bench.encoders.hugging_face{part}"
        with monkeypatch.context() as patch:
            patch.setattr(
                "xares_bench.encoders.fingerprint.code_digest", lambda name, changed=module: f"{name == changed}"
            )
            other = load(folder).fingerprint
        with monkeypatch.context() as patch:
            patch.setattr("xares_bench.encoders.fingerprint.code_digest", lambda name: "False")
            assert load(folder).fingerprint != other
    assert load(folder).fingerprint == before
