"""A hub on the loopback interface: answers what huggingface_hub asks, takes its uploads, and misbehaves on request.

Like the real one, it stores large files elsewhere: `resolve` sends the client to another origin (the same server under
another name), which knows nothing of repositories and must never see a token. Uploaded large files go there, too, by
the protocol of Git LFS; of Xet, the newer one, it knows nothing.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong with one answer.

    Attributes:
        status: Answer with this status instead.
        headers: And with these headers.
        cut_after: Close the connection after so many bytes of the body.
        reset: Close it with a reset.
        stall_after: Send nothing more after so many bytes of the body.
        pause_after: Send the rest of the body only when the server's `go_on` is set.
        trickle_s: Seconds to wait after every 10,000 bytes of the body.
        body: Send these bytes instead, under their own length.
        endless: Announce no length.
        ignore_range: Send the whole file whatever was asked for.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    reset: bool = False
    stall_after: int | None = None
    pause_after: int | None = None
    trickle_s: float = 0
    body: bytes | None = None
    endless: bool = False
    ignore_range: bool = False


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request that was received."""

    method: str
    path: str
    headers: Mapping[str, str]
    at_s: float


@dataclass(kw_only=True)
class Repository:
    """A repository: branches that point to commits that hold files.

    Attributes:
        files: Files of every commit.
        branches: Commit of every branch.
        token: Only who shows this token may read; None: everybody.
        gated: Nobody may read before accepting terms.
        in_git: Files that are stored in Git, not as large files.
        promised: Sizes that the listing states instead of the true ones.
        writer: Only who shows this token may write; others may open pull requests.
        ignored: Endings of files that its .gitignore leaves out.
        commits: Branch, message and URL of every commit that was made by a request.
    """

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False
    in_git: set[str] = field(default_factory=set)
    promised: dict[str, int] = field(default_factory=dict)
    writer: str = "hf_writer"
    ignored: tuple[str, ...] = ()
    commits: list[tuple[str, str, str]] = field(default_factory=list)

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Put files on a branch; returns the commit."""
        content = b"".join(path.encode() + data for path, data in sorted(files.items()))
        commit = hashlib.sha1(content).hexdigest()
        self.files[commit] = dict(files)
        self.branches[branch] = commit
        return commit


class Hub:
    """The state of the server.

    Attributes:
        repositories: By `datasets/OWNER/NAME` or `models/OWNER/NAME`.
        requests: All that were received.
        faults: What goes wrong next, by the end of a request's path; one entry per answer.
        num_sent: Bytes of large files that were sent, by SHA-256.
        uploaded: Large files that were received, by SHA-256; a commit makes them part of a repository.
        before_commit: Called when a request to commit has arrived.
        go_on: Lets paused answers go on.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.faults: dict[str, list[Fault]] = {}
        self.num_sent: dict[str, int] = {}
        self.uploaded: dict[str, bytes] = {}
        self.before_commit: Callable[[], object] = lambda: None
        self.go_on = threading.Event()
        self.port = 0
        self._closing = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def repository(self, key: str) -> Repository:
        return self.repositories.setdefault(key, Repository())

    def next_fault(self, path: str) -> Fault | None:
        for ending, faults in self.faults.items():
            if path.endswith(ending) and faults:
                return faults.pop(0)
        return None

    def gets(self, ending: str) -> list[Request]:
        """GET requests for paths with this ending."""
        return [request for request in self.requests if request.method == "GET" and request.path.endswith(ending)]

    def stall(self) -> None:
        self._closing.wait(60)

    def close(self) -> None:
        self._closing.set()
        self.go_on.set()


@contextlib.contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub for the time of the block."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.close()
        server.shutdown()
        server.server_close()
        thread.join()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.state.requests.append(Request(method=self.command, path=path, headers=headers, at_s=time.monotonic()))
        fault = None if self.command == "HEAD" else self.state.next_fault(path)
        with contextlib.suppress(ConnectionError):
            if fault is not None and fault.status is not None:
                self._send(fault.status, b"{}", dict(fault.headers))
            elif path.startswith("/large/") and self.command == "PUT":
                self._receive_large(path.removeprefix("/large/"), body)
            elif ".git/info/lfs/objects/" in path:
                self._answer_lfs(path.lstrip("/"), json.loads(body))
            elif path.startswith("/large/"):
                self._send_large(path.removeprefix("/large/"), fault)
            elif path.startswith("/api/"):
                if fault is not None and fault.stall_after is not None:
                    self.state.stall()
                    return
                parts = path.split("/")
                if parts[5:6] in (["preupload"], ["commit"]):
                    self._answer_upload("/".join(parts[2:5]), parts[5], parts[6], "create_pr=1" in url.query, body)
                    return
                self._answer_api(path.removeprefix("/api/"), urllib.parse.parse_qs(body.decode()))
            else:
                self._resolve(path, fault)

    def _answer_api(self, path: str, form: dict[str, list[str]]) -> None:
        parts = path.split("/")
        if parts[2:] and parts[2] in ("revision", "paths-info", "tree"):  # the first models had no owner
            parts[1:2] = ["", parts[1]]
        name = "/".join(filter(None, parts[1:3]))
        repository = self._authorised(f"{parts[0]}/{name}")
        if repository is None:
            return
        what, revision = parts[3] if parts[3:] else "revision", "/".join(parts[4:]) or "main"
        commit = repository.branches.get(revision, revision)
        if commit not in repository.files:
            self._refuse(404, "RevisionNotFound")
            return
        listing = [self._entry(repository, path, data) for path, data in repository.files[commit].items()]
        if what == "revision":
            siblings = [{"rfilename": entry["path"], **_as_sibling(entry)} for entry in listing]
            info = {"id": name, "sha": commit, "private": False, "tags": [], "downloads": 0, "likes": 0}
            self._send_json({**info, "siblings": siblings})
        elif what == "paths-info":
            self._send_json([entry for entry in listing if entry["path"] in form["paths"]])
        elif what == "tree":
            self._send_json(listing)
        else:
            self._refuse(404, "EntryNotFound")

    def _answer_upload(self, key: str, what: str, branch: str, create_pr: bool, body: bytes) -> None:
        repository = self._authorised(key, write=not create_pr)
        if repository is None:
            return
        if what == "preupload":
            asked = json.loads(body)["files"]
            self._send_json({"files": [self._upload_mode(repository, branch, file) for file in asked]})
            return
        self.state.before_commit()
        header, *operations = map(json.loads, body.splitlines())
        assert header["key"] == "header"
        parent = repository.branches[branch]
        if header["value"].get("parentCommit") != parent and not create_pr:
            self._refuse(412, "PreconditionFailed")
            return
        files = dict(repository.files[parent])
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                repository.in_git.add(value["path"])
            elif operation["key"] == "lfsFile" and value["oid"] in self.state.uploaded:
                files[value["path"]] = self.state.uploaded[value["oid"]]
            else:
                self._refuse(400, "BadRequest")
                return
        number = sum(name.startswith("refs/pr/") for name in repository.branches) + 1
        branch = f"refs/pr/{number}" if create_pr else branch
        commit = repository.commit(files, branch)
        page = f"{self.state.endpoint}/{key.removeprefix('models/')}"
        pull_request = f"{page}/discussions/{number}" if create_pr else None
        repository.commits.append((branch, header["value"]["summary"], pull_request or f"{page}/commit/{commit}"))
        self._send_json(
            {
                "commitOid": commit,
                "commitUrl": f"{page}/commit/{commit}",
                "pullRequestUrl": pull_request,
                "success": True,
            }
        )

    def _upload_mode(self, repository: Repository, branch: str, file: dict[str, Any]) -> dict[str, Any]:
        """Whether a file goes into Git or to the large files, as the hub decides it: by its name, or its size."""
        path = file["path"]
        mode = "lfs" if path.endswith(".npz") or file["size"] > 10_000_000 else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": path.endswith(repository.ignored or ("\0",))}

    def _answer_lfs(self, path: str, asked: dict[str, Any]) -> None:
        name, _, what = path.partition(".git/info/lfs/objects/")
        if self._authorised(f"models/{name}", write="ref" in asked) is None:
            return
        if what == "verify":
            self._send(200 if asked["oid"] in self.state.uploaded else 404, b"{}", {})
            return
        assert what == "batch"
        objects = []
        for wanted in asked["objects"]:
            actions = {
                # Another origin to the client, the same server.
                "upload": {"href": f"http://localhost:{self.state.port}/large/{wanted['oid']}"},
                "verify": {"href": f"{self.state.endpoint}/{name}.git/info/lfs/objects/verify"},
            }
            known = wanted["oid"] in self.state.uploaded
            objects.append({**wanted, **({} if known else {"actions": actions})})
        self._send_json({"transfer": "basic", "objects": objects})

    def _receive_large(self, digest: str, body: bytes) -> None:
        if sha256(body) != digest:
            self._send(400, b"", {})
            return
        self.state.uploaded[digest] = body
        self._send(200, b"", {})

    def _resolve(self, path: str, fault: Fault | None) -> None:
        head, _, tail = path.lstrip("/").partition("/resolve/")
        key = head if head.startswith("datasets/") else f"models/{head}"
        repository = self._authorised(key)
        if repository is None:
            return
        revision, _, file = tail.partition("/")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.files:
            self._refuse(404, "RevisionNotFound")
            return
        if file not in repository.files[commit]:
            self._refuse(404, "EntryNotFound")
            return
        data = repository.files[commit][file]
        headers = {"X-Repo-Commit": commit}
        if file in repository.in_git:
            self._send_body(data, fault, {**headers, "ETag": f'"{git_sha1(data)}"'})
            return
        size = str(repository.promised.get(file, len(data)))
        headers |= {"X-Linked-Size": size, "X-Linked-ETag": f'"{sha256(data)}"', "ETag": f'"{commit}"'}
        # Another origin to the client, the same server.
        location = f"http://localhost:{self.state.port}/large/{sha256(data)}/{file}"
        self._send(302, b"", {**headers, "Location": location})

    def _send_large(self, path: str, fault: Fault | None) -> None:
        digest = path.partition("/")[0]
        for repository in self.state.repositories.values():
            for files in repository.files.values():
                for data in files.values():
                    if sha256(data) == digest:
                        self._send_body(data, fault, {}, digest)
                        return
        self._refuse(404, "EntryNotFound")

    def _send_body(self, data: bytes, fault: Fault | None, headers: dict[str, str], digest: str = "") -> None:
        fault = fault or Fault()
        data = data if fault.body is None else fault.body
        start, status = 0, 200
        asked = self.headers.get("Range")
        if asked is not None and not fault.ignore_range:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            if start >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        rest = data[start:]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        if not fault.endless:
            self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.close_connection = True
        if self.command == "HEAD":
            return
        for limit in (fault.cut_after, fault.stall_after, fault.pause_after):
            if limit is not None:
                self._write(rest[:limit], digest)
                rest = rest[limit:]
        if fault.stall_after is not None:
            self.state.stall()
            return
        if fault.reset:
            time.sleep(0.2)  # a reset overtakes bytes that the client has not read yet
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        if fault.cut_after is not None:
            return
        if fault.pause_after is not None:
            self.state.go_on.wait(60)
        while fault.trickle_s and rest:
            self._write(rest[:10_000], digest)
            rest = rest[10_000:]
            time.sleep(fault.trickle_s)
        self._write(rest, digest)

    def _write(self, data: bytes, digest: str) -> None:
        self.wfile.write(data)
        self.wfile.flush()
        self.state.num_sent[digest] = self.state.num_sent.get(digest, 0) + len(data)

    def _authorised(self, key: str, *, write: bool = False) -> Repository | None:
        repository = self.state.repositories.get(key)
        shown = self.headers.get("Authorization")
        if shown == "Bearer hf_expired":
            self._send(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repository is None:
            self._refuse(404, "RepoNotFound")
        elif repository.gated:
            self._refuse(403, "GatedRepo")
        elif repository.token is not None and shown != f"Bearer {repository.token}":
            self._refuse(401, "RepoNotFound")
        elif write and shown != f"Bearer {repository.writer}":
            self._send(403, b"{}", {"X-Error-Message": "You have no write access"})
        else:
            return repository
        return None

    def _entry(self, repository: Repository, path: str, data: bytes) -> dict[str, Any]:
        size = repository.promised.get(path, len(data))
        entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": git_sha1(data)}
        if path not in repository.in_git:
            entry["lfs"] = {"oid": sha256(data), "size": size, "pointerSize": 134}
        return entry

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b'{"error": "refused"}', {"X-Error-Code": code, "Content-Type": "application/json"})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _as_sibling(entry: dict[str, Any]) -> dict[str, Any]:
    sibling = {"size": entry["size"], "blobId": entry["oid"]}
    if "lfs" in entry:
        lfs = entry["lfs"]
        sibling["lfs"] = {"size": lfs["size"], "sha256": lfs["oid"], "pointerSize": lfs["pointerSize"]}
    return sibling
