"""The socket at /v1: what each rule of the messages protects a real client from."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from darkroom.api.runware import ws
from tests.api.servers import SomeKeys, TestServer, serving
from tests.api.sockets import Closed, Socket
from tests.eventually import eventually

UUID = "5e1d2bde-c882-4900-9d4d-0669648c8a8a"


def image(**fields: Any) -> dict[str, Any]:
    return {
        "taskType": "imageInference",
        "taskUUID": str(uuid.uuid4()),
        "model": "runware:400@4",
        "positivePrompt": "a boat",
        "width": 128,
        "height": 128,
        "steps": 2,
        "seed": 7,
        **fields,
    }


@pytest.fixture
async def idle(tmp_path: Path) -> AsyncIterator[TestServer]:
    """A server that takes tasks and works on them after start()."""
    async with serving(tmp_path, working=False) as running:
        yield running


async def accepted(server: TestServer) -> None:
    """Until the server has a task."""

    async def there() -> bool:
        return bool(await server.services.store.recent("local", limit=1))

    await eventually(there)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when a message is kept for a client that is away."""
    event, keep = asyncio.Event(), ws.Session.keep

    def keep_and_tell(session: ws.Session, data: bytes) -> None:
        keep(session, data)
        event.set()

    monkeypatch.setattr(ws.Session, "keep", keep_and_tell)
    return event


async def test_the_handshake_gives_a_session(server: TestServer) -> None:
    async with Socket(server.app) as socket:
        session = await socket.authenticate("anything")
        assert uuid.UUID(session).version == 4


async def test_a_client_may_choose_its_session(server: TestServer) -> None:
    async with Socket(server.app) as socket:
        assert await socket.authenticate("", session=UUID) == UUID


async def test_a_session_that_is_no_uuid_is_replaced(server: TestServer) -> None:
    async with Socket(server.app) as socket:
        assert uuid.UUID(await socket.authenticate("", session="mine"))


async def test_a_wrong_key_is_told_in_both_forms_and_the_socket_stays_open(locked: TestServer) -> None:
    """One SDK reads `errors`, another only `error`; one reconnects without end when the server closes."""
    async with Socket(locked.app) as socket:
        socket.send({"taskType": "authentication", "apiKey": "dk_wrong"})
        answer = await socket.receive()
        assert answer["errors"] == [answer["error"]]
        assert answer["error"]["code"] == "invalidApiKey"
        assert answer["error"]["taskType"] == "authentication"
        assert "taskUUID" not in answer["error"]
        await socket.authenticate("dk_anna")


async def test_no_key_at_all(locked: TestServer) -> None:
    async with Socket(locked.app) as socket:
        socket.send({"taskType": "authentication"})
        assert (await socket.receive())["error"]["code"] == "missingApiKey"


async def test_a_task_before_the_handshake_is_refused_and_the_socket_stays_open(server: TestServer) -> None:
    async with Socket(server.app) as socket:
        task = image()
        socket.send(task)
        [error] = (await socket.receive())["errors"]
        assert (error["code"], error["taskUUID"]) == ("missingApiKey", task["taskUUID"])
        await socket.authenticate()


async def test_handshake_and_tasks_may_come_in_one_message(server: TestServer) -> None:
    async with Socket(server.app) as socket:
        socket.send({"taskType": "authentication", "apiKey": ""}, image())
        assert "connectionSessionUUID" in (await socket.receive())["data"][0]
        assert "imageURL" in (await socket.receive())["data"][0]


async def test_a_pong_is_alone_in_its_message(server: TestServer) -> None:
    async with Socket(server.app) as socket:
        await socket.authenticate()
        socket.send({"taskType": "ping", "ping": True}, {"taskType": "modelSearch", "taskUUID": UUID})
        assert await socket.receive() == {"data": [{"taskType": "ping", "pong": True}]}
        assert (await socket.receive())["data"][0]["taskType"] == "modelSearch"


async def test_a_sync_task_sends_finished_images_only_one_a_message_in_order(server: TestServer) -> None:
    async with Socket(server.app) as socket:
        await socket.authenticate()
        socket.send(image(numberResults=4, outputType="base64Data"))
        messages = [await socket.receive() for _ in range(4)]
        assert [message["data"][0]["seed"] for message in messages] == [7, 8, 9, 10]
        assert all(len(message["data"]) == 1 and "errors" not in message for message in messages)
        await socket.silence()


async def test_successes_come_before_errors(server: TestServer) -> None:
    """Errors first and data after ends the Node process of one SDK."""
    async with Socket(server.app) as socket:
        await socket.authenticate()
        socket.send(image(positivePrompt="[fail 0] boats", numberResults=3))
        first, second, third = [await socket.receive() for _ in range(3)]
        assert [first["data"][0]["seed"], second["data"][0]["seed"]] == [8, 9]
        assert third["errors"][0]["code"] == "inferenceError"
        assert "data" not in third
        await socket.silence()


async def test_a_refusal_is_one_error_and_stops_nobody_else(server: TestServer) -> None:
    async with Socket(server.app) as socket:
        await socket.authenticate()
        wrong, right = image(width=100, steps=0), image()
        socket.send(wrong, right)
        found = [await socket.receive(), await socket.receive()]
        [refused] = [message["errors"] for message in found if "errors" in message]
        assert [(error["taskUUID"], error["code"]) for error in refused] == [(wrong["taskUUID"], "invalidWidth")]
        assert [m["data"][0]["taskUUID"] for m in found if "data" in m] == [right["taskUUID"]]


async def test_async_is_acknowledged_with_one_bare_item(server: TestServer) -> None:
    async with Socket(server.app) as socket:
        await socket.authenticate()
        task = image(deliveryMethod="async")
        socket.send(task)
        assert await socket.receive() == {"data": [{"taskType": "imageInference", "taskUUID": task["taskUUID"]}]}
        await socket.silence()


async def test_a_poll_has_all_results_in_one_message_and_the_rest_is_pushed_once(idle: TestServer) -> None:
    """One SDK sleeps 30 s between polls unless what it waits for is pushed."""
    async with Socket(idle.app) as socket:
        await socket.authenticate()
        task = image(deliveryMethod="async", numberResults=3)
        socket.send(task)
        await socket.receive()
        socket.send({"taskType": "getResponse", "taskUUID": task["taskUUID"]})
        poll = (await socket.receive())["data"]
        assert [item["status"] for item in poll] == ["processing"] * 3
        assert {item["taskType"] for item in poll} == {"imageInference"}
        idle.start()
        pushed = [(await socket.receive())["data"] for _ in range(3)]
        assert [(item["status"], item["seed"]) for [item] in pushed] == [("success", 7), ("success", 8), ("success", 9)]
        await socket.silence()
        socket.send({"taskType": "getResponse", "taskUUID": task["taskUUID"]})
        assert [item["seed"] for item in (await socket.receive())["data"]] == [7, 8, 9]
        await socket.silence()


async def test_a_second_poll_does_not_push_twice(idle: TestServer) -> None:
    async with Socket(idle.app) as socket:
        await socket.authenticate()
        task = image(deliveryMethod="async")
        socket.send(task)
        await socket.receive()
        for _ in range(3):
            socket.send({"taskType": "getResponse", "taskUUID": task["taskUUID"]})
            assert (await socket.receive())["data"][0]["status"] == "processing"
        idle.start()
        assert (await socket.receive())["data"][0]["status"] == "success"
        await socket.silence()


async def test_a_poll_shows_progress(server: TestServer) -> None:
    async with Socket(server.app) as socket:
        await socket.authenticate()
        task = image(deliveryMethod="async", positivePrompt="[slow 60] boats", steps=20)
        socket.send(task)
        await socket.receive()
        seen = []
        while True:
            socket.send({"taskType": "getResponse", "taskUUID": task["taskUUID"]})
            [item] = (await socket.receive())["data"]
            if item["status"] == "success":
                break
            seen.append(item.get("progress", 0))
            await asyncio.sleep(0.1)
        assert seen == sorted(seen)
        assert any(0 < percent < 100 for percent in seen)


async def test_a_failed_task_polled_has_both_arrays_in_one_message(server: TestServer) -> None:
    async with Socket(server.app) as socket:
        await socket.authenticate()
        task = image(positivePrompt="[fail 1] boats", numberResults=2)
        socket.send(task)
        await socket.receive()
        await socket.receive()
        socket.send({"taskType": "getResponse", "taskUUID": task["taskUUID"]})
        answer = await socket.receive()
        assert [item["status"] for item in answer["data"]] == ["success"]
        assert [error["status"] for error in answer["errors"]] == ["error"]


async def test_a_poll_that_told_of_a_failure_is_not_followed_by_pushed_pictures(server: TestServer) -> None:
    """An SDK's process ends when data follows errors for one taskUUID."""
    async with Socket(server.app) as socket:
        await socket.authenticate()
        task = image(positivePrompt="[fail 0] [slow 100] boats", numberResults=2, steps=20, deliveryMethod="async")
        socket.send(task)
        await socket.receive()
        told: dict[str, Any] = {}
        while "errors" not in told:
            socket.send({"taskType": "getResponse", "taskUUID": task["taskUUID"]})
            told = await socket.receive()
            await asyncio.sleep(0.05)
        await socket.silence(3)


async def test_what_could_not_be_delivered_waits_for_the_session(idle: TestServer, kept: asyncio.Event) -> None:
    task = image()
    async with Socket(idle.app) as socket:
        session = await socket.authenticate()
        socket.send(task)
        await accepted(idle)
    idle.start()
    await asyncio.wait_for(kept.wait(), 30)  # finished while nobody was connected
    async with Socket(idle.app) as socket:
        assert await socket.authenticate("", session) == session
        assert (await socket.receive())["data"][0]["taskUUID"] == task["taskUUID"]


async def test_a_task_goes_on_over_the_new_connection(idle: TestServer) -> None:
    task = image()
    async with Socket(idle.app) as socket:
        session = await socket.authenticate()
        socket.send(task)
        await accepted(idle)
    async with Socket(idle.app) as socket:
        await socket.authenticate("", session)
        idle.start()
        assert (await socket.receive())["data"][0]["taskUUID"] == task["taskUUID"]


async def test_what_comes_while_a_session_resumes_is_sent_behind_what_was_kept() -> None:
    """Data after errors of one taskUUID ends the process of a client."""
    sent: list[str] = []

    class Slow:
        async def send_text(self, text: str) -> None:
            await asyncio.sleep(0)
            sent.append(text)

    session = ws.Session("id", "anna", "")
    for number in range(3):
        await session.send({"kept": number})
    resuming = asyncio.create_task(session.resume(ws.Connection(Slow())))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await session.send({"new": 3})
    await resuming
    await session.send({"new": 4})
    assert sent == ['{"kept":0}', '{"kept":1}', '{"kept":2}', '{"new":3}', '{"new":4}']


async def test_a_session_belongs_to_its_key(locked: TestServer) -> None:
    task = image()
    async with Socket(locked.app) as socket:
        session = await socket.authenticate("dk_anna")
        socket.send(task)
        socket.drop()
    async with Socket(locked.app) as other:
        assert await other.authenticate("dk_bob", session) != session
        await other.silence(0.5)


async def test_undelivered_messages_are_not_kept_for_ever(
    idle: TestServer, kept: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ws, "KEPT_SECONDS", 0.2)
    task = image()
    async with Socket(idle.app) as socket:
        session = await socket.authenticate()
        socket.send(task)
        await accepted(idle)
    idle.start()
    await asyncio.wait_for(kept.wait(), 30)
    await asyncio.sleep(0.3)
    async with Socket(idle.app) as socket:
        await socket.authenticate("", session)
        await socket.silence()


async def test_a_used_uuid_is_refused_and_the_sync_task_can_be_polled(server: TestServer) -> None:
    """How one SDK gets its picture after a reconnect: it sends the same task, then polls."""
    async with Socket(server.app) as socket:
        await socket.authenticate()
        task = image()
        socket.send(task)
        first = (await socket.receive())["data"][0]
        socket.send(task)
        assert (await socket.receive())["errors"][0]["code"] == "conflictTaskUUID"
        socket.send({"taskType": "getResponse", "taskUUID": task["taskUUID"]})
        assert (await socket.receive())["data"][0]["imageUUID"] == first["imageUUID"]


async def test_a_task_that_is_sent_twice_is_refused_after_its_results(server: TestServer) -> None:
    """Errors and then data of one taskUUID end the process of a client."""
    async with Socket(server.app) as socket:
        await socket.authenticate()
        task = image(positivePrompt="[slow 50] a boat", numberResults=2)
        socket.send(task, {**task, "taskUUID": task["taskUUID"].upper()})
        socket.send(other := image())
        told = [await socket.receive() for _ in range(4)]
        of_task = [message for message in told if other["taskUUID"] not in str(message)]
        assert ["data" in message for message in of_task] == [True, True, False]
        assert of_task[-1]["errors"][0]["code"] == "conflictTaskUUID"


async def test_polling_a_sync_task_on_its_own_socket_brings_each_picture_once(idle: TestServer) -> None:
    async with Socket(idle.app) as socket:
        await socket.authenticate()
        task = image(numberResults=2)
        socket.send(task)
        await accepted(idle)
        socket.send({"taskType": "getResponse", "taskUUID": task["taskUUID"]})
        assert [item["status"] for item in (await socket.receive())["data"]] == ["processing"] * 2
        idle.start()
        found = []
        while len(found) < 2:
            found += [item["imageUUID"] for item in (await socket.receive())["data"] if "imageUUID" in item]
        assert len(set(found)) == 2
        await socket.silence(0.5)


async def test_a_missing_key_is_asked_for_where_a_socket_has_it(locked: TestServer) -> None:
    async with Socket(locked.app) as socket:
        socket.send({"taskType": "authentication"})
        error = (await socket.receive())["error"]
        assert error["code"] == "missingApiKey"
        assert "apiKey" in error["message"]
        assert "header" not in error["message"]


async def test_the_dry_run_of_the_query(server: TestServer) -> None:
    async with Socket(server.app, query="sdk=js&version=1.3.2&dryRun=1") as socket:
        await socket.authenticate()
        socket.send(image())
        [item] = (await socket.receive())["data"]
        assert item["cost"] > 0
        assert "imageUUID" not in item


async def test_a_silent_connection_is_closed(server: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Socket(server.app) as socket:
        await socket.authenticate()
        monkeypatch.setattr(ws, "IDLE_SECONDS", 0.3)  # from the next message on
        began = time.monotonic()
        socket.send({"taskType": "ping", "ping": True})
        await socket.receive()
        with pytest.raises(Closed) as closed:
            await socket.receive()
        assert closed.value.code == 1000
        assert time.monotonic() - began >= 0.3


async def test_messages_either_way_keep_a_connection_open(server: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ws, "IDLE_SECONDS", 2.0)
    async with Socket(server.app) as socket:
        await socket.authenticate()
        for _ in range(7):
            socket.send({"taskType": "ping", "ping": True})
            await socket.receive()
            await asyncio.sleep(0.3)
        socket.send({"taskType": "ping", "ping": True})
        assert "data" in await socket.receive()


async def test_a_message_that_is_too_large_closes_the_socket(tmp_path: Path) -> None:
    async with serving(tmp_path, body_bytes=1000) as server, Socket(server.app) as socket:
        await socket.authenticate()
        socket.send({"taskType": "imageUpload", "taskUUID": UUID, "image": "x" * 2000})
        with pytest.raises(Closed) as closed:
            await socket.receive()
        assert closed.value.code == 1009


async def test_many_connections_leave_one_timer_behind(server: TestServer) -> None:
    for _ in range(5):
        async with Socket(server.app) as socket:
            await socket.authenticate()
    timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    assert sum("Sessions" in repr(timer) for timer in timers if not timer.cancelled()) == 1


async def test_a_revoked_key_can_do_nothing_more_on_an_open_socket(tmp_path: Path) -> None:
    keys = SomeKeys({"dk_anna": "anna"})
    async with serving(tmp_path, keys=keys) as server, Socket(server.app) as socket:
        await socket.authenticate("dk_anna")
        keys.owners.clear()
        task = image()
        socket.send(task)
        [error] = (await socket.receive())["errors"]
        assert (error["code"], error["taskUUID"]) == ("invalidApiKey", task["taskUUID"])


async def test_all_versions_of_a_prompt_are_in_one_message(server: TestServer) -> None:
    """One SDK takes the first message as the whole answer."""
    async with Socket(server.app) as socket:
        await socket.authenticate()
        socket.send({"taskType": "promptEnhance", "taskUUID": UUID, "prompt": "a boat", "promptVersions": 3})
        assert len((await socket.receive())["data"]) == 3
