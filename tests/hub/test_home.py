"""Shards from the hub, with the real client, against a hub on the loopback interface."""

from __future__ import annotations

import contextlib
import ctypes
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.machine import Machine, finish
from tests.hub.server import Fault, Hub, Repository, serve_hub, sha256
from xares_bench.hub import DataHome

NAME = "owner/shards"
SHARD = "esc/test/a_0000000.tar.gz"
OTHER = "esc/train/b_0000000.tar.gz"
ABSENT = "esc/train/none.tar.gz"
DATA = bytes(index * 7 % 251 for index in range(600_000))
OTHER_DATA = DATA[::-1]
# Where the hub sends a client that asks for the shard.
LARGE = f"/large/{sha256(DATA)}/{SHARD}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        hub.repository(f"datasets/{NAME}").commit({SHARD: DATA, OTHER: OTHER_DATA})
        yield hub


@pytest.fixture
def repository(hub: Hub) -> Repository:
    return hub.repository(f"datasets/{NAME}")


@pytest.fixture
def machine(tmp_path: Path, hub: Hub) -> Machine:
    return Machine(tmp_path, hub)


def assert_fetched(machine: Machine, result: dict[str, Any], path: str = SHARD, data: bytes = DATA) -> None:
    assert result["files"][path] == str(machine.folder / path)
    assert result["digests"][path] == sha256(data)
    assert (machine.folder / path).read_bytes() == data
    assert machine.part() is None


def assert_not_there(machine: Machine, path: str = SHARD) -> None:
    """Neither the file nor anything that a later run would take for the whole of it."""
    assert not (machine.folder / path).exists()
    part = machine.part()
    assert part is None or part.stat().st_size < len(DATA)


def wait_until(condition: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


# --- fetching and finding


@pytest.mark.versions
def test_what_is_missing_is_fetched_once_and_then_found_without_any_call(machine: Machine, hub: Hub) -> None:
    first = machine.run(SHARD, OTHER)
    assert first["summary"].startswith("2 files, 1.2 MB; 0 present, 2 to fetch (1.2 MB); ")
    assert_fetched(machine, first)
    assert_fetched(machine, first, OTHER, OTHER_DATA)
    assert first["stderr"] == ""
    hub.requests.clear()
    second = machine.run(SHARD, OTHER)
    assert second["summary"].startswith("2 files, 1.2 MB; all present; ")
    assert (second["num_missing"], second["num_unchecked"]) == (0, 0)
    assert_fetched(machine, second)
    assert hub.requests == []


def test_with_everything_present_neither_offline_nor_an_unreachable_hub_matters(machine: Machine, hub: Hub) -> None:
    commit = machine.run(SHARD)["commit"]
    hub.requests.clear()
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        result = machine.run(SHARD, **environment)
        assert_fetched(machine, result)
        assert result["commit"] == commit
    assert hub.requests == []


def test_what_is_missing_offline_is_named(machine: Machine, hub: Hub) -> None:
    result = machine.run(SHARD, HF_HUB_OFFLINE="1")
    assert result["summary"].startswith("1 file; 0 present, 1 to fetch (size unknown); ")
    assert "this shard is missing; HF_HUB_OFFLINE is set" in result["files"][SHARD]
    assert "this shard is missing" in result["digests"][SHARD]
    assert hub.requests == []
    assert not machine.folder.exists()


def test_the_token_is_shown_to_the_hub_and_to_nobody_else(machine: Machine, hub: Hub, repository: Repository) -> None:
    repository.token = "hf_secret"
    refused = machine.run(SHARD)
    assert "401" in refused["error"]
    assert "HF_TOKEN" in refused["error"]
    hub.requests.clear()
    assert_fetched(machine, machine.run(SHARD, HF_TOKEN="hf_secret"))
    shown = {request.path.split("/")[1]: request.headers.get("authorization") for request in hub.requests}
    assert shown == {"api": "Bearer hf_secret", "datasets": "Bearer hf_secret", "large": None}


def test_the_commit_is_pinned_until_another_revision_is_asked_for(
    machine: Machine, hub: Hub, repository: Repository
) -> None:
    first = machine.run(SHARD, OTHER)
    assert first["commit"] == repository.branches["main"]
    moved = repository.commit({SHARD: DATA, OTHER: DATA}, "refs/pr/1")
    repository.commit({SHARD: OTHER_DATA})
    (machine.folder / OTHER).unlink()
    again = machine.run(SHARD, OTHER)
    assert again["commit"] == first["commit"]
    assert_fetched(machine, again, OTHER, OTHER_DATA)
    hub.num_sent.clear()
    asked = machine.run(SHARD, OTHER, revision="refs/pr/1")
    assert asked["commit"] == moved
    assert_fetched(machine, asked, OTHER, DATA)
    assert hub.num_sent == {sha256(DATA): len(DATA)}  # of the shard that did not change, nothing
    hub.requests.clear()
    assert machine.run(SHARD, OTHER)["commit"] == moved
    assert machine.run(SHARD, OTHER, revision=moved)["commit"] == moved
    assert hub.requests == []
    assert machine.run(SHARD, OTHER, revision=first["commit"])["commit"] == first["commit"]


def test_a_file_that_is_wanted_later_comes_from_the_commit_that_is_pinned(
    machine: Machine, repository: Repository
) -> None:
    first = machine.run(SHARD)
    repository.commit({SHARD: DATA, OTHER: DATA})
    later = machine.run(SHARD, OTHER)
    assert later["commit"] == first["commit"]
    assert_fetched(machine, later, OTHER, OTHER_DATA)


def test_the_lock_file_can_be_read(machine: Machine) -> None:
    commit = machine.run(SHARD)["commit"]
    lock = json.loads((machine.folder / "xares-bench.lock.json").read_text())
    file = {"size": len(DATA), "sha256": sha256(DATA)}
    pin = {"revision": "main", "commit": commit, "files": {SHARD: file}}
    assert lock == {"schema": 1, "repositories": {f"datasets/{NAME}": pin}}


@pytest.mark.parametrize("content", ["{", '{"schema": 2}', '{"schema": 1, "repositories": {"x": {}}}', "[]"])
def test_a_broken_lock_file_is_named(machine: Machine, content: str) -> None:
    machine.folder.mkdir()
    (machine.folder / "xares-bench.lock.json").write_text(content)
    error = machine.run(SHARD)["error"]
    assert error.startswith("DataError: ")
    assert "xares-bench.lock.json: not a lock file" in error


def test_more_files_than_the_hub_lists_in_one_call(machine: Machine, hub: Hub, repository: Repository) -> None:
    paths = [f"many/{index:04}.tar.gz" for index in range(501)]
    repository.commit({path: path.encode() for path in paths})
    result = machine.run(*paths, fetch=False)
    assert result["num_missing"] == 501
    assert sum("paths-info" in request.path for request in hub.requests) == 2


def test_small_files_that_the_hub_keeps_in_git_are_checked_too(
    machine: Machine, hub: Hub, repository: Repository
) -> None:
    repository.in_git.add(SHARD)
    hub.faults[SHARD] = [Fault(body=DATA[:-1] + b"?")]
    assert "listing says" in machine.run(SHARD)["files"][SHARD]
    assert_not_there(machine)
    assert_fetched(machine, machine.run(SHARD))
    assert machine.run(SHARD)["num_unchecked"] == 0


# --- folders that others filled


def fill_by_hand(machine: Machine, **environment: str) -> None:
    """`hf download owner/shards --local-dir data --repo-type dataset`."""
    command = [str(Path(sys.executable).parent / "hf"), "download", NAME, "--repo-type", "dataset"]
    subprocess.run(
        [*command, "--local-dir", str(machine.folder)],
        env={**machine.environment, **environment},
        check=True,
        capture_output=True,
        timeout=900,
    )


def test_a_folder_that_hf_download_filled_is_used_as_it_is(machine: Machine, hub: Hub, repository: Repository) -> None:
    fill_by_hand(machine)
    commit = repository.branches["main"]
    repository.commit({SHARD: OTHER_DATA})
    hub.requests.clear()
    result = machine.run(SHARD, OTHER)
    assert result["summary"].startswith("2 files, 1.2 MB; all present (2 to check); ")
    assert_fetched(machine, result)
    assert_fetched(machine, result, OTHER, OTHER_DATA)
    assert result["commit"] == commit
    assert machine.run(SHARD, OTHER)["num_unchecked"] == 0
    assert hub.requests == []
    lock = json.loads((machine.folder / "xares-bench.lock.json").read_text())
    assert lock["repositories"][f"datasets/{NAME}"]["commit"] == commit


def test_a_damaged_file_in_such_a_folder_is_fetched_anew(machine: Machine, hub: Hub) -> None:
    fill_by_hand(machine)
    (machine.folder / SHARD).write_bytes(DATA[:1000])
    hub.num_sent.clear()
    assert_fetched(machine, machine.run(SHARD, OTHER))
    assert hub.num_sent == {sha256(DATA): len(DATA)}


def test_a_folder_of_files_alone_is_taken_as_it_is_offline_and_checked_online(machine: Machine, hub: Hub) -> None:
    (machine.folder / SHARD).parent.mkdir(parents=True)
    (machine.folder / SHARD).write_bytes(DATA)
    offline = machine.run(SHARD, HF_HUB_OFFLINE="1")
    assert_fetched(machine, offline)
    assert offline["commit"] is None
    assert hub.requests == []
    online = machine.run(SHARD)
    assert online["commit"] is not None
    assert_fetched(machine, online)
    assert hub.num_sent == {}


def test_hf_download_finds_what_was_fetched(machine: Machine, hub: Hub) -> None:
    machine.run(SHARD, OTHER)
    hub.num_sent.clear()
    fill_by_hand(machine)
    assert hub.num_sent == {}


@pytest.mark.parametrize("damage", [DATA[:-1], DATA[:-1] + b"?"], ids=["size", "digest"])
def test_a_changed_file_is_fetched_again_and_offline_an_error(machine: Machine, damage: bytes) -> None:
    machine.run(SHARD)
    (machine.folder / SHARD).write_bytes(damage)
    offline = machine.run(SHARD, HF_HUB_OFFLINE="1")
    assert offline["files"][SHARD].startswith(f"DataError: {machine.folder / SHARD}: ")
    assert (machine.folder / SHARD).read_bytes() == damage
    assert_fetched(machine, machine.run(SHARD))


def without_rights() -> None:
    """Let the permissions of files count for the superuser, too."""
    drop_from_bounding_set, override_permissions = 24, 1
    ctypes.CDLL(None).prctl(drop_from_bounding_set, override_permissions, 0, 0, 0)


@pytest.mark.parametrize("known", [True, False], ids=["checked before", "filled by hand"])
def test_a_complete_folder_may_be_read_only(machine: Machine, hub: Hub, known: bool) -> None:
    machine.run(SHARD) if known else fill_by_hand(machine)
    hub.requests.clear()
    folders = [machine.folder, *(path for path in machine.folder.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        before = sorted(machine.folder.rglob("*"))
        for _ in range(2):
            assert_fetched(machine, machine.run(SHARD, prepare=without_rights))
        assert sorted(machine.folder.rglob("*")) == before
        if known:
            assert "Permission denied" in machine.run(OTHER, prepare=without_rights)["files"][OTHER]
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_a_path_out_of_the_folder_is_refused(machine: Machine, hub: Hub) -> None:
    for path in ("../outside.tar.gz", "/outside.tar.gz"):
        assert machine.run(path)["error"].startswith(f"UsageError: {path}: expected a path inside")
    assert hub.requests == []


def test_what_is_in_the_place_of_a_shard_is_named(machine: Machine, hub: Hub) -> None:
    machine.run(SHARD, OTHER)
    (machine.folder / SHARD).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 600000\n")
    (machine.folder / OTHER).unlink()
    (machine.folder / OTHER).symlink_to("../../.git/annex/objects/Xx/Yy/b.tar.gz")
    files = machine.run(SHARD, OTHER, HF_HUB_OFFLINE="1")["files"]
    assert files[SHARD].startswith(
        f"DataError: {machine.folder / SHARD}: damaged or of another commit: a Git LFS pointer, 69 bytes, {NAME} at "
    )
    assert files[OTHER] == (
        f"DataError: {machine.folder / OTHER}: a git-annex link, and its file is not here; run `git annex get` on it"
    )


def test_digests_are_computed_as_the_caller_says(tmp_path: Path) -> None:
    """So whoever reads all the bytes may look at more than their digest."""
    (tmp_path / "a.tar").write_bytes(b"a")
    read: list[Path] = []

    def digest(path: Path) -> str:
        read.append(path)
        return sha256(path.read_bytes())

    home = DataHome(tmp_path, digest=digest)
    assert home.digest(NAME, "a.tar") == sha256(b"a")
    assert home.digest(NAME, "a.tar") == sha256(b"a")
    assert read == [tmp_path / "a.tar"]


# --- transfers that go wrong


@pytest.mark.versions
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_transfer_cut_in_mid_file_goes_on_where_it_was_cut(machine: Machine, hub: Hub, reset: bool) -> None:
    hub.faults[LARGE] = [Fault(cut_after=200_000, reset=reset)] * 2
    assert_fetched(machine, machine.run(SHARD))
    ranges = [request.headers.get("range") for request in hub.gets(LARGE)]
    assert ranges == [None, "bytes=200000-", "bytes=400000-"]
    assert hub.num_sent == {sha256(DATA): len(DATA)}


def test_a_connection_may_be_cut_any_number_of_times_as_long_as_bytes_come(machine: Machine, hub: Hub) -> None:
    hub.faults[LARGE] = [Fault(cut_after=50_000)] * 11
    assert_fetched(machine, machine.run(SHARD))
    assert hub.num_sent == {sha256(DATA): len(DATA)}


def test_a_server_that_ignores_the_range_is_no_trap(machine: Machine, hub: Hub) -> None:
    hub.faults[LARGE] = [Fault(cut_after=200_000), Fault(ignore_range=True)]
    assert_fetched(machine, machine.run(SHARD))


def test_bytes_of_an_earlier_transfer_that_the_server_refuses_to_resume_are_discarded(
    machine: Machine, hub: Hub
) -> None:
    hub.faults[LARGE] = [Fault(cut_after=200_000), Fault(status=416)]
    assert_fetched(machine, machine.run(SHARD))


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_asked_again_only_after_the_time_that_it_names(machine: Machine, hub: Hub, status: int) -> None:
    busy = Fault(status=status, headers={"Retry-After": "1"})
    hub.faults["/revision/main"] = [busy]
    hub.faults[LARGE] = [Fault(cut_after=300_000), busy]
    assert_fetched(machine, machine.run(SHARD))
    asked = [request.at_s for request in hub.gets("/revision/main")]
    assert len(asked) == 2
    assert 1 <= asked[1] - asked[0] < 5
    given = [request.at_s for request in hub.gets(LARGE)]
    assert len(given) == 3
    assert 1 <= given[2] - given[1] < 5
    assert hub.num_sent == {sha256(DATA): len(DATA)}


def test_a_rate_limit_in_the_hubs_own_header_is_obeyed(machine: Machine, hub: Hub) -> None:
    limit = {"RateLimit": '"api";r=0;t=1', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
    hub.faults["/revision/main"] = [Fault(status=429, headers=limit)]
    assert_fetched(machine, machine.run(SHARD))
    first, second = (request.at_s for request in hub.gets("/revision/main"))
    assert 1 <= second - first < 5


def test_a_hub_that_stays_busy_is_given_up(machine: Machine, hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(status=503)] * 50
    result = machine.run(SHARD)
    assert "answers 503; try again later" in result["files"][SHARD]
    assert len(hub.gets(SHARD)) == 6
    assert_not_there(machine)
    hub.faults.clear()
    hub.faults[SHARD] = [Fault(status=429, headers={"Retry-After": "86400"})]
    assert "429" in machine.run(SHARD)["files"][SHARD]


@pytest.mark.parametrize("endless", [False, True], ids=["announced", "unannounced"])
@pytest.mark.parametrize("body", [DATA + b"more", DATA[:-4]], ids=["longer", "shorter"])
def test_a_file_of_another_size_does_not_count(machine: Machine, hub: Hub, body: bytes, endless: bool) -> None:
    hub.faults[LARGE] = [Fault(body=body, endless=endless)] * 10
    failure = machine.run(SHARD)["files"][SHARD]
    assert failure.startswith("DataError: ")
    if len(body) > len(DATA) or not endless:  # else it cannot be told from a connection that was cut
        assert "bytes or more, its listing says 600000" in failure
    assert_not_there(machine)
    hub.faults.clear()
    assert_fetched(machine, machine.run(SHARD))


def test_a_listing_with_another_size_is_an_error(machine: Machine, repository: Repository) -> None:
    repository.promised[SHARD] = 600_001
    assert "600000 bytes or more, its listing says 600001" in machine.run(SHARD)["files"][SHARD]
    assert_not_there(machine)


def test_a_file_of_another_digest_does_not_count(machine: Machine, hub: Hub) -> None:
    hub.faults[LARGE] = [Fault(body=DATA[:-1] + b"?")]
    result = machine.run(SHARD, OTHER)
    assert "its listing says " + sha256(DATA)[:12] in result["files"][SHARD]
    assert_not_there(machine)
    assert_fetched(machine, result, OTHER, OTHER_DATA)  # the others come all the same
    assert_fetched(machine, machine.run(SHARD))


def test_a_file_that_is_not_in_the_repository_is_one_files_error(machine: Machine) -> None:
    result = machine.run(ABSENT, SHARD)
    assert result["summary"].startswith("2 files, 600.0 kB; 0 present, 1 to fetch (600.0 kB), 1 not in the rep")
    assert result["files"][ABSENT].startswith(f"DataError: {ABSENT}: {NAME} has no such file at commit ")
    assert_fetched(machine, result)


def test_a_file_that_has_gone_since_it_was_listed_is_an_error(machine: Machine, hub: Hub) -> None:
    hub.faults[SHARD] = [Fault(status=404, headers={"X-Error-Code": "EntryNotFound"})]
    assert "has no such file" in machine.run(SHARD)["files"][SHARD]
    assert_not_there(machine)


def test_what_is_wrong_with_a_repository_is_an_error_before_anything_is_fetched(
    machine: Machine, repository: Repository
) -> None:
    assert "has no such repository" in machine.run(SHARD, name="owner/nothing")["error"]
    assert "has no such revision" in machine.run(SHARD, revision="v9")["error"]
    repository.gated = True
    assert "accept its terms" in machine.run(SHARD)["error"]
    assert not (machine.folder / "xares-bench.lock.json").exists()


def test_an_unreachable_hub_is_one_line(machine: Machine) -> None:
    error = machine.run(SHARD, HF_ENDPOINT="http://127.0.0.1:9")["error"]
    assert error.startswith("UnreachableError: owner/shards at revision main: the hub (http://127.0.0.1:9) cannot be")
    assert "HF_HUB_OFFLINE=1" in error


def test_a_proxy_is_used_and_a_broken_one_is_named(machine: Machine, hub: Hub) -> None:
    del machine.environment["NO_PROXY"]
    assert "proxy" in machine.run(SHARD, HTTP_PROXY="http://127.0.0.1:9")["error"]
    assert hub.requests == []


def test_a_stalled_transfer_is_given_up_and_its_bytes_stay(machine: Machine, hub: Hub) -> None:
    hub.faults[LARGE] = [Fault(stall_after=100_000), *[Fault(stall_after=0)] * 10]
    start = time.monotonic()
    result = machine.run(SHARD, HF_HUB_DOWNLOAD_TIMEOUT="1", max_failures=2)
    assert time.monotonic() - start < 300
    assert "no data for 1 seconds" in result["files"][SHARD]
    assert_not_there(machine)
    hub.faults.clear()
    assert_fetched(machine, machine.run(SHARD))
    assert hub.num_sent == {sha256(DATA): len(DATA)}


@pytest.mark.parametrize("call", ["/revision/main", "/paths-info/COMMIT"])
def test_a_stalled_listing_is_given_up(machine: Machine, hub: Hub, repository: Repository, call: str) -> None:
    hub.faults[call.replace("COMMIT", repository.branches["main"])] = [Fault(stall_after=0)] * 10
    start = time.monotonic()
    assert "no data for 1 seconds" in machine.run(SHARD, HF_HUB_DOWNLOAD_TIMEOUT="1", max_failures=2)["error"]
    assert time.monotonic() - start < 300


def test_a_dead_hub_is_not_tried_for_every_file(machine: Machine, hub: Hub, repository: Repository) -> None:
    paths = [f"many/{index:04}.tar.gz" for index in range(40)]
    repository.commit({path: path.encode() for path in paths})
    hub.faults[".tar.gz"] = [Fault(status=502)] * 1000
    result = machine.run(*paths)
    assert all("answers 502" in text for text in result["files"].values())
    assert len(hub.gets(".tar.gz")) <= 6 * 16  # 8 files in a row, and those that were under way


# --- disks


def test_too_little_free_disk_is_an_error_before_anything_is_fetched(
    machine: Machine, hub: Hub, repository: Repository
) -> None:
    repository.promised[SHARD] = 10**17
    error = machine.run(SHARD)["error"]
    assert error.startswith(f"UsageError: {machine.folder}: 100.0 PB to fetch, ")
    assert "free on its disk" in error
    assert hub.num_sent == {}


def test_a_file_that_grows_beyond_a_limit_does_not_count(machine: Machine) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    failure = machine.run(SHARD, prepare=limit)["files"][SHARD]
    assert failure.startswith(f"DataError: {machine.folder / SHARD}: File too large; ")
    assert machine.part() is None
    assert_not_there(machine)
    assert_fetched(machine, machine.run(SHARD))


def test_a_disk_that_fills_up_ends_the_transfer(machine: Machine, hub: Hub) -> None:
    machine.folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1300k", "tmpfs", str(machine.folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this test mounts a small disk, which takes rights that it does not have here")
    try:
        hub.faults[LARGE] = [Fault(pause_after=300_000)]
        process = machine.start(SHARD)
        wait_until(lambda: machine.part() and hub.num_sent)
        with contextlib.suppress(OSError), (machine.folder / "others").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(10_000))
        hub.go_on.set()
        failure = finish(process)["files"][SHARD]
        assert failure.startswith(f"DataError: {machine.folder / SHARD}: No space left on device; make room")
        assert_not_there(machine)
        (machine.folder / "others").unlink()
        assert_fetched(machine, machine.run(SHARD))
    finally:
        subprocess.run(["umount", str(machine.folder)], check=True)


# --- several processes, killed processes


def test_two_processes_that_want_the_same_shard_make_one_transfer(machine: Machine, hub: Hub) -> None:
    hub.faults[LARGE] = [Fault(pause_after=300_000)]
    first = machine.start(SHARD)
    wait_until(lambda: hub.num_sent)
    second = machine.start(SHARD)
    time.sleep(1.5)  # so that it is up and waits; were it not, the assertions would hold all the same
    assert second.poll() is None
    hub.go_on.set()
    for process in (first, second):
        assert_fetched(machine, finish(process))
    assert hub.num_sent == {sha256(DATA): len(DATA)}
    assert len(hub.gets("/revision/main")) == 1


def test_a_process_killed_in_mid_file_leaves_bytes_to_resume_from(machine: Machine, hub: Hub) -> None:
    hub.faults[LARGE] = [Fault(pause_after=300_000)]
    process = machine.start(SHARD)
    wait_until(lambda: (part := machine.part()) and part.stat().st_size == 300_000)
    process.kill()
    process.communicate(timeout=900)
    assert_not_there(machine)
    offline = machine.run(SHARD, HF_HUB_OFFLINE="1")
    assert "this shard is missing; HF_HUB_OFFLINE is set" in offline["files"][SHARD]
    assert_fetched(machine, machine.run(SHARD))
    assert hub.gets(LARGE)[-1].headers["range"] == "bytes=300000-"
    assert hub.num_sent == {sha256(DATA): len(DATA)}


def test_bytes_of_another_revision_are_not_resumed_from(machine: Machine, hub: Hub, repository: Repository) -> None:
    hub.faults[LARGE] = [Fault(cut_after=300_000), *[Fault(status=503)] * 6]
    assert "503" in machine.run(SHARD)["files"][SHARD]
    assert machine.part() is not None
    repository.commit({SHARD: OTHER_DATA}, "v2")
    assert_fetched(machine, machine.run(SHARD, revision="v2"), SHARD, OTHER_DATA)


@pytest.mark.parametrize("fault", [Fault(trickle_s=0.5), Fault(pause_after=50_000)], ids=["slow", "stalled"])
def test_an_interrupted_process_ends_within_seconds(machine: Machine, hub: Hub, fault: Fault) -> None:
    hub.faults[LARGE] = [fault]
    process = machine.start(SHARD)
    wait_until(lambda: (part := machine.part()) and part.stat().st_size >= 50_000)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=900)
    assert time.monotonic() - start < 60
    assert process.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert_not_there(machine)
    assert_fetched(machine, machine.run(SHARD))
    assert int(hub.gets(LARGE)[-1].headers["range"].removeprefix("bytes=").removesuffix("-")) >= 50_000


def test_a_file_that_was_never_compared_is_compared(machine: Machine, hub: Hub) -> None:
    """As after a kill between putting a file in its place and noting that it is whole."""
    machine.run(SHARD)
    for note in (machine.folder / ".cache" / "xares-bench").rglob("*.tar.gz.json"):
        note.unlink()
    hub.requests.clear()
    result = machine.run(SHARD, fetch=False)
    assert result["num_unchecked"] == 1
    assert_fetched(machine, result)
    assert hub.requests == []


# --- words


def test_an_unknown_revision_is_refused_offline(machine: Machine) -> None:
    machine.run(SHARD)
    error = machine.run(SHARD, revision="v1", HF_HUB_OFFLINE="1")["error"]
    assert error.startswith("UsageError: --data-revision=v1: HF_HUB_OFFLINE is set")
    assert_fetched(machine, machine.run(SHARD, revision="main", HF_HUB_OFFLINE="1"))
