"""Requests one by one, without a server; whole transfers against one are in test_home.py."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from xares_bench.core.errors import DataError
from xares_bench.hub import client
from xares_bench.hub.http_library import http_library
from xares_bench.hub.lock import FileInfo, Repository

DATA = bytes(range(250)) * 4
HTTP = http_library()
REQUEST = HTTP.Request("GET", "http://hub/file")


def refusal(status: int, **headers: str) -> HfHubHTTPError:
    return HfHubHTTPError("no", response=HTTP.Response(status, headers=headers, request=REQUEST))


def failing(*causes: Exception) -> Callable[[], str]:
    """An action that fails once for each cause, then succeeds."""
    left = list(causes)

    def action() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return action


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_FIRST_WAIT_S", 0.0)


@pytest.mark.versions
def test_temporary_failures_are_retried() -> None:
    causes = (
        HTTP.ConnectError("refused"),
        HTTP.ReadTimeout("slow"),
        refusal(503),
        refusal(429, **{"Retry-After": "0"}),
    )
    assert client.retry(failing(*causes), "the list") == "done"


@pytest.mark.parametrize(
    "cause", [refusal(404), refusal(403), HTTP.ProxyError("no"), OfflineModeIsEnabled("no")], ids=repr
)
def test_final_failures_are_not_retried(cause: Exception) -> None:
    with pytest.raises(DataError, match=r"^the list: ") as caught:
        client.retry(failing(cause), "the list")
    assert not isinstance(caught.value, client.UnreachableError)


def test_too_many_failures_in_a_row_end_the_retries() -> None:
    with pytest.raises(client.UnreachableError, match=r"^the list: the hub .* answers 503; try again later$"):
        client.retry(failing(*[refusal(503)] * 3), "the list", max_failures=3)
    assert client.retry(failing(*[refusal(503)] * 2), "the list", max_failures=3) == "done"


def test_a_wait_of_hours_is_not_waited_for() -> None:
    with pytest.raises(client.UnreachableError, match=r"rate of requests \(429\)"):
        client.retry(failing(refusal(429, **{"Retry-After": "7200"})), "the list")


@pytest.mark.parametrize(
    ("status", "headers", "extent"),
    [
        (200, {"Content-Length": "7"}, (0, 7)),
        (200, {"Content-Length": "7", "Content-Encoding": "gzip"}, (0, None)),
        (200, {}, (0, None)),
        (206, {"Content-Range": "bytes 5-9/10"}, (5, 10)),
        (206, {"Content-Range": "bytes 5-9/*"}, (5, None)),
        (206, {"Content-Range": "5 to 9"}, (-1, None)),
        (206, {}, (-1, None)),
    ],
)
def test_a_response_says_where_its_bytes_belong(
    status: int, headers: dict[str, str], extent: tuple[int, int | None]
) -> None:
    assert client._extent(status, HTTP.Response(status, headers=headers).headers) == extent


@pytest.mark.parametrize("num_present", [0, 1, 400, 1000, 1001])
def test_a_transfer_requests_only_the_missing_bytes(
    num_present: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges: list[str | None] = []

    def answer(request: Any) -> Any:
        ranges.append(request.headers.get("Range"))
        start = int((ranges[-1] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers = {"Content-Range": f"bytes {start}-999/1000"} if start else {}
        return HTTP.Response(206 if start else 200, content=DATA[start:], headers=headers)

    session = HTTP.Client(transport=HTTP.MockTransport(answer))
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: session)
    part = tmp_path / "file.part"
    part.write_bytes((DATA + b"?")[:num_present])
    received: list[int] = []
    client.download(
        Repository(name="owner/shards"),
        "0" * 40,
        "file",
        FileInfo(size_bytes=1000),
        part,
        lambda num_done=1, note="": received.append(num_done),
        threading.Event(),
    )
    assert part.read_bytes() == DATA
    assert ranges == {0: [None], 1: ["bytes=1-"], 400: ["bytes=400-"], 1000: [], 1001: [None]}[num_present]
    assert sum(received) == 1000 - num_present
