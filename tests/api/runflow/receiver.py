"""A server for callbacks: keeps every request as its raw bytes and answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tests.eventually import eventually


@dataclass
class Call:
    """One request as it came."""

    at: float
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


@dataclass
class Receiver:
    """statuses: of the answers, the last one for all that follow; 0 hangs up without an answer."""

    statuses: Sequence[int] = (200,)
    port: int = 0
    calls: list[Call] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/webhook"

    async def got(self, count: int, seconds: float = 30) -> list[Call]:
        """Wait until so many calls came."""
        await eventually(lambda: len(self.calls) >= count, seconds)
        return self.calls

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            headers = {name.lower(): value for name, value in headers.items()}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            status = self.statuses[min(len(self.calls), len(self.statuses) - 1)]
            self.calls.append(Call(time.monotonic(), headers, body))
            if status:
                location = "Location: /elsewhere\r\n" if 300 <= status < 400 else ""
                head_line = f"HTTP/1.1 {status} X\r\n{location}Content-Length: 2\r\nConnection: close\r\n\r\nok"
                writer.write(head_line.encode())
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def receiving(*statuses: int) -> AsyncIterator[Receiver]:
    receiver = Receiver(statuses or (200,))
    server = await asyncio.start_server(receiver.answer, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    async with server:
        yield receiver
