"""The same key again is answered as the first time, whatever happens in between."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from darkroom.errors import Conflict
from darkroom.tasks.idempotency import StoredResponse
from tests.tasks.stores import Clock, Stores

ANSWER = StoredResponse(status=201, body=b'{"id":"\x00\xff"}')


async def test_a_finished_call_is_replayed(store: Any) -> None:
    calls = store.idempotency
    assert await calls.begin("alice", "k", "h") is None
    await calls.finish("alice", "k", ANSWER.status, ANSWER.body)
    assert await calls.begin("alice", "k", "h") == ANSWER
    assert await calls.begin("alice", "other", "h") is None
    assert await calls.begin("bob", "k", "h") is None


async def test_another_body_is_a_conflict_at_once(store: Any) -> None:
    calls = store.idempotency
    await calls.begin("alice", "k", "h")
    with pytest.raises(Conflict, match="another request body"):
        await calls.begin("alice", "k", "other")
    await calls.finish("alice", "k", ANSWER.status, ANSWER.body)
    with pytest.raises(Conflict):
        await calls.begin("alice", "k", "other")


async def test_a_second_call_waits_for_the_first(store: Any) -> None:
    calls = store.idempotency
    await calls.begin("alice", "k", "h")
    second = asyncio.create_task(calls.begin("alice", "k", "h"))
    await asyncio.sleep(0.1)
    assert not second.done()
    await calls.finish("alice", "k", ANSWER.status, ANSWER.body)
    async with asyncio.timeout(5):
        assert await second == ANSWER


async def test_of_many_at_once_one_goes_ahead(stores: Stores) -> None:
    servers = [await stores.open() for _ in range(2)]
    began = [asyncio.create_task(servers[i % 2].idempotency.begin("alice", "k", "h")) for i in range(8)]
    done, waiting = await asyncio.wait(began, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == [None]
    await servers[0].idempotency.finish("alice", "k", ANSWER.status, ANSWER.body)
    async with asyncio.timeout(5):
        assert [await task for task in waiting] == [ANSWER] * 7


async def test_a_call_that_came_to_nothing_may_be_made_again(store: Any) -> None:
    calls = store.idempotency
    await calls.begin("alice", "k", "h")
    await calls.abandon("alice", "k")
    assert await calls.begin("alice", "k", "another") is None
    await calls.finish("alice", "k", ANSWER.status, ANSWER.body)
    await calls.abandon("alice", "k")
    assert await calls.begin("alice", "k", "another") == ANSWER


async def test_a_call_whose_server_died_does_not_block_for_ever(stores: Stores, clock: Clock) -> None:
    await (await stores.open()).idempotency.begin("alice", "k", "h", lease_seconds=30)
    calls = (await stores.open()).idempotency
    second = asyncio.create_task(calls.begin("alice", "k", "h"))
    await asyncio.sleep(0.1)
    assert not second.done()
    clock.advance(31)
    async with asyncio.timeout(5):
        assert await second is None


async def test_keys_live_for_a_day(store: Any, clock: Clock) -> None:
    calls = store.idempotency
    await calls.begin("alice", "k", "h")
    await calls.finish("alice", "k", ANSWER.status, ANSWER.body)
    clock.advance(24 * 3600 - 1)
    assert await calls.begin("alice", "k", "h") == ANSWER
    assert await calls.expire(clock()) == 0
    clock.advance(2)
    assert await calls.expire(clock()) == 1
    assert await calls.begin("alice", "k", "another") is None


async def test_an_old_key_is_free_before_it_is_swept(store: Any, clock: Clock) -> None:
    await store.idempotency.begin("alice", "k", "h")
    await store.idempotency.finish("alice", "k", ANSWER.status, ANSWER.body)
    clock.advance(24 * 3600 + 1)
    assert await store.idempotency.begin("alice", "k", "another") is None


async def test_answers_survive_a_restart(sql_stores: Stores) -> None:
    first = await sql_stores.open()
    await first.idempotency.begin("alice", "k", "h")
    await first.idempotency.finish("alice", "k", ANSWER.status, ANSWER.body)
    await first.close()
    assert await (await sql_stores.open()).idempotency.begin("alice", "k", "h") == ANSWER
