"""The WebSocket at /v1: handshake, tasks in flight, resuming, keep-alive.

Rules of the messages, each there because a real client breaks without it:
  one task's items a message, one error a message · a pong alone in its message · successes before errors
  every result of a poll in one message; what was still to come is pushed once, when it is ready
A Session outlives its connection: what could not be delivered is kept and sent when the client comes back with
its connectionSessionUUID. A closed socket stops nothing; the work goes on and its results stay on record.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

import msgspec
import structlog
from fastapi import WebSocket, WebSocketDisconnect

from darkroom.api.auth import check_key
from darkroom.api.files import socket_base_url
from darkroom.api.health import Metrics
from darkroom.api.inputs import as_uuid
from darkroom.api.runware.call import Call, Reply
from darkroom.api.runware.dispatch import AUTHENTICATION, PING, answer, read_tasks
from darkroom.api.runware.errors import WireError, wire_error
from darkroom.api.runware.images import results
from darkroom.api.runware.options import IMAGE_INFERENCE
from darkroom.api.runware.progress import ProgressBoard
from darkroom.api.services import Services
from darkroom.errors import DarkroomError, NotFound, Unauthorized

log = structlog.get_logger(__name__)
Message = dict[str, Any]

IDLE_SECONDS = 120.0  # a connection without any message is closed after so long
KEPT_SECONDS = 120.0  # undelivered messages are kept so long
MAX_KEPT = 1000  # undelivered messages of one session
MAX_KEPT_BYTES = 64 << 20
PONG: Message = {"data": [{"taskType": PING, "pong": True}]}
IDLE, TOO_LARGE = 1000, 1009  # close codes


class Session:
    """One client: its connection while there is one, its tasks in flight, what it has not got yet."""

    def __init__(self, session_id: str, owner: str, key: str) -> None:
        self.id = session_id
        self.owner = owner
        self.key = key
        self.connection: Connection | None = None
        self.resuming: Connection | None = None  # gets what was kept first; what comes meanwhile goes behind it
        self.kept: deque[tuple[float, bytes]] = deque()
        self.running: set[asyncio.Task[None]] = set()
        self.pushes: dict[str, asyncio.Task[None]] = {}  # by task, what sends its results as they come
        self.streams: dict[asyncio.Task[None], str] = {}  # taskUUIDs whose results are sent as they come anyway

    async def send(self, message: Message) -> None:
        """Deliver, or keep for a client that is away."""
        data = msgspec.json.encode(message)
        if self.connection is None or self.resuming or not await self.connection.send(data):
            self.keep(data)

    def keep(self, data: bytes) -> None:
        self.kept.append((time.monotonic(), data))
        while len(self.kept) > MAX_KEPT or sum(len(each) for _, each in self.kept) > MAX_KEPT_BYTES:
            self.kept.popleft()

    async def resume(self, connection: Connection) -> None:
        """Go on over another connection, beginning with what is still owed."""
        self.connection = self.resuming = connection
        try:
            while self.kept and self.resuming is connection:
                kept_at, data = self.kept.popleft()
                if time.monotonic() - kept_at < KEPT_SECONDS and not await connection.send(data):
                    self.kept.appendleft((kept_at, data))
                    break
        finally:
            if self.resuming is connection:
                self.resuming = None

    def start(self, call: Call, task: object) -> None:
        """Answer one task beside all others; one whose taskUUID is being answered already, after that."""
        name = str(task.get("taskUUID")).lower() if isinstance(task, dict) else ""
        if not isinstance(task, dict) or task.get("taskType") != IMAGE_INFERENCE:
            self._spawn(self._answer(call, task))
            return
        earlier = [stream for stream, answered in self.streams.items() if answered == name]
        self.streams[self._spawn(self._answer(call, task, earlier))] = name

    async def _answer(self, call: Call, task: object, earlier: Sequence[asyncio.Task[None]] = ()) -> None:
        if earlier:  # it will be refused, and data after errors of one taskUUID ends the process of a client
            await asyncio.wait(earlier)
        async for reply in answer(call, task):
            if reply.unfinished and reply.errors and (push := self.pushes.pop(reply.unfinished, None)):
                push.cancel()  # data after errors of one taskUUID ends the process of a client; the next poll has all
            await self._tell(reply)
            if reply.unfinished and not reply.errors and not self._is_sent(reply):
                done = frozenset(place for place, item in enumerate(reply.data) if item.get("status") == "success")
                self.pushes[reply.unfinished] = self._spawn(self._push(call, reply.unfinished, done))

    def _is_sent(self, reply: Reply) -> bool:
        """Whether what a poll had to call "processing" is on its way already."""
        polled = {str(item["taskUUID"]).lower() for item in reply.data}
        return reply.unfinished in self.pushes or not polled.isdisjoint(self.streams.values())

    async def _push(self, call: Call, task_id: str, delivered: frozenset[int]) -> None:
        """Send what a poll had to call "processing", each once, as soon as it is there."""
        try:
            task = await call.services.store.get(task_id)
            async for reply in results(call, task, skip=delivered, polled=True):
                await self._tell(reply)
        except NotFound:
            pass  # expired meanwhile; the next poll says so
        finally:
            if self.pushes.get(task_id) is asyncio.current_task():
                del self.pushes[task_id]

    async def _tell(self, reply: Reply) -> None:
        """One reply as messages. Errors that belong to a poll stay beside its data; others are told one by one."""
        if reply.answered:
            await self.send(envelope(list(reply.data), list(reply.errors)))
            return
        if reply.data:
            await self.send(envelope(list(reply.data)))
        for error in reply.errors[:1]:  # the first is what clients read; the rest of one refusal is for HTTP
            await self.send(envelope([], [error]))

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.running.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        self.streams.pop(task, None)
        if not task.cancelled() and (error := task.exception()):
            log.error("socket_task_failed", exc_info=error)

    @property
    def forgettable(self) -> bool:
        """Nobody is connected, nothing is in flight, and what was kept is too old."""
        fresh = self.kept and time.monotonic() - self.kept[-1][0] < KEPT_SECONDS
        return self.connection is None and not self.running and not fresh


class Connection:
    """One open socket. Sends are one at a time; the clock of the idle close runs from the last message either way."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self.lock = asyncio.Lock()
        self.open = True
        self.last = time.monotonic()

    async def send(self, data: bytes) -> bool:
        """False when the client is gone."""
        async with self.lock:
            if not self.open:
                return False
            try:
                await self.socket.send_text(data.decode())
            except (WebSocketDisconnect, RuntimeError, OSError):
                self.open = False
                return False
        self.last = time.monotonic()
        return True

    async def receive(self) -> str | None:
        """The next message; None when the client has gone or has been silent for too long."""
        while True:
            left = self.last + IDLE_SECONDS - time.monotonic()
            try:
                async with asyncio.timeout(max(left, 0.001)):
                    message = await self.socket.receive()
            except TimeoutError:
                if time.monotonic() - self.last < IDLE_SECONDS:
                    continue  # something was sent meanwhile
                await self.close(IDLE, "idle")
                return None
            if message["type"] == "websocket.disconnect":
                self.open = False
                return None
            self.last = time.monotonic()
            text = message.get("text")
            return text if text is not None else (message.get("bytes") or b"").decode("utf-8", "replace")

    async def close(self, code: int, reason: str) -> None:
        self.open = False
        with suppress(RuntimeError, OSError):
            await self.socket.close(code, reason)


class Sessions:
    """All sessions of this server, by connectionSessionUUID."""

    def __init__(self, services: Services, board: ProgressBoard, metrics: Metrics) -> None:
        self.services = services
        self.board = board
        self.metrics = metrics
        self.known: dict[str, Session] = {}
        self._timer: asyncio.TimerHandle | None = None  # one for all sessions, however many come and go

    async def serve(self, socket: WebSocket) -> None:
        """One connection, from its handshake to its end."""
        await socket.accept()
        connection = Connection(socket)
        session: Session | None = None
        dry_run = socket.query_params.get("dryRun", "").lower() in ("1", "true")
        base = socket_base_url(self.services, socket)
        with self.metrics.sockets.track_inprogress():
            try:
                while (text := await connection.receive()) is not None:
                    if len(text) > self.services.settings.body_bytes:
                        await connection.close(TOO_LARGE, "message too large")
                        break
                    session = await self._take(connection, session, text, base, dry_run)
            finally:
                connection.open = False
                if session is not None and session.connection is connection:
                    session.connection = None
                self._forget_later()

    async def _take(
        self, connection: Connection, session: Session | None, text: str, base: str, dry_run: bool
    ) -> Session | None:
        """One message. Returns the session, which the handshake makes."""
        try:
            tasks = read_tasks(text)
        except DarkroomError as error:
            await refuse(connection, wire_error(error, base=base))
            return session
        for task in tasks:
            kind = task.get("taskType") if isinstance(task, dict) else None
            if kind == PING:
                await connection.send(msgspec.json.encode(PONG))
            elif kind == AUTHENTICATION and isinstance(task, dict):
                session = await self._handshake(connection, session, task, base)
            elif session is None:
                early = Unauthorized("Send an authentication task first.", missing=True)
                await refuse(connection, wire_error(early, task=task if isinstance(task, dict) else None, base=base))
            elif await self._revoked(session):
                revoked = Unauthorized("The key of this connection was revoked. Authenticate with another one.")
                await refuse(connection, wire_error(revoked, task=task if isinstance(task, dict) else None, base=base))
            else:
                call = Call(services=self.services, board=self.board, owner=session.owner, base=base, dry_run=dry_run)
                session.start(call, task)
        return session

    async def _handshake(
        self, connection: Connection, before: Session | None, task: Message, base: str
    ) -> Session | None:
        given = task.get("apiKey")
        key = given if isinstance(given, str) else ""
        try:
            owner = await check_key(self.services, key)
        except Unauthorized as error:
            if error.missing:
                error = Unauthorized(
                    "An API key is needed: send it as `apiKey` of the authentication task.", missing=True
                )
            wire = wire_error(error, task={"taskType": AUTHENTICATION}, base=base)
            # One official client looks for `errors`, another for `error`; this message carries both.
            await connection.send(msgspec.json.encode({"errors": [wire.body], "error": wire.body}))
            return before
        session = self._session(owner, key, task.get("connectionSessionUUID"))
        hello = {"taskType": AUTHENTICATION, "connectionSessionUUID": session.id}
        await connection.send(msgspec.json.encode({"data": [hello]}))
        if before is not None and before is not session and before.connection is connection:
            before.connection = None
        await session.resume(connection)
        return session

    async def _revoked(self, session: Session) -> bool:
        """A socket may stay open for days: its key is looked at with every task, as over HTTP."""
        try:
            return await check_key(self.services, session.key) != session.owner
        except Unauthorized:
            return True

    def _session(self, owner: str, key: str, wanted: object) -> Session:
        """The session a client asks for, if it is its own or new; else a fresh one."""
        session_id = (as_uuid(wanted) if isinstance(wanted, str) else None) or str(uuid4())
        session = self.known.get(session_id)
        if session is not None and session.owner != owner:
            session_id, session = str(uuid4()), None
        if session is None:
            session = self.known[session_id] = Session(session_id, owner, key)
        session.key = key
        return session

    def _forget_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(KEPT_SECONDS + 1, self._forget)

    def _forget(self) -> None:
        self._timer = None
        for session in [session for session in self.known.values() if session.forgettable]:
            del self.known[session.id]
        if any(session.connection is None for session in self.known.values()):
            self._forget_later()


def envelope(data: list[Message], errors: list[WireError] | None = None) -> Message:
    """`errors` is left out when there is none, `data` when there are only errors to tell."""
    message: Message = {"data": data} if data or not errors else {}
    if errors:
        message["errors"] = [error.body for error in errors]
    return message


async def refuse(connection: Connection, error: WireError) -> None:
    await connection.send(msgspec.json.encode(envelope([], [error])))
