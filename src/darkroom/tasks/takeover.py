"""What a server that knows itself alone on its database does first: free what a killed predecessor had leased.

Without this everything is found too, only later: when the leases run out.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import sqlalchemy as sa

from darkroom.tasks.database import Database
from darkroom.tasks.lifecycle import Status
from darkroom.tasks.tables import deliveries, idempotency, tasks

LONG_AGO: Final = datetime(2000, 1, 1, tzinfo=UTC)


async def end_leases(database: Database) -> int:
    """End every lease on tasks, deliveries and calls; returns how many tasks were being worked on.

    Call it only where nobody else can be at work. The next claim takes the tasks up as it does any other whose
    worker fell silent, so attempts are counted and a task that killed its server too often ends.
    """

    def work(connection: sa.Connection) -> int:
        connection.execute(sa.update(deliveries).where(deliveries.c.lease_until.is_not(None)).values(lease_until=None))
        connection.execute(sa.update(idempotency).where(idempotency.c.status.is_(None)).values(lease_until=LONG_AGO))
        abandoned = sa.update(tasks).where(tasks.c.status == Status.PROCESSING).values(lease_until=LONG_AGO)
        return connection.execute(abandoned).rowcount

    return await database.write(work, durable=False)
