"""`xares-bench publish`, with the real client, against a hub on the loopback interface."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.hub.machine import Machine
from tests.hub.server import Fault, Hub, Repository, serve_hub
from tests.reports.test_publication import FILES, OF_DATASETS, write_run
from tests.run_factory import change_results

NAME = "owner/model"
OTHERS = {".gitattributes": b"*.npz filter=lfs", "README.md": b"# A model", "xares-bench/older/scores.md": b"older"}
# The command, with waits and limits of its requests shortened.
COMMAND = """
import sys
from xares_bench.hub import client, upload
from xares_bench.__main__ import main
client._FIRST_WAIT_S, client._MAX_FAILURES, upload._TIMEOUT_S = 0.01, 2, 2.0
sys.exit(main(["publish", *sys.argv[1:]]))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        hub.repository(f"models/{NAME}").commit(OTHERS)
        yield hub


@pytest.fixture
def repository(hub: Hub) -> Repository:
    return hub.repository(f"models/{NAME}")


@pytest.fixture
def machine(tmp_path: Path, hub: Hub) -> Machine:
    machine = Machine(tmp_path, hub)
    machine.environment |= {"HF_TOKEN": "hf_writer", "HF_HUB_DISABLE_XET": "1"}
    return machine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs" / "toy-full-0f0f")


def publish(machine: Machine, folder: Path, *arguments: str, **environment: str) -> tuple[int, list[str], list[str]]:
    """Exit status, lines of output, lines of errors."""
    command = [sys.executable, "-c", COMMAND, str(folder), f"--repo={NAME}", *arguments]
    process = machine.spawn(command, prepare=None, **environment)
    output, errors = process.communicate(timeout=600)
    return process.returncode, output.splitlines(), errors.splitlines()


def of_run(folder: Path, name: str = "toy-full-0f0f") -> dict[str, bytes]:
    """What a repository is to hold of a run."""
    files = {f"xares-bench/{name}/{path}": (folder / path).read_bytes() for path in (*FILES, *OF_DATASETS)}
    return {".eval_results/xares-bench-full.yaml": (folder / "eval_results.yaml").read_bytes(), **files}


def head(repository: Repository, branch: str = "main") -> Mapping[str, bytes]:
    return repository.files[repository.branches[branch]]


@pytest.mark.versions
def test_a_run_becomes_one_commit_beside_what_is_there(
    machine: Machine, hub: Hub, repository: Repository, folder: Path
) -> None:
    status, output, errors = publish(machine, folder, "--yes")
    assert (status, errors) == (0, [])
    assert head(repository) == {**OTHERS, **of_run(folder)}
    ((branch, message, url),) = repository.commits
    assert (branch, message) == ("main", "Results of xares-bench: toy-full-0f0f")
    assert output[-1] == url == f"{hub.endpoint}/{NAME}/commit/{repository.branches['main']}"
    assert output[0] == f"to       {NAME}: its main branch, in one commit"
    for path, content in of_run(folder).items():
        assert (
            f"{f'{len(content):,} bytes' if len(content) < 1000 else f'{len(content) / 1000:.1f} kB':>12}  {path}"
            in output
        )
    assert set(hub.uploaded.values()) == {content for path, content in of_run(folder).items() if path.endswith(".npz")}
    assert {request.headers.get("authorization") for request in hub.requests if request.path.startswith("/large/")} == {
        None
    }


def test_what_is_there_already_is_not_sent_again_and_what_is_replaced_is_said(
    machine: Machine, repository: Repository, folder: Path
) -> None:
    publish(machine, folder, "--yes")
    status, output, errors = publish(machine, folder, "--yes")
    assert (status, errors) == (0, [])
    assert output[-1] == "nothing is uploaded: the repository has all of it"
    assert sum(line.endswith("  (is there already)") for line in output) == len(of_run(folder))
    (folder / "scores.md").write_text("another table")
    status, output, errors = publish(machine, folder, "--yes")
    assert (status, errors) == (0, [])
    assert sum("(replaces a file of " in line for line in output) == 1
    assert "    13 bytes  to upload, in 1 file" in output
    assert len(repository.commits) == 2
    assert head(repository) == {**OTHERS, **of_run(folder)}


def test_a_pull_request_leaves_the_main_branch_alone_and_needs_no_right_to_write(
    machine: Machine, hub: Hub, repository: Repository, folder: Path
) -> None:
    status, output, errors = publish(machine, folder, "--yes", "--create-pr", HF_TOKEN="hf_reader")
    assert (status, errors) == (0, [])
    assert output[0] == f"to       {NAME}: a new pull request"
    assert output[-1] == f"{hub.endpoint}/{NAME}/discussions/1"
    assert head(repository) == OTHERS
    assert head(repository, "refs/pr/1") == {**OTHERS, **of_run(folder)}
    assert len(repository.commits) == 1


def test_a_dry_run_shows_the_same_without_a_token_and_changes_nothing(
    machine: Machine, repository: Repository, folder: Path
) -> None:
    status, output, errors = publish(machine, folder, "--dry-run", HF_TOKEN="")
    assert (status, errors) == (0, [])
    assert output[-1] == "nothing is uploaded: --dry-run"
    assert [line.split()[2] for line in output if "bytes  " in line or "kB  " in line][:-1] == list(of_run(folder))
    assert repository.commits == []


def test_a_run_with_another_name_in_another_folder_and_named_by_its_results(
    machine: Machine, repository: Repository, folder: Path
) -> None:
    run = json.loads((folder / "results.json").read_text())["run"]
    change_results(folder, run={**run, "name": "my run; --yes"})
    moved = folder.rename(folder.with_name("a folder"))
    assert publish(machine, moved / "results.json", "--yes")[0] == 0
    assert head(repository) == {**OTHERS, **of_run(moved, "my-run-yes")}


def ask(machine: Machine, folder: Path, answer: str) -> tuple[int | None, str]:
    """Run the command in a terminal and answer its question; returns exit status and output."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(folder), f"--repo={NAME}"],
        env=machine.environment,
        cwd=folder.parent,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    os.write(ours, answer.encode())
    output, _ = process.communicate(timeout=600)
    os.close(ours)
    os.close(theirs)
    return process.returncode, output


@pytest.mark.parametrize("answer", ["n\n", "\n", "what\n", "\x04"])
def test_nothing_happens_unless_the_answer_is_yes(
    machine: Machine, repository: Repository, folder: Path, answer: str
) -> None:
    status, output = ask(machine, folder, answer)
    assert status == 0
    assert "Upload? [y/N] " in output
    assert output.endswith("nothing is uploaded\n")
    assert repository.commits == []


def test_yes_is_asked_for_after_everything_was_shown(machine: Machine, repository: Repository, folder: Path) -> None:
    status, output = ask(machine, folder, "y\n")
    assert status == 0
    assert output.index("to       ") < output.index("unknown: gtzan") < output.index("Upload? [y/N] ")
    assert len(repository.commits) == 1


def assert_refused(found: tuple[int, list[str], list[str]], said: str, status: int = 1) -> None:
    assert found[0] == status, found
    (line,) = found[2]
    assert line.startswith("xares-bench: ")
    assert said in line


def test_wrong_usage_sends_nothing(machine: Machine, hub: Hub, folder: Path) -> None:
    hub.requests.clear()
    for arguments, said in (
        (["--repo=https://huggingface.co/owner/model"], "--repo is given twice"),
        (["--dry-run", "--yes"], "not allowed with argument"),
    ):
        status, _, errors = publish(machine, folder, *arguments)
        assert status == 2
        assert said in errors[-1]
    command = [sys.executable, "-m", "xares_bench", "publish"]
    for arguments, said in (
        ([str(folder), "--repo=https://huggingface.co/owner/model"], "; did you mean owner/model?"),
        ([str(folder)], "the following arguments are required: --repo"),
    ):
        process = machine.spawn([*command, *arguments])
        errors = process.communicate(timeout=600)[1].splitlines()
        assert process.returncode == 2
        assert said in errors[-1]
    assert_refused(publish(machine, folder, "--yes", HF_TOKEN=""), "there is no token to upload with", 2)
    assert_refused(publish(machine, folder, "--yes", HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set, but", 2)
    assert_refused(publish(machine, folder.parent, "--yes"), "no finished run", 2)
    change_results(folder, scores=[])
    assert_refused(publish(machine, folder, "--yes"), "has no score to publish", 2)
    assert hub.requests == []


def test_without_a_terminal_it_needs_to_be_told(machine: Machine, repository: Repository, folder: Path) -> None:
    command = [sys.executable, "-c", COMMAND, str(folder), f"--repo={NAME}"]
    process = subprocess.run(
        command,
        env=machine.environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert process.stderr == "xares-bench: upload it with --yes; there is no terminal to ask in\n"
    assert "  to upload, in 10 files\n" in process.stdout
    assert repository.commits == []


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("hf_reader", "does not let this token do that (403); set HF_TOKEN to one with write access"),
        ("hf_expired", "does not accept the token (401)"),
    ],
)
def test_a_token_that_may_not_write(
    machine: Machine, repository: Repository, folder: Path, token: str, said: str
) -> None:
    assert_refused(publish(machine, folder, "--yes", HF_TOKEN=token), said)
    assert repository.commits == []


def test_a_repository_that_is_not_there_or_not_shown(machine: Machine, hub: Hub, folder: Path) -> None:
    hub.repositories[f"models/{NAME}"].token = "hf_other"
    said = f"shows no such model repository (401); create it at {hub.endpoint}/new"
    assert_refused(publish(machine, folder, "--yes"), said)
    del hub.repositories[f"models/{NAME}"]
    assert_refused(publish(machine, folder, "--yes"), said.replace("401", "404"))


def test_no_network(machine: Machine, folder: Path) -> None:
    found = publish(machine, folder, "--yes", HF_ENDPOINT="http://127.0.0.1:9")
    assert_refused(found, "the hub (http://127.0.0.1:9) cannot be reached, or the connection broke (")
    assert "HF_HUB_OFFLINE" not in found[2][0]


def test_a_branch_that_moved_meanwhile_is_not_overwritten(
    machine: Machine, hub: Hub, repository: Repository, folder: Path
) -> None:
    others = {**OTHERS, ".eval_results/xares-bench-full.yaml": b"of another"}
    hub.before_commit = lambda: repository.commit(others)
    found = publish(machine, folder, "--yes")
    assert_refused(found, "its main branch has changed since its files were listed (412); run it again. Nothing was")
    assert head(repository) == others
    hub.before_commit = lambda: None
    assert publish(machine, folder, "--yes")[0] == 0
    assert head(repository) == {**others, **of_run(folder)}


def test_files_that_the_repository_ignores_are_no_silent_loss(
    machine: Machine, repository: Repository, folder: Path
) -> None:
    repository.ignored = (".html", ".npz")
    said = "leaves out xares-bench/toy-full-0f0f/report.html, xares-bench/toy-full-0f0f/clip_sums/esc-50.npz, "
    assert_refused(publish(machine, folder, "--yes"), said)
    assert repository.commits == []


@pytest.mark.parametrize(
    ("where", "fault", "said"),
    [
        ("/commit/main", Fault(status=500), "answers 500; try again later. Nothing was published"),
        ("/commit/main", Fault(status=429), "limits the rate of requests (429)"),
        (".npz", Fault(status=403), "(403)"),
        ("/objects/batch", Fault(status=400), "Nothing was published"),
        ("/preupload/main", Fault(status=404, headers={"X-Error-Code": "RepoNotFound"}), "shows no such model"),
    ],
)
def test_a_hub_that_fails_half_way_has_nothing_of_it(
    machine: Machine, hub: Hub, repository: Repository, folder: Path, where: str, fault: Fault, said: str
) -> None:
    if where == ".npz":  # large files are sent under their digest
        publish(machine, folder, "--yes", "--create-pr")
        where, _ = next(iter(hub.uploaded.items()))
        hub.uploaded.clear()
        repository.commits.clear()
    hub.faults[where] = [fault]
    assert_refused(publish(machine, folder, "--yes"), said)
    assert head(repository) == OTHERS
    assert repository.commits == []
    assert publish(machine, folder, "--yes")[0] == 0
    assert head(repository) == {**OTHERS, **of_run(folder)}


def test_a_hub_that_never_answers_the_commit(machine: Machine, hub: Hub, repository: Repository, folder: Path) -> None:
    hub.before_commit = hub.stall
    found = publish(machine, folder, "--yes")
    assert_refused(found, "Whether the hub has made the commit is not known; look at its page before you try again")


def test_where_the_hub_lacks_the_newer_protocol_of_large_files_all_or_nothing_is_published(
    machine: Machine, repository: Repository, folder: Path
) -> None:
    """huggingface_hub 1.x falls back to Git LFS, 2.x does not."""
    pytest.importorskip("hf_xet")
    status, _, errors = publish(machine, folder, "--yes", HF_HUB_DISABLE_XET="0")
    if status == 0:
        assert head(repository) == {**OTHERS, **of_run(folder)}
        return
    assert errors[-1].startswith(f"xares-bench: {NAME}: ")
    assert errors[-1].endswith(". Nothing was published")
    assert repository.commits == []


def test_interrupted_before_the_commit_the_repository_is_as_it_was(
    machine: Machine, hub: Hub, repository: Repository, folder: Path
) -> None:
    shutil.rmtree(folder / "clip_sums")
    hub.faults["/preupload/main"] = [Fault(stall_after=0)]
    process = machine.spawn(
        [sys.executable, "-c", COMMAND.replace("2.0", "600.0"), str(folder), f"--repo={NAME}", "--yes"]
    )
    while not any(request.path.endswith("/preupload/main") for request in hub.requests):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (130, "xares-bench: interrupted; run the same command again to resume\n")
    assert repository.commits == []
    assert publish(machine, folder, "--yes")[0] == 0
    assert len(repository.commits) == 1
