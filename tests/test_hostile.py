"""Input that means harm: each is one line or a counted sample, in bounded time and memory, and nothing is executed.

What is shown elsewhere: links, and members of tar archives that are never extracted (`test_shards`), YAML whose aliases
stand for billions of words (`test_yaml_file`), pickles in the place of checkpoints (`test_checkpoints`), HTML in labels
(`test_html_report`, `test_leaderboard`).
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import resource
import struct
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import REPOSITORY
from tests.shard_factory import encode, shard_at, tone, write_members
from xares_bench.config.own_data import read_own_evaluations
from xares_bench.core.errors import CatalogueError, DataError
from xares_bench.core.parsing import read_yaml
from xares_bench.core.store import MANIFEST, Store
from xares_bench.datasets.audio import read_audio
from xares_bench.datasets.shards import read_samples
from xares_bench.datasets.targets import find_targets

# What a reader may take on top of the interpreter and its libraries.
ALLOWED_BYTES = 3 << 30


def bounded(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a program that may take neither more memory nor more than a minute."""
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=REPOSITORY,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (ALLOWED_BYTES, ALLOWED_BYTES)),
    )


READ = """
import sys
from pathlib import Path
from xares_bench.core.errors import DataError
from xares_bench.datasets.shards import Shard, read_samples
try:
    for sample in read_samples(Shard(path=Path(sys.argv[1]), name="s", digest="")):
        print(sample.problem)
except DataError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("name", ["/etc/passwd", "../../outside", "a/../../outside", "C:\\outside"])
def test_names_that_lead_elsewhere_are_only_names(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    wav = encode(tone(0.1))
    write_members(folder / "s.tar", [(f"{name}.wav", wav), (f"{name}.json", b'{"label": "x"}')])
    before = sorted(tmp_path.rglob("*"))
    (sample,) = read_samples(shard_at(folder / "s.tar"))
    assert (sample.problem, sample.audio) == (None, wav)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_few_kilobytes_that_unpack_to_many_gigabytes_are_refused(tmp_path: Path) -> None:
    """A member of 8 GB of zeros, in a gzip of a gzip's usual 1000 to 1; written without ever being in memory."""
    header = tarfile.TarInfo("bomb.wav")
    header.size = 8 << 30
    with gzip.open(tmp_path / "bomb.tar.gz", "wb", compresslevel=9) as file:
        file.write(header.tobuf())
        for _ in range(64):
            file.write(bytes(1 << 20))
    finished = bounded(READ, tmp_path / "bomb.tar.gz")
    assert "refused:" in finished.stdout
    assert "claims 8589934592 bytes, expected at most" in finished.stdout


def test_a_header_of_many_gigabytes_is_refused(tmp_path: Path) -> None:
    """The same in a pax header, which a reader takes in whole before it knows what it is."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 8 << 30
    with gzip.open(tmp_path / "bomb.tar.gz", "wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(1 << 20))
    finished = bounded(READ, tmp_path / "bomb.tar.gz")
    assert "claims 8589934592 bytes" in finished.stdout


SPARSE = {
    "0.0": {"GNU.sparse.size": "SIZE", "GNU.sparse.numblocks": "0"},
    "0.1": {"GNU.sparse.size": "SIZE", "GNU.sparse.map": "0,0,SIZE,0"},
    "1.0": {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": "SIZE",
        "GNU.sparse.name": "0.wav",
    },
    "old": {},
}


def write_sparse(path: Path, version: str, size_bytes: int, stored: bytes) -> Path:
    """A tar of one member that is a hole of any size but for its stored bytes."""
    header = tarfile.TarInfo("0.wav")
    header.size = len(stored)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        header.pax_headers = {key: value.replace("SIZE", str(size_bytes)) for key, value in SPARSE[version].items()}
        archive.addfile(header, io.BytesIO(stored))
    content = bytearray(buffer.getvalue())
    if version == "old":  # a list of up to four places and sizes, and the size with its holes
        content[156:157] = b"S"
        content[386:410] = b"%011o\0%011o\0" % (0, len(stored))
        content[483:495] = (1 << 95 | size_bytes).to_bytes(12, "big")
        content[148:156] = b" " * 8
        content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("stored", [b"", encode(tone(0.1)), b"1\n0\n512\n".ljust(1024, b"\0")], ids=range(3))
@pytest.mark.parametrize("size_bytes", [10_000, 1 << 29, 8 << 30, 1 << 60])
@pytest.mark.parametrize("version", SPARSE)
def test_a_sparse_member_is_refused_before_its_holes_are_filled(
    tmp_path: Path, version: str, size_bytes: int, stored: bytes
) -> None:
    file = write_sparse(tmp_path / "s.tar", version, size_bytes, stored)
    assert file.stat().st_size < 20_000
    tracemalloc.start()
    with pytest.raises(DataError, match=r"s\.tar: damaged archive: '0\.wav' is a sparse file; pack it again"):
        list(read_samples(shard_at(file)))
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_an_endless_list_of_holes_is_refused(tmp_path: Path) -> None:
    """In a few kilobytes of gzip: a reader would keep each of its numbers."""
    plain = write_sparse(tmp_path / "s.tar", "1.0", 10, b"999999999\n" + b"0\n" * 20_000_000)
    (tmp_path / "s.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert (tmp_path / "s.tar.gz").stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(DataError, match="is a sparse file"):
        list(read_samples(shard_at(tmp_path / "s.tar.gz")))
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


NUMBERS = st.integers(-(1 << 70), 1 << 70).map(str) | st.sampled_from(
    ["0", "-1", "-512", "-1024", "x", "1" * 5000, "nan"]
)
FIELDS = ["size", "mtime", "uid", "path", "linkpath", "hdrcharset", "GNU.sparse.size", "GNU.sparse.realsize"]
FIELDS += ["GNU.sparse.map", "GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.offset", "GNU.sparse.numbytes"]


@settings(max_examples=300, deadline=5000, derandomize=True)
@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), NUMBERS | st.text(max_size=8), max_size=4),
    kind=st.sampled_from(["0", "x", "g", "L", "K", "S", "7", "5"]),
    size_bytes=st.integers(-2000, 2000) | st.integers(-(1 << 80), 1 << 80),
)
def test_headers_that_lie_end_in_bounded_memory(fields: dict[str, str], kind: str, size_bytes: int) -> None:
    header = tarfile.TarInfo("0.wav")
    header.size = 100
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        header.pax_headers = {key: value.encode("utf-8", "replace").decode() for key, value in fields.items()}
        archive.addfile(header, io.BytesIO(bytes(100)))
    content = bytearray(buffer.getvalue())
    last = len(content) // 512 * 512
    last = max(place for place in range(0, last, 512) if content[place + 257 : place + 262] == b"ustar")
    if kind != "0":
        content[last + 156 : last + 157] = kind.encode()
        content[last + 124 : last + 136] = (size_bytes % (1 << 96)).to_bytes(12, "big")
        content[last + 148 : last + 156] = b" " * 8
        content[last + 148 : last + 156] = b"%06o\0 " % (sum(content[last : last + 512]) % 0o777777)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "s.tar"
        file.write_bytes(content)
        tracemalloc.start()
        with contextlib.suppress(DataError):
            assert len(list(read_samples(shard_at(file)))) <= 2
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
        tracemalloc.stop()


def test_headers_of_headers_are_refused(tmp_path: Path) -> None:
    """Found by a fuzzer: each pax header is one of the next, and a reader calls itself for it."""
    header = tarfile.TarInfo("pax")
    header.type = tarfile.XHDTYPE
    (tmp_path / "s.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) * 5000)
    with pytest.raises(DataError, match=r"s\.tar: damaged archive: endless headers"):
        list(read_samples(shard_at(tmp_path / "s.tar")))


def test_endless_zeros_behind_the_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xares_bench.datasets.shards._MAX_MEMBER_BYTES", 1 << 20)
    with gzip.open(tmp_path / "s.tar.gz", "wb") as file:
        file.write(bytes(4 << 20))
    with pytest.raises(DataError, match="zeros after the end mark"):
        list(read_samples(shard_at(tmp_path / "s.tar.gz")))


def flac_of(num_samples: int) -> bytes:
    """A short FLAC whose header promises any number of samples."""
    data = bytearray(encode(tone(0.1), "flac"))
    # STREAMINFO: "fLaC", the block's header, 10 bytes of sizes, then rate, channels, bits, and 36 bits of length.
    (word,) = struct.unpack(">Q", data[18:26])
    data[18:26] = struct.pack(">Q", word & ~0xFFFFFFFFF | num_samples)
    return bytes(data)


@pytest.mark.parametrize("num_samples", [1_000_000_000, (1 << 36) - 1])
def test_a_header_that_promises_billions_of_samples_is_refused(num_samples: int) -> None:
    with pytest.raises(
        ValueError, match=f"unreadable audio: {num_samples} samples over all channels, expected at most"
    ):
        read_audio(flac_of(num_samples), "flac")


def test_hours_of_silence_in_a_few_bytes_are_refused() -> None:
    program = """
import io, sys, numpy, soundfile
from xares_bench.datasets.audio import read_audio
file = io.BytesIO()
with soundfile.SoundFile(file, "w", 16000, 1, format="FLAC") as flac:
    for _ in range(4000):
        flac.write(numpy.zeros(160_000, dtype=numpy.int16))
data = file.getvalue()
assert len(data) < 8_000_000, len(data)
try:
    read_audio(data, "flac")
except ValueError as error:
    print(error)
"""
    assert "640000000 samples over all channels" in bounded(program).stdout


@pytest.mark.parametrize("depth", [10_000, 1_000_000])
def test_nesting_without_end_is_an_unusable_sample(tmp_path: Path, depth: int) -> None:
    nested = b'{"label": ' + b"[" * depth + b"]" * depth + b"}"
    write_members(tmp_path / "s.tar", [("0.wav", encode(tone(0.1))), ("0.json", nested)])
    (sample,) = read_samples(shard_at(tmp_path / "s.tar"))
    assert sample.problem == "unreadable .json member: nested too deeply"


def test_json_of_any_size_is_an_unusable_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xares_bench.datasets.shards._MAX_JSON_BYTES", 1000)
    fields = json.dumps({"label": "x", "more": "x" * 1000}).encode()
    write_members(tmp_path / "s.tar", [("0.wav", encode(tone(0.1))), ("0.json", fields)])
    (sample,) = read_samples(shard_at(tmp_path / "s.tar"))
    assert sample.problem == f".json member of {len(fields)} bytes, expected at most 1000"


def test_a_label_of_a_megabyte_is_an_unusable_sample() -> None:
    """A decoder would be asked for a quarter of a million positions."""
    with pytest.raises(ValueError, match="'label' holds 1000000 characters, expected at most 20000"):
        find_targets({"label": "x" * 1_000_000}, ("label",))
    assert find_targets({"label": "x" * 20_000}, ("label",)) == ("label", ("x" * 20_000,))


@pytest.mark.parametrize("damage", [b"[" * 100_000, b'{"key": ' * 100_000, b"\xff\xfe", b"null", b"[]"])
def test_a_manifest_of_any_kind_is_no_manifest(tmp_path: Path, damage: bytes) -> None:
    folder = tmp_path / "lalms" / "key"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_bytes(damage)
    assert Store(root=tmp_path).find("lalms", "key") is None
    assert Store(root=tmp_path).entries("lalms") == []


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch FILE']",
        "a: !!python/object/apply:subprocess.check_output [['touch', 'FILE']]",
        "!!python/name:os.system",
        "a: !<tag:yaml.org,2002:python/object/new:type> [x, [], {}]",
    ],
)
def test_yaml_that_names_python_is_refused_and_not_executed(tmp_path: Path, text: str) -> None:
    file = tmp_path / "eval.yaml"
    file.write_text(text.replace("FILE", str(tmp_path / "executed")))
    with pytest.raises(CatalogueError) as refused:
        read_yaml(file, CatalogueError)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "executed").exists()


def test_yaml_nested_without_end_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "eval.yaml"
    file.write_text("[" * 20_000)
    with pytest.raises(CatalogueError):
        read_yaml(file, CatalogueError)


def test_the_readers_of_own_files_open_nothing_that_they_name(tmp_path: Path) -> None:
    """A shard that a YAML file names is found missing; a URL or a command in its place is a name like any other."""
    from xares_bench.config.catalogue import load_catalogue

    file = tmp_path / "eval.yaml"
    file.write_text(yaml.safe_dump({"own": {"shards": ["pipe:touch executed"], "prompt": "?", "metric": "Accuracy"}}))
    with pytest.raises((CatalogueError, DataError)) as refused:
        list(read_own_evaluations(file, load_catalogue("mini")))
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("executed"))


def test_an_archive_in_an_archive_is_no_sample(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    write_members(tmp_path / "s.tar", [("0.wav", inner.getvalue()), ("0.json", b'{"label": "x"}')])
    (sample,) = read_samples(shard_at(tmp_path / "s.tar"))
    assert sample.audio is not None
    with pytest.raises(ValueError, match="unreadable audio"):
        read_audio(sample.audio, sample.suffix)
