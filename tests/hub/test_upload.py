"""Uploads: names, comparison with what is there, and what a failure is called; whole ones are in test_publish.py."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError

from tests.hub.server import git_sha1, sha256
from xares_bench.core.errors import DataError, UsageError
from xares_bench.hub import upload
from xares_bench.hub.http_library import http_library
from xares_bench.hub.lock import FileInfo
from xares_bench.hub.upload import UploadFile, check_token, model_repository

HTTP = http_library()
DATA = b"scores"


@pytest.mark.parametrize("text", ["owner/name", "o/n.e-1_x"])
def test_names_of_models(text: str) -> None:
    assert model_repository(text) == text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("https://huggingface.co/owner/name", "; did you mean owner/name?"),
        ("https://huggingface.co/owner/name/tree/main", "; did you mean owner/name?"),
        ("hf.co/owner/name", "; did you mean owner/name?"),
        ("models/owner/name", "; did you mean owner/name?"),
        ("owner/name/", "; did you mean owner/name?"),
        ("datasets/owner/name", "; scores belong to a model, not to a dataset or a space"),
        ("https://huggingface.co/spaces/owner/name", "; scores belong to a model, not to a dataset or a space"),
        ("name", ""),
        ("", ""),
        ("/", ""),
        ("owner/..", ""),
        ("owner/na me", ""),
        ("owner/name\n", ""),
        ("-o/name", ""),
    ],
)
def test_other_names_are_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        model_repository(text)
    assert str(caught.value) == f"--repo={text}: expected OWNER/NAME of a model's repository on the hub{hint}"


@pytest.mark.parametrize(
    ("present", "unchanged"),
    [
        (None, False),
        (FileInfo(size_bytes=6, sha256=sha256(DATA)), True),
        (FileInfo(size_bytes=6, sha256=sha256(b"others")), False),
        (FileInfo(size_bytes=6, git_sha1=git_sha1(DATA)), True),
        (FileInfo(size_bytes=6, git_sha1=hashlib.sha1(DATA).hexdigest()), False),
    ],
)
def test_a_file_is_compared_by_its_digest(present: FileInfo | None, unchanged: bool) -> None:
    assert UploadFile(path="scores.tsv", content=DATA, present=present).is_unchanged == unchanged


def test_without_a_token_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UsageError, match=r"^there is no token to upload with; set HF_TOKEN"):
        check_token()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    check_token()


def refusal(status: int) -> HfHubHTTPError:
    return HfHubHTTPError("no", response=HTTP.Response(status, request=HTTP.Request("POST", "http://hub/file")))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "sent", "said"),
    [
        (refusal(401), False, "does not accept the token (401)"),
        (refusal(403), True, "does not let this token do that (403)"),
        (refusal(404), True, "shows no such model repository (404); create it at"),
        (refusal(412), True, "its main branch has changed since its files were listed (412)"),
        (refusal(500), True, "answers 500; try again later"),
        (caused(RuntimeError("Error while uploading"), refusal(403)), False, "(403)"),
        (HTTP.ConnectError("refused"), False, "cannot be reached, or the connection broke (refused)"),
        (ValueError("LFS batch\nis odd"), False, "the upload failed (ValueError: LFS batch is odd)"),
        (DataError("its .gitignore leaves out a"), False, "its .gitignore leaves out a"),
    ],
    ids=repr,
)
def test_a_failure_is_one_line_and_says_that_nothing_was_published(error: Exception, sent: bool, said: str) -> None:
    line = upload._failure(error, "owner/name", sent)
    assert line.startswith("owner/name: ")
    assert said in line
    assert line.endswith(". Nothing was published")
    assert "\n" not in line


@pytest.mark.parametrize("error", [HTTP.ReadTimeout(""), HTTP.RemoteProtocolError("gone")], ids=repr)
def test_an_answer_that_is_lost_leaves_it_open(error: Any) -> None:
    line = upload._failure(error, "owner/name", True)
    assert line.endswith(". Whether the hub has made the commit is not known; look at its page before you try again")
    assert upload._failure(error, "owner/name", False).endswith(". Nothing was published")
