"""Small values are found again by their owner alone, until they expire."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from darkroom.errors import NotFound
from tests.tasks.stores import Clock, Stores


async def test_a_document_is_written_replaced_listed_and_deleted(store: Any) -> None:
    documents = store.documents
    first = await documents.put("alice", "batch", "b1", {"items": [1, {"a": None}]})
    second = await documents.put("alice", "batch", "b2", {})
    assert await documents.get("alice", "batch", "b1") == first
    assert await documents.list("alice", "batch") == [first, second]
    replaced = await documents.put("alice", "batch", "b1", {"items": []})
    assert replaced.created_at == first.created_at
    assert [one.value for one in await documents.list("alice", "batch")] == [{"items": []}, {}]
    assert await documents.delete("alice", "batch", "b1") is True
    assert await documents.delete("alice", "batch", "b1") is False
    assert await documents.list("alice", "batch") == [second]


async def test_owners_and_kinds_are_strangers(store: Any) -> None:
    await store.documents.put("alice", "batch", "b1", {})
    for owner, kind in (("bob", "batch"), ("alice", "secret")):
        with pytest.raises(NotFound) as error:
            await store.documents.get(owner, kind, "b1")
        assert error.value.what == kind
        assert await store.documents.list(owner, kind) == []
        assert await store.documents.delete(owner, kind, "b1") is False


async def test_a_document_is_gone_when_its_time_is_over(store: Any, clock: Clock) -> None:
    documents = store.documents
    await documents.put("alice", "upload", "u", {}, expires_at=clock() + timedelta(seconds=60))
    await documents.put("alice", "upload", "for ever", {})
    clock.advance(61)
    with pytest.raises(NotFound):
        await documents.get("alice", "upload", "u")
    assert [one.id for one in await documents.list("alice", "upload")] == ["for ever"]
    assert await documents.expire(clock()) == 1
    assert await documents.expire(clock()) == 0


async def test_documents_survive_a_restart(sql_stores: Stores) -> None:
    document = await (await sql_stores.open()).documents.put("alice", "batch", "b", {"a": 1})
    assert await (await sql_stores.open()).documents.get("alice", "batch", "b") == document
