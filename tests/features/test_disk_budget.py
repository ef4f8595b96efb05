"""The budget of features: what is evicted first, what is never evicted, and how much there is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from xares_bench.core.store import Store
from xares_bench.features.disk_budget import DEFAULT_SHARE, KIND, FeatureBudget

# Uses the features of some keys and lives until it is killed or its input ends: argv is root and keys.
USER = """
import sys
from pathlib import Path
from xares_bench.features.disk_budget import FeatureBudget
from xares_bench.core.store import Store

budget = FeatureBudget(Store(root=Path(sys.argv[1])), 0)
for key in sys.argv[2:]:
    assert budget.use(key) is not None
print("using", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(root=tmp_path / "root")


def cache(store: Store, *keys: str, size_bytes: int = 100) -> None:
    """Finished features of some keys, the first one used longest ago."""
    for age, key in enumerate(reversed(keys)):

        def make(folder: Path) -> dict[str, object]:
            (folder / "frames.bin").write_bytes(b"x" * size_bytes)
            return {}

        entry = store.obtain(KIND, key, make)
        os.utime(entry.folder / "manifest.json", (1_000_000 - age, 1_000_000 - age))


def cached(store: Store) -> str:
    return "".join(entry.folder.name for entry in store.entries(KIND))


def test_the_least_recently_used_entry_is_evicted_first(store: Store) -> None:
    cache(store, *"cabd")
    another = FeatureBudget(Store(root=store.root), 400)
    assert another.use("c") is not None  # by a process that is over by now
    del another
    budget = FeatureBudget(store, 400)
    for size_bytes, left in ((0, "abcd"), (1, "bcd"), (99, "bcd"), (1, "cd"), (150, "c")):
        assert budget.reserve(size_bytes)
        assert cached(store) == left


def test_an_entry_that_is_used_is_the_newest_and_stays(store: Store) -> None:
    cache(store, *"abc")
    budget = FeatureBudget(store, 300)
    assert budget.use("a") is not None
    assert budget.reserve(200)
    assert cached(store) == "a"
    assert not budget.reserve(1), "what this process uses is not evicted"
    assert cached(store) == "a"


def test_where_evicting_everything_would_not_do_nothing_is_evicted(store: Store) -> None:
    cache(store, *"abc")
    budget = FeatureBudget(store, 300)
    assert not budget.reserve(301)
    assert budget.use("b") is not None
    assert not budget.reserve(201)
    assert cached(store) == "abc"


def test_what_is_reserved_counts_until_it_is_released(store: Store) -> None:
    budget = FeatureBudget(store, 300)
    assert budget.reserve(200)
    assert budget.reserve(100)
    assert not budget.reserve(1)
    budget.release(100)
    assert budget.reserve(60)
    assert not budget.reserve(41)
    assert budget.reserve(40)
    budget.release(300)
    cache(store, "a")
    assert budget.cached_bytes == 100
    assert budget.use("a") is not None
    assert not budget.reserve(201)
    assert budget.reserve(200)


def test_features_that_another_process_has_kept_meanwhile_are_seen(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = FeatureBudget(store, 300)
    assert budget.reserve(10)
    cache(store, *"ab")
    assert budget.reserve(150), "for a while nobody looks"
    assert cached(store) == "ab"
    monkeypatch.setattr("xares_bench.features.disk_budget._MEASURE_AGAIN_S", 0.0)
    assert budget.reserve(10)
    assert cached(store) == "b"


def test_without_a_number_it_is_a_share_of_what_is_free_or_theirs_already(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache(store, "a", size_bytes=5000)
    free_bytes = 7000
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free_bytes}))
    budget = FeatureBudget(store, None)
    assert budget.max_bytes == DEFAULT_SHARE * 12_000
    free_bytes = 100
    assert budget.max_bytes == DEFAULT_SHARE * 12_000, "the same as long as the process lives"


def test_finding_nothing_creates_nothing(store: Store) -> None:
    budget = FeatureBudget(store, None)
    assert budget.use("a") is None
    assert budget.max_bytes > 0
    assert budget.cached_bytes == 0
    assert not store.root.exists()


def start_user(store: Store, *keys: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(store.root), *keys], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "using\n"
    return process


@pytest.mark.parametrize("end", ["killed", "ended"])
def test_what_another_living_process_uses_stays_and_what_a_dead_one_used_does_not(end: str, store: Store) -> None:
    cache(store, *"abc")
    budget = FeatureBudget(store, 300)
    with start_user(store, "a", "b") as user:
        assert budget.reserve(100)
        assert cached(store) == "ab", "not a, which was made first"
        assert not budget.reserve(101)
        assert cached(store) == "ab"
        if end == "killed":
            user.send_signal(signal.SIGKILL)
        else:
            user.communicate(timeout=900)
    assert user.returncode == (-signal.SIGKILL if end == "killed" else 0)
    assert len(list((store.root / KIND / "leases").iterdir())) == 3, "two locks and the keys of the dead one"
    assert budget.reserve(100)
    assert cached(store) == "b"
    assert [path.suffix for path in (store.root / KIND / "leases").iterdir()] == [".lock"], "the dead one's is gone"
