"""Requests to the hub: commits, file listings, files. They use huggingface_hub's session, token and endpoint.

huggingface_hub (2.4) restarts an interrupted `hf_hub_download` from its first byte if the process died or gave up,
gives up at once on a 503 during a transfer, and waits forever on some stalled calls. So large files are transferred
here: every wait has a limit, `Retry-After` is respected, and received bytes are never requested again.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import functools
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from xares_bench.core.errors import DataError
from xares_bench.core.progress import Advance
from xares_bench.hub.http_library import http_library
from xares_bench.hub.lock import FileInfo, Repository

T = TypeVar("T")

# Give up after this many failures in a row without a new byte: 31 seconds of waiting, plus the timeouts.
_MAX_FAILURES = 6
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 900.0
_TRANSIENT_STATUSES = {408, 429, 500, 502, 503, 504}
_PATHS_PER_CALL = 500


class UnreachableError(DataError):
    """The hub did not answer within all retries."""


class Stopped(Exception):
    """The transfer was told to stop; the bytes received so far stay on disk."""


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids requests."""
    from huggingface_hub import is_offline_mode

    return bool(is_offline_mode())


def hub_api() -> Any:
    """Return huggingface_hub's client of the hub; its requests name us."""
    from huggingface_hub import HfApi

    return HfApi(library_name="xares-bench")


def resolve(repository: Repository, revision: str) -> str:
    """The commit that a branch, tag or commit of a repository points to now.

    Raises:
        DataError: The hub does not answer, or refuses.
    """

    def ask() -> str:
        info = hub_api().repo_info(repository.name, repo_type=repository.kind, revision=revision, timeout=_timeout_s())
        assert isinstance(info.sha, str), repository
        return info.sha

    return retry(ask, f"{repository.name} at revision {revision}")


def model_files(name: str, commit: str) -> dict[str, FileInfo]:
    """Sizes and digests of all files of a model.

    Raises:
        DataError: The hub does not answer, or refuses.
    """

    def ask() -> dict[str, FileInfo]:
        info = hub_api().repo_info(name, revision=commit, files_metadata=True, timeout=_timeout_s())
        return {
            file.rfilename: FileInfo(
                size_bytes=file.size,
                sha256=file.lfs.sha256 if file.lfs else None,
                git_sha1=None if file.lfs else file.blob_id,
            )
            for file in info.siblings or ()
        }

    return retry(ask, f"{name} at commit {commit}")


def file_infos(repository: Repository, commit: str, paths: Sequence[str]) -> dict[str, FileInfo]:
    """Sizes and digests of some files at a commit; files that the repository does not have are left out.

    Raises:
        DataError: The hub does not answer, or refuses.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, hf_raise_for_status

    # HfApi.get_paths_info sends the same request, but without a timeout.
    url = f"{constants.ENDPOINT}/api/{repository.kind}s/{repository.name}/paths-info/{commit}"

    def ask(batch: Sequence[str]) -> list[dict[str, Any]]:
        data = {"paths": list(batch), "expand": False}
        response = get_session().post(url, data=data, headers=_headers(), timeout=_timeout_s())
        hf_raise_for_status(response)
        return [entry for entry in response.json() if entry["type"] == "file"]

    found = {}
    for start in range(0, len(paths), _PATHS_PER_CALL):
        batch = paths[start : start + _PATHS_PER_CALL]
        for entry in retry(functools.partial(ask, batch), f"{repository.name} at commit {commit}"):
            lfs = entry.get("lfs")
            found[entry["path"]] = FileInfo(
                size_bytes=lfs["size"] if lfs else entry["size"],
                sha256=lfs["oid"] if lfs else None,
                git_sha1=None if lfs else entry["oid"],
            )
    return found


def retry(action: Callable[[], T], what: str, max_failures: int | None = None) -> T:
    """The result of a request, retried after failures that may be temporary.

    Args:
        action: Sends the request; raises the exceptions of huggingface_hub.
        what: Names the request in messages.
        max_failures: Failures in a row after which to give up; None: the default.

    Raises:
        DataError: The request failed; the message says why and what to do.
    """
    patience = _Patience(what, threading.Event(), max_failures)
    while True:
        try:
            return action()
        except _failures() as cause:
            patience.wait(cause)


def download(
    repository: Repository,
    commit: str,
    path: str,
    info: FileInfo,
    part: Path,
    advance: Advance,
    stop: threading.Event,
) -> None:
    """Fetch the bytes of a file that are not yet in `part`; the digest is not checked.

    Resuming needs no record besides `part`: its length is the offset of the next byte. This is safe because a commit's
    file never changes, and because the caller names `part` after the digest, so it never starts with another file.

    Args:
        repository: Repository of the file.
        commit: Commit of the repository.
        path: Path in the repository.
        info: Expected size of the file.
        part: Receives the bytes; bytes that are there already are taken for the beginning of the file.
        advance: Called with the number of bytes received, or a negative number if bytes were discarded.
        stop: Ends the transfer when it is set.

    Raises:
        DataError: The hub does not send the file, or sends one of another size.
        Stopped: `stop` was set.
        OSError: The bytes cannot be written.
    """
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(repository.name, path, repo_type=repository.kind, revision=commit)
    what = f"{path} of {repository.name} at commit {commit[:12]}"
    assert info.size_bytes is not None, path
    patience = _Patience(what, stop)
    most_bytes = _size(part)
    if info.size_bytes == 0:
        part.touch()
    while _size(part) != info.size_bytes:
        try:
            _receive(url, what, info.size_bytes, part, advance, stop)
            cause: Exception = http_library().RemoteProtocolError("the connection ended before the file did")
        except _failures() as error:
            cause = error
        if _size(part) == info.size_bytes:
            break
        if _size(part) > most_bytes:
            most_bytes = _size(part)
            patience.renew()  # a slow hub is waited for as long as each attempt brings something
        patience.wait(cause)


def _receive(url: str, what: str, size_bytes: int, part: Path, advance: Advance, stop: threading.Event) -> None:
    """One request for the missing bytes of `part`; returns early if the server's answer means to start over."""
    from huggingface_hub.utils import get_session, hf_raise_for_status

    if _size(part) > size_bytes:
        _discard(part, advance)
    num_present = _size(part)
    headers = {**_headers(), "Accept-Encoding": "identity"}
    if num_present:
        headers["Range"] = f"bytes={num_present}-"
    request = get_session().stream("GET", url, headers=headers, timeout=_timeout_s(), follow_redirects=True)
    with request as response:
        if num_present and response.status_code == 416:
            _discard(part, advance)
            return
        hf_raise_for_status(response)
        start, announced_bytes = _extent(response.status_code, response.headers)
        if announced_bytes is not None and announced_bytes != size_bytes:
            raise _wrong_size(what, announced_bytes, size_bytes)
        if start != num_present:  # the server ignored the range, or sent another one
            _discard(part, advance)
            if start:
                return
        with part.open("ab") as file:
            num_received = _size(part)
            for chunk in response.iter_bytes():
                if stop.is_set():
                    raise Stopped
                num_received += len(chunk)
                if num_received > size_bytes:
                    raise _wrong_size(what, num_received, size_bytes)
                file.write(chunk)
                advance(len(chunk))


def _extent(status: int, headers: Mapping[str, str]) -> tuple[int, int | None]:
    """Offset of the first byte of a response, and the size of the whole file if the response states it."""
    if status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
        if match is None:
            return -1, None
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = headers.get("Content-Length", "")
    plain = headers.get("Content-Encoding", "identity") == "identity"
    return 0, int(length) if plain and length.isdecimal() else None


def _discard(part: Path, advance: Advance) -> None:
    advance(-_size(part))
    part.unlink(missing_ok=True)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _wrong_size(what: str, found_bytes: int, expected_bytes: int) -> DataError:
    return DataError(
        f"{what}: the hub sends {found_bytes} bytes or more, its listing says {expected_bytes}; "
        "the repository or a proxy is faulty: try again later, or choose another --data-revision"
    )


class _Patience:
    """Waits after temporary failures, and gives up after too many in a row."""

    def __init__(self, what: str, stop: threading.Event, max_failures: int | None = None) -> None:
        self._what = what
        self._max_failures = max_failures or _MAX_FAILURES
        self._stop = stop
        self._num_failures = 0

    def renew(self) -> None:
        """Start counting from zero."""
        self._num_failures = 0

    def wait(self, cause: Exception) -> None:
        """Wait before the next attempt.

        Raises:
            DataError: Another attempt is pointless.
            Stopped: `stop` was set.
        """
        self._num_failures += 1
        asked_s = _asked_wait_s(cause)
        if not _is_transient(cause):
            raise DataError(explain(cause, self._what)) from cause
        if self._num_failures >= self._max_failures or (asked_s or 0) > _LONGEST_WAIT_S:
            raise UnreachableError(explain(cause, self._what)) from cause
        if self._stop.wait(_FIRST_WAIT_S * 2 ** (self._num_failures - 1) if asked_s is None else asked_s):
            raise Stopped


def explain(cause: BaseException, what: str) -> str:
    """One line about a failed request: what happened, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        FileMetadataError,
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RevisionNotFoundError,
    )

    hub = f"the hub ({constants.ENDPOINT})"
    if isinstance(cause, OfflineModeIsEnabled):
        return f"{what}: not on this machine, and HF_HUB_OFFLINE is set; download it on a machine with network"
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        if isinstance(cause, GatedRepoError):
            advice = f"{hub} requires you to accept its terms; do so on its page, and set HF_TOKEN"
        elif status in (401, 403):
            advice = f"{hub} refuses access ({status}); check the name, and set HF_TOKEN to a token with read access"
        elif isinstance(cause, RevisionNotFoundError):
            advice = f"{hub} has no such revision; check the requested revision"
        elif isinstance(cause, RemoteEntryNotFoundError):
            advice = f"{hub} has no such file at this commit; check the name, or request another revision"
        elif status == 404:
            advice = f"{hub} has no such repository; check its name, and HF_TOKEN if it is private"
        elif status == 429:
            advice = f"{hub} limits the rate of requests (429); try again later, or set HF_TOKEN for a higher limit"
        else:
            advice = f"{hub} answers {status}; try again later"
        return f"{what}: {advice}"
    if isinstance(cause, FileMetadataError):
        return f"{what}: {hub} does not answer like a hub; check HF_ENDPOINT and the proxy"
    reason = " ".join(str(cause).split()) or type(cause).__name__
    if isinstance(cause, http_library().TimeoutException):
        reason = f"no data for {_timeout_s()} seconds; set HF_HUB_DOWNLOAD_TIMEOUT to wait longer"
    return (
        f"{what}: {hub} cannot be reached, or the connection broke ({reason}); check network, proxy and HF_ENDPOINT "
        "(HF_HUB_OFFLINE=1 uses the files that are present)"
    )


def _failures() -> tuple[type[Exception], ...]:
    """The exceptions that huggingface_hub raises when a request fails."""
    from huggingface_hub.errors import FileMetadataError, OfflineModeIsEnabled

    return (http_library().HTTPError, OfflineModeIsEnabled, FileMetadataError)


def _is_transient(cause: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code in _TRANSIENT_STATUSES
    http = http_library()
    final = (http.ProxyError, http.UnsupportedProtocol, http.LocalProtocolError)
    return isinstance(cause, http.TransportError) and not isinstance(cause, final)


def _asked_wait_s(cause: Exception) -> float | None:
    """Seconds that the hub asks the client to wait, or None."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import parse_ratelimit_headers

    if not isinstance(cause, HfHubHTTPError):
        return None
    text = cause.response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        until = email.utils.parsedate_to_datetime(text)
        return max(0.0, (until - datetime.datetime.now(datetime.UTC)).total_seconds())
    limit = parse_ratelimit_headers(cause.response.headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None


def _headers() -> Mapping[str, str]:
    from huggingface_hub.utils import build_hf_headers

    headers: dict[str, str] = build_hf_headers(library_name="xares-bench")
    return headers


def _timeout_s() -> int:
    """Seconds without data after which a connection is given up."""
    from huggingface_hub import constants

    return int(constants.HF_HUB_DOWNLOAD_TIMEOUT)
