"""Small JSON values that a part wants to find again after a restart, by owner, kind and id.

For what is not worth a table: upload sessions, batches, callback secrets, states of an adapter upload. Whoever writes
a kind knows its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

import sqlalchemy as sa

from darkroom.errors import NotFound
from darkroom.tasks.database import Database, insert
from darkroom.tasks.tables import documents
from darkroom.types import Value


class Document(Value, frozen=True, kw_only=True):
    """One value. expires_at: None for never."""

    owner: str
    kind: str
    id: str
    value: dict[str, Any]
    created_at: datetime
    expires_at: datetime | None = None


class DocumentStore(Protocol):
    """An owner sees only its own; an expired one is not there."""

    async def put(
        self, owner: str, kind: str, document_id: str, value: dict[str, Any], *, expires_at: datetime | None = None
    ) -> Document:
        """Write or replace; the time of creation stays."""

    async def get(self, owner: str, kind: str, document_id: str) -> Document:
        """Raises NotFound(what=kind)."""

    async def list(self, owner: str, kind: str) -> Sequence[Document]:
        """Oldest first."""

    async def delete(self, owner: str, kind: str, document_id: str) -> bool:
        """False when there was none."""

    async def expire(self, now: datetime) -> int:
        """Forget those whose time is over; returns how many."""


class Documents:
    """DocumentStore in the database."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    async def put(
        self, owner: str, kind: str, document_id: str, value: dict[str, Any], *, expires_at: datetime | None = None
    ) -> Document:
        now = self._clock()

        def work(connection: sa.Connection) -> Document:
            row = connection.execute(
                insert(connection, documents)
                .values(owner=owner, kind=kind, id=document_id, value=value, created_at=now, expires_at=expires_at)
                .on_conflict_do_update(
                    index_elements=["owner", "kind", "id"], set_={"value": value, "expires_at": expires_at}
                )
                .returning(*documents.c)
            ).one()
            return Document(**row._mapping)

        return await self._database.write(work)

    async def get(self, owner: str, kind: str, document_id: str) -> Document:
        found = await self._find(owner, kind, documents.c.id == document_id)
        if not found:
            raise missing(kind)
        return found[0]

    async def list(self, owner: str, kind: str) -> Sequence[Document]:
        return await self._find(owner, kind)

    async def delete(self, owner: str, kind: str, document_id: str) -> bool:
        which = (documents.c.owner == owner, documents.c.kind == kind, documents.c.id == document_id)
        return await self._do(sa.delete(documents).where(*which)) > 0

    async def expire(self, now: datetime) -> int:
        return await self._do(sa.delete(documents).where(documents.c.expires_at <= now))

    async def _find(self, owner: str, kind: str, *which: sa.ColumnElement[bool]) -> Sequence[Document]:
        alive = documents.c.expires_at.is_(None) | (documents.c.expires_at > self._clock())
        statement = (
            sa.select(documents)
            .where(documents.c.owner == owner, documents.c.kind == kind, alive, *which)
            .order_by(documents.c.created_at, documents.c.id)
        )
        rows = await self._database.read(lambda connection: connection.execute(statement).all())
        return [Document(**row._mapping) for row in rows]

    async def _do(self, statement: sa.Delete) -> int:
        return await self._database.write(lambda connection: connection.execute(statement).rowcount)


def missing(kind: str) -> NotFound:
    return NotFound(f"There is no {kind} with this identifier.", what=kind)
