"""Worst clips: the worst clips, and their audio read back from shards."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import soundfile

from tests.shard_factory import tone, write_members, write_shard
from xares_bench.reports import worst_clips as module
from xares_bench.reports.worst_clips import Recording, limited, recordings_of, shortened, worst_clips
from xares_bench.scores.records import Prediction


def row(clip: str, reference: str, value: float | None, hypothesis: str = "x") -> Prediction:
    return Prediction(clip=clip, reference=reference, hypothesis=hypothesis, value=value)


def test_the_lowest_values_come_first_and_new_targets_before_seen_ones() -> None:
    rows = [row("a", "dog", 0.0), row("b", "dog", 0.0), row("c", "cat", 0.0), row("d", "cat", 1.0), row("e", "x", 0.5)]
    assert [clip.name for clip in worst_clips(rows, 3)] == ["a", "c", "b"]
    assert [clip.name for clip in worst_clips(rows, 9)] == ["a", "c", "b", "e"], "what is right is no worst clip"


def test_a_clip_of_several_targets_is_one_clip() -> None:
    (clip,) = worst_clips([row("a", "one", 0.2), row("a", "two", 0.6), row("a", "one", 0.1)], 3)
    assert clip.references == ("one", "two")
    assert clip.value == pytest.approx(0.3)


def test_rows_without_a_value_are_left_out() -> None:
    assert worst_clips([row("a", "dog", None)], 3) == []


def test_audio_is_found_in_whichever_shard_has_it(tmp_path: Path) -> None:
    shards = [
        write_shard(
            tmp_path / f"{number}.tar.gz", [(f"clip-{number}", tone(0.5 + number), {"label": "x"})], suffix="flac"
        )
        for number in range(3)
    ]
    found = recordings_of(["clip-2", "clip-0"], shards)
    assert list(found) == ["clip-2", "clip-0"]
    assert found["clip-2"].duration_s == pytest.approx(2.5)
    samples, rate_hz = soundfile.read(io.BytesIO(found["clip-0"].audio or b""))
    assert rate_hz == 16_000
    assert len(samples) == 8_000
    assert found["clip-0"].media_type in ("audio/ogg", "audio/flac")


def test_a_clip_without_audio_says_why(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", [("here", tone(0.1), {"label": "x"})])
    absent = tmp_path / "b.tar"
    assert "is missing" in (recordings_of(["c"], [shard, absent])["c"].problem or "")
    assert "b.tar" in (recordings_of(["c"], [shard, absent])["c"].problem or "")
    assert recordings_of(["c"], [shard])["c"].problem == "no test shard has this clip"
    assert recordings_of(["c"], [])["c"].problem == "its test shards are unknown"
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(shard.read_bytes()[:700])
    assert "damaged archive" in (recordings_of(["c"], [damaged])["c"].problem or "")
    broken = write_members(tmp_path / "broken.tar", [("c.wav", b"no audio"), ("c.json", b"{}")])
    assert (recordings_of(["c"], [broken])["c"].problem or "").startswith("it cannot be read: ")


def test_too_little_memory_for_a_clip_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "read_audio", fail)
    assert shortened(b"", "wav").problem == "it cannot be read: too little memory"


def test_the_search_ends_where_data_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [write_shard(tmp_path / f"{n}.tar", [(f"clip-{n}", tone(0.5), {"label": "x"})]) for n in range(2)]
    monkeypatch.setattr(module, "MAX_SHARD_BYTES", shards[0].stat().st_size + 1)
    found = recordings_of(["clip-0", "clip-1"], shards)
    assert found["clip-0"].audio
    assert "the rest was not searched" in (found["clip-1"].problem or "")


def test_a_long_clip_is_shortened_and_small() -> None:
    import numpy as np

    noise = np.random.default_rng(0).normal(0, 0.1, 16_000 * 40).astype(np.float32)
    content = io.BytesIO()
    soundfile.write(content, noise, 16_000, format="WAV", subtype="PCM_16")
    found = shortened(content.getvalue(), "wav")
    assert found.duration_s == pytest.approx(40)
    assert soundfile.info(io.BytesIO(found.audio or b"")).duration == pytest.approx(10)
    assert len(found.audio or b"") < 150_000


def test_without_opus_it_is_flac(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    soundfile.write(content, tone(0.5), 16_000, format="WAV")
    monkeypatch.setattr(soundfile, "available_subtypes", lambda format: {"VORBIS": "Vorbis"})
    found = shortened(content.getvalue(), "wav")
    assert found.media_type == "audio/flac"
    assert soundfile.info(io.BytesIO(found.audio or b"")).frames == 8_000


def test_audio_beyond_the_limit_is_left_out_in_turns() -> None:
    recordings = {
        name: {f"{name}{number}": Recording(audio=b"x" * 10, media_type="audio/ogg") for number in range(2)}
        for name in "ab"
    }
    kept = limited(recordings, 30)
    has_audio = {name: recording.audio is not None for clips in kept.values() for name, recording in clips.items()}
    assert has_audio == {"a0": True, "b0": True, "a1": True, "b1": False}
    assert "at most" in (kept["b"]["b1"].problem or "")
