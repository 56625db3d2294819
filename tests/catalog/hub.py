"""A hub on loopback that serves one folder as one repository: what huggingface_hub asks for, and no more."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """folder: the repository's files. token: refuse files to whoever has not this one; hidden: the listing too.
    cut_after: bytes of a file until the line drops, once; breaks: refuse files from then on.
    """

    def __init__(self, folder: Path, repo: str) -> None:
        self.folder, self.repo = folder, repo
        self.commit = "a" * 40
        self.token: str | None = None
        self.cut_after: int | None = None
        self.hidden = False
        self.breaks = self.down = False
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.url = ""


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(hub, self, body=True)

        def do_HEAD(self) -> None:
            answer(hub, self, body=False)

        def log_message(self, *_: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(hub: Hub, request: BaseHTTPRequestHandler, *, body: bool) -> None:
    path = unquote(urlsplit(request.path).path)
    hub.requests.append(f"{request.command} {path}")
    gated = hub.token is not None and (hub.hidden or "/resolve/" in path)
    if gated and request.headers.get("Authorization") != f"Bearer {hub.token}":
        reply(request, 403, b"{}", body, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
    elif path.startswith(f"/api/models/{hub.repo}/tree/"):
        reply(request, 200, json.dumps([entry(hub.folder, file) for file in files(hub.folder)]).encode(), body)
    elif path in (f"/api/models/{hub.repo}", *(f"/api/models/{hub.repo}/revision/{r}" for r in ("main", hub.commit))):
        reply(request, 200, json.dumps({"id": hub.repo, "sha": hub.commit, "siblings": []}).encode(), body)
    elif path.startswith(f"/api/models/{hub.repo}/revision/"):
        reply(request, 404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
    elif path.startswith(f"/{hub.repo}/resolve/{hub.commit}/"):
        send_file(hub, request, hub.folder / path.removeprefix(f"/{hub.repo}/resolve/{hub.commit}/"), body)
    else:
        reply(request, 404, b"{}", body, {"X-Error-Code": "RepoNotFound"})


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def entry(folder: Path, file: Path) -> dict[str, Any]:
    name, size = file.relative_to(folder).as_posix(), file.stat().st_size
    return {"type": "file", "path": name, "size": size, "oid": digest(file)[:40]}


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def send_file(hub: Hub, request: BaseHTTPRequestHandler, file: Path, body: bool) -> None:
    data = file.read_bytes()
    headers = {"ETag": f'"{digest(file)[:40]}"', "X-Repo-Commit": hub.commit, "Accept-Ranges": "bytes"}
    wanted = request.headers.get("Range")
    start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
    if wanted:
        hub.ranges.append(wanted)
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
    if body and hub.down:
        reply(request, 404, b"{}", body, {"X-Error-Code": "EntryNotFound"})
        return
    if body and hub.cut_after is not None and len(data) - start > hub.cut_after:
        hub.down, cut, hub.cut_after = hub.breaks, hub.cut_after, None
        request.send_response(206 if wanted else 200)
        for name, value in (headers | {"Content-Length": str(len(data) - start)}).items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data[start : start + cut])
        request.close_connection = True
        return
    reply(request, 206 if wanted else 200, data[start:], body, headers)


def reply(
    request: BaseHTTPRequestHandler, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None
) -> None:
    request.send_response(status)
    for name, value in (
        {"Content-Length": str(len(data)), "Content-Type": "application/json"} | (headers or {})
    ).items():
        request.send_header(name, value)
    request.end_headers()
    if body:
        request.wfile.write(data)
