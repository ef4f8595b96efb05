"""Uploads: files that become one commit, or one pull request, of a model's repository.

What the repository has is listed first, at a commit that the new one must follow, so that what was shown is what is
replaced. Everything is sent before the commit; whatever ends an upload early leaves the repository as it was.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from xares_bench.core.errors import DataError, UsageError
from xares_bench.hub import client
from xares_bench.hub.http_library import http_library
from xares_bench.hub.lock import FileInfo, Repository

# Of a single request, the one that makes the commit included. huggingface_hub has no limit of its own.
_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class UploadFile:
    """A file to upload.

    Attributes:
        path: Its path in the repository.
        content: Its bytes.
        present: What the repository has under this path, or None.
    """

    path: str
    content: bytes
    present: FileInfo | None

    @property
    def is_unchanged(self) -> bool:
        """Whether the repository has these bytes already."""
        if self.present is None:
            return False
        if self.present.sha256 is not None:
            return hashlib.sha256(self.content).hexdigest() == self.present.sha256
        git_object = b"blob %d\0" % len(self.content) + self.content
        return hashlib.sha1(git_object).hexdigest() == self.present.git_sha1


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Files beside what a repository has of them.

    Attributes:
        repository: Owner and name of the model's repository.
        commit: The commit of its main branch that the files were compared with.
        files: The files, in the order in which they were given.
    """

    repository: str
    commit: str
    files: tuple[UploadFile, ...]

    @property
    def changed(self) -> tuple[UploadFile, ...]:
        """The files that the repository does not have yet."""
        return tuple(file for file in self.files if not file.is_unchanged)


def model_repository(text: str) -> str:
    """Return the owner and name of a model's repository, after checking their form.

    Raises:
        UsageError: It has another form.
    """
    if _is_name(text):
        return text
    hint = ""
    path = re.sub(r"^(https?://)?(huggingface\.co|hf\.co)/|^models/", "", text)
    if re.match("(datasets|spaces)/", path):
        hint = "; scores belong to a model, not to a dataset or a space"
    else:
        name = "/".join(path.split("/")[:2])
        if "/" in name and _is_name(name):
            hint = f"; did you mean {name}?"
    raise UsageError(f"--repo={text}: expected OWNER/NAME of a model's repository on the hub{hint}")


def check_token() -> None:
    """Check that there is a token to upload with; whether it may write is known to the hub.

    Raises:
        UsageError: There is none.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise UsageError(
            "there is no token to upload with; set HF_TOKEN to one with write access, or run hf auth login"
        )


def plan_upload(repository: str, contents: Mapping[str, bytes]) -> Upload:
    """Compare files with what the main branch of a repository has.

    Args:
        repository: Owner and name of the model's repository.
        contents: The files, by their paths in it.

    Raises:
        UsageError: HF_HUB_OFFLINE is set.
        DataError: The hub does not answer, or there is no such repository.
    """
    if client.is_offline():
        raise UsageError("HF_HUB_OFFLINE is set, but publishing needs the hub; unset it")
    model = Repository(kind="model", name=repository)
    try:
        commit = client.resolve(model, "main")
        present = client.file_infos(model, commit, list(contents))
    except DataError as error:
        raise DataError(_explained(error.__cause__, repository) or str(error)) from error
    return Upload(
        repository=repository,
        commit=commit,
        files=tuple(
            UploadFile(path=path, content=content, present=present.get(path)) for path, content in contents.items()
        ),
    )


def commit_upload(upload: Upload, *, message: str, create_pr: bool) -> str:
    """Commit the changed files to the main branch, all or none; return the URL of the commit or pull request.

    Args:
        upload: The files; the commit must still be the newest of the main branch.
        message: Message of the commit.
        create_pr: Whether to open a pull request instead of changing the main branch.

    Raises:
        DataError: The hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils import disable_progress_bars, get_session
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # errors are shown in one line
    if not sys.stderr.isatty():
        disable_progress_bars()
    get_session().timeout = http_library().Timeout(_TIMEOUT_S)
    api, sent = client.hub_api(), False
    additions = [CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=file.content) for file in upload.changed]
    try:
        api.preupload_lfs_files(upload.repository, additions, create_pr=create_pr, free_memory=False)
        ignored = [addition.path_in_repo for addition in additions if addition._should_ignore]
        if ignored:  # the library would leave them out without a word
            raise DataError(f"its .gitignore leaves out {', '.join(ignored)}; change it")
        sent = True
        info = api.create_commit(
            upload.repository,
            additions,
            commit_message=message,
            create_pr=create_pr,
            parent_commit=upload.commit,
        )
    except Exception as error:  # of the HTTP library, of the transfer of large files, of files that changed
        raise DataError(_failure(error, upload.repository, sent)) from error
    return str(info.pr_url or info.commit_url)


def _is_name(text: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text and not re.search(r"\s", text)  # older versions of the library let a line break pass


def _failure(error: Exception, repository: str, sent: bool) -> str:
    """One line about an upload that failed: what happened, what to do, and what became of the repository."""
    causes = list(_chain(error))
    request = next((cause for cause in causes if isinstance(cause, http_library().HTTPError)), None)
    if isinstance(error, DataError):
        text = f"{repository}: {error}"
    elif request is not None:
        text = _explained(request, repository) or client.explain(request, repository)
    else:
        text = f"{repository}: the upload failed ({type(causes[-1]).__name__}: {_one_line(causes[-1])}); try again"
    if sent and isinstance(request, http_library().TransportError):
        return f"{text}. Whether the hub has made the commit is not known; look at its page before you try again"
    return f"{text}. Nothing was published"


def _explained(cause: BaseException | None, repository: str) -> str | None:
    """What a failed request means for an upload, and what to do; None for what means the same everywhere."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    hub = f"the hub ({constants.ENDPOINT})"
    if isinstance(cause, http_library().TransportError):
        return (
            f"{repository}: {hub} cannot be reached, or the connection broke ({_one_line(cause)}); check network, "
            "proxy and HF_ENDPOINT"
        )
    if not isinstance(cause, HfHubHTTPError) or isinstance(cause, (GatedRepoError, RevisionNotFoundError)):
        return None
    status = cause.response.status_code
    if status == 404 or isinstance(cause, RepositoryNotFoundError):
        return (
            f"{repository}: {hub} shows no such model repository ({status}); create it at {constants.ENDPOINT}/new, "
            "or, if it is private, set HF_TOKEN to a token that may read and write it"
        )
    if status == 401:
        return f"{repository}: {hub} does not accept the token (401); set HF_TOKEN to a valid one with write access"
    if status == 403:
        return (
            f"{repository}: {hub} does not let this token do that (403); set HF_TOKEN to one with write access to the "
            "repository, or, if it may only read, offer the files with --create-pr"
        )
    if status in (409, 412):
        return f"{repository}: its main branch has changed since its files were listed ({status}); run it again"
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what caused it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
