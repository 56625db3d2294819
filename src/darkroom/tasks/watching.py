"""Who watches which task: events of this process at once, moves of other servers by polling.

A watch tells every result once and every state it learns of, in an order a client can use: no result comes after
the final state. Progress and previews are hints: a slow watcher gets the newest of each result, not all of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog

from darkroom.errors import NotFound, StorageError
from darkroom.tasks.lifecycle import Status, is_final
from darkroom.tasks.store import ResultStored, TaskChanged, TaskEvent
from darkroom.tasks.task import Task
from darkroom.types import Preview, Progress

POLL_SECONDS: Final = 0.5
HINTS_KEPT: Final = 64  # progress and previews waiting in one watch at most
GONE: Final = 1 << 62  # stands for the version of a task that is no more
NOT_BEGUN: Final = -1  # the version of a watch that does not know yet how its task stands

log = structlog.get_logger(__name__)

Versions = Callable[[Sequence[str]], Awaitable[dict[str, int]]]
Load = Callable[[str], Awaitable[Task]]


class Watch:
    """A TaskWatch: one watcher's queue of events; iterate over it."""

    task: Task

    def __init__(self) -> None:
        self.version = NOT_BEGUN
        self._events: deque[TaskEvent] = deque()
        self._news = asyncio.Event()
        self._results: set[int] = set()
        self._status: Status | None = None
        self._ended = False

    def __aiter__(self) -> AsyncIterator[TaskEvent]:
        return self

    async def __anext__(self) -> TaskEvent:
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._events.popleft()

    def begin(self, task: Task) -> None:
        """What was known when the watch began is not news, unless it is the end."""
        self.task = task
        if is_final(task.status):
            self.put(TaskChanged(task=task))
        elif task.version > self.version:
            self.version, self._status = task.version, task.status
            self._results.update(result.index for result in task.results)

    def put(self, event: TaskEvent) -> None:
        """Queue what is new in this event. Nothing follows the end."""
        if self._ended:
            return
        if isinstance(event, TaskChanged):
            self._changed(event)
        elif isinstance(event, ResultStored):
            self._stored(event)
        else:
            self._hint(event)
        self._news.set()

    def end(self) -> None:
        """Nothing more can come: the task was forgotten."""
        self._ended = True
        self._news.set()

    def _changed(self, event: TaskChanged) -> None:
        for result in event.task.results:
            self._stored(ResultStored(task_id=event.task.id, result=result))
        if event.task.version <= self.version:
            return  # read before, told after: old news
        self.version = event.task.version
        if event.task.status != self._status:
            self._status = event.task.status
            self._events.append(event)
        self._ended = is_final(event.task.status)

    def _stored(self, event: ResultStored) -> None:
        if event.result.index not in self._results:
            self._results.add(event.result.index)
            self._events.append(event)

    def _hint(self, event: Progress | Preview) -> None:
        hints = [queued for queued in self._events if isinstance(queued, Progress | Preview)]
        if len(hints) >= HINTS_KEPT:
            older = (queued for queued in hints if type(queued) is type(event) and queued.result == event.result)
            self._events.remove(next(older, hints[0]))
        self._events.append(event)


class Watchers:
    """All watches of this process, by task."""

    def __init__(self, versions: Versions, load: Load, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._versions = versions
        self._load = load
        self._poll_seconds = poll_seconds
        self._watches: dict[str, set[Watch]] = {}
        self._poller: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def watch(self, task_id: str) -> AsyncIterator[Watch]:
        """Raises NotFound(what="task")."""
        watch = Watch()
        self._watches.setdefault(task_id, set()).add(watch)
        try:
            watch.begin(await self._load(task_id))
            self._start_polling()
            yield watch
        finally:
            self._watches[task_id].discard(watch)
            if not self._watches[task_id]:
                del self._watches[task_id]

    def tell(self, task_id: str, event: TaskEvent) -> None:
        for watch in self._watches.get(task_id, ()):
            watch.put(event)

    async def close(self) -> None:
        """Every watch ends."""
        for watches in self._watches.values():
            for watch in watches:
                watch.end()
        if self._poller is not None:
            self._poller.cancel()
            with suppress(asyncio.CancelledError):
                await self._poller

    def _start_polling(self) -> None:
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name="watch other servers' moves")

    async def _poll(self) -> None:
        """While anybody watches."""
        while self._watches:
            await asyncio.sleep(self._poll_seconds)
            try:
                await self._look()
            except StorageError as error:
                log.warning("watching.poll_failed", reason=error.message)

    async def _look(self) -> None:
        watched = list(self._watches)
        found = await self._versions(watched)
        for task_id in watched:
            behind = [
                watch
                for watch in self._watches.get(task_id, ())
                if NOT_BEGUN < watch.version < found.get(task_id, GONE)
            ]
            if not behind:
                continue
            try:
                task = await self._load(task_id)
            except NotFound:
                for watch in behind:
                    watch.end()
                continue
            for watch in behind:
                watch.put(TaskChanged(task=task))


class Signal:
    """Wakes those who wait for something to do; remembers one wake-up that nobody waited for."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        """True when woken, False after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True
