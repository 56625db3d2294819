"""A key that is made while a server runs closes it at once; revoking never opens it again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from darkroom.api.gate import LOOK_SECONDS, Gate
from darkroom.tasks.memory import MemoryTaskStore
from tests.api.servers import serving
from tests.api.sockets import Socket


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class CountedKeys:
    def __init__(self) -> None:
        self.keys = MemoryTaskStore().keys
        self.looks = 0

    async def any(self) -> bool:
        self.looks += 1
        return await self.keys.any()

    async def check(self, key: str) -> str | None:
        return await self.keys.check(key)


async def test_the_first_key_is_noticed_within_a_second() -> None:
    clock, keys = Clock(), CountedKeys()
    gate = Gate(keys, clock)
    for _ in range(10):
        assert not await gate.closed()
    assert keys.looks == 1, "a server without keys must not ask the database for every request"
    await keys.keys.create("laptop")
    clock.now += LOOK_SECONDS
    assert await gate.closed()


async def test_once_closed_it_stays_closed_and_asks_no_more() -> None:
    clock, keys = Clock(), CountedKeys()
    key, plain = await keys.keys.create("laptop")
    gate = Gate(keys, clock)
    assert await gate.closed()
    assert await gate.owner(plain) == key.id
    await keys.keys.revoke(key.id)
    clock.now += 3600
    assert await gate.closed()
    assert await gate.owner(plain) is None
    assert keys.looks == 1


async def test_a_look_that_is_answered_late_does_not_open_it_again() -> None:
    answers: list[asyncio.Future[bool]] = []

    class Slow(CountedKeys):
        async def any(self) -> bool:
            answers.append(asyncio.get_running_loop().create_future())
            return await answers[-1]

    gate = Gate(Slow(), Clock())
    before, after = asyncio.create_task(gate.closed()), asyncio.create_task(gate.closed())
    await asyncio.sleep(0)
    answers[1].set_result(True)
    assert await after
    answers[0].set_result(False)
    assert await before
    assert await gate.closed()


async def test_a_running_server_asks_for_the_first_key_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkroom.api.gate.LOOK_SECONDS", 0.0)
    async with serving(tmp_path) as server, server.client() as client, Socket(server.app) as socket:
        await socket.authenticate("anything")
        assert (await client.get("/v1/tasks")).status_code == 200
        key, plain = await server.services.store.keys.create("laptop")  # type: ignore[attr-defined]
        assert (await client.get("/v1/tasks")).status_code == 401
        assert (await client.get("/v1/tasks", headers={"Authorization": "Basic x"})).status_code == 401
        assert (await client.get("/v1/tasks", headers={"Authorization": f"Bearer {plain}"})).status_code == 200
        socket.send({"taskType": "modelSearch", "taskUUID": key.id})
        assert (await socket.receive())["errors"][0]["code"] == "invalidApiKey"
        await socket.authenticate(plain)
        assert (await client.get("/health")).status_code == 200
