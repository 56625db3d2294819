"""Nothing is kept of a task that has ended but its record: a server's memory does not grow with what it has done."""

from __future__ import annotations

import asyncio
import gc
import uuid
from collections import deque
from pathlib import Path
from types import AsyncGeneratorType, CoroutineType
from typing import Any

import httpx
import pytest

from darkroom.config import EngineKind, Settings
from darkroom.engine.fake import FakeEngine
from darkroom.pool import LocalPool
from darkroom.tasks.lifecycle import Status
from darkroom.wiring import Server
from tests.eventually import eventually

WARM, COUNTED = 5, 12  # rounds
CONTAINERS = (dict, set, deque)  # not lists: the SQLite driver keeps dead references in one and tidies up rarely
WAITING = (asyncio.Future, asyncio.Queue, asyncio.Event, CoroutineType, AsyncGeneratorType)


@pytest.mark.slow  # counts everything in the process: by itself, not between other tests
async def test_nothing_grows_with_the_number_of_tasks(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, engine=EngineKind.FAKE)
    async with Server(settings, pool=LocalPool(lambda: FakeEngine(step_ms=1))) as server:
        transport = httpx.ASGITransport(app=server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as http:
            for _ in range(WARM):
                await one_round(http)
            before = await kept(server)
            for _ in range(COUNTED):
                await one_round(http)
            after = await kept(server)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert not {name: more for name, more in grown.items() if more >= COUNTED}, "one more of these for every round"


async def one_round(http: httpx.AsyncClient) -> None:
    """Every way a task goes: waited for, polled, followed, cancelled, failed, announced to nobody's ear."""
    polled, cancelled = task(deliveryMethod="async"), task(deliveryMethod="async", steps=50)
    await asyncio.gather(
        ask(http, task()),
        ask(http, task(numberResults=3, outputType="base64Data")),
        ask(http, task(positivePrompt="[fail 0]", numberResults=2)),
        ask(http, task(webhookURL="http://127.0.0.1:9/")),
        ask(http, polled),
        ask(http, cancelled),
    )
    stopped = await http.post(f"/v1/tasks/{cancelled['taskUUID']}/cancel")
    assert stopped.json()["status"] in (Status.CANCELLED, Status.SUCCEEDED)
    async with http.stream("GET", f"/v1/tasks/{polled['taskUUID']}/events") as events:
        async for _ in events.aiter_lines():
            pass
    await ask(http, {"taskType": "getResponse", "taskUUID": polled["taskUUID"]})


async def ask(http: httpx.AsyncClient, body: dict[str, Any]) -> Any:
    answer = await http.post("/v1", json=[body])
    assert answer.status_code in (200, 500), answer.text
    return answer.json()


def task(**changes: Any) -> dict[str, Any]:
    size = {"width": 128, "height": 128, "steps": 2}
    plain = {"taskType": "imageInference", "model": "runware:400@4", "positivePrompt": f"number {uuid.uuid4()}", **size}
    return {**plain, "taskUUID": str(uuid.uuid4()), **changes}


async def kept(server: Server) -> dict[str, int]:
    """How many objects there are of every class of ours and of what waits, and how many entries all containers have."""

    async def idle() -> bool:
        counts, owed = await server.services.store.counts(), (await server.services.store.backlog()).owed
        waiting = counts[Status.QUEUED] + counts[Status.PROCESSING] + sum(owed.values())
        return not waiting and (await server.pool.status()).rows == 0

    await eventually(idle, 60)
    await asyncio.sleep(0.1)
    gc.collect()
    there = gc.get_objects()
    found: dict[str, int] = {}
    for each in there:
        kind = type(each)
        if issubclass(kind, CONTAINERS):
            found[f"entries of {kind.__name__}"] = found.get(f"entries of {kind.__name__}", 0) + len(each)
        elif issubclass(kind, WAITING) or str(kind.__module__).startswith("darkroom"):
            found[kind.__qualname__] = found.get(kind.__qualname__, 0) + 1
    return found
