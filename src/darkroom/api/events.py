"""Following and stopping a task: server-sent events at /v1/tasks/{id}/events. Documented in docs/api/events.md.

    queue {position} · status {status} · progress {…} · preview {…} · result {…} · end {the whole record}

What must not be missed (status, result, end) carries an id, so that Last-Event-ID resumes after it; progress and
previews are hints and are not repeated.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from darkroom.api.auth import authenticate
from darkroom.api.files import base_url
from darkroom.api.records import describe_result, describe_task, find_task
from darkroom.api.services import Services
from darkroom.errors import InvalidParameter, NotFound, Problem
from darkroom.tasks.lifecycle import Status, is_final
from darkroom.tasks.store import ResultStored, TaskChanged, TaskEvent
from darkroom.tasks.task import Fault, Result, Task
from darkroom.types import Preview, Progress

QUEUE_SECONDS = 1.0  # how often the place in the queue is looked up
QUIET_SECONDS = 15.0  # a comment keeps proxies from closing a quiet stream
PREVIEW_HEADER = "darkroom-preview-every"


def routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/v1/tasks", tags=["tasks"])

    stream: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}

    @router.get(
        "/{task_id}/events",
        summary="Follow a task by server-sent events",
        response_class=StreamingResponse,
        responses=stream,
    )
    async def events(task_id: UUID, request: Request) -> StreamingResponse:
        owner = await authenticate(services, request.headers.get("authorization"))
        task = await find_task(services, owner, str(task_id))
        stream = follow(services, base_url(services, request), task, request.headers.get("last-event-id", ""))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    @router.post("/{task_id}/cancel", summary="Stop a task between two denoising steps")
    async def cancel(task_id: UUID, request: Request) -> dict[str, Any]:
        """Idempotent: a task that has ended stays as it is. Results that are ready are kept."""
        owner = await authenticate(services, request.headers.get("authorization"))
        task = await cancel_task(services, await find_task(services, owner, str(task_id)))
        return await describe_task(services, task, base_url(services, request))

    return router


async def cancel_task(services: Services, task: Task) -> Task:
    """Move to cancelled and tell the engine; what is owed for it is written in the same transaction."""
    if is_final(task.status):
        return task
    announcer = services.announce.get(task.dialect)
    fault = Fault(code="cancelled", message="The task was cancelled.")
    now = datetime.now(UTC)
    ended = msgspec.structs.replace(task, finished_at=now)
    owed = announcer.on_end(ended, Status.CANCELLED, fault) if announcer else ()
    task, _ = await services.store.cancel(task.id, owed, at=now)
    await services.pool.cancel(task.id)
    return task


def preview_every(headers: Mapping[str, str]) -> int:
    """Steps between previews, asked for beside the body by Darkroom-Preview-Every. Raises InvalidParameter."""
    text = headers.get(PREVIEW_HEADER, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 3):
        raise InvalidParameter(
            "Darkroom-Preview-Every is a number of steps from 0 to 999.",
            parameter="Darkroom-Preview-Every",
            problem=Problem.FORMAT,
            expected="integer",
        )
    return int(text)


async def follow(services: Services, base: str, task: Task, last: str) -> AsyncGenerator[bytes]:
    """A task's events as text/event-stream, from now until its end. last: the id of the last event that arrived."""
    seen = Seen(last)
    async with services.store.watch(task.id) as watched:
        task = watched.task
        yield b"retry: 1000\n\n"
        for block in catch_up(base, task, seen):
            yield block
        if not is_final(task.status):
            async for block in live(services, base, task, watched, seen):
                yield block
    with suppress(NotFound):
        task = await services.store.get(task.id)
        for block in catch_up(base, task, seen):
            yield block
        yield event("end", await describe_task(services, task, base), str(seen))


class Seen:
    """What a client has got, written as the id of an event: "processing:0,2" is that state and those results."""

    def __init__(self, text: str) -> None:
        status, _, results = text.partition(":")
        self.status = status if status in set(Status) else ""
        self.results = {int(part) for part in results[:200].split(",") if part.isascii() and part.isdigit()}

    def __str__(self) -> str:
        return f"{self.status}:{','.join(map(str, sorted(self.results)))}"


async def live(
    services: Services, base: str, task: Task, watched: AsyncIterator[TaskEvent], seen: Seen
) -> AsyncIterator[bytes]:
    """Events as they happen; while the task waits, its place in the queue too."""
    inbox: asyncio.Queue[TaskEvent | None] = asyncio.Queue()
    pump = asyncio.create_task(_pump(watched, inbox))
    position = -1
    try:
        while True:
            waiting = task.status is Status.QUEUED
            places = await services.store.queue_positions([task.id]) if waiting else {}
            if (now := places.get(task.id, position)) != position:
                position = now
                yield event("queue", {"position": position})
            try:
                async with asyncio.timeout(QUEUE_SECONDS if waiting else QUIET_SECONDS):
                    told = await inbox.get()
            except TimeoutError:
                yield b": waiting\n\n"
                continue
            if told is None:
                return
            if isinstance(told, TaskChanged):
                task = told.task
            for block in blocks_for(base, task, told, seen):
                yield block
    finally:
        pump.cancel()
        with suppress(asyncio.CancelledError):
            await pump


async def _pump(watched: AsyncIterator[TaskEvent], inbox: asyncio.Queue[TaskEvent | None]) -> None:
    try:
        async for told in watched:
            await inbox.put(told)
    finally:
        inbox.put_nowait(None)


def catch_up(base: str, task: Task, seen: Seen) -> list[bytes]:
    """State and results that are on disk and that this client has not had."""
    blocks = []
    if task.status.value != seen.status:
        seen.status = task.status.value
        blocks.append(event("status", {"status": seen.status}, str(seen)))
    for result in task.results:
        if result.index not in seen.results:
            seen.results.add(result.index)
            blocks.append(event("result", told_result(base, task, result), str(seen)))
    return blocks


def blocks_for(base: str, task: Task, told: TaskEvent, seen: Seen) -> list[bytes]:
    match told:
        case Progress(result=result, stage=stage, step=step, steps=steps):
            return [event("progress", {"result": result, "stage": stage.value, "step": step, "steps": steps})]
        case Preview(result=result, step=step, steps=steps, jpeg=jpeg):
            image = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
            return [event("preview", {"result": result, "step": step, "steps": steps, "image": image})]
        case ResultStored(result=stored):
            if stored.index in seen.results:
                return []
            seen.results.add(stored.index)
            return [event("result", told_result(base, task, stored), str(seen))]
        case TaskChanged(task=changed):
            return catch_up(base, changed, seen)


def told_result(base: str, task: Task, result: Result) -> dict[str, Any]:
    return {"result": result.index, **describe_result(task, result, base)}


def event(name: str, data: dict[str, Any], event_id: str | None = None) -> bytes:
    """One block of the stream. data holds no newline: JSON escapes them."""
    head = f"id: {event_id}\n" if event_id is not None else ""
    return f"{head}event: {name}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"
