"""The task store: accepted means on disk, and every task reaches exactly one final state.

The interface; sql.py implements it for SQLite and PostgreSQL, memory.py without a disk. All of it is async and
never blocks the event loop. A store is done when tests/tasks/test_store.py passes for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

from darkroom.tasks.documents import DocumentStore
from darkroom.tasks.idempotency import IdempotentCalls
from darkroom.tasks.lifecycle import Status
from darkroom.tasks.task import Attempt, Claim, Delivery, Fault, NewTask, Owed, OwedKind, Result, Task
from darkroom.types import Media, Preview, Progress, Value


class ResultStored(Value, frozen=True, kw_only=True):
    """A result is on disk. For watchers."""

    task_id: str
    result: Result


class LastResult(Value, frozen=True, kw_only=True):
    """A result that is written together with the end of its task. owed: for the result; file: its record."""

    result: Result
    owed: Sequence[Owed] = ()
    file: Media | None = None


class TaskChanged(Value, frozen=True, kw_only=True):
    """The task moved to another state. For watchers."""

    task: Task


TaskEvent = Progress | Preview | ResultStored | TaskChanged


class Backlog(Value, frozen=True, kw_only=True):
    """queued_since: when the oldest queued task was accepted, None without one. owed: calls still to be made."""

    queued_since: datetime | None
    owed: dict[OwedKind, int]


class TaskWatch(Protocol):
    """Events of one task as they happen. task: as it stood when the watch began."""

    task: Task

    def __aiter__(self) -> AsyncIterator[TaskEvent]: ...

    async def __anext__(self) -> TaskEvent: ...


Announce = Callable[[Task, Fault], Sequence[Owed]]


class TaskStore(Protocol):
    """submit, claim, renew, store_result, finish, watch: the life of a task. Raises errors.py classes only.

    announce_lost: what is owed to others when the store itself fails a task that was tried too often, since no
    worker is there to say it. Called inside a transaction: it must only compute.
    """

    announce_lost: Announce

    @property
    def idempotency(self) -> IdempotentCalls:
        """Calls that carry an idempotency key."""

    @property
    def documents(self) -> DocumentStore:
        """Small values of other parts: batches, upload sessions, callback secrets."""

    async def submit(self, new: NewTask) -> Task:
        """Accept a task; it is on disk when this returns.

        Raises Conflict when (owner, dialect, external_id) is used, Overloaded when the owner's or the whole
        queue is full. With an idempotency_key that a task of the last 24 hours came with, that task is returned.
        """

    async def submit_all(self, news: Sequence[NewTask]) -> list[Task]:
        """Accept several of one owner together, in their order, or raise as submit does and accept none.

        When any of them has an idempotency_key that a task of the last 24 hours came with, the tasks that came with
        their keys are returned, and none is added.
        """

    async def get(self, task_id: str) -> Task:
        """Raises NotFound(what="task")."""

    async def find(self, owner: str, dialect: str, external_id: str) -> Task:
        """By the client's own id. Raises NotFound(what="task")."""

    async def recent(
        self,
        owner: str,
        *,
        dialect: str | None = None,
        statuses: Sequence[Status] = (),
        before: tuple[datetime, str] | None = None,
        limit: int = 50,
    ) -> list[Task]:
        """Newest first; before is the (created_at, id) of the last one seen."""

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
        """A list page. client_ref: equal to options["client_ref"]. Both created bounds are exclusive (times are kept
        in microseconds). cursor: id of the last task of the page before; turn newest_first to walk back from it.
        """

    async def queue_positions(self, task_ids: Sequence[str]) -> dict[str, int]:
        """Of those that are queued: how many tasks will be claimed before each, if none ends and none is added."""

    async def claim(self, worker: str, lease_seconds: float) -> Claim | None:
        """The next task, fair between owners, oldest first within one; also one whose lease ran out.

        A task claimed MAX_ATTEMPTS times without an end is failed here with code "engine_lost" instead.
        """

    async def renew(self, claim: Claim, lease_seconds: float) -> Status:
        """Extend the lease and tell how the task stands (CANCELLED: stop). Raises LeaseLost."""

    async def release(self, claim: Claim) -> None:
        """Hand an unfinished task back to the queue without counting the attempt (graceful stop)."""

    async def store_result(
        self, claim: Claim, result: Result, owed: Sequence[Owed], *, file: Media | None = None
    ) -> None:
        """Write one result, the record of its file and what is owed for it, in one transaction. Raises LeaseLost."""

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
        """Move to a final state and write what is owed, in one transaction. Raises LeaseLost.

        at: the end that `owed` tells of, so that the record has the same; now if None. last: a result that is written
        in the same transaction, as store_result would have written it just before.
        """

    async def cancel(self, task_id: str, owed: Sequence[Owed] = (), *, at: datetime | None = None) -> tuple[Task, bool]:
        """(task, True) when this call cancelled it, (task, False) when it was final already. at: as in finish."""

    async def publish(self, event: Progress | Preview) -> None:
        """Tell this process's watchers; not stored (progress is a hint, the result is not)."""

    def watch(self, task_id: str) -> AbstractAsyncContextManager[TaskWatch]:
        """Events of a task from now on; ends after its final TaskChanged. What was before is in its `task`.

        Moves made by other servers on the same database are noticed by polling. Raises NotFound(what="task").
        """

    # Waking up

    async def wait_for_work(self, seconds: float) -> bool:
        """True as soon as this process queued a task, False after so many seconds (then look for other servers')."""

    async def wait_for_owed(self, seconds: float) -> bool:
        """The same for deliveries."""

    # What is owed to others

    async def due(self, now: datetime, limit: int, lease_seconds: float) -> list[Delivery]:
        """Deliveries whose time has come, leased to the caller so that two servers do not both send."""

    async def record_attempt(
        self,
        delivery_id: str,
        attempt: Attempt,
        *,
        state: str,
        next_at: datetime | None,
        owed: Sequence[Owed] = (),
    ) -> None:
        """Write down one try and what comes next, and what is owed because it was given up, in one transaction."""

    async def deliveries(self, task_id: str) -> list[Delivery]:
        """All of a task's, oldest first."""

    async def owe(self, task_id: str, owed: Owed, *, automatic: bool = False) -> Delivery:
        """Add one later (a redelivery)."""

    # Keeping house

    async def expire(self, before: datetime, limit: int) -> int:
        """Forget final tasks that ended before, whose ttl is over and of which nothing is owed any more; returns how
        many. Files are media's affair."""

    async def counts(self) -> dict[Status, int]:
        """Tasks per state, for metrics and readiness."""

    async def backlog(self) -> Backlog:
        """What waits, for metrics."""
