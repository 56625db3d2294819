"""The task store without a disk: the same behaviour as sql.py, gone with the process. For tests and one-shot commands.

Everything between two awaits is atomic on one event loop, so plain dictionaries need no lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace

from darkroom.tasks import queue
from darkroom.tasks.idempotency import KEPT
from darkroom.tasks.ids import utc_now, uuid7
from darkroom.tasks.lifecycle import MAX_ATTEMPTS, Status, is_final
from darkroom.tasks.memory_records import MemoryDocuments, MemoryIdempotency, MemoryKeys, MemoryMediaRecords
from darkroom.tasks.queue import ENGINE_LOST, OwnerTurn
from darkroom.tasks.search import TaskQuery
from darkroom.tasks.store import Announce, Backlog, LastResult, ResultStored, TaskChanged, TaskWatch
from darkroom.tasks.task import Attempt, Claim, Delivery, Fault, NewTask, Owed, OwedKind, Result, Task
from darkroom.tasks.watching import Signal, Watchers
from darkroom.types import Media, Preview, Progress


@dataclass
class _Entry:
    """A task with what only the store knows of it."""

    task: Task
    client_ref: str | None
    idempotency_key: str | None
    token: int = 0
    lease_until: datetime | None = None
    deliveries: dict[str, Delivery] = field(default_factory=dict)

    def change(self, **fields: Any) -> Task:
        self.task = replace(self.task, version=self.task.version + 1, **fields)
        return self.task


class MemoryTaskStore:
    """A TaskStore."""

    def __init__(
        self,
        *,
        queue_limit: int = 10_000,
        queue_limit_per_key: int = 5_000,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.announce_lost: Announce = lambda task, fault: ()
        self.idempotency = MemoryIdempotency(clock)
        self.keys = MemoryKeys(clock)
        self.files = MemoryMediaRecords()
        self.documents = MemoryDocuments(clock)
        self._queue_limit = queue_limit
        self._queue_limit_per_key = queue_limit_per_key
        self._clock = clock
        self._entries: dict[str, _Entry] = {}  # by task id, oldest first
        self._names: dict[tuple[str, str, str], str] = {}  # (owner, dialect, external_id) → task id
        self._delivery_leases: dict[str, datetime] = {}
        self._last_claims: dict[str, int] = {}  # owner → microseconds
        self._watchers = Watchers(self._versions, self.get)
        self._work = Signal()
        self._owed = Signal()

    async def close(self) -> None:
        await self._watchers.close()

    # Clients

    async def submit(self, new: NewTask) -> Task:
        return (await self.submit_all([new]))[0]

    async def submit_all(self, news: Sequence[NewTask]) -> list[Task]:
        now = self._clock()
        if earlier := [task for new in news if (task := self._made_before(new, now)) is not None]:
            return earlier
        names = [(new.owner, new.dialect, new.external_id) for new in news]
        for place, name in enumerate(names):
            if name in self._names or name in names[:place]:
                raise queue.used(news[place])
        waiting = [entry.task.owner for entry in self._entries.values() if entry.task.status is Status.QUEUED]
        queue.check_room(
            len(news),
            waiting=len(waiting),
            limit=self._queue_limit,
            waiting_of_owner=waiting.count(news[0].owner),
            limit_of_owner=self._queue_limit_per_key,
            finished_last_minute=self._finished_since(now - queue.MINUTE),
        )
        tasks = [queue.accepted(new, uuid7(now), now) for new in news]
        for new, name, task in zip(news, names, tasks, strict=True):
            self._entries[task.id] = _Entry(task, queue.client_ref(new), new.idempotency_key)
            self._names[name] = task.id
        self._work.wake()
        return tasks

    async def get(self, task_id: str) -> Task:
        return self._entry(task_id).task

    async def find(self, owner: str, dialect: str, external_id: str) -> Task:
        return self._entry(self._names.get((owner, dialect, external_id), "")).task

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
        found = [entry.task for entry in self._entries.values() if _matches(query, entry)]
        return sorted(found, key=lambda task: task.id, reverse=newest_first)[:limit]

    async def queue_positions(self, task_ids: Sequence[str]) -> dict[str, int]:
        turns, queued = self._turns(), self._queued()
        return {
            task_id: queue.position(turns, turn, queued[turn.owner].index(task_id))
            for turn in turns
            for task_id in set(task_ids).intersection(queued[turn.owner])
        }

    async def cancel(self, task_id: str, owed: Sequence[Owed] = (), *, at: datetime | None = None) -> tuple[Task, bool]:
        entry = self._entry(task_id)
        if is_final(entry.task.status):
            return entry.task, False
        return self._end(entry, at or self._clock(), owed, status=Status.CANCELLED), True

    # Workers

    async def claim(self, worker: str, lease_seconds: float) -> Claim | None:
        now = self._clock()
        self._take_up_lapsed(now)
        following = min(self._turns(), key=lambda turn: turn.order, default=None)
        if following is None:
            return None
        entry = self._entries[following.first]
        entry.token += 1
        entry.lease_until = now + timedelta(seconds=lease_seconds)
        task = entry.change(
            status=Status.PROCESSING, started_at=entry.task.started_at or now, attempts=entry.task.attempts + 1
        )
        self._last_claims[task.owner] = int(now.timestamp() * 1_000_000)
        self._watchers.tell(task.id, TaskChanged(task=task))
        return Claim(task=task, worker=worker, token=entry.token)

    async def renew(self, claim: Claim, lease_seconds: float) -> Status:
        entry = self._entries.get(claim.task.id)
        if entry is None or entry.token != claim.token or entry.task.status is Status.QUEUED:
            raise queue.lost(claim)
        if not is_final(entry.task.status):
            entry.lease_until = self._clock() + timedelta(seconds=lease_seconds)
        return entry.task.status

    async def release(self, claim: Claim) -> None:
        entry = self._held(claim)
        self._requeue(entry, attempts=entry.task.attempts - 1)

    async def store_result(
        self, claim: Claim, result: Result, owed: Sequence[Owed], *, file: Media | None = None
    ) -> None:
        entry = self._held(claim)
        if file is not None:
            await self.files.add(file)
        known = entry.task.results
        if any(result.index == one.index for one in known):
            return
        entry.change(results=tuple(sorted((*known, result), key=lambda one: one.index)))
        self._owe(entry, owed, self._clock())
        self._watchers.tell(claim.task.id, ResultStored(task_id=claim.task.id, result=result))

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
        if last is not None:
            await self.store_result(claim, last.result, last.owed, file=last.file)
        return self._end(self._held(claim), at or self._clock(), owed, status=status, fault=fault, cost=cost)

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
        pending = [one for entry in self._entries.values() for one in _pending(entry)]
        ready = [one for one in pending if one.next_at is not None and one.next_at <= now and self._is_free(one, now)]
        leased = sorted(ready, key=lambda one: (bool(one.attempts), one.next_at, one.id))[:limit]
        for one in leased:
            self._delivery_leases[one.id] = now + timedelta(seconds=lease_seconds)
        return leased

    async def record_attempt(
        self,
        delivery_id: str,
        attempt: Attempt,
        *,
        state: str,
        next_at: datetime | None,
        owed: Sequence[Owed] = (),
    ) -> None:
        self._delivery_leases.pop(delivery_id, None)
        for entry in self._entries.values():
            if (known := entry.deliveries.get(delivery_id)) is not None:
                tried = (*known.attempts, attempt)
                entry.deliveries[delivery_id] = replace(known, state=state, next_at=next_at, attempts=tried)
                self._owe(entry, owed, self._clock())

    async def deliveries(self, task_id: str) -> list[Delivery]:
        entry = self._entries.get(task_id)
        return [] if entry is None else list(entry.deliveries.values())

    async def owe(self, task_id: str, owed: Owed, *, automatic: bool = False) -> Delivery:
        return self._owe(self._entry(task_id), [owed], self._clock(), automatic=automatic)[0]

    # Keeping house

    async def expire(self, before: datetime, limit: int) -> int:
        now = self._clock()
        ends = {entry.task.id: entry.task.finished_at for entry in self._entries.values()}
        over = [
            (end, name)
            for name, end in ends.items()
            if end and end < before and end + self._ttl(name) < now and not _pending(self._entries[name])
        ]
        old = [self._entries[name].task for _, name in sorted(over)[:limit]]
        for task in old:
            del self._entries[task.id]
            del self._names[task.owner, task.dialect, task.external_id]
        return len(old)

    async def counts(self) -> dict[Status, int]:
        found = [entry.task.status for entry in self._entries.values()]
        return {status: found.count(status) for status in Status}

    async def backlog(self) -> Backlog:
        waiting = (entry.task.created_at for entry in self._entries.values() if entry.task.status is Status.QUEUED)
        owed = Counter(
            one.owed.kind
            for entry in self._entries.values()
            for one in entry.deliveries.values()
            if one.state == queue.PENDING
        )
        return Backlog(queued_since=min(waiting, default=None), owed={kind: owed[kind] for kind in OwedKind})

    # Parts

    def _entry(self, task_id: str) -> _Entry:
        entry = self._entries.get(task_id)
        if entry is None:
            raise queue.unknown()
        return entry

    def _held(self, claim: Claim) -> _Entry:
        entry = self._entries.get(claim.task.id)
        if entry is None or entry.token != claim.token or entry.task.status is not Status.PROCESSING:
            raise queue.lost(claim)
        return entry

    def _end(self, entry: _Entry, now: datetime, owed: Sequence[Owed], **fields: Any) -> Task:
        entry.lease_until = None
        task = entry.change(finished_at=now, **fields)
        self._owe(entry, owed, now)
        self._watchers.tell(task.id, TaskChanged(task=task))
        return task

    def _ttl(self, task_id: str) -> timedelta:
        return timedelta(seconds=self._entries[task_id].task.ttl_seconds or 0)

    def _requeue(self, entry: _Entry, *, attempts: int) -> None:
        entry.lease_until = None
        task = entry.change(status=Status.QUEUED, attempts=attempts)
        self._watchers.tell(task.id, TaskChanged(task=task))
        self._work.wake()

    def _take_up_lapsed(self, now: datetime) -> None:
        for entry in list(self._entries.values()):
            if entry.lease_until is None or entry.lease_until >= now:
                continue
            if entry.task.attempts < MAX_ATTEMPTS:
                self._requeue(entry, attempts=entry.task.attempts)
            else:
                failed = replace(entry.task, status=Status.FAILED, fault=ENGINE_LOST, finished_at=now)
                self._end(entry, now, self.announce_lost(failed, ENGINE_LOST), status=Status.FAILED, fault=ENGINE_LOST)

    def _queued(self) -> dict[str, list[str]]:
        """Ids of what waits by owner, oldest first."""
        queued: dict[str, list[str]] = {}
        for entry in self._entries.values():
            if entry.task.status is Status.QUEUED:
                queued.setdefault(entry.task.owner, []).append(entry.task.id)
        return {owner: sorted(task_ids) for owner, task_ids in queued.items()}

    def _turns(self) -> list[OwnerTurn]:
        running: dict[str, int] = {}
        for entry in self._entries.values():
            if entry.task.status is Status.PROCESSING:
                running[entry.task.owner] = running.get(entry.task.owner, 0) + 1
        return [
            OwnerTurn(
                owner=owner,
                running=running.get(owner, 0),
                last_claim=self._last_claims.get(owner, 0),
                first=task_ids[0],
                queued=len(task_ids),
            )
            for owner, task_ids in self._queued().items()
        ]

    def _made_before(self, new: NewTask, now: datetime) -> Task | None:
        if new.idempotency_key is None:
            return None
        made = [
            entry.task
            for entry in self._entries.values()
            if (entry.task.owner, entry.task.dialect, entry.idempotency_key)
            == (new.owner, new.dialect, new.idempotency_key)
            and entry.task.created_at > now - KEPT
        ]
        return made[-1] if made else None

    def _finished_since(self, since: datetime) -> int:
        ends = (entry.task.finished_at for entry in self._entries.values())
        return sum(end is not None and end > since for end in ends)

    def _owe(self, entry: _Entry, owed: Iterable[Owed], now: datetime, *, automatic: bool = True) -> list[Delivery]:
        added = [queue.delivery(entry.task.id, one, now, automatic=automatic) for one in owed]
        entry.deliveries.update((one.id, one) for one in added)
        if added:
            self._owed.wake()
        return added

    def _is_free(self, delivery: Delivery, now: datetime) -> bool:
        leased_until = self._delivery_leases.get(delivery.id)
        return leased_until is None or leased_until <= now

    async def _versions(self, task_ids: Sequence[str]) -> dict[str, int]:
        return {name: self._entries[name].task.version for name in task_ids if name in self._entries}


def _matches(query: TaskQuery, entry: _Entry) -> bool:
    task = entry.task
    return (
        task.owner == query.owner
        and query.dialect in (None, task.dialect)
        and (not query.statuses or task.status in query.statuses)
        and query.client_ref in (None, entry.client_ref)
        and (query.created_after is None or task.created_at > query.created_after)
        and (query.created_before is None or task.created_at < query.created_before)
        and (query.cursor is None or (task.id < query.cursor if query.newest_first else task.id > query.cursor))
    )


def _pending(entry: _Entry) -> list[Delivery]:
    """Of a task; uploads to one address only the first."""
    found: list[Delivery] = []
    uploads: set[str] = set()
    for one in entry.deliveries.values():
        if one.state != queue.PENDING:
            continue
        if one.owed.kind is OwedKind.UPLOAD:
            if one.owed.url in uploads:
                continue
            uploads.add(one.owed.url)
        found.append(one)
    return found
