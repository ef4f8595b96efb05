"""Eight spoken keywords as tar shards with their two YAML files: one's own data, as the README describes it.

Words, voices and the program are apart from the mini corpus. espeak-ng speaks; no voice of the test split is heard in
training, and pitch, speed and the silence before and after the word vary from clip to clip.
"""

from __future__ import annotations

import ctypes
import functools
import io
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import espeakng_loader
import numpy as np
import numpy.typing as npt
import soundfile
import webdataset
import yaml

# A token each for SmolLM2. The recipe sorts by seconds and tokens within a window of samples: with words of different
# numbers of tokens, a batch of four would hold few words, and so short a training would suffer from it.
KEYWORDS = ("bridge", "doctor", "forest", "market", "orange", "picture", "station", "summer")
TRAIN_VOICES = (
    *("adam", "anika", "belinda", "benjamin", "boris", "caleb", "david", "Diogo", "edward", "Gene", "grandma"),
    *("Henrique", "Hugo", "ian", "iven", "Jacky", "john", "Lee", "Marco", "Mike", "pablo", "paul", "quincy", "Reed"),
)
HELD_OUT_VOICES = ("antonio", "aunty", "ed", "marcelo", "miguel", "robert", "shelby", "victor")
PROMPT = "Which word is spoken?"
TRAIN_SET, TEST_SET = "spoken_keywords", "held_out_voices"
NUM_TRAIN_TAKES, NUM_TEST_TAKES = 4, 2
NUM_TRAIN_SHARDS, NUM_TEST_SHARDS = 4, 2

_RETRIEVE_AUDIO, _DO_NOT_EXIT, _UTF8 = 1, 0x8000, 1
_RATE, _PITCH = 1, 3
_RATES_WPM, _PITCHES, _SILENCES_S = (140, 200), (30, 70), (0.0, 0.3)
_PEAK = 0.7


@dataclass(frozen=True, kw_only=True)
class Take:
    """One clip to be spoken.

    Attributes:
        word: The spoken word.
        voice: espeak-ng's name of a voice variant.
        rate_wpm: Words per minute.
        pitch: On espeak-ng's scale, 0 to 99.
        silences_s: Seconds of silence before and after the word.
    """

    word: str
    voice: str
    rate_wpm: int
    pitch: int
    silences_s: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class KeywordData:
    """Where the data lies: the YAML files for `--train` and `--eval`."""

    train_yaml: Path
    eval_yaml: Path


class Synthesiser:
    """espeak-ng from the wheel `espeakng-loader`.

    One per process (`synthesiser()`): the library keeps its state in globals, and one that is started twice hangs.
    """

    def __init__(self) -> None:
        """Start the library with the voices of the wheel."""
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        voices = espeakng_loader.get_data_path().encode()
        self.sample_rate_hz = int(self._library.espeak_Initialize(_RETRIEVE_AUDIO, 0, voices, _DO_NOT_EXIT))
        self._spoken = bytearray()
        # Kept, since ctypes does not keep what only the library refers to.
        self._receiver = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(self._receive)
        self._library.espeak_SetSynthCallback(self._receiver)

    def speak(self, take: Take) -> npt.NDArray[np.float32]:
        """Samples `[S]` at `sample_rate_hz`, with a peak of 0.7.

        Raises:
            ValueError: The wheel has no such voice.
        """
        if self._library.espeak_SetVoiceByName(f"en-us+{take.voice}".encode()) != 0:
            raise ValueError(f"espeak-ng has no voice variant {take.voice!r}")
        # Breath is drawn from a generator that would start from the clock.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self._library.espeak_SetParameter(_RATE, take.rate_wpm, 0)
        self._library.espeak_SetParameter(_PITCH, take.pitch, 0)
        self._spoken.clear()
        text = take.word.encode()
        self._library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        samples = np.frombuffer(bytes(self._spoken), dtype="<i2").astype(np.float32)
        before, after = (round(silence_s * self.sample_rate_hz) for silence_s in take.silences_s)
        return np.pad(samples * np.float32(_PEAK / np.abs(samples).max()), (before, after))

    def _receive(self, samples: int | None, num_samples: int, _events: int | None) -> int:
        if samples and num_samples > 0:
            self._spoken += ctypes.string_at(samples, num_samples * 2)
        return 0


@functools.cache
def synthesiser() -> Synthesiser:
    """The process's synthesiser."""
    return Synthesiser()


def takes(voices: Sequence[str], num_takes: int, seed: int) -> list[Take]:
    """Every word by every voice so many times, each with numbers of its own, in random order."""
    rng = random.Random(seed)
    drawn = [
        Take(
            word=word,
            voice=voice,
            rate_wpm=rng.randint(*_RATES_WPM),
            pitch=rng.randint(*_PITCHES),
            silences_s=(rng.uniform(*_SILENCES_S), rng.uniform(*_SILENCES_S)),
        )
        for word, voice, _ in itertools.product(KEYWORDS, voices, range(num_takes))
    ]
    return rng.sample(drawn, len(drawn))


def write_keyword_data(folder: Path, *, max_steps: int) -> KeywordData:
    """Speak all clips, pack them into tar shards and describe them.

    Args:
        folder: Where shards and YAML files go; what it holds from before is overwritten.
        max_steps: Optimiser steps that the training YAML asks for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_shards(folder, "train", takes(TRAIN_VOICES, NUM_TRAIN_TAKES, seed=1), NUM_TRAIN_SHARDS)
    _write_shards(folder, "test", takes(HELD_OUT_VOICES, NUM_TEST_TAKES, seed=2), NUM_TEST_SHARDS)
    root = folder.resolve()
    train: dict[str, Any] = {
        "train_data": {
            TRAIN_SET: {
                "prompt": PROMPT,
                "data": [f"{root}/train_{{00..{NUM_TRAIN_SHARDS - 1:02}}}.tar"],
                "key": "word",
            }
        },
        "num_training_workers": 0,
        "max_steps": max_steps,
    }
    test: dict[str, Any] = {
        TEST_SET: {
            "data": {"data": [f"{root}/test_*.tar"], "key": "word", "prompt": PROMPT},
            "batch_size": 16,
            "num_workers": 0,
            "metric": "Accuracy",
        }
    }
    data = KeywordData(train_yaml=folder / "train.yaml", eval_yaml=folder / "eval.yaml")
    data.train_yaml.write_text(yaml.safe_dump(train, sort_keys=False), encoding="utf-8")
    data.eval_yaml.write_text(yaml.safe_dump(test, sort_keys=False), encoding="utf-8")
    return data


def _write_shards(folder: Path, split: str, clips: Sequence[Take], num_shards: int) -> None:
    speaker = synthesiser()
    for shard in range(num_shards):
        with (
            (folder / f"{split}_{shard:02}.tar").open("wb") as file,
            webdataset.TarWriter(file, mtime=0, encoder=False) as writer,
        ):
            for number in range(shard, len(clips), num_shards):
                take = clips[number]
                audio = io.BytesIO()
                soundfile.write(audio, speaker.speak(take), speaker.sample_rate_hz, format="FLAC")
                record = {"word": take.word, "voice": take.voice}
                writer.write(
                    {
                        "__key__": f"{split}-{number:04}",
                        "flac": audio.getvalue(),
                        "json": json.dumps(record).encode(),
                    }
                )
