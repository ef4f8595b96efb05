"""The parts of `benchmarks/real_parts` that need none of its packages; the trial itself is run by hand."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import soundfile
import torch
from transformers import AutoTokenizer

from benchmarks.real_parts import keywords, speaker_lstm_encoder
from benchmarks.real_parts.smollm2 import build_tokenizer
from benchmarks.real_parts.speaker_lstm_encoder import SpeakerLSTMEncoder
from benchmarks.real_parts.trial import Outcome, summary
from tests.conftest import REPOSITORY
from xares_bench.config.catalogue import load_catalogue
from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.config.own_data import read_own_evaluations, read_own_mix
from xares_bench.encoders.contract import check_contract


def test_the_rebuilt_tokeniser_splits_digits_adds_nothing_and_survives_saving(tmp_path: Path) -> None:
    letters = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"0123456789abeh", "Ġ", "Ã", "¤"]
    tokens = [*letters, "ab", "he", "Ġhe"]
    merges = [("a", "b"), ("h", "e"), ("Ġ", "he")]
    is_special = [token.startswith("<|") for token in tokens]
    build_tokenizer(tokens, merges, is_special).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text, expected in {
        "he he": ["he", "Ġhe"],
        "ab12": ["ab", "1", "2"],
        "ä": ["Ã", "¤"],
        "ab<|im_end|>": ["ab", "<|im_end|>"],
    }.items():
        token_ids = tokenizer(text)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(token_ids) == expected
        assert tokenizer.decode(token_ids) == text
    assert tokenizer.bos_token is None
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2
    assert tokenizer.decode([*tokenizer("he")["input_ids"], 2], skip_special_tokens=True) == "he"
    padded = tokenizer(["he", "he he"], padding=True)["input_ids"]
    assert padded[0][-1] == 2


def test_no_voice_is_in_both_splits_and_none_in_the_mini_corpus() -> None:
    mini_speech = (REPOSITORY / "fixtures" / "mini_corpus" / "speech.py").read_text(encoding="utf-8")
    voices = [*keywords.TRAIN_VOICES, *keywords.HELD_OUT_VOICES]
    assert len(voices) == len(set(voices))
    assert not [voice for voice in voices if f'"{voice}"' in mini_speech]
    mini_words = (REPOSITORY / "fixtures" / "mini_corpus" / "words.py").read_text(encoding="utf-8")
    assert not [word for word in keywords.KEYWORDS if word in mini_words]


def test_keywords_become_shards_and_yaml_files_that_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keywords, "NUM_TRAIN_TAKES", 1)
    monkeypatch.setattr(keywords, "TRAIN_VOICES", keywords.TRAIN_VOICES[:2])
    monkeypatch.setattr(keywords, "HELD_OUT_VOICES", keywords.HELD_OUT_VOICES[:1])
    data = keywords.write_keyword_data(tmp_path, max_steps=150)
    catalogue = load_catalogue("full")
    mix = read_own_mix(data.train_yaml, catalogue)
    (evaluation,) = read_own_evaluations(data.eval_yaml, catalogue)
    assert mix.steps == 150
    assert [dataset.name for dataset in mix.datasets] == [keywords.TRAIN_SET]
    assert evaluation.metric == "Accuracy"

    spoken: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    durations_s = set()
    for shard in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                if member.name.endswith(".json"):
                    record = json.load(content)
                    spoken[shard.name.split("_")[0]].append((record["word"], record["voice"]))
                else:
                    samples, rate_hz = soundfile.read(content)
                    assert abs(samples).max() == pytest.approx(0.7, abs=0.01)
                    durations_s.add(len(samples) / rate_hz)
    assert sorted(spoken["train"]) == sorted(
        (word, voice) for word in keywords.KEYWORDS for voice in keywords.TRAIN_VOICES
    )
    assert len(spoken["test"]) == 2 * len(keywords.KEYWORDS)
    assert spoken["train"] != sorted(spoken["train"]), "a shard's samples are read in order, so they must be shuffled"
    assert min(durations_s) > 0.2
    assert max(durations_s) < 2
    assert len(durations_s) > len(keywords.KEYWORDS)


def test_the_speaker_encoder_keeps_the_contract_and_equals_the_network_it_is_cut_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    whole = torch.nn.LSTM(40, 256, 3, batch_first=True)
    (tmp_path / "resemblyzer").mkdir()
    (tmp_path / "resemblyzer" / "__init__.py").touch()
    state = {f"lstm.{name}": value for name, value in whole.state_dict().items()}
    torch.save({"model_state": state}, tmp_path / "resemblyzer" / "pretrained.pt")
    monkeypatch.syspath_prepend(tmp_path)

    encoder = SpeakerLSTMEncoder(stride=1).eval()
    mel_1ND: list[torch.Tensor] = []
    handle = encoder.layers[0].register_forward_pre_hook(lambda _module, arguments: mel_1ND.append(arguments[0]))
    with torch.inference_mode():
        features, mask = encoder(torch.randn(1, 16_000))
        handle.remove()
        expected, _ = whole(mel_1ND[0])
    assert features.shape == (1, 101, 768)
    assert mask.all()
    torch.testing.assert_close(features[..., 512:], expected)

    file = Path(speaker_lstm_encoder.__file__)
    report = check_contract(parse_encoder_spec(str(file)), torch.device("cpu"))
    assert report.failure is None
    assert report.honours_mask


def outcome(accuracy: float) -> Outcome:
    return Outcome(
        encoder="AnEncoder",
        accuracy=accuracy,
        num_clips=128,
        num_steps=200,
        training_s=60.4,
        session_s=99.6,
        peak_memory_bytes=1_500_000_000,
    )


def test_the_summary_names_who_falls_short() -> None:
    good = summary([outcome(0.8)])
    assert good.splitlines()[2].split() == ["AnEncoder", "0.800", "128", "200", "60", "100", "1.50"]
    assert good.endswith("chance 0.125; all at least 0.8")
    assert summary([outcome(0.8), outcome(0.79)]).endswith("below 0.8: AnEncoder")
    assert summary([outcome(float("nan"))]).endswith("below 0.8: AnEncoder")
