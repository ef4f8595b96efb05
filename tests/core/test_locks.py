"""Whoever waits for a lock says what for, and goes on when it is free."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from filelock import FileLock

from xares_bench.core import locks
from xares_bench.core.locks import acquire, announce_waits
from xares_bench.core.store import Store


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said, after a tenth of a second instead of three."""
    monkeypatch.setattr(locks, "_SAID_AFTER_S", 0.1)
    monkeypatch.setattr(locks, "_POLL_S", 0.05)
    monkeypatch.setattr(locks, "_say", locks._say)
    found: list[str] = []
    announce_waits(found.append)
    return found


def test_a_free_lock_is_acquired_without_a_word_and_released(tmp_path: Path, lines: list[str]) -> None:
    lock = FileLock(tmp_path / "a.lock")
    with acquire(lock, "computes"):
        assert lock.is_locked
    assert not lock.is_locked
    assert lines == []


def test_a_wait_is_said_once_a_minute_and_ends_with_the_other(tmp_path: Path, lines: list[str]) -> None:
    other = FileLock(tmp_path / "a.lock", thread_local=False)
    other.acquire()
    threading.Timer(0.6, other.release).start()
    with acquire(FileLock(tmp_path / "a.lock"), "computes lalms/12"):
        pass
    (line,) = lines
    assert line.startswith("xares-bench: has waited 0 s for another process, which computes lalms/12 (it holds ")
    assert str(tmp_path / "a.lock") in line


def test_a_check_ends_a_wait(tmp_path: Path) -> None:
    def check() -> None:
        raise KeyboardInterrupt

    with FileLock(tmp_path / "a.lock"), pytest.raises(KeyboardInterrupt):
        acquire(FileLock(tmp_path / "a.lock"), "computes", check)


def test_an_entry_that_another_process_makes_is_waited_for_with_a_word(tmp_path: Path, lines: list[str]) -> None:
    store = Store(root=tmp_path)
    (tmp_path / "lalms").mkdir()
    other = FileLock(tmp_path / "lalms" / "abc.lock", thread_local=False)
    other.acquire()
    threading.Timer(0.4, other.release).start()
    store.obtain("lalms", "abc", lambda folder: {})
    assert "for another process, which computes lalms/abc" in lines[0]


def test_without_a_terminal_of_a_session_the_line_goes_to_stderr(
    tmp_path: Path, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    announce_waits(None)
    other = FileLock(tmp_path / "a.lock", thread_local=False)
    other.acquire()
    threading.Timer(0.4, other.release).start()
    with acquire(FileLock(tmp_path / "a.lock"), "downloads x"):
        pass
    assert "for another process, which downloads x" in capsys.readouterr().err
