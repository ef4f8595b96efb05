"""Shards to test with: sounds, encoded clips, and tar files, whole ones through WebDataset's own writer.

`write_shard` writes what a data set's author would; `write_members` writes any members in any order, to make the
archives that an author would not want to. Import it as `from tests.shard_factory import ...`.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from xares_bench.core.digests import file_digest
from xares_bench.datasets.shards import Shard

Waveform = NDArray[np.float32]

# libsndfile's format and subtype for the extension of a tar member.
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def tone(duration_s: float, frequency_hz: float = 440.0, *, rate_hz: int = 16_000, amplitude: float = 0.5) -> Waveform:
    """A sine, `[samples]`."""
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    return (amplitude * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


def encode(waveform: NDArray[Any], suffix: str = "wav", *, rate_hz: int = 16_000, subtype: str | None = None) -> bytes:
    """The bytes of an audio file of `[samples]` or `[samples, channels]`."""
    file_format, usual_subtype = FORMATS[suffix]
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate_hz, format=file_format, subtype=subtype or usual_subtype)
    return buffer.getvalue()


def write_shard(
    path: Path,
    clips: Iterable[tuple[str, Waveform | bytes, Mapping[str, Any]]],
    *,
    suffix: str = "wav",
    rate_hz: int = 16_000,
) -> Path:
    """Write clips (key, waveform or encoded audio, JSON fields) to a .tar or .tar.gz with WebDataset's writer."""
    from webdataset import TarWriter  # it imports torch

    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(str(path), mtime=0) as writer:
        for key, audio, fields in clips:
            data = audio if isinstance(audio, bytes) else encode(audio, suffix, rate_hz=rate_hz)
            writer.write({"__key__": key, suffix: data, "json": json.dumps(fields).encode()})
    return path


def write_members(path: Path, members: Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    """Write members (name or header, bytes) to a .tar or .tar.gz as they are, in the order given."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, data in members:
            header = tarfile.TarInfo(member) if isinstance(member, str) else member
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    content = buffer.getvalue()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def shard_at(path: Path) -> Shard:
    """The shard of a file, as a folder of shards would locate it."""
    return Shard(path=path, name=path.name, digest=file_digest(path))


def write_manifest(folder: Path) -> Path:
    """Write the manifest of all the shards below a folder, as the mini corpus has one."""
    paths = sorted(path for path in folder.rglob("*.tar*") if path.is_file())
    shards = {path.relative_to(folder).as_posix(): {"sha256": file_digest(path)} for path in paths}
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({"shards": shards}), encoding="utf-8")
    return manifest
