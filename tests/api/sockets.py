"""A WebSocket client on an application in this process: no port, no network, the server's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from types import TracebackType
from typing import Any

from fastapi import FastAPI

WAIT_SECONDS = 20.0


class Closed(Exception):
    """The server closed the socket."""

    def __init__(self, code: int) -> None:
        super().__init__(f"closed with {code}")
        self.code = code


class Socket:
    """One connection. send and receive speak JSON; receive raises Closed when the server has closed."""

    def __init__(self, app: FastAPI, path: str = "/v1", query: str = "", **headers: str) -> None:
        self.app = app
        self.scope = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(b"host", b"darkroom.test"), *((k.encode(), v.encode()) for k, v in headers.items())],
            "client": ("127.0.0.1", 1),
            "server": ("darkroom.test", 80),
            "subprotocols": [],
        }
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Socket:
        self.task = asyncio.create_task(self.app(self.scope, self.inbox.get, self.outbox.put))
        self.inbox.put_nowait({"type": "websocket.connect"})
        opened = await asyncio.wait_for(self.outbox.get(), WAIT_SECONDS)
        if opened["type"] == "websocket.close":
            raise Closed(opened["code"])
        assert opened["type"] == "websocket.accept", opened
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()
        assert self.task is not None
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(self.task, WAIT_SECONDS)

    def drop(self) -> None:
        """The client is gone."""
        self.inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})

    def send(self, *tasks: Any) -> None:
        self.send_text(json.dumps(list(tasks)))

    def send_text(self, text: str) -> None:
        self.inbox.put_nowait({"type": "websocket.receive", "text": text})

    def send_bytes(self, data: bytes) -> None:
        self.inbox.put_nowait({"type": "websocket.receive", "bytes": data})

    async def receive(self, seconds: float = WAIT_SECONDS) -> dict[str, Any]:
        """The next message. Raises TimeoutError, Closed."""
        message = await asyncio.wait_for(self.outbox.get(), seconds)
        if message["type"] == "websocket.close":
            raise Closed(message.get("code", 1000))
        found: dict[str, Any] = json.loads(message["text"])
        return found

    async def authenticate(self, key: str = "", session: str | None = None) -> str:
        """The handshake; returns the connectionSessionUUID."""
        task = {"taskType": "authentication", "apiKey": key}
        self.send({**task, "connectionSessionUUID": session} if session else task)
        [item] = (await self.receive())["data"]
        assert item["taskType"] == "authentication"
        return str(item["connectionSessionUUID"])

    async def silence(self, seconds: float = 0.3) -> None:
        """Nothing comes."""
        with contextlib.suppress(TimeoutError):
            raise AssertionError(f"unexpected: {await self.receive(seconds)}")
