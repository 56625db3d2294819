"""The statements of tasks and results: each with its name, and a function that runs it and returns values.

Every move is a single UPDATE whose WHERE names the state it may leave and, for a worker's move, the token of its
claim, so that no interleaving of servers can make a move twice. Nothing here commits; sql.py puts these together
into transactions. Statements that every task needs are built once: building them costs more than running them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

import sqlalchemy as sa

from darkroom.tasks import queue
from darkroom.tasks.database import INSERT
from darkroom.tasks.lifecycle import MAX_ATTEMPTS, MOVES, Status
from darkroom.tasks.queue import PENDING, OwnerTurn
from darkroom.tasks.search import TaskQuery
from darkroom.tasks.tables import Moment, deliveries, results, tasks
from darkroom.tasks.task import Claim, Fault, NewTask, Result, Task

CLAIMED_ONCE: Final = 1  # the version of a task that was accepted and claimed: the first result makes it 2
log = logging.getLogger(__name__)
STATUSES: Final[dict[str | None, Status]] = {status.value: status for status in Status}
LIVE: Final = tuple(status for status, moves in MOVES.items() if moves)


def given(name: str, kind: Any = None) -> sa.BindParameter[Any]:
    """A value that is passed when the statement runs."""
    return sa.bindparam(name, type_=kind)


# Reading

TASK: Final = sa.select(tasks).where(tasks.c.id == given("task_id"))
BY_EXTERNAL_ID: Final = sa.select(tasks).where(
    tasks.c.owner == given("the_owner"),
    tasks.c.dialect == given("the_dialect"),
    tasks.c.external_id == given("the_external_id"),
)
BY_IDEMPOTENCY_KEY: Final = (
    sa.select(tasks)
    .where(
        tasks.c.owner == given("the_owner"),
        tasks.c.dialect == given("the_dialect"),
        tasks.c.idempotency_key == given("key"),
        tasks.c.created_at > given("since"),
    )
    .order_by(tasks.c.id.desc())
    .limit(1)
)
RESULTS: Final = (
    sa.select(results)
    .where(results.c.task_id.in_(sa.bindparam("task_ids", expanding=True)))
    .order_by(results.c.task_id, results.c.index)
)
VERSIONS: Final = sa.select(tasks.c.id, tasks.c.version).where(tasks.c.id.in_(sa.bindparam("task_ids", expanding=True)))
COUNTS: Final = sa.select(tasks.c.status, sa.func.count()).group_by(tasks.c.status)


def task(connection: sa.Connection, task_id: str) -> Task | None:
    return _one(connection, TASK, task_id=task_id)


def by_external_id(connection: sa.Connection, owner: str, dialect: str, external_id: str) -> Task | None:
    return _one(connection, BY_EXTERNAL_ID, the_owner=owner, the_dialect=dialect, the_external_id=external_id)


def by_idempotency_key(connection: sa.Connection, new: NewTask, since: datetime) -> Task | None:
    """The task an earlier try of the same call made."""
    return _one(
        connection,
        BY_IDEMPOTENCY_KEY,
        the_owner=new.owner,
        the_dialect=new.dialect,
        key=new.idempotency_key,
        since=since,
    )


def search(connection: sa.Connection, query: TaskQuery) -> list[Task]:
    statement = sa.select(tasks).where(tasks.c.owner == query.owner)
    if query.dialect is not None:
        statement = statement.where(tasks.c.dialect == query.dialect)
    if query.statuses:
        statement = statement.where(tasks.c.status.in_(query.statuses))
    if query.client_ref is not None:
        statement = statement.where(tasks.c.client_ref == query.client_ref)
    if query.created_after is not None:
        statement = statement.where(tasks.c.created_at > query.created_after)
    if query.created_before is not None:
        statement = statement.where(tasks.c.created_at < query.created_before)
    if query.cursor is not None:
        statement = statement.where(tasks.c.id < query.cursor if query.newest_first else tasks.c.id > query.cursor)
    order = tasks.c.id.desc() if query.newest_first else tasks.c.id.asc()
    rows = connection.execute(statement.order_by(order).limit(query.limit)).all()
    found = _results(connection, [row.id for row in rows])
    return [_as_task(row, found.get(row.id, ())) for row in rows]


def versions(connection: sa.Connection, task_ids: Iterable[str]) -> dict[str, int]:
    """Version of each task that still exists."""
    return {row.id: row.version for row in connection.execute(VERSIONS, {"task_ids": list(task_ids)})}


def counts(connection: sa.Connection) -> dict[str, int]:
    """How many tasks there are by status, those included that only another version knows."""
    return {row[0]: row[1] for row in connection.execute(COUNTS)}


# The queue

IS_QUEUED: Final = tasks.c.status == Status.QUEUED
IS_PROCESSING: Final = tasks.c.status == Status.PROCESSING
HAS_LAPSED: Final = sa.and_(IS_PROCESSING, tasks.c.lease_until < given("now", Moment()))


def _count(*where: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    return sa.select(sa.func.count()).select_from(tasks).where(*where).scalar_subquery()


ROOM: Final = sa.select(
    _count(IS_QUEUED).label("waiting"),
    _count(IS_QUEUED, tasks.c.owner == given("the_owner")).label("waiting_of_owner"),
    _count(tasks.c.finished_at > given("since")).label("finished_lately"),
)
QUEUED_SINCE: Final = sa.select(sa.func.min(tasks.c.created_at)).where(IS_QUEUED)
IS_WAITING: Final = sa.select(sa.exists(sa.select(tasks.c.id).where(IS_QUEUED)))
LAPSED: Final = sa.select(tasks.c.id).where(HAS_LAPSED).order_by(tasks.c.id).limit(given("at_most", sa.Integer()))


def room(connection: sa.Connection, owner: str, since: datetime) -> tuple[int, int, int]:
    """How many tasks are queued, how many of them of this owner, and how many of all ended since."""
    row = connection.execute(ROOM, {"the_owner": owner, "since": since}).one()
    return row.waiting, row.waiting_of_owner, row.finished_lately


ADD: Final = {name: make(tasks).on_conflict_do_nothing().returning(tasks.c.id) for name, make in INSERT.items()}


def add(connection: sa.Connection, new: NewTask, task_id: str, client_ref: str | None, now: datetime) -> bool:
    """False when (owner, dialect, external_id) is taken."""
    fields = {
        "id": task_id,
        "owner": new.owner,
        "dialect": new.dialect,
        "external_id": new.external_id,
        "idempotency_key": new.idempotency_key,
        "client_ref": client_ref,
        "status": Status.QUEUED,
        "request": new.request,
        "wire": new.wire,
        "options": new.options,
        "created_at": now,
        "ttl_seconds": new.ttl_seconds,
        "attempts": 0,
        "version": 0,
        "token": 0,
    }
    return connection.execute(ADD[connection.dialect.name], fields).first() is not None


def _running(owner: sa.ColumnElement[str]) -> sa.ScalarSelect[int]:
    other = tasks.alias()
    return (
        sa.select(sa.func.count())
        .select_from(other)
        .where(other.c.owner == owner, other.c.status == Status.PROCESSING)
        .scalar_subquery()
    )


def _last_claim(owner: sa.ColumnElement[str]) -> sa.ColumnElement[int]:
    other = tasks.alias()
    claimed = sa.type_coerce(other.c.claimed_at, sa.BigInteger)
    return sa.func.coalesce(sa.select(sa.func.max(claimed)).where(other.c.owner == owner).scalar_subquery(), 0)


FIRSTS: Final = (  # each owner's oldest waiting task
    sa.select(tasks.c.owner, sa.func.min(tasks.c.id).label("id")).where(IS_QUEUED).group_by(tasks.c.owner).subquery()
)
NEXT: Final = (  # of the owner with the fewest running, then of the one whose turn is longest ago
    sa.select(FIRSTS.c.id)
    .order_by(_running(FIRSTS.c.owner), _last_claim(FIRSTS.c.owner), FIRSTS.c.id)
    .limit(1)
    .scalar_subquery()
)
WAITING: Final = (
    sa.select(tasks.c.owner, sa.func.min(tasks.c.id).label("first"), sa.func.count().label("queued"))
    .where(IS_QUEUED)
    .group_by(tasks.c.owner)
    .subquery()
)
TURNS: Final = sa.select(
    WAITING, _running(WAITING.c.owner).label("running"), _last_claim(WAITING.c.owner).label("last_claim")
)
OLDER: Final = tasks.alias()
AHEAD: Final = sa.select(
    tasks.c.id,
    tasks.c.owner,
    sa.select(sa.func.count())
    .where(OLDER.c.status == Status.QUEUED, OLDER.c.owner == tasks.c.owner, OLDER.c.id < tasks.c.id)
    .scalar_subquery()
    .label("ahead"),
).where(tasks.c.id.in_(sa.bindparam("task_ids", expanding=True)), IS_QUEUED)
CLAIM: Final = (
    sa.update(tasks)
    .where(tasks.c.id == NEXT, IS_QUEUED)
    .values(
        status=Status.PROCESSING,
        worker=given("by"),
        claimed_at=given("now"),
        started_at=sa.func.coalesce(tasks.c.started_at, given("now", Moment())),
        lease_until=given("until"),
        attempts=tasks.c.attempts + 1,
        token=tasks.c.token + 1,
        version=tasks.c.version + 1,
    )
    .returning(*tasks.c)
)


def claim(connection: sa.Connection, worker: str, now: datetime, lease: timedelta) -> Claim | None:
    """Take the next task. None when there is none, or when another server took it in this very moment."""
    row = connection.execute(CLAIM, {"by": worker, "now": now, "until": now + lease}).first()
    return None if row is None else Claim(task=_with_results(connection, row), worker=worker, token=row.token)


def queued_since(connection: sa.Connection) -> datetime | None:
    """When the oldest queued task was accepted."""
    found: datetime | None = connection.scalar(QUEUED_SINCE)
    return found


def is_waiting(connection: sa.Connection) -> bool:
    """Whether any task is queued."""
    return bool(connection.scalar(IS_WAITING))


def lapsed(connection: sa.Connection, now: datetime, limit: int) -> list[str]:
    """Tasks whose worker has been silent for longer than its lease."""
    return list(connection.scalars(LAPSED, {"now": now, "at_most": limit}))


def positions(connection: sa.Connection, task_ids: Sequence[str]) -> dict[str, int]:
    """Of those that are queued: how many tasks are claimed before each. Counts in the queue's index, reads no task."""
    found = connection.execute(AHEAD, {"task_ids": task_ids}).all()
    turns = {row.owner: OwnerTurn(**row._mapping) for row in connection.execute(TURNS)} if found else {}
    # Another server may have claimed an owner's last one between the two statements.
    still = (row for row in found if row.owner in turns)
    return {row.id: queue.position(turns.values(), turns[row.owner], row.ahead) for row in still}


# Moves of a worker

HELD: Final = sa.and_(tasks.c.id == given("held_id"), tasks.c.token == given("held_token"), IS_PROCESSING)
BACK_TO_QUEUE: Final[dict[str, Any]] = {
    "status": Status.QUEUED,
    "worker": None,
    "lease_until": None,
    "version": tasks.c.version + 1,
}
END: Final[dict[str, Any]] = {
    "status": given("final"),
    "finished_at": given("now"),
    "lease_until": None,
    "version": tasks.c.version + 1,
}
RENEW: Final = sa.update(tasks).where(HELD).values(lease_until=given("until")).returning(tasks.c.id)
STANDING: Final = sa.select(tasks.c.status).where(tasks.c.id == given("held_id"), tasks.c.token == given("held_token"))
TOUCH: Final = sa.update(tasks).where(HELD).values(version=tasks.c.version + 1).returning(tasks.c.id)
FINISH: Final = sa.update(tasks).where(HELD).values(**END, fault=given("why"), cost=given("price")).returning(*tasks.c)
RELEASE: Final = sa.update(tasks).where(HELD).values(**BACK_TO_QUEUE, attempts=tasks.c.attempts - 1).returning(*tasks.c)


def renew(connection: sa.Connection, held: Claim, until: datetime) -> bool:
    """False when the task is no longer this claim's to work on."""
    return connection.execute(RENEW, {**_held(held), "until": until}).first() is not None


def standing(connection: sa.Connection, held: Claim) -> Status | None:
    """The status of the task as its last claimant may know it; None when somebody else claimed it or it is gone, or is
    in a state that only another version knows."""
    return STATUSES.get(connection.scalar(STANDING, _held(held)))


def touch(connection: sa.Connection, held: Claim) -> bool:
    """Mark a change for watchers; False when the task is no longer this claim's."""
    return connection.execute(TOUCH, _held(held)).first() is not None


ADD_RESULT: Final = {
    name: make(results).on_conflict_do_nothing().returning(results.c.index) for name, make in INSERT.items()
}


def add_result(connection: sa.Connection, task_id: str, result: Result) -> bool:
    """False when the task has a result of this index: the first one stays."""
    fields = {column.name: getattr(result, column.name) for column in results.c if column.name != "task_id"}
    added = connection.execute(ADD_RESULT[connection.dialect.name], {"task_id": task_id, **fields})
    return added.first() is not None


def finish(
    connection: sa.Connection, held: Claim, status: Status, fault: Fault | None, cost: float | None, now: datetime
) -> Task | None:
    return _one(connection, FINISH, **_held(held), final=status, why=fault, price=cost, now=now)


def release(connection: sa.Connection, held: Claim) -> Task | None:
    return _one(connection, RELEASE, **_held(held))


def _held(held: Claim) -> dict[str, Any]:
    return {"held_id": held.task.id, "held_token": held.token}


# Moves of others

CANCEL: Final = (
    sa.update(tasks).where(tasks.c.id == given("task_id"), tasks.c.status.in_(LIVE)).values(**END).returning(*tasks.c)
)
REQUEUE_LAPSED: Final = (  # if it may be tried again
    sa.update(tasks)
    .where(tasks.c.id == given("task_id"), HAS_LAPSED, tasks.c.attempts < MAX_ATTEMPTS)
    .values(**BACK_TO_QUEUE)
    .returning(*tasks.c)
)
FAIL_LAPSED: Final = (  # if it was tried often enough
    sa.update(tasks)
    .where(tasks.c.id == given("task_id"), HAS_LAPSED, tasks.c.attempts >= MAX_ATTEMPTS)
    .values(**END, fault=given("why"))
    .returning(*tasks.c)
)
OLD: Final = (
    sa.select(tasks.c.id)
    .where(
        tasks.c.finished_at < given("before"),
        sa.type_coerce(tasks.c.finished_at, sa.BigInteger) + sa.func.coalesce(tasks.c.ttl_seconds, 0) * 1_000_000
        < given("now", Moment()),
        ~sa.exists().where(deliveries.c.task_id == tasks.c.id, deliveries.c.state == PENDING),  # still owed to somebody
    )
    .order_by(tasks.c.finished_at)
    .limit(given("at_most", sa.Integer()))
)
FORGET: Final = sa.delete(tasks).where(tasks.c.id.in_(OLD))


def cancel(connection: sa.Connection, task_id: str, now: datetime) -> Task | None:
    """None when there is no such task or it is final already."""
    return _one(connection, CANCEL, task_id=task_id, final=Status.CANCELLED, now=now)


def requeue_lapsed(connection: sa.Connection, task_id: str, now: datetime) -> Task | None:
    return _one(connection, REQUEUE_LAPSED, task_id=task_id, now=now)


def fail_lapsed(connection: sa.Connection, task_id: str, fault: Fault, now: datetime) -> Task | None:
    return _one(connection, FAIL_LAPSED, task_id=task_id, final=Status.FAILED, why=fault, now=now)


def forget(connection: sa.Connection, before: datetime, now: datetime, limit: int) -> int:
    """Delete final tasks that ended before and whose own ttl is over, with everything that hangs on them."""
    return connection.execute(FORGET, {"before": before, "now": now, "at_most": limit}).rowcount


# Rows as values


def _one(connection: sa.Connection, statement: sa.Executable, **values: Any) -> Task | None:
    """The task a statement returns, with its results."""
    row = connection.execute(statement, values).first()
    return None if row is None else _with_results(connection, row)


def _with_results(connection: sa.Connection, row: sa.Row[Any]) -> Task:
    if row.version <= CLAIMED_ONCE:
        return _as_task(row, ())
    return _as_task(row, _results(connection, [row.id]).get(row.id, ()))


def _results(connection: sa.Connection, task_ids: Sequence[str]) -> dict[str, tuple[Result, ...]]:
    found: dict[str, list[Result]] = {}
    for row in connection.execute(RESULTS, {"task_ids": task_ids}) if task_ids else ():
        fields = dict(row._mapping)
        found.setdefault(fields.pop("task_id"), []).append(Result(**fields))
    return {task_id: tuple(some) for task_id, some in found.items()}


def _as_task(row: sa.Row[Any], found: tuple[Result, ...]) -> Task:
    """A status that only another version knows reads as failed, with the reason; the row itself is left alone."""
    status, fault = STATUSES.get(row.status), row.fault
    if status is None:
        _warn_of(row.status)
        status, fault = Status.FAILED, _unknown(row.status)
    return Task(
        id=row.id,
        owner=row.owner,
        dialect=row.dialect,
        external_id=row.external_id,
        status=status,
        request=row.request,
        wire=row.wire,
        options=row.options,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        ttl_seconds=row.ttl_seconds,
        attempts=row.attempts,
        fault=fault,
        cost=row.cost,
        results=found,
        version=row.version,
    )


def _unknown(status: str) -> Fault:
    return Fault(
        code="internal",
        message=f"This task has the status {status!r}, which this version of Darkroom does not know. Run the version "
        "that wrote it, or send the task again.",
    )


@cache
def _warn_of(status: str) -> None:
    """Once for each, not with every look."""
    log.warning("tasks have the status %r, which another version wrote; they are left alone", status)
