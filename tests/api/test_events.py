"""Following and stopping a task over /v1/tasks/{id}/events and /cancel."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from darkroom.api.events import follow as follow_task
from tests.api.servers import TestServer, serving
from tests.eventually import eventually

Event = tuple[str, str, dict[str, Any]]  # name, id, data


def task(**fields: Any) -> dict[str, Any]:
    return {
        "taskType": "imageInference",
        "taskUUID": str(uuid.uuid4()),
        "model": "runware:400@4",
        "positivePrompt": "a boat",
        "width": 128,
        "height": 128,
        "steps": 4,
        "deliveryMethod": "async",
        **fields,
    }


async def follow(server: TestServer, task_id: str, **headers: str) -> list[Event]:
    """All events until the stream ends."""
    async with server.client() as client:
        response = await client.get(f"/v1/tasks/{task_id}/events", headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    return events_of(response.text)


async def followed(server: TestServer, task_id: str) -> list[Event]:
    """All events of a task that is worked on once somebody follows it."""
    following = asyncio.create_task(follow(server, task_id))
    await eventually(lambda: bool(server.services.store._watchers._watches))  # type: ignore[attr-defined]
    server.start()
    return await asyncio.wait_for(following, 30)


def events_of(text: str) -> list[Event]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "data" in fields:
            found.append((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
    return found


async def test_a_task_from_its_place_in_the_queue_to_its_end(tmp_path: Path) -> None:
    async with serving(tmp_path, working=False) as server:
        sent = task(numberResults=2)
        await server.post(sent, **{"Darkroom-Preview-Every": "1"})
        events = await followed(server, sent["taskUUID"])
    names = [name for name, _, _ in events]
    assert {"status", "progress", "preview", "result", "end"} <= set(names)
    assert names[-1] == "end"
    assert names.count("result") == 2
    end = events[-1][2]
    assert end["status"] == "succeeded"
    assert end["client_id"] == sent["taskUUID"]
    assert {event[2]["result"] for event in events if event[0] == "result"} == {0, 1}
    assert all(data["url"].startswith("http://darkroom.test/ii/") for name, _, data in events if name == "result")
    steps = [data["step"] for name, _, data in events if name == "progress" and data["result"] == 0]
    assert steps == sorted(steps)


@pytest.mark.parametrize("asked", [True, False])
async def test_previews_are_small_pictures_and_only_come_when_asked_for(tmp_path: Path, asked: bool) -> None:
    async with serving(tmp_path, working=False) as server:
        sent = task()
        await server.post(sent, **({"Darkroom-Preview-Every": "2"} if asked else {}))
        events = await followed(server, sent["taskUUID"])
    assert "progress" in [name for name, _, _ in events]
    previews = [data for name, _, data in events if name == "preview"]
    if not asked:
        assert previews == []
        return
    assert [preview["step"] for preview in previews] == [2]
    head, _, data = previews[0]["image"].partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.width == 128


async def test_a_wrong_preview_header_is_refused(server: TestServer) -> None:
    response = await server.post(task(), **{"Darkroom-Preview-Every": "often"})
    assert response.status_code == 400
    assert response.json()["errors"][0]["parameter"] == "Darkroom-Preview-Every"


async def test_a_finished_task_tells_everything_at_once(server: TestServer) -> None:
    sent = task(deliveryMethod="sync")
    await server.post(sent)
    assert [name for name, _, _ in await follow(server, sent["taskUUID"])] == ["status", "result", "end"]


async def test_last_event_id_resumes_without_repeating_results(server: TestServer) -> None:
    sent = task(deliveryMethod="sync", numberResults=3)
    await server.post(sent)
    whole = await follow(server, sent["taskUUID"])
    after_first = next(identity for name, identity, data in whole if name == "result" and data["result"] == 0)
    rest = await follow(server, sent["taskUUID"], **{"Last-Event-ID": after_first})
    assert [(name, data.get("result")) for name, _, data in rest] == [("result", 1), ("result", 2), ("end", None)]
    done = await follow(server, sent["taskUUID"], **{"Last-Event-ID": whole[-1][1]})
    assert [name for name, _, _ in done] == ["end"]
    odd = await follow(server, sent["taskUUID"], **{"Last-Event-ID": "nonsense:,,x"})
    assert len(odd) == len(whole)


async def test_the_place_in_the_queue(tmp_path: Path) -> None:
    async with serving(tmp_path, working=False) as server:
        first, second = task(), task()
        await server.post(first)
        await server.post(second)
        waiting = await server.services.store.find("local", "runware", second["taskUUID"])
        stream = follow_task(server.services, "", waiting, "")
        told = b""
        async for block in stream:
            told += block
            if b"event: queue" in told:
                break
        await stream.aclose()
    assert [(name, data) for name, _, data in events_of(told.decode())] == [
        ("status", {"status": "queued"}),
        ("queue", {"position": 1}),
    ]


async def test_cancel_between_two_steps(server: TestServer) -> None:
    sent = task(positivePrompt="[slow 100] boats", steps=50)
    await server.post(sent)
    following = asyncio.create_task(follow(server, sent["taskUUID"]))

    async def at_work() -> bool:
        return (await server.services.pool.status()).rows > 0

    await eventually(at_work)
    async with server.client() as client:
        answer = await client.post(f"/v1/tasks/{sent['taskUUID']}/cancel")
        again = await client.post(f"/v1/tasks/{sent['taskUUID']}/cancel")
    assert answer.json()["status"] == again.json()["status"] == "cancelled"
    events = await asyncio.wait_for(following, 30)
    assert events[-1][0] == "end"
    assert events[-1][2]["status"] == "cancelled"
    poll = await server.post({"taskType": "getResponse", "taskUUID": sent["taskUUID"]})
    assert poll.json()["errors"][0]["code"] == "taskCancelled"


async def test_a_sync_request_ends_when_its_task_is_cancelled(server: TestServer) -> None:
    sent = task(positivePrompt="[slow 100] boats", steps=50, deliveryMethod="sync")
    asking = asyncio.create_task(server.post(sent))
    async with server.client() as client:

        async def cancelled() -> bool:  # 404 until the request is accepted
            return (await client.post(f"/v1/tasks/{sent['taskUUID']}/cancel")).status_code != 404

        await eventually(cancelled, 20)
    response = await asyncio.wait_for(asking, 20)
    assert response.status_code == 400
    assert response.json()["errors"][0]["code"] == "taskCancelled"


async def test_another_keys_task_is_not_there(locked: TestServer) -> None:
    sent = task(deliveryMethod="sync")
    await locked.post(sent, Authorization="Bearer dk_anna")
    async with locked.client(Authorization="Bearer dk_bob") as client:
        for response in (
            await client.get(f"/v1/tasks/{sent['taskUUID']}/events"),
            await client.post(f"/v1/tasks/{sent['taskUUID']}/cancel"),
        ):
            assert response.status_code == 404
    async with locked.client() as nobody:
        assert (await nobody.get(f"/v1/tasks/{sent['taskUUID']}/events")).status_code == 401
