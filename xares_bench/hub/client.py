"""What is asked of the hub: commits, promises, bytes. Through huggingface_hub's own session, tokens and endpoint.

huggingface_hub (2.4) starts a cut transfer of `hf_hub_download` from its first byte when the process has died or given
up, gives up at once on a 503 during a transfer, and waits for ever on some stalled calls. So the transfers of large
files are here: every wait has an end, a `Retry-After` is obeyed, and bytes that came are never asked for again.
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
from typing import TYPE_CHECKING, Any, TypeVar

from xares_bench.core.errors import DataError
from xares_bench.core.progress import Advance
from xares_bench.hub.lock import Promise, Repository

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

# Failures in a row, without a new byte, after which the hub is given up: 31 seconds of waiting and the timeouts.
_MAX_FAILURES = 6
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 900.0
_TRANSIENT_STATUSES = {408, 429, 500, 502, 503, 504}
_PATHS_PER_CALL = 500


class UnreachableError(DataError):
    """The hub did not answer for as long as we were willing to wait."""


class Stopped(Exception):
    """The transfer was told to stop; what came so far is kept."""


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids every call."""
    from huggingface_hub import is_offline_mode

    return bool(is_offline_mode())


def resolve(repository: Repository, revision: str) -> str:
    """The commit that a branch, tag or commit of a repository is now.

    Raises:
        DataError: The hub does not say.
    """

    def ask() -> str:
        info = _api().repo_info(repository.name, repo_type=repository.kind, revision=revision, timeout=_timeout_s())
        assert isinstance(info.sha, str), repository
        return info.sha

    return persist(ask, f"{repository.name} at revision {revision}")


def model_files(name: str, commit: str) -> dict[str, Promise]:
    """The promises of all files of a model.

    Raises:
        DataError: The hub does not say.
    """

    def ask() -> dict[str, Promise]:
        info = _api().repo_info(name, revision=commit, files_metadata=True, timeout=_timeout_s())
        return {
            file.rfilename: Promise(
                size_bytes=file.size,
                sha256=file.lfs.sha256 if file.lfs else None,
                git_sha1=None if file.lfs else file.blob_id,
            )
            for file in info.siblings or ()
        }

    return persist(ask, f"{name} at commit {commit}")


def promises(repository: Repository, commit: str, paths: Sequence[str]) -> dict[str, Promise]:
    """The promises of some files at a commit; a file that the repository does not have is left out.

    Raises:
        DataError: The hub does not say.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, hf_raise_for_status

    # HfApi.get_paths_info asks the same, but without any timeout.
    url = f"{constants.ENDPOINT}/api/{repository.kind}s/{repository.name}/paths-info/{commit}"

    def ask(batch: Sequence[str]) -> list[dict[str, Any]]:
        data = {"paths": list(batch), "expand": False}
        response = get_session().post(url, data=data, headers=_headers(), timeout=_timeout_s())
        hf_raise_for_status(response)
        return [entry for entry in response.json() if entry["type"] == "file"]

    found = {}
    for start in range(0, len(paths), _PATHS_PER_CALL):
        batch = paths[start : start + _PATHS_PER_CALL]
        for entry in persist(functools.partial(ask, batch), f"{repository.name} at commit {commit}"):
            lfs = entry.get("lfs")
            found[entry["path"]] = Promise(
                size_bytes=lfs["size"] if lfs else entry["size"],
                sha256=lfs["oid"] if lfs else None,
                git_sha1=None if lfs else entry["oid"],
            )
    return found


def persist(action: Callable[[], T], what: str, max_failures: int | None = None) -> T:
    """What an action on the hub returns, tried again while failures may pass.

    Args:
        action: What to do; raises what huggingface_hub raises.
        what: What to call it in messages.
        max_failures: Failures in a row after which to give up, where it is not as everywhere.

    Raises:
        DataError: It did not work; says why and what to do.
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
    promise: Promise,
    part: Path,
    advance: Advance,
    stop: threading.Event,
) -> None:
    """Fetch the bytes of a file that are not yet in `part`; the digest is not checked.

    Args:
        repository: Where the file is.
        commit: At which commit.
        path: Its path in the repository.
        promise: Its size.
        part: Receives the bytes; what it holds already is taken for the file's beginning.
        advance: Told how many bytes came, or, with a negative number, were thrown away.
        stop: Ends the transfer when it is set.

    Raises:
        DataError: The hub does not give the file, or gives one of another size.
        Stopped: It was told to stop.
        OSError: The bytes cannot be written.
    """
    import httpx2
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(repository.name, path, repo_type=repository.kind, revision=commit)
    what = f"{path} of {repository.name} at commit {commit[:12]}"
    assert promise.size_bytes is not None, path
    patience = _Patience(what, stop)
    most_bytes = _size(part)
    if promise.size_bytes == 0:
        part.touch()
    while _size(part) != promise.size_bytes:
        try:
            _receive(url, what, promise.size_bytes, part, advance, stop)
            cause: Exception = httpx2.RemoteProtocolError("the connection ended before the file did")
        except _failures() as error:
            cause = error
        if _size(part) == promise.size_bytes:
            break
        if _size(part) > most_bytes:
            most_bytes = _size(part)
            patience.renew()
        patience.wait(cause)


def _receive(url: str, what: str, size_bytes: int, part: Path, advance: Advance, stop: threading.Event) -> None:
    """One request for what `part` lacks of a file; returns early if the server throws `part` back to its start."""
    from huggingface_hub.utils import get_session, hf_raise_for_status

    if _size(part) > size_bytes:
        _discard(part, advance)
    num_held = _size(part)
    headers = {**_headers(), "Accept-Encoding": "identity"}
    if num_held:
        headers["Range"] = f"bytes={num_held}-"
    request = get_session().stream("GET", url, headers=headers, timeout=_timeout_s(), follow_redirects=True)
    with request as response:
        if num_held and response.status_code == 416:
            _discard(part, advance)
            return
        hf_raise_for_status(response)
        start, announced_bytes = _extent(response)
        if announced_bytes is not None and announced_bytes != size_bytes:
            raise _wrong_size(what, announced_bytes, size_bytes)
        if start != num_held:  # it ignored the range, or answered another one
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


def _extent(response: httpx2.Response) -> tuple[int, int | None]:
    """First byte of an answer, and the whole file's size if it says so."""
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if match is None:
            return -1, None
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    plain = response.headers.get("Content-Encoding", "identity") == "identity"
    return 0, int(length) if plain and length.isdecimal() else None


def _discard(part: Path, advance: Advance) -> None:
    advance(-_size(part))
    part.unlink(missing_ok=True)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _wrong_size(what: str, found_bytes: int, expected_bytes: int) -> DataError:
    return DataError(
        f"{what}: the hub sends {found_bytes} bytes or more where its listing promises {expected_bytes}; "
        "the repository or a proxy is at fault: try again later, or another --data-revision"
    )


class _Patience:
    """Waits after failures that may pass, and gives up after too many in a row."""

    def __init__(self, what: str, stop: threading.Event, max_failures: int | None = None) -> None:
        self._what = what
        self._max_failures = max_failures or _MAX_FAILURES
        self._stop = stop
        self._num_failures = 0

    def renew(self) -> None:
        """Count from zero again."""
        self._num_failures = 0

    def wait(self, cause: Exception) -> None:
        """Wait before another try.

        Raises:
            DataError: Another try is of no use.
            Stopped: It was told to stop.
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
    """One line on a failed call: what happened, what to do."""
    import httpx2
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
        return f"{what}: not here, and HF_HUB_OFFLINE forbids to fetch it; fetch it on a machine with network"
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        if isinstance(cause, GatedRepoError):
            advice = f"{hub} gives it only to those who accepted its terms; do so on its page, and set HF_TOKEN"
        elif status in (401, 403):
            advice = f"{hub} refuses it ({status}); check the name, and set HF_TOKEN to a token that may read it"
        elif isinstance(cause, RevisionNotFoundError):
            advice = f"{hub} knows no such revision; check the revision that was asked for"
        elif isinstance(cause, RemoteEntryNotFoundError):
            advice = f"{hub} has no such file at that commit; check the name, or ask for another revision"
        elif status == 404:
            advice = f"{hub} knows no such repository; check its name, and HF_TOKEN if it is private"
        elif status == 429:
            advice = f"{hub} limits how often it is asked (429); try again later, or set HF_TOKEN for a higher limit"
        else:
            advice = f"{hub} answers {status}; try again later"
        return f"{what}: {advice}"
    if isinstance(cause, FileMetadataError):
        return f"{what}: {hub} does not answer as a hub does; check HF_ENDPOINT and the proxy"
    reason = " ".join(str(cause).split()) or type(cause).__name__
    if isinstance(cause, httpx2.TimeoutException):
        reason = f"no byte for {_timeout_s()} seconds; HF_HUB_DOWNLOAD_TIMEOUT changes that"
    return (
        f"{what}: {hub} cannot be reached, or breaks off ({reason}); check network, proxy and HF_ENDPOINT "
        "(HF_HUB_OFFLINE=1 uses the files that are there)"
    )


def _failures() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises when a call fails."""
    import httpx2
    from huggingface_hub.errors import FileMetadataError, OfflineModeIsEnabled

    return (httpx2.HTTPError, OfflineModeIsEnabled, FileMetadataError)


def _is_transient(cause: Exception) -> bool:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code in _TRANSIENT_STATUSES
    final = (httpx2.ProxyError, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)
    return isinstance(cause, httpx2.TransportError) and not isinstance(cause, final)


def _asked_wait_s(cause: Exception) -> float | None:
    """Seconds that the hub asks to wait, or None."""
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


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="xares-bench")


def _headers() -> Mapping[str, str]:
    from huggingface_hub.utils import build_hf_headers

    headers: dict[str, str] = build_hf_headers(library_name="xares-bench")
    return headers


def _timeout_s() -> int:
    """Seconds without a byte after which a connection is given up."""
    from huggingface_hub import constants

    return int(constants.HF_HUB_DOWNLOAD_TIMEOUT)
