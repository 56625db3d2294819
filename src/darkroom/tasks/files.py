"""The records of stored files: what media/store.py keeps beside the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from darkroom.tasks.database import INSERT, Database
from darkroom.tasks.tables import media
from darkroom.types import Media, MediaKind

ADD: Final = {
    name: (statement := make(media))
    .on_conflict_do_update(
        index_elements=["id"],
        set_={column.name: column for column in statement.excluded if column.name not in ("id", "owner", "created_at")},
        where=media.c.owner == statement.excluded.owner,
    )
    .returning(media.c.id)
    for name, make in INSERT.items()
}


def add(connection: sa.Connection, record: Media) -> bool:
    """Write or, for the same owner, replace; False when the id is another owner's."""
    fields = {column.name: getattr(record, column.name) for column in media.c}
    return connection.execute(ADD[connection.dialect.name], fields).first() is not None


class MediaRecords:
    """The MediaTable of media/store.py in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, record: Media) -> bool:
        """Write or, for the same owner, replace; False when the id is another owner's."""
        return await self._database.write(lambda connection: add(connection, record))

    async def get(self, media_id: str) -> Media | None:
        found = await self._select(sa.select(media).where(media.c.id == media_id))
        return found[0] if found else None

    async def remove(self, media_ids: Sequence[str]) -> None:
        statement = sa.delete(media).where(media.c.id.in_(media_ids))
        await self._database.write(lambda connection: connection.execute(statement), durable=False)

    async def prolong(self, media_id: str, expires_at: datetime) -> None:
        """Keep at least until then; never shortens."""
        statement = (
            sa.update(media)
            .where(media.c.id == media_id, media.c.expires_at < expires_at)
            .values(expires_at=expires_at)
        )
        await self._database.write(lambda connection: connection.execute(statement), durable=False)

    async def expired(self, now: datetime, limit: int) -> Sequence[Media]:
        """Soonest first."""
        return await self._select(
            sa.select(media).where(media.c.expires_at <= now).order_by(media.c.expires_at).limit(limit)
        )

    async def recent(self, owner: str, kind: MediaKind, limit: int) -> Sequence[Media]:
        """Newest first."""
        return await self._select(
            sa.select(media)
            .where(media.c.owner == owner, media.c.kind == kind)
            .order_by(media.c.created_at.desc(), media.c.id)
            .limit(limit)
        )

    async def with_prefix(self, prefix: str) -> Sequence[Media]:
        """Those whose id begins so."""
        # A range, because LIKE would read the whole table in SQLite; g follows every hexadecimal digit.
        return await self._select(sa.select(media).where(media.c.id >= prefix, media.c.id < prefix + "g"))

    async def _select(self, statement: sa.Select[tuple[object, ...]]) -> list[Media]:
        rows = await self._database.read(lambda connection: connection.execute(statement).all())
        return [Media(**{**row._mapping, "kind": MediaKind(row.kind)}) for row in rows]
