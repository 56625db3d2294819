"""The task store on SQLite or PostgreSQL: transactions made of the statements in statements.py and owed.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from darkroom.tasks import files as media
from darkroom.tasks import owed as outbox
from darkroom.tasks import queue, statements
from darkroom.tasks.database import Database
from darkroom.tasks.documents import Documents
from darkroom.tasks.files import MediaRecords
from darkroom.tasks.idempotency import KEPT, Idempotency
from darkroom.tasks.ids import utc_now, uuid7
from darkroom.tasks.keys import Keys
from darkroom.tasks.lifecycle import Status, is_final
from darkroom.tasks.queue import ENGINE_LOST
from darkroom.tasks.search import TaskQuery
from darkroom.tasks.store import Announce, Backlog, LastResult, ResultStored, TaskChanged, TaskWatch
from darkroom.tasks.task import Attempt, Claim, Delivery, Fault, NewTask, Owed, Result, Task
from darkroom.tasks.watching import POLL_SECONDS, Signal, Watchers
from darkroom.types import Media, Preview, Progress

LAPSED_AT_ONCE: Final = 100  # lost tasks taken up by one claim


class SqlTaskStore:
    """A TaskStore, with the other things that live in the same database.

    idempotency, keys, files and documents share its connections. announce_lost says what is owed to others when
    the store itself fails a task that was tried too often (no worker is there to say it).
    """

    def __init__(
        self,
        database: Database,
        *,
        queue_limit: int = 10_000,
        queue_limit_per_key: int = 5_000,
        clock: Callable[[], datetime] = utc_now,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self.database = database
        self.announce_lost: Announce = lambda task, fault: ()
        self.idempotency = Idempotency(database, clock)
        self.keys = Keys(database, clock)
        self.files = MediaRecords(database)
        self.documents = Documents(database, clock)
        self._queue_limit = queue_limit
        self._queue_limit_per_key = queue_limit_per_key
        self._clock = clock
        self._watchers = Watchers(self._versions, self.get, poll_seconds=poll_seconds)
        self._work = Signal()
        self._owed = Signal()

    @classmethod
    async def open(
        cls,
        place: str | Path,
        *,
        queue_limit: int = 10_000,
        queue_limit_per_key: int = 5_000,
        clock: Callable[[], datetime] = utc_now,
        poll_seconds: float = POLL_SECONDS,
    ) -> SqlTaskStore:
        """A SQLite file or a database's URL; creates and migrates. Raises ConfigurationError, StorageError."""
        return cls(
            await Database.open(place),
            queue_limit=queue_limit,
            queue_limit_per_key=queue_limit_per_key,
            clock=clock,
            poll_seconds=poll_seconds,
        )

    async def close(self) -> None:
        """Ends every watch; waits for transactions that are under way."""
        await self._watchers.close()
        await self.database.close()

    # Clients

    async def submit(self, new: NewTask) -> Task:
        return (await self.submit_all([new]))[0]

    async def submit_all(self, news: Sequence[NewTask]) -> list[Task]:
        now = self._clock()
        named = [(new, uuid7(now)) for new in news]

        def work(connection: sa.Connection) -> list[Task]:
            keyed = (new for new in news if new.idempotency_key is not None)
            found = (statements.by_idempotency_key(connection, new, now - KEPT) for new in keyed)
            if earlier := [task for task in found if task is not None]:
                return earlier
            self._check_admission(connection, news, now)
            for new, task_id in named:
                if not statements.add(connection, new, task_id, queue.client_ref(new), now):
                    raise queue.used(new)
            return [queue.accepted(new, task_id, now) for new, task_id in named]

        tasks = await self.database.write(work)
        self._work.wake()
        return tasks

    async def get(self, task_id: str) -> Task:
        return _found(await self.database.read(lambda connection: statements.task(connection, task_id)))

    async def find(self, owner: str, dialect: str, external_id: str) -> Task:
        return _found(
            await self.database.read(
                lambda connection: statements.by_external_id(connection, owner, dialect, external_id)
            )
        )

    async def recent(
        self,
        owner: str,
        *,
        dialect: str | None = None,
        statuses: Sequence[Status] = (),
        before: tuple[datetime, str] | None = None,
        limit: int = 50,
    ) -> list[Task]:
        cursor = None if before is None else before[1]
        return await self.search(owner, dialect, statuses=statuses, cursor=cursor, limit=limit)

    async def search(
        self,
        owner: str,
        dialect: str | None = None,
        *,
        statuses: Sequence[Status] = (),
        client_ref: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        newest_first: bool = True,
        cursor: str | None = None,
        limit: int = 50,
    ) -> list[Task]:
        query = TaskQuery(
            owner=owner,
            dialect=dialect,
            statuses=tuple(statuses),
            client_ref=client_ref,
            created_after=created_after,
            created_before=created_before,
            newest_first=newest_first,
            cursor=cursor,
            limit=limit,
        )
        return await self.database.read(lambda connection: statements.search(connection, query))

    async def queue_positions(self, task_ids: Sequence[str]) -> dict[str, int]:
        return await self.database.read(lambda connection: statements.positions(connection, task_ids))

    async def cancel(self, task_id: str, owed: Sequence[Owed] = (), *, at: datetime | None = None) -> tuple[Task, bool]:
        now = at or self._clock()

        def work(connection: sa.Connection) -> tuple[Task, bool]:
            cancelled = statements.cancel(connection, task_id, now)
            if cancelled is None:
                return _found(statements.task(connection, task_id)), False
            outbox.add(connection, task_id, owed, now)
            return cancelled, True

        task, changed = await self.database.write(work)
        if changed:
            self._told(task, owed)
        return task, changed

    # Workers

    async def claim(self, worker: str, lease_seconds: float) -> Claim | None:
        lease = timedelta(seconds=lease_seconds)
        while await self._is_waiting():
            now = self._clock()
            claim = await self.database.write(
                lambda connection, now=now: statements.claim(connection, worker, now, lease),  # type: ignore[misc]
                durable=False,
            )
            if claim is not None:
                self._watchers.tell(claim.task.id, TaskChanged(task=claim.task))
                return claim
        return None

    async def renew(self, claim: Claim, lease_seconds: float) -> Status:
        until = self._clock() + timedelta(seconds=lease_seconds)

        def work(connection: sa.Connection) -> Status:
            if statements.renew(connection, claim, until):
                return Status.PROCESSING
            status = statements.standing(connection, claim)
            if status is None or not is_final(status):
                raise queue.lost(claim)
            return status

        return await self.database.write(work, durable=False)

    async def release(self, claim: Claim) -> None:
        task = await self.database.write(
            lambda connection: _kept(claim, statements.release(connection, claim)), durable=False
        )
        self._watchers.tell(task.id, TaskChanged(task=task))
        self._work.wake()

    async def store_result(
        self, claim: Claim, result: Result, owed: Sequence[Owed], *, file: Media | None = None
    ) -> None:
        now = self._clock()

        def work(connection: sa.Connection) -> bool:
            if not statements.touch(connection, claim):
                raise queue.lost(claim)
            return self._add_result(connection, claim, result, owed, file, now)

        # Not flushed by itself: finish flushes it, and a task that loses power before that is made again.
        if await self.database.write(work, durable=False):
            self._watchers.tell(claim.task.id, ResultStored(task_id=claim.task.id, result=result))
            self._wake_outbox(owed)

    async def finish(
        self,
        claim: Claim,
        status: Status,
        *,
        fault: Fault | None = None,
        cost: float | None = None,
        owed: Sequence[Owed] = (),
        at: datetime | None = None,
        last: LastResult | None = None,
    ) -> Task:
        assert is_final(status), f"{status} does not end a task"
        now = at or self._clock()

        def work(connection: sa.Connection) -> Task:
            if last is not None:
                if not statements.touch(connection, claim):
                    raise queue.lost(claim)
                self._add_result(connection, claim, last.result, last.owed, last.file, now)
            task = _kept(claim, statements.finish(connection, claim, status, fault, cost, now))
            outbox.add(connection, task.id, owed, now)
            return task

        task = await self.database.write(work)
        self._told(task, [*owed, *(last.owed if last else ())])  # its results are told before its end
        return task

    # Watchers

    async def publish(self, event: Progress | Preview) -> None:
        self._watchers.tell(event.task, event)

    def watch(self, task_id: str) -> AbstractAsyncContextManager[TaskWatch]:
        return self._watchers.watch(task_id)

    async def wait_for_work(self, seconds: float) -> bool:
        return await self._work.wait(seconds)

    async def wait_for_owed(self, seconds: float) -> bool:
        return await self._owed.wait(seconds)

    # What is owed to others

    async def due(self, now: datetime, limit: int, lease_seconds: float) -> list[Delivery]:
        if not await self.database.read(lambda connection: outbox.is_due(connection, now)):
            return []
        lease = timedelta(seconds=lease_seconds)
        return await self.database.write(
            lambda connection: outbox.lease_due(connection, now, limit, lease), durable=False
        )

    async def record_attempt(
        self,
        delivery_id: str,
        attempt: Attempt,
        *,
        state: str,
        next_at: datetime | None,
        owed: Sequence[Owed] = (),
    ) -> None:
        now = self._clock()

        def work(connection: sa.Connection) -> None:
            task_id = outbox.record(connection, delivery_id, attempt, state, next_at)
            if task_id is not None:
                outbox.add(connection, task_id, owed, now)

        await self.database.write(work, durable=False)
        self._wake_outbox(owed)

    async def deliveries(self, task_id: str) -> list[Delivery]:
        return await self.database.read(lambda connection: outbox.of_task(connection, task_id))

    async def owe(self, task_id: str, owed: Owed, *, automatic: bool = False) -> Delivery:
        now = self._clock()

        def work(connection: sa.Connection) -> Delivery:
            _found(statements.task(connection, task_id))
            return outbox.add(connection, task_id, [owed], now, automatic=automatic)[0]

        delivery = await self.database.write(work)
        self._owed.wake()
        return delivery

    # Keeping house

    async def expire(self, before: datetime, limit: int) -> int:
        now = self._clock()
        return await self.database.write(
            lambda connection: statements.forget(connection, before, now, limit), durable=False
        )

    async def counts(self) -> dict[Status, int]:
        found = await self.database.read(statements.counts)
        return {status: found.get(status, 0) for status in Status}

    async def backlog(self) -> Backlog:
        return await self.database.read(
            lambda connection: Backlog(
                queued_since=statements.queued_since(connection), owed=outbox.pending(connection)
            )
        )

    # Parts

    @staticmethod
    def _add_result(
        connection: sa.Connection,
        claim: Claim,
        result: Result,
        owed: Sequence[Owed],
        file: Media | None,
        now: datetime,
    ) -> bool:
        """False when the task has a result of this index: the first one stays, and nothing more is owed for it."""
        if file is not None:
            media.add(connection, file)
        if not statements.add_result(connection, claim.task.id, result):
            return False
        outbox.add(connection, claim.task.id, owed, now)
        return True

    def _check_admission(self, connection: sa.Connection, news: Sequence[NewTask], now: datetime) -> None:
        owner = news[0].owner
        waiting, waiting_of_owner, finished_lately = statements.room(connection, owner, now - queue.MINUTE)
        if max(waiting - self._queue_limit, waiting_of_owner - self._queue_limit_per_key) + len(news) <= 0:
            return
        for new in news:
            if statements.by_external_id(connection, new.owner, new.dialect, new.external_id) is not None:
                raise queue.used(new)  # it would be refused anyway, and waiting would not help
        queue.check_room(
            len(news),
            waiting=waiting,
            limit=self._queue_limit,
            waiting_of_owner=waiting_of_owner,
            limit_of_owner=self._queue_limit_per_key,
            finished_last_minute=finished_lately,
        )

    async def _is_waiting(self) -> bool:
        """Whether any task is queued, counting those whose worker fell silent: they are taken up first."""
        now = self._clock()
        waiting, lapsed = await self.database.read(
            lambda connection: (
                statements.is_waiting(connection),
                statements.lapsed(connection, now, LAPSED_AT_ONCE),
            )
        )
        for task_id in lapsed:
            task, owed = await self.database.write(
                lambda connection, task_id=task_id: self._take_up(connection, task_id, now)  # type: ignore[misc]
            )
            if task is not None:
                self._told(task, owed)
                waiting = waiting or task.status is Status.QUEUED
        return waiting

    def _take_up(self, connection: sa.Connection, task_id: str, now: datetime) -> tuple[Task | None, Sequence[Owed]]:
        """Back to the queue, or failed when it was tried often enough; None when somebody else was quicker."""
        failed = statements.fail_lapsed(connection, task_id, ENGINE_LOST, now)
        if failed is None:
            return statements.requeue_lapsed(connection, task_id, now), ()
        owed = self.announce_lost(failed, ENGINE_LOST)
        outbox.add(connection, task_id, owed, now)
        return failed, owed

    async def _versions(self, task_ids: Sequence[str]) -> dict[str, int]:
        return await self.database.read(lambda connection: statements.versions(connection, task_ids))

    def _told(self, task: Task, owed: Sequence[Owed]) -> None:
        self._watchers.tell(task.id, TaskChanged(task=task))
        self._wake_outbox(owed)

    def _wake_outbox(self, owed: Sequence[Owed]) -> None:
        if owed:
            self._owed.wake()


def _found(task: Task | None) -> Task:
    if task is None:
        raise queue.unknown()
    return task


def _kept(claim: Claim, task: Task | None) -> Task:
    if task is None:
        raise queue.lost(claim)
    return task
