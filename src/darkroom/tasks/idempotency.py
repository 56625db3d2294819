"""Idempotency keys: the same call again is answered as the first one was.

A key belongs to its owner, lives 24 hours and survives a restart. While the first call is at work a second one waits
for its answer; if the server dies in between, the first call's lease runs out and the next one takes its place (and
TaskStore.submit finds the task the first one may have left, by the same key).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, Protocol

import sqlalchemy as sa

from darkroom.errors import Conflict
from darkroom.tasks.database import Database, insert
from darkroom.tasks.tables import idempotency
from darkroom.types import Value

KEPT: Final = timedelta(hours=24)
LEASE_SECONDS: Final = 30.0
LOOK_SECONDS: Final = 0.05  # how often a waiting call looks for the first one's answer


class StoredResponse(Value, frozen=True, kw_only=True):
    """What the first call was answered: HTTP status and the exact bytes of the body."""

    status: int
    body: bytes


class IdempotentCalls(Protocol):
    """begin every call that carries a key; then finish or abandon it."""

    async def begin(
        self, owner: str, key: str, body_hash: str, *, lease_seconds: float = LEASE_SECONDS
    ) -> StoredResponse | None:
        """The first call's answer, or None: this is the first, go ahead, and call finish or abandon.

        Waits for a first call that is still at work. lease_seconds: how long this call may take before another
        one believes it dead. Raises Conflict when the key was used with another body.
        """

    async def finish(self, owner: str, key: str, status: int, body: bytes) -> None:
        """Keep the answer for the next calls."""

    async def abandon(self, owner: str, key: str) -> None:
        """The call came to nothing; the next one with this key starts afresh."""

    async def expire(self, now: datetime) -> int:
        """Forget keys older than 24 hours; returns how many."""


class Idempotency:
    """IdempotentCalls in the database."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    async def begin(
        self, owner: str, key: str, body_hash: str, *, lease_seconds: float = LEASE_SECONDS
    ) -> StoredResponse | None:
        while True:
            call = await self._take(owner, key, body_hash, timedelta(seconds=lease_seconds))
            if call is None:
                return None
            check_body(call.body_hash, body_hash)
            if call.response is not None:
                return call.response
            await asyncio.sleep(LOOK_SECONDS)

    async def finish(self, owner: str, key: str, status: int, body: bytes) -> None:
        await self._do(
            sa.update(idempotency)
            .where(*_is(owner, key), idempotency.c.status.is_(None))
            .values(status=status, body=body)
        )

    async def abandon(self, owner: str, key: str) -> None:
        await self._do(sa.delete(idempotency).where(*_is(owner, key), idempotency.c.status.is_(None)))

    async def expire(self, now: datetime) -> int:
        return await self._do(sa.delete(idempotency).where(idempotency.c.created_at <= now - KEPT))

    async def _take(self, owner: str, key: str, body_hash: str, lease: timedelta) -> Call | None:
        """None when the key is now this call's, else the call that has it."""
        now = self._clock()
        while True:
            call = await self._database.read(lambda connection: _look(connection, owner, key, now))
            if call is not None:
                return call
            if await self._database.write(
                lambda connection: _take(connection, owner, key, body_hash, now, now + lease), durable=False
            ):
                return None

    async def _do(self, statement: sa.Update | sa.Delete) -> int:
        return await self._database.write(lambda connection: connection.execute(statement).rowcount, durable=False)


class Call(Value, frozen=True, kw_only=True):
    """An earlier call with the same key. response: None while it is at work."""

    body_hash: str
    response: StoredResponse | None


def check_body(first: str, again: str) -> None:
    """Raises Conflict."""
    if first != again:
        raise Conflict("This Idempotency-Key was used with another request body; use a new key.")


def _look(connection: sa.Connection, owner: str, key: str, now: datetime) -> Call | None:
    """The call that has the key; None when nobody has, or nobody any more."""
    row = connection.execute(sa.select(idempotency).where(*_is(owner, key))).first()
    if row is None or row.created_at <= now - KEPT:
        return None
    if row.status is not None:
        return Call(body_hash=row.body_hash, response=StoredResponse(status=row.status, body=row.body))
    return Call(body_hash=row.body_hash, response=None) if row.lease_until > now else None


def _take(connection: sa.Connection, owner: str, key: str, body_hash: str, now: datetime, until: datetime) -> bool:
    """False when another call was quicker."""
    fields = {"body_hash": body_hash, "created_at": now, "lease_until": until, "status": None, "body": None}
    table = idempotency.c
    free = (table.created_at <= now - KEPT) | (table.status.is_(None) & (table.lease_until <= now))
    taken = connection.execute(
        insert(connection, idempotency)
        .values(owner=owner, key=key, **fields)
        .on_conflict_do_update(index_elements=["owner", "key"], set_=fields, where=free)
        .returning(table.key)
    )
    return taken.first() is not None


def _is(owner: str, key: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (idempotency.c.owner == owner, idempotency.c.key == key)
