"""Shards: every sample is read or named, and an archive damaged anywhere is an error, never a shorter archive."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from tests.shard_factory import encode, shard_at, tone, write_manifest, write_members, write_shard
from xares_bench.config.catalogue import Split
from xares_bench.core.digests import file_digest
from xares_bench.core.errors import DataError
from xares_bench.datasets.audio import AUDIO_SUFFIXES
from xares_bench.datasets.shards import Sample, ShardFolder, read_samples

BLOCK_BYTES = 512


def read(path: Path) -> list[Sample]:
    return list(read_samples(shard_at(path)))


def problems(path: Path) -> dict[str, str | None]:
    return {sample.key: sample.problem for sample in read(path)}


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type = kind
    header.linkname = target
    return header


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes members into a shard."""

    def write(*members: tuple[str | tarfile.TarInfo, bytes], name: str = "shard.tar") -> Path:
        return write_members(tmp_path / name, members)

    return write


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of an uncompressed archive of five samples."""
    noise = random.Random(0)
    members = [
        (f"k{number}.{suffix}", noise.randbytes(900 + 100 * number) if suffix == "wav" else b'{"label": "a"}')
        for number in range(5)
        for suffix in ("wav", "json")
    ]
    return write_members(tmp_path_factory.mktemp("whole") / "shard.tar", members).read_bytes()


@pytest.mark.parametrize("name", ["shard.tar", "shard.tar.gz"])
def test_what_webdataset_writes_is_read(tmp_path: Path, name: str) -> None:
    waveforms = [tone(0.01 * number, 100.0 * number) for number in (1, 2, 3)]
    clips = [(f"esc_{i:04}", wave, {"label": f"l{i}", "n": i}) for i, wave in enumerate(waveforms)]
    path = write_shard(tmp_path / "sub" / name, clips, suffix="flac")
    assert path.read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")
    samples = read(path)
    assert [sample.key for sample in samples] == ["esc_0000", "esc_0001", "esc_0002"]
    assert [sample.fields for sample in samples] == [{"label": f"l{i}", "n": i} for i in range(3)]
    assert [sample.audio for sample in samples] == [encode(wave, "flac") for wave in waveforms]
    assert [sample.problem for sample in samples] == [None] * 3


def test_compression_is_told_by_content_not_by_name(written: Callable[..., Path], tmp_path: Path) -> None:
    path = written(("k.wav", b"audio"), ("k.json", b"{}"))
    compressed = tmp_path / "named_wrongly.tar"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    plain = path.rename(tmp_path / "plain.tar.gz")
    assert read(compressed) == read(plain) == [Sample(key="k", audio=b"audio", suffix="wav", fields={})]


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_every_audio_suffix_in_any_case_and_order(written: Callable[..., Path], suffix: str) -> None:
    path = written(
        ("a.json", b'{"x": 1}'), (f"a.{suffix}", b"1"), (f"b.{suffix.upper()}", b"2"), ("b.JSON", b'{"x": 2}')
    )
    assert read(path) == [
        Sample(key="a", audio=b"1", suffix=suffix.lower(), fields={"x": 1}),
        Sample(key="b", audio=b"2", suffix=suffix.lower(), fields={"x": 2}),
    ]


def test_keys_are_paths_up_to_the_first_dot_of_the_name(written: Callable[..., Path]) -> None:
    path = written(
        *(("./a/v1.2/k.wav", b"1"), ("./a/v1.2/k.json", b"{}")),
        *(("a/other/k.wav", b"2"), ("a/other/k.json", b"{}")),
        *(("k.wav", b"3"), ("k.json", b"{}")),
        *(("é k.left.wav", b"4"), ("é k.json", b"{}")),
    )
    samples = read(path)
    assert [sample.problem for sample in samples] == [None] * 4
    assert [sample.key for sample in samples] == ["a/v1.2/k", "a/other/k", "k", "é k"]


def test_other_members_of_a_sample_are_no_problem(written: Callable[..., Path]) -> None:
    path = written(("k.wav", b"1"), ("k.txt", b"notes"), ("k.json", b"{}"), ("k.cls", b"3"))
    assert problems(path) == {"k": None}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([("k.json", b"{}")], "no audio member (found json; expected one of flac, mp3, wav, ogg, opus, m4a, wma)"),
        ([("k.aac", b"1"), ("k.json", b"{}")], "no audio member (found aac, json; expected one of"),
        ([("k.wav", b"1")], "no .json member"),
        ([("k.wav", b"1"), ("k.json", b"")], "unreadable .json member: "),
        ([("k.wav", b"1"), ("k.json", b'{"label": ')], "unreadable .json member: "),
        ([("k.wav", b"1"), ("k.json", b'{"label": "\xff"}')], "unreadable .json member: "),
        ([("k.wav", b"1"), ("k.json", b"[" * 100_000)], "unreadable .json member: "),
        ([("k.wav", b"1"), ("k.json", b'["a"]')], "the .json member is not an object"),
        ([("k.wav", b"1"), ("k.json", b"null")], "the .json member is not an object"),
        ([("k.wav", b"1"), ("k.json", b'"label"')], "the .json member is not an object"),
        ([("k.wav", b"1"), ("k.flac", b"2"), ("k.json", b"{}")], "several audio members (wav, flac)"),
        ([("k.wav", b"1"), ("k.wav", b"2"), ("k.json", b"{}")], "3 members in a row share this key and a suffix"),
        ([("k.1.wav", b"1"), ("k.1.json", b"{}"), ("k.2.wav", b"2"), ("k.2.json", b"{}")], "4 members in a row share"),
    ],
)
def test_an_unusable_sample_is_named_among_the_others(
    written: Callable[..., Path], members: list[tuple[str, bytes]], expected: str
) -> None:
    before = [("a.wav", b"1"), ("a.json", b"{}")]
    after = [("z.wav", b"1"), ("z.json", b"{}")]
    samples = read(written(*before, *members, *after))
    assert [(sample.key, sample.problem) for sample in (samples[0], samples[-1])] == [("a", None), ("z", None)]
    (bad,) = samples[1:-1]
    assert bad.key == "k"
    assert bad.problem is not None
    assert bad.problem.startswith(expected)
    assert "\n" not in bad.problem
    assert bad.audio is None
    assert bad.fields == {}


def test_a_key_that_comes_again_is_named(written: Callable[..., Path]) -> None:
    one = [("k.wav", b"1"), ("k.json", b"{}")]
    other = [("b.wav", b"1"), ("b.json", b"{}")]
    samples = read(written(*one, *other, *one))
    assert [sample.key for sample in samples] == ["k", "b", "k"]
    assert [sample.problem for sample in samples] == [None, None, "another sample of this shard has the same key"]
    assert samples[2].audio is None


def test_folders_and_hidden_files_are_no_samples(written: Callable[..., Path]) -> None:
    path = written(
        (member("folder.wav", tarfile.DIRTYPE), b""),
        (member("pipe.wav", tarfile.FIFOTYPE), b""),
        *(("._k.wav", b"of a file manager"), ("README", b"no suffix"), ("sub/.hidden.json", b"{}")),
        *(("k.wav", b"1"), ("k.json", b"{}")),
    )
    assert [sample.key for sample in read(path)] == ["k"]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_is_refused_as_its_sample_could_vanish(kind: bytes, written: Callable[..., Path]) -> None:
    path = written(("a.wav", b"1"), ("a.json", b"{}"), (member("k.wav", kind, "a.wav"), b""))
    with pytest.raises(DataError, match=r"'k\.wav' is a link; store the file itself"):
        read(path)


def test_long_names_and_names_that_are_not_utf8(tmp_path: Path) -> None:
    long = "d" * 150 + "/" + "k" * 120
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name in (f"{long}.wav", f"{long}.json", "café.wav", "café.json"):
            header = tarfile.TarInfo(name)
            header.size = 2
            archive.addfile(header, io.BytesIO(b"{}"))
    first, second = read(path)
    assert first.key == long
    assert second.problem is None
    assert second.key.encode() == b"caf\\udce9", "a key must fit into a file of results"


def test_an_archive_without_members_holds_no_sample(written: Callable[..., Path]) -> None:
    assert read(written()) == []
    assert read(written(name="shard.tar.gz")) == []


def end_of(whole: bytes) -> int:
    """Where the end mark of an archive begins."""
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        last = archive.getmembers()[-1]
    return last.offset_data + -(-last.size // BLOCK_BYTES) * BLOCK_BYTES


def assert_damaged(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: damaged archive: ")
    assert message.endswith("; fetch or build this shard again")
    assert "\n" not in message


def test_the_whole_archive_is_read(whole: bytes, tmp_path: Path) -> None:
    """What the tests below damage is fine."""
    path = tmp_path / "shard.tar"
    for data in (whole, gzip.compress(whole), whole[: end_of(whole) + BLOCK_BYTES]):
        path.write_bytes(data)
        assert [sample.key for sample in read(path)] == [f"k{number}" for number in range(5)]


def test_a_plain_archive_cut_at_any_block_is_damaged(whole: bytes, tmp_path: Path) -> None:
    for length in range(BLOCK_BYTES, end_of(whole) + 1, BLOCK_BYTES):
        assert_damaged(tmp_path / "shard.tar", whole[:length])


def test_a_plain_archive_cut_anywhere_is_damaged(whole: bytes, tmp_path: Path) -> None:
    places = random.Random(1).sample(range(100, end_of(whole) + BLOCK_BYTES), 60)
    for length in (100, BLOCK_BYTES - 1, BLOCK_BYTES + 1, end_of(whole) - 1, end_of(whole) + 1, *places):
        assert_damaged(tmp_path / "shard.tar", whole[:length])


def test_a_compressed_archive_cut_anywhere_is_damaged(whole: bytes, tmp_path: Path) -> None:
    compressed = gzip.compress(whole)
    places = random.Random(2).sample(range(1, len(compressed)), 60)
    for length in (2, 5, 10, len(compressed) // 2, len(compressed) - 9, len(compressed) - 8, *places):
        assert_damaged(tmp_path / "shard.tar.gz", compressed[:length])
    for missing in range(1, 9):  # of the checksum and the length at gzip's end
        assert_damaged(tmp_path / "shard.tar.gz", compressed[:-missing])


def test_a_flipped_bit_in_a_header_is_damage(whole: bytes, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        headers = [entry.offset for entry in archive]
    draw = random.Random(3)
    for header in headers:
        for place in (header, header + 124 + draw.randrange(11), header + 148 + draw.randrange(6), header + 156):
            data = bytearray(whole)
            data[place] ^= 1 << draw.randrange(7)
            assert_damaged(tmp_path / "shard.tar", bytes(data))


def test_a_flipped_bit_in_gzip_data_is_damage(whole: bytes, tmp_path: Path) -> None:
    compressed = gzip.compress(whole)
    draw = random.Random(4)
    for place in (0, 1, 2, *draw.sample(range(10, len(compressed)), 60)):
        data = bytearray(compressed)
        data[place] ^= 1 << draw.randrange(8)
        assert_damaged(tmp_path / "shard.tar.gz", bytes(data))


def test_a_flipped_bit_in_the_middle_of_a_long_clip_is_damage(tmp_path: Path) -> None:
    """The decompressor gives up while the clip is read, not when the next header is."""
    audio = bytes(random.Random(5).choices(b"abcd", k=400_000))
    path = write_members(tmp_path / "shard.tar.gz", [("k.wav", audio), ("k.json", b"{}")])
    compressed = path.read_bytes()
    for share in (0.5, 0.6, 0.7, 0.8, 0.9):
        place = int(share * len(compressed))
        assert_damaged(path, compressed[:place] + b"\xff\xff\xff\xff" + compressed[place + 4 :])
    assert_damaged(path, compressed[: len(compressed) // 2])


def test_an_overwritten_header_is_damage_wherever_it_is(whole: bytes, tmp_path: Path) -> None:
    """Also of the second sample, where a lenient reader would stop with one sample and no word."""
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        headers = [entry.offset for entry in archive]
    for header in headers:
        garbage = whole[:header] + b"\xa5" * BLOCK_BYTES + whole[header + BLOCK_BYTES :]
        assert_damaged(tmp_path / "shard.tar", garbage)
        zeros = whole[:header] + bytes(BLOCK_BYTES) + whole[header + BLOCK_BYTES :]
        assert_damaged(tmp_path / "shard.tar", zeros)


def test_data_after_the_end_is_damage(whole: bytes, tmp_path: Path) -> None:
    assert_damaged(tmp_path / "shard.tar", whole + whole)
    assert_damaged(tmp_path / "shard.tar.gz", gzip.compress(whole) + gzip.compress(whole))
    assert_damaged(tmp_path / "shard.tar.gz", gzip.compress(whole) + b"garbage")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "an empty file (0 bytes)"),
        (b"<html>404</html>", "a web page (HTML)"),
        (b"<!DOCTYPE html>\n<html>" + b" " * 5000, "a web page (HTML)"),
        (b'{"error": "Repository not found"}', """a JSON text ('{"error": "Repository not found"}')"""),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "a Git LFS pointer"),
        (b"/annex/objects/SHA256E-s1--0a.tar\n", "a git-annex pointer"),
        (b"PK\x03\x04" + bytes(600), "a zip archive"),
        (bz2.compress(b"x" * 5000), "a file compressed with bzip2"),
        (lzma.compress(b"x" * 5000), "a file compressed with xz"),
        (b"\x28\xb5\x2f\xfd" + b"\x81" * 600, "a file compressed with zstd"),
        (b"Rar!\x1a\x07\x01\x00" + b"\x81" * 600, "a RAR archive"),
        (b"7z\xbc\xaf\x27\x1c" + b"\x81" * 600, "a 7z archive"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_in_the_place_of_an_archive_is_named(tmp_path: Path, data: bytes, expected: str) -> None:
    for place, content in (("", data), ("in gzip: ", gzip.compress(data))):
        path = tmp_path / "shard.tar.gz"
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: {place}{expected}")
        assert ", expected a tar or tar.gz archive; " in message
        assert "\n" not in message


@pytest.mark.parametrize("data", [b"\n", b"\x1f\x8b", b"\xa5" * 2000], ids=["a newline", "two bytes of gzip", "noise"])
def test_what_is_no_archive_and_nothing_else_is_damaged(tmp_path: Path, data: bytes) -> None:
    assert_damaged(tmp_path / "shard.tar.gz", data)


def test_an_archive_in_gzip_twice_is_named(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "shard.tar.gz"
    path.write_bytes(gzip.compress(gzip.compress(whole)))
    with pytest.raises(DataError, match="in gzip: a file compressed with gzip, expected a tar"):
        read(path)


def test_members_are_not_taken_for_what_their_names_begin_with(written: Callable[..., Path]) -> None:
    path = written(("PK\x03\x04.wav", b"1"), ("PK\x03\x04.json", b"{}"))
    assert [sample.problem for sample in read(path)] == [None]
    data = path.read_bytes()
    assert data.startswith(b"PK\x03\x04")
    path.write_bytes(data[:700])
    with pytest.raises(DataError, match="damaged archive: unexpected end of data"):
        read(path)


def test_what_the_system_does_not_read_is_an_error_of_the_shard(
    written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(("k.wav", b"1"), ("k.json", b"{}"))
    shard = shard_at(path)

    def refuse(self: Path, mode: str) -> IO[bytes]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"shard\.tar: cannot be read: Input/output error; check the disk$"):
        list(read_samples(shard))


def test_nothing_is_extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_members(tmp_path / "in" / "shard.tar", [("../../evil.wav", b"1"), ("../../evil.json", b"{}")])
    monkeypatch.chdir(tmp_path / "in")
    assert len(read(path)) == 1
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["in", "shard.tar"]


def test_samples_come_one_by_one(whole: bytes, tmp_path: Path) -> None:
    """The first samples of an archive are there before its damage is met, which is then raised."""
    path = tmp_path / "shard.tar"
    path.write_bytes(whole[: end_of(whole)])
    samples = read_samples(shard_at(path))
    assert next(samples).key == "k0"
    with pytest.raises(DataError):
        list(samples)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three shards without a manifest."""
    for name in ("gtzan/a.tar", "gtzan/b.tar", "clotho/a.tar"):
        write_members(tmp_path / "data" / name, [("k.wav", name.encode()), ("k.json", b"{}")])
    return tmp_path / "data"


def split_of(*shards: str) -> Split:
    return Split(shards=shards, target_keys=("label",))


def test_shards_are_located_in_the_splits_order(folder: Path) -> None:
    shards = ShardFolder(folder).locate(split_of("gtzan/b.tar", "gtzan/a.tar"))
    assert [shard.name for shard in shards] == ["gtzan/b.tar", "gtzan/a.tar"]
    assert [shard.path for shard in shards] == [folder / "gtzan/b.tar", folder / "gtzan/a.tar"]
    assert [shard.digest for shard in shards] == [file_digest(shard.path) for shard in shards]


def test_a_missing_shard_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        ShardFolder(folder).locate(split_of("gtzan/a.tar", "gtzan/c.tar"))
    assert str(caught.value) == (
        f"{folder}/gtzan/c.tar: this shard is missing; restore the file, or pass another --data-home"
    )
    with pytest.raises(DataError, match="gtzan: a folder, expected a tar file"):
        ShardFolder(folder).locate(split_of("gtzan"))
    with pytest.raises(DataError, match="this shard is missing"):
        ShardFolder(folder / "absent").locate(split_of("gtzan/a.tar"))


def test_a_manifest_that_agrees(folder: Path) -> None:
    write_manifest(folder)
    assert len(ShardFolder(folder).locate(split_of("gtzan/a.tar", "clotho/a.tar"))) == 2


def test_a_changed_shard_is_refused(folder: Path) -> None:
    write_manifest(folder)
    promised = file_digest(folder / "gtzan/a.tar")
    write_members(folder / "gtzan/a.tar", [("k.wav", b"other"), ("k.json", b"{}")])
    shards = ShardFolder(folder)
    assert shards.locate(split_of("gtzan/b.tar"))
    with pytest.raises(DataError) as caught:
        shards.locate(split_of("gtzan/b.tar", "gtzan/a.tar"))
    message = str(caught.value)
    found = file_digest(folder / "gtzan/a.tar")
    assert f"{folder}/gtzan/a.tar: SHA-256 is {found[:12]}..., manifest.json has {promised[:12]}...;" in message
    assert "restore it, or rebuild the corpus and its manifest" in message


def test_a_shard_that_the_manifest_does_not_list_is_refused(folder: Path) -> None:
    write_manifest(folder)
    write_members(folder / "gtzan/new.tar", [("k.wav", b"new"), ("k.json", b"{}")])
    with pytest.raises(DataError, match=r"new\.tar: SHA-256 is .*, manifest\.json does not list it; .*manifest$"):
        ShardFolder(folder).locate(split_of("gtzan/new.tar"))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "{}", '{"shards": []}', '{"shards": {"a": "abc"}}', '{"shards": {"a": {}}}', b"\xff\xfe"],
    ids=range(9),
)
def test_a_malformed_manifest_is_an_error(folder: Path, text: str | bytes) -> None:
    (folder / "manifest.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError) as caught:
        ShardFolder(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}/manifest.json: not a manifest of shards (")
    assert message.endswith("; restore it or delete it")
    assert "\n" not in message


def test_shards_from_elsewhere_are_not_compared_with_the_manifest(folder: Path, tmp_path: Path) -> None:
    write_manifest(folder)
    own = write_members(tmp_path / "own" / "mine.tar", [("k.wav", b"1"), ("k.json", b"{}")])
    (shard,) = ShardFolder(folder).locate(split_of(str(own)))
    assert (shard.path, shard.name, shard.digest) == (own, str(own), file_digest(own))


def test_locating_writes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    ShardFolder(folder).locate(split_of("gtzan/a.tar"))
    assert sorted(folder.rglob("*")) == before
    assert sorted(os.listdir(folder)) == ["clotho", "gtzan"]  # noqa: PTH208  # with hidden files


def test_digests_of_own_tar_files_are_cached_until_the_files_change(tmp_path: Path) -> None:
    own = write_members(tmp_path / "elsewhere" / "own.tar", [("k.wav", b"1"), ("k.json", b"{}")])
    read: list[Path] = []

    def digest(path: Path) -> str:
        read.append(path)
        return file_digest(path)

    def folder() -> ShardFolder:
        return ShardFolder(tmp_path, tmp_path / "digests", digest)

    def locate() -> str:
        (shard,) = folder().locate(split_of(str(own)))
        return shard.digest

    assert folder().unread_bytes(str(own)) == own.stat().st_size
    assert locate() == locate() == file_digest(own)
    assert read == [own]
    assert folder().unread_bytes(str(own)) == 0
    write_members(own, [("k.wav", b"2"), ("k.json", b"{}")])
    assert locate() == file_digest(own)
    assert read == [own, own]
