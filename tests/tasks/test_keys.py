"""Keys open the server for their owner until they are revoked, and cannot be read from the database."""

from __future__ import annotations

import re
from typing import Any

import pytest
import sqlalchemy as sa

from darkroom.errors import NotFound
from darkroom.tasks.tables import keys
from tests.tasks.stores import Clock, Stores


async def test_a_key_opens_until_it_is_revoked(store: Any) -> None:
    assert not await store.keys.any()
    key, plain = await store.keys.create("laptop")
    assert re.fullmatch(r"dk_[A-Za-z0-9_]{41}", plain)
    assert plain.startswith(key.prefix)
    assert await store.keys.any()
    assert await store.keys.check(plain) == key.id
    revoked = await store.keys.revoke(key.prefix)
    assert revoked.revoked_at is not None
    assert await store.keys.check(plain) is None
    assert not await store.keys.any()
    assert (await store.keys.revoke(key.id)).revoked_at == revoked.revoked_at


async def test_keys_are_told_apart(store: Any) -> None:
    (first, one), (second, two) = [await store.keys.create(name) for name in ("a", "b")]
    assert await store.keys.check(one) == first.id
    assert await store.keys.check(two) == second.id
    assert [key.name for key in await store.keys.list()] == ["a", "b"]


async def test_nothing_else_opens(store: Any) -> None:
    _, plain = await store.keys.create("laptop")
    other = plain[:-1] + ("a" if plain[-1] != "a" else "b")
    for wrong in ("", "dk_", other, plain + "x", plain[:-1], plain.upper(), plain + "\n", "dk_" + "é" * 41, "\0"):
        assert await store.keys.check(wrong) is None


async def test_an_unknown_key_cannot_be_revoked(store: Any) -> None:
    with pytest.raises(NotFound, match="darkroom keys list"):
        await store.keys.revoke("dk_nothing")


async def test_use_is_noted_once_a_minute(store: Any, clock: Clock) -> None:
    _, plain = await store.keys.create("laptop")
    await store.keys.check(plain)
    (first,) = await store.keys.list()
    clock.advance(30)
    await store.keys.check(plain)
    assert await store.keys.list() == [first]
    clock.advance(31)
    await store.keys.check(plain)
    (later,) = await store.keys.list()
    assert first.last_used_at is not None
    assert later.last_used_at > first.last_used_at


async def test_the_plain_key_is_nowhere_in_the_database(sql_stores: Stores) -> None:
    store = await sql_stores.open()
    _, plain = await store.keys.create("laptop")
    row = await store.database.read(lambda connection: connection.execute(sa.select(keys)).one())
    assert not any(plain in str(value) or plain[12:] in str(value) for value in row)


async def test_keys_survive_a_restart(sql_stores: Stores) -> None:
    key, plain = await (await sql_stores.open()).keys.create("laptop")
    assert await (await sql_stores.open()).keys.check(plain) == key.id
