"""The store: an entry is finished or not there, whatever happened to the process that made it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from xares_bench.core.digests import file_digest
from xares_bench.core.errors import CacheWarning
from xares_bench.core.store import MANIFEST, Entry, Store, write_atomically

KEY = "0f" * 32

# Makes one entry slowly: argv is root, key, file to note each making in, seconds that it takes.
MAKER = """
import sys, time
from pathlib import Path
from xares_bench.core.store import Store

root, key, log, seconds = sys.argv[1:]

def make(folder):
    with open(log, "a") as file:
        file.write("made\\n")
    (folder / "half.bin").write_bytes(b"half")
    print("half-way", flush=True)
    time.sleep(float(seconds))
    (folder / "rest.bin").write_bytes(b"rest")
    return {"rows": 3}

entry = Store(root=Path(root)).obtain("features", key, make)
print(sorted(path.name for path in entry.folder.iterdir()), entry.manifest["rows"], entry.reused, flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(root=tmp_path / "root")


def make_good(folder: Path) -> dict[str, Any]:
    (folder / "good.bin").write_bytes(b"good")
    return {"rows": 5}


def start_maker(store: Store, log: Path, seconds: float) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", MAKER, str(store.root), KEY, str(log), str(seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def assert_made_anew(store: Store) -> Entry:
    entry = store.obtain("features", KEY, make_good)
    assert not entry.reused
    assert sorted(path.name for path in entry.folder.iterdir()) == ["good.bin", MANIFEST]
    digest = "770e607624d689265ca6c44884d0807d9b054d23c473c106c72be9de08b7376c"  # of b"good"
    files = {"good.bin": {"size_bytes": 4, "sha256": digest}}
    assert entry.manifest == {"key": KEY, "files": files, "rows": 5}
    assert entry.size_bytes == 4
    return entry


def test_an_entry_is_made_once_and_then_reused(store: Store) -> None:
    assert store.find("features", KEY) is None
    made = assert_made_anew(store)
    assert made.folder == store.root / "features" / KEY

    def never(folder: Path) -> dict[str, Any]:
        raise AssertionError("made twice")

    for again in (store.obtain("features", KEY, never), store.find("features", KEY)):
        assert again == Entry(folder=made.folder, manifest=made.manifest, reused=True)


def test_kinds_and_keys_are_kept_apart(store: Store) -> None:
    store.obtain("features", KEY, make_good)
    assert store.find("features", "1" * 64) is None
    assert store.find("scores", KEY) is None


def test_finding_nothing_creates_nothing(store: Store) -> None:
    store.find("features", KEY)
    assert not store.root.exists()


@pytest.mark.parametrize(
    "manifest",
    [
        None,
        "",
        '{"key": "' + KEY[:20],
        json.dumps({"rows": 5}),
        json.dumps({"key": "1" * 64, "rows": 5}),
        json.dumps([KEY]),
        json.dumps(KEY),
        b"\xff\xfe\x00",
    ],
    ids=["none", "empty", "truncated", "without key", "of another key", "a list", "a text", "not UTF-8"],
)
def test_a_folder_without_its_own_manifest_is_recomputed(store: Store, manifest: str | bytes | None) -> None:
    folder = store.root / "features" / KEY
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "left_over.bin").write_bytes(b"from an earlier life")
    if manifest is not None:
        (folder / MANIFEST).write_bytes(manifest if isinstance(manifest, bytes) else manifest.encode())
    assert store.find("features", KEY) is None
    warned = nullcontext() if manifest is None else pytest.warns(CacheWarning, match="manifest.json is damaged")
    with warned:
        assert_made_anew(store)


def test_a_manifest_cut_anywhere_is_not_trusted(store: Store) -> None:
    entry = assert_made_anew(store)
    whole = (entry.folder / MANIFEST).read_bytes().rstrip()
    for length in range(len(whole)):
        (entry.folder / MANIFEST).write_bytes(whole[:length])
        assert store.find("features", KEY) is None, whole[:length]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_file_is_found_and_the_entry_recomputed(store: Store, damage: str) -> None:
    file = assert_made_anew(store).folder / "good.bin"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"gold" if damage == "flipped" else b"goo")
    another = Store(root=store.root)  # of the next session
    with pytest.warns(CacheWarning, match=r"good\.bin is damaged; it is recomputed$") as warned:
        assert_made_anew(another)
    assert len(warned) == 1
    assert another.obtain("features", KEY, make_good).reused


def test_a_sessions_own_work_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = assert_made_anew(store)
    read: list[Path] = []

    def noted_digest(path: Path) -> str:
        read.append(path)
        return file_digest(path)

    monkeypatch.setattr("xares_bench.core.store.file_digest", noted_digest)
    for _ in range(3):
        assert store.use("features", KEY) == Entry(folder=entry.folder, manifest=entry.manifest, reused=True)
    assert read == [entry.folder / "good.bin"]


def test_what_another_process_recomputes_is_not_removed(store: Store) -> None:
    entry = assert_made_anew(store)
    (entry.folder / "good.bin").unlink()
    unfinished = Store(root=store.root).begin("features", KEY, wait=False)
    assert unfinished is not None
    (unfinished.folder / "good.bin").write_bytes(b"go")
    (unfinished.folder / MANIFEST).write_text("{}")  # as if it were about to write one
    with pytest.warns(CacheWarning):
        assert store.use("features", KEY) is None
    assert (unfinished.folder / "good.bin").exists()
    unfinished.abandon()
    assert not entry.folder.exists()


def test_an_unfinished_folder_is_of_one_process_only(store: Store) -> None:
    one = store.begin("features", KEY, wait=False)
    assert one is not None
    assert Store(root=store.root).begin("features", KEY, wait=False) is None
    (one.folder / "good.bin").write_bytes(b"good")
    assert store.find("features", KEY) is None
    one.finish({"rows": 5})
    assert store.begin("features", KEY, wait=False) is None, "there is nothing to fill"
    one.abandon()
    assert store.find("features", KEY) is not None, "what is finished stays"
    two = store.begin("scores", KEY, wait=False)
    assert two is not None
    two.abandon()
    three = store.begin("scores", KEY, wait=False)
    assert three is not None
    two.abandon()
    assert three.folder.is_dir(), "another's by now"
    three.abandon()


def test_entries_are_listed_and_removed(store: Store) -> None:
    assert store.entries("features") == []
    for key in ("b" * 64, "a" * 64):
        store.obtain("features", key, make_good)
    (store.root / "features" / "leases").mkdir()
    assert [entry.folder.name[0] for entry in store.entries("features")] == ["a", "b"]
    store.remove("features", "a" * 64)
    store.remove("features", "c" * 64)
    assert [entry.folder.name[0] for entry in store.entries("features")] == ["b"]


@pytest.mark.parametrize("error", [ValueError("no disk"), KeyboardInterrupt()], ids=["exception", "interrupt"])
def test_a_make_that_raises_leaves_nothing(store: Store, error: BaseException) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "half.bin").write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        store.obtain("features", KEY, fail)
    assert not (store.root / "features" / KEY).exists()
    assert_made_anew(store)


def test_a_manifest_that_json_has_no_form_for_leaves_nothing(store: Store) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.obtain("features", KEY, lambda folder: {"rows": {1, 2}})
    assert not (store.root / "features" / KEY).exists()


def test_a_process_killed_half_way_leaves_nothing_finished(store: Store, tmp_path: Path) -> None:
    with start_maker(store, tmp_path / "log", seconds=60) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half-way\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert (store.root / "features" / KEY / "half.bin").exists()
    assert store.find("features", KEY) is None
    started = time.monotonic()
    assert_made_anew(store)
    assert time.monotonic() - started < 60, "the killed process's lock was waited for"


def test_processes_at_once_make_it_once(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start_maker(store, log, seconds=0.4) for _ in range(3)]
    last_lines = sorted(process.communicate(timeout=900)[0].splitlines()[-1] for process in processes)
    assert log.read_text() == "made\n"
    files = "['half.bin', 'manifest.json', 'rest.bin'] 3"
    assert last_lines == [f"{files} False", f"{files} True", f"{files} True"]


def test_atomic_write_creates_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    write_atomically(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    write_atomically(path, b"\x00new")
    assert path.read_bytes() == b"\x00new"
    assert [other.name for other in path.parent.iterdir()] == ["file.txt"]


def test_atomic_write_that_fails_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def no_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]  # noqa: PTH208  # with hidden files


def test_half_a_character_is_written_as_an_escape(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file.txt", "dog \ud83d")
    assert (tmp_path / "file.txt").read_bytes() == rb"dog \ud83d"


def test_atomic_write_never_shows_half_a_file(tmp_path: Path) -> None:
    """A reader beside a writer that is killed at any time sees one whole content or the other."""
    path = tmp_path / "file.txt"
    program = (
        "import sys, itertools\nfrom pathlib import Path\nfrom xares_bench.core.store import write_atomically\n"
        "for letter in itertools.cycle('ab'):\n    write_atomically(Path(sys.argv[1]), letter * 300_000)\n"
        "    print('written', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seen = [path.read_text() for _ in range(40)]
        process.kill()
    seen.append(path.read_text())
    assert all(text in ("a" * 300_000, "b" * 300_000) for text in seen)
