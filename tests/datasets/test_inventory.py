from __future__ import annotations

import gzip
import io
import tarfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shard_factory import FORMATS, encode, shard_at, tone, write_members
from xares_bench.config.catalogue import Split
from xares_bench.core.digests import file_digest
from xares_bench.core.errors import DataError, OutOfMemory
from xares_bench.datasets import inventory, shards
from xares_bench.datasets.audio import read_audio
from xares_bench.datasets.inventory import Inventories, Inventory, Stopped
from xares_bench.datasets.shards import read_samples

SPLIT = Split(shards=(), target_keys=("label",))
OTHER_SPLIT = Split(shards=(), target_keys=("other",))
WAV = encode(tone(0.1))


def members_of(*samples: tuple[bytes, str]) -> list[tuple[str, bytes]]:
    """A WAV member and a JSON member per sample."""
    return [
        member
        for number, (audio, fields) in enumerate(samples)
        for member in ((f"k{number}.wav", audio), (f"k{number}.json", fields.encode()))
    ]


@pytest.fixture
def inventories(tmp_path: Path) -> Callable[..., Inventories]:
    """Makes inventories that share a cache, and so do sessions."""
    return lambda *paths, splits=(SPLIT,): Inventories(tmp_path / "cache", {path: list(splits) for path in paths})


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were walked."""
    found: list[Path] = []

    def read(shard: Any, file: Any) -> Any:
        found.append(shard.path)
        return read_samples(shard, file)

    monkeypatch.setattr(inventory, "read_samples", read)
    return found


@pytest.mark.parametrize("name", ["shard.tar", "shard.tar.gz"])
def test_unusable_samples_are_counted_and_the_first_of_them_named(
    tmp_path: Path, name: str, inventories: Callable[..., Inventories]
) -> None:
    samples = [(WAV, '{"label": "x"}'), (WAV, '{"x": 1}'), (WAV, "no JSON"), (WAV, '{"label": "y"}'), (WAV, "[]")]
    members = [*members_of(*samples), ("alone.json", b"{}"), ("apple.m4a", b"1"), ("apple.json", b'{"label": "x"}')]
    shard = shard_at(write_members(tmp_path / name, members))
    found = inventories().of(shard, SPLIT)
    assert (found.num_samples, found.damage) == (7, None)
    assert [index for index in found.unusable if index < 6] == [1, 2, 4, 5]
    assert [(key, reason.partition(" ")[0]) for key, reason in found.named] == [
        ("k1", "none"),
        ("k2", "unreadable"),
        ("k4", "the"),
    ]
    assert "wav" in found.suffixes
    assert inventories().of(shard, Split(shards=(), target_keys=("x",))).unusable[0] == 0, "it depends on the keys"


def test_clips_are_read_until_one_of_their_suffix_can_be(
    tmp_path: Path, inventories: Callable[..., Inventories], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def read(data: bytes, suffix: str) -> Any:
        tried.append(suffix)
        return read_audio(data, suffix)

    monkeypatch.setattr(shards, "read_audio", read)
    bad, cut, label = b"<html>", WAV[:30], '{"label": "x"}'
    members = members_of((bad, label), (WAV, "{}"), (cut, label), (WAV, label), (cut, label), (b"", label))
    members += [("f.flac", bad), ("f.json", label.encode())]
    found = inventories().of(shard_at(write_members(tmp_path / "s.tar", members)), SPLIT)
    assert found.unusable == (0, 1, 2, 5, 6)
    assert tried == ["wav", "wav", "wav", "wav", "flac"], "the second that is cut is left to the evaluation"
    assert found.named[0][1].startswith("unreadable audio")


def test_too_little_memory_for_a_clip_ends_the_walk_with_its_name(
    tmp_path: Path, inventories: Callable[..., Inventories], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes neither a sample unusable nor a shard damaged: that would depend on the machine."""

    def fail(data: bytes, suffix: str) -> None:
        raise MemoryError

    shard = shard_at(write_members(tmp_path / "s.tar", members_of((WAV, '{"label": "x"}'))))
    with monkeypatch.context() as patched:
        patched.setattr(shards, "read_audio", fail)
        with pytest.raises(OutOfMemory, match=r"s\.tar: k0: too little memory to read this clip"):
            inventories().of(shard, SPLIT)
    assert inventories().of(shard, SPLIT).unusable == ()


@pytest.mark.parametrize("suffix", FORMATS)
def test_of_whole_clips_only_the_first_is_read(
    tmp_path: Path, inventories: Callable[..., Inventories], monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    tried: list[bytes] = []
    monkeypatch.setattr(shards, "read_audio", lambda data, suffix: tried.append(data))
    audio = encode(tone(0.1, rate_hz=48_000), suffix, rate_hz=48_000)
    members = [
        member
        for number in range(3)
        for member in ((f"k{number}.{suffix}", audio), (f"k{number}.json", b'{"label": "x"}'))
    ]
    assert inventories().of(shard_at(write_members(tmp_path / "s.tar", members)), SPLIT).unusable == ()
    assert tried == [audio]


def test_samples_whose_targets_are_all_corrupt_are_counted_beside_the_unusable_ones(
    tmp_path: Path, inventories: Callable[..., Inventories]
) -> None:
    labels = ('"?!"', '"dog"', '["--", "!"]', '["--", "cat"]', "null", '""')
    shard = shard_at(write_members(tmp_path / "s.tar", members_of(*((WAV, f'{{"label": {it}}}') for it in labels))))
    for found in (inventories().of(shard, SPLIT), inventories().of(shard, SPLIT)):  # walked, then from the cache
        assert (found.without_target, found.unusable, found.targets) == ((0, 2), (4,), ("dog", "cat", ""))


def test_different_targets_are_kept_unless_there_is_too_much_text(
    tmp_path: Path, inventories: Callable[..., Inventories], monkeypatch: pytest.MonkeyPatch
) -> None:
    members = members_of(
        (WAV, '{"label": "dog"}'), (WAV, '{"label": ["cat", "dog"]}'), (WAV, "{}"), (WAV, '{"label": 3}')
    )
    shard = shard_at(write_members(tmp_path / "s.tar", members))
    assert inventories().of(shard, SPLIT).targets == ("dog", "cat", "3")
    monkeypatch.setattr(inventory, "_MAX_TARGET_CHARACTERS", 6)
    assert Inventories(tmp_path / "other", {}).of(shard, SPLIT).targets is None


def test_a_file_is_digested_and_walked_in_one_pass(
    tmp_path: Path, inventories: Callable[..., Inventories], walks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0)
    samples = [(encode(noise.uniform(-1, 1, 350_000)), '{"label": "x"}') for _ in range(4)]
    path = write_members(tmp_path / "s.tar", members_of(*samples))
    opened: list[Path] = []
    open_file = Path.open

    def noted(self: Path, *arguments: Any, **named: Any) -> Any:
        opened.append(self)
        return open_file(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", noted)
        digest = inventories(path).digest(path)
    assert digest == file_digest(path)
    assert (opened.count(path), walks) == (1, [path])
    shard = shard_at(path)
    assert inventories().of(shard, SPLIT) == Inventory(num_samples=4, suffixes=("wav",), targets=("x",))
    assert walks == [path], "a second session does not walk it again"
    copy = path.rename(tmp_path / "renamed.tar")
    assert inventories().is_known(shard_at(copy), SPLIT)
    assert not inventories().is_known(shard_at(copy), OTHER_SPLIT)


def test_a_file_is_walked_once_for_all_splits_that_need_it(
    tmp_path: Path, inventories: Callable[..., Inventories], walks: list[Path]
) -> None:
    path = write_members(tmp_path / "s.tar", members_of((WAV, '{"label": "x"}')))
    known = inventories(path, splits=(SPLIT, OTHER_SPLIT, SPLIT))
    known.digest(path)
    assert known.of(shard_at(path), SPLIT).unusable == ()
    assert known.of(shard_at(path), OTHER_SPLIT).unusable == (0,)
    assert walks == [path]


def test_files_that_no_split_needs_are_only_digested(
    tmp_path: Path, inventories: Callable[..., Inventories], walks: list[Path]
) -> None:
    path = write_members(tmp_path / "s.tar", [])
    assert inventories().digest(path) == file_digest(path)
    assert walks == []


def test_damage_is_part_of_an_inventory_wherever_the_file_lies(
    tmp_path: Path, inventories: Callable[..., Inventories], walks: list[Path]
) -> None:
    path = write_members(tmp_path / "s.tar", members_of((WAV, "{}"), (WAV, "{}")))
    path.write_bytes(path.read_bytes()[:3000])
    assert inventories(path).digest(path) == file_digest(path)
    shard = shard_at(path.rename(tmp_path / "moved.tar"))
    damage = inventories().of(shard, SPLIT).damage
    assert damage == "damaged archive: unexpected end of data; fetch or build this shard again"
    assert len(walks) == 1


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 3000), max_size=6),
    is_packed=st.booleans(),
    end=st.one_of(st.none(), st.integers(0, 30_000)),
    flip=st.one_of(st.none(), st.integers(0, 30_000)),
)
def test_any_bytes_have_their_digest_and_what_the_reader_says(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: Sequence[int],
    is_packed: bool,
    end: int | None,
    flip: int | None,
) -> None:
    """Cut and flipped archives, packed or not: all bytes are digested, and damage is what `read_samples` meets."""
    folder = tmp_path_factory.mktemp("any")
    samples = [(b"x" * size, '{"label": "x"}') for size in sizes]
    data = bytearray(write_members(folder / "s.tar", members_of(*samples)).read_bytes())
    data = bytearray(gzip.compress(data, 1)) if is_packed else data
    data = data[:end]
    if flip is not None and flip < len(data):
        data[flip] ^= 1
    path = folder / "changed.tar"
    path.write_bytes(data)
    assert Inventories(folder / "cache", {path: [SPLIT]}).digest(path) == file_digest(path)
    found = Inventories(folder / "cache", {}).of(shard_at(path), SPLIT)
    problems: list[str | None] = []
    damage: str | None = None
    try:
        for sample in read_samples(shard_at(path)):
            problems.append(sample.problem or "no audio")
    except DataError as error:
        damage = str(error).removeprefix(f"{path}: ")
    assert found.damage == damage
    assert found.num_samples == len(problems) == len(found.unusable)


def test_a_link_or_a_bomb_is_damage(tmp_path: Path, inventories: Callable[..., Inventories]) -> None:
    """The bounds of the reader are those of the walk."""
    link = tarfile.TarInfo("k.wav")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    linked = shard_at(write_members(tmp_path / "link.tar", [(link, b"")]))
    assert "is a link" in (inventories().of(linked, SPLIT).damage or "")
    header = tarfile.TarInfo("bomb.wav")
    header.size = 8 << 30
    with gzip.open(tmp_path / "bomb.tar.gz", "wb") as file:
        file.write(header.tobuf() + bytes(1 << 20))
    bomb = shard_at(tmp_path / "bomb.tar.gz")
    assert "claims 8589934592 bytes" in (inventories().of(bomb, SPLIT).damage or "")


def test_a_disk_that_cannot_be_read_is_no_damage(
    tmp_path: Path, inventories: Callable[..., Inventories], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_members(tmp_path / "s.tar", members_of((WAV, '{"label": "x"}')))
    shard = shard_at(path)

    class BadDisk(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    opened = Path.open

    def open_file(file: Path, *arguments: Any, **options: Any) -> Any:
        return BadDisk() if file == path else opened(file, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_file)
        with pytest.raises(DataError, match=r"s\.tar: cannot be read: Input/output error"):
            inventories().of(shard, SPLIT)
        with pytest.raises(OSError, match="Input/output error"):
            inventories(path).digest(path)
    assert inventories().of(shard, SPLIT).damage is None


def test_a_shard_that_changed_since_it_was_digested_is_an_error(
    tmp_path: Path, inventories: Callable[..., Inventories]
) -> None:
    path = write_members(tmp_path / "s.tar", members_of((WAV, '{"label": "x"}')))
    status = path.stat()
    shard = shard_at(path)
    object.__setattr__(shard, "status", (status.st_size, status.st_mtime_ns - 1))
    with pytest.raises(DataError, match="changed while it was in use"):
        inventories().of(shard, SPLIT)
    assert not inventories().is_known(shard, SPLIT)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"num_samples": "many"}'])
def test_a_broken_inventory_is_ignored(
    tmp_path: Path, inventories: Callable[..., Inventories], walks: list[Path], content: str
) -> None:
    shard = shard_at(write_members(tmp_path / "s.tar", members_of((WAV, '{"label": "x"}'))))
    before = inventories().of(shard, SPLIT)
    (cached,) = (tmp_path / "cache").glob("*.json")
    cached.write_text(content)
    assert inventories().of(shard, SPLIT) == before
    assert len(walks) == 2


def test_all_bytes_are_reported_and_a_walk_can_be_stopped(
    tmp_path: Path, inventories: Callable[..., Inventories]
) -> None:
    path = write_members(tmp_path / "s.tar", members_of(*[(WAV + bytes(900_000), '{"label": "x"}')] * 4))
    known = inventories(path)
    read: list[int] = []

    def stop_soon(num_done: int = 1, note: str = "") -> None:
        read.append(num_done)
        if sum(read) > 1_000_000:
            known.stop.set()

    with known.shown(lambda num_done=1, note="": read.append(num_done)):
        known.digest(path)
    assert sum(read) == path.stat().st_size
    read.clear()
    with known.shown(stop_soon), pytest.raises(Stopped):
        known.digest(path)
    assert sum(read) < 3_000_000


def test_threads_that_need_the_same_shard_walk_it_once(
    tmp_path: Path, inventories: Callable[..., Inventories], walks: list[Path]
) -> None:
    shard = shard_at(write_members(tmp_path / "s.tar", members_of(*[(WAV, '{"label": "x"}')] * 50)))
    threads = [threading.Thread(target=inventories().of, args=(shard, SPLIT)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(walks) == 1
