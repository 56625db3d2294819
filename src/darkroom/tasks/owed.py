"""The statements of deliveries and their attempts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from darkroom.tasks import queue
from darkroom.tasks.queue import PENDING
from darkroom.tasks.tables import attempts, deliveries
from darkroom.tasks.task import Attempt, Delivery, Owed, OwedKind

KINDS: Final = {kind.value: kind for kind in OwedKind}
WAS_TRIED: Final = deliveries.c.next_at > deliveries.c.created_at
TURNS: Final = (WAS_TRIED, deliveries.c.next_at, deliveries.c.id)
COUNT_PENDING: Final = (
    sa.select(deliveries.c.kind, sa.func.count()).where(deliveries.c.state == PENDING).group_by(deliveries.c.kind)
)


def add(
    connection: sa.Connection, task_id: str, owed: Iterable[Owed], now: datetime, *, automatic: bool = True
) -> list[Delivery]:
    """Write down what is owed, due at once."""
    added = [queue.delivery(task_id, one, now, automatic=automatic) for one in owed]
    if added:
        connection.execute(sa.insert(deliveries), [_as_row(delivery) for delivery in added])
    return added


def lease_due(connection: sa.Connection, now: datetime, limit: int, lease: timedelta) -> list[Delivery]:
    """Deliveries whose time has come and that no other server has at hand, now leased to the caller; oldest first.

    Those that were never tried go before the others: receivers that are down must not keep the rest waiting. Uploads of
    one task to one address go in order: a later one waits until the earlier is delivered or given up.
    """
    earlier = deliveries.alias()
    overtakes = (
        sa.select(earlier.c.id)
        .where(
            earlier.c.task_id == deliveries.c.task_id,
            earlier.c.kind == OwedKind.UPLOAD,
            earlier.c.url == deliveries.c.url,
            earlier.c.state == PENDING,
            earlier.c.id < deliveries.c.id,
        )
        .exists()
    )
    due = (
        sa.select(deliveries.c.id)
        .where(
            deliveries.c.state == PENDING,
            deliveries.c.next_at <= now,
            sa.or_(deliveries.c.lease_until.is_(None), deliveries.c.lease_until <= now),
            sa.or_(deliveries.c.kind != OwedKind.UPLOAD, ~overtakes),
        )
        .order_by(*TURNS)
        .limit(limit)
        .with_for_update(skip_locked=True)  # PostgreSQL; SQLite has one writer and needs no such thing
    )
    rows = connection.execute(
        sa.update(deliveries).where(deliveries.c.id.in_(due)).values(lease_until=now + lease).returning(*deliveries.c)
    ).all()
    return _with_attempts(connection, sorted(rows, key=lambda row: (row.next_at > row.created_at, row.next_at, row.id)))


def is_due(connection: sa.Connection, now: datetime) -> bool:
    """Whether lease_due is worth a write."""
    due = sa.select(deliveries.c.id).where(deliveries.c.state == PENDING, deliveries.c.next_at <= now).limit(1)
    return connection.scalar(due) is not None


def pending(connection: sa.Connection) -> dict[OwedKind, int]:
    """How many calls are still to be made. Kinds that only another version knows are not counted."""
    found: dict[str, int] = {row[0]: row[1] for row in connection.execute(COUNT_PENDING)}
    return {kind: found.get(kind, 0) for kind in OwedKind}


def record(
    connection: sa.Connection, delivery_id: str, attempt: Attempt, state: str, next_at: datetime | None
) -> str | None:
    """Write down one try; the task's id, None when the delivery is gone."""
    number = (
        sa.select(sa.func.coalesce(sa.func.max(attempts.c.number), 0) + 1)
        .where(attempts.c.delivery_id == delivery_id)
        .scalar_subquery()
    )
    task_id: str | None = connection.scalar(
        sa.update(deliveries)
        .where(deliveries.c.id == delivery_id)
        .values(state=state, next_at=next_at, lease_until=None)
        .returning(deliveries.c.task_id)
    )
    if task_id is not None:
        connection.execute(
            sa.insert(attempts).values(
                delivery_id=delivery_id,
                number=number,
                at=attempt.at,
                status=attempt.status,
                error=attempt.error,
                milliseconds=attempt.milliseconds,
                response=attempt.response,
            )
        )
    return task_id


def of_task(connection: sa.Connection, task_id: str) -> list[Delivery]:
    rows = connection.execute(
        sa.select(deliveries).where(deliveries.c.task_id == task_id).order_by(deliveries.c.id)
    ).all()
    return _with_attempts(connection, rows)


def _with_attempts(connection: sa.Connection, rows: Sequence[sa.Row[Any]]) -> list[Delivery]:
    found: dict[str, list[Attempt]] = {row.id: [] for row in rows}
    statement = (
        sa.select(attempts)
        .where(attempts.c.delivery_id.in_(list(found)))
        .order_by(attempts.c.delivery_id, attempts.c.number)
    )
    for row in connection.execute(statement) if found else ():
        found[row.delivery_id].append(
            Attempt(at=row.at, status=row.status, error=row.error, milliseconds=row.milliseconds, response=row.response)
        )
    return [_as_delivery(row, tuple(found[row.id])) for row in rows]


def _as_row(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "task_id": delivery.task_id,
        "kind": delivery.owed.kind,
        "url": delivery.owed.url,
        "policy": delivery.owed.policy,
        "body": delivery.owed.body,
        "media_id": delivery.owed.media_id,
        "headers": delivery.owed.headers,
        "signing": delivery.owed.signing,
        "result": delivery.owed.result,
        "state": delivery.state,
        "created_at": delivery.created_at,
        "next_at": delivery.next_at,
        "automatic": delivery.automatic,
    }


def _as_delivery(row: sa.Row[Any], tried: tuple[Attempt, ...]) -> Delivery:
    owed = Owed(
        kind=KINDS.get(row.kind, row.kind),
        url=row.url,
        policy=row.policy,
        body=row.body,
        media_id=row.media_id,
        headers=row.headers,
        signing=row.signing,
        result=row.result,
    )
    return Delivery(
        id=row.id,
        task_id=row.task_id,
        owed=owed,
        state=row.state,
        created_at=row.created_at,
        next_at=row.next_at,
        attempts=tried,
        automatic=row.automatic,
    )
