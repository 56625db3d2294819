"""Where a task meets the engine: claim → decode what it refers to → denoise → encode → store → finish.

A Worker claims tasks as long as it has room and works on each in an Assignment. Whatever dies, the task ends once:
an engine that dies is given the missing results again; a server that dies leaves a lease that runs out, and the next
one makes what is missing. The id of a stored picture comes from its task and index, so that a result that is made
twice lies in one place.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Final, Protocol, TypeVar
from uuid import UUID

import msgspec

from darkroom.catalog.adapters import Adapters
from darkroom.catalog.catalog import Catalog
from darkroom.catalog.price import cost
from darkroom.config import Settings
from darkroom.errors import DarkroomError, EngineLost, LeaseLost, NotFound, StorageError
from darkroom.media.images import decode, encode
from darkroom.media.metadata import file_metadata
from darkroom.media.store import MediaStore
from darkroom.pool import EnginePool
from darkroom.tasks.lifecycle import MAX_ATTEMPTS, Status, is_final
from darkroom.tasks.store import LastResult, TaskStore
from darkroom.tasks.task import Claim, Fault, Owed, Result, Task
from darkroom.types import (
    AdapterFile,
    Ended,
    Failure,
    Job,
    Media,
    Picture,
    Pixels,
    Preview,
    Progress,
    Stage,
    result_seed,
)

POLL_SECONDS: Final = 1.0  # for tasks that came in through other servers, and for leases that ran out
RENEW_SECONDS: Final = 2.0  # a renewal also tells that another server cancelled the task
LAST_CLAIM_SECONDS: Final = 2.0  # how long a stop waits for a claim that is under way
RETRY_SECONDS: Final = 1.0  # before the database is asked again after it did not answer
INTERNAL: Final = Fault(code="internal", message="Something went wrong inside the server; its log tells what.")

T = TypeVar("T")
log = logging.getLogger(__name__)


class Announcer(Protocol):
    """What a dialect owes to others because of a task. It is written in one transaction with what it tells of.

    task: as it stands with the result or the end in question. on_result is asked about every result, failed ones too.
    A task can also end without some of its results (inputs refused, attempts used up, cancelled): of those only
    on_end tells, with the reason in fault.
    """

    def on_result(self, task: Task, result: Result) -> Sequence[Owed]: ...

    def on_end(self, task: Task, status: Status, fault: Fault | None) -> Sequence[Owed]: ...


class Meter(Protocol):
    """Takes the measurements of finished work; metrics and the like."""

    def result(self, result: Result) -> None: ...

    def task(self, task: Task) -> None: ...


class Worker:
    """Claims tasks and works on up to settings.concurrent_tasks of them at once."""

    def __init__(
        self,
        *,
        store: TaskStore,
        media: MediaStore,
        pool: EnginePool,
        catalog: Catalog,
        adapters: Adapters,
        announce: Mapping[str, Announcer],
        settings: Settings,
        name: str | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.name = name or f"{os.uname().nodename}:{os.getpid()}"
        self.store = store
        self.media = media
        self.pool = pool
        self.catalog = catalog
        self.adapters = adapters
        self.announce = announce
        self.settings = settings
        self.meter = meter
        self.threads: Executor = ThreadPoolExecutor(os.cpu_count() or 1, "images")
        self.suspects = asyncio.Lock()  # one at a time is run again beside the others, so that the guilty one is found
        self._at_work: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Event()
        self._stopping = asyncio.Event()
        self._claims_no_more = asyncio.Event()
        self._claims_no_more.set()
        self._stopped = False

    async def run(self) -> None:
        """Claim and work until stop(). Raises only what is a bug."""
        self._claims_no_more.clear()
        try:
            while not self._stopping.is_set():
                if len(self._at_work) >= self.settings.concurrent_tasks:
                    self._room.clear()
                    await self._unless_stopping(self._room.wait())
                elif claim := await self._claim():
                    await (self._begin(claim) if not self._stopped else self.hand_back(claim))
                else:
                    await self._unless_stopping(self.store.wait_for_work(POLL_SECONDS))
        finally:
            self._claims_no_more.set()

    async def stop(self, grace_seconds: float) -> None:
        """Claim no more; finish what runs, and hand back to the queue what is not done by then."""
        self._stopping.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_CLAIM_SECONDS):
                await self._claims_no_more.wait()  # what is claimed meanwhile is stopped below like the rest
        self._stopped = True
        if self._at_work:
            await asyncio.wait(self._at_work.values(), timeout=grace_seconds)
        for work in list(self._at_work.values()):
            work.cancel()
        await asyncio.gather(*self._at_work.values(), return_exceptions=True)
        self.threads.shutdown(wait=False)

    async def _claim(self) -> Claim | None:
        try:
            return await self.store.claim(self.name, self.settings.lease_seconds)
        except StorageError as error:
            log.error("no task can be claimed: %s", error.message)
            await self._unless_stopping(asyncio.sleep(RETRY_SECONDS))
            return None

    async def _begin(self, claim: Claim) -> None:
        task_id = claim.task.id
        if earlier := self._at_work.get(task_id):  # we lost the lease without noticing, and got it again
            earlier.cancel()
            await asyncio.gather(earlier, return_exceptions=True)
        work = asyncio.create_task(Assignment(self, claim).run(), name=f"task {task_id}")
        self._at_work[task_id] = work
        work.add_done_callback(lambda done: self._done(task_id, done))

    async def hand_back(self, claim: Claim) -> None:
        """To the queue, without counting the attempt."""
        with contextlib.suppress(LeaseLost, StorageError):
            await self.store.release(claim)

    def _done(self, task_id: str, work: asyncio.Task[None]) -> None:
        if self._at_work.get(task_id) is work:
            del self._at_work[task_id]
        self._room.set()
        if not work.cancelled() and (error := work.exception()):
            log.error("task %s is left until its lease runs out", task_id, exc_info=error)

    async def _unless_stopping(self, wait: Awaitable[object]) -> None:
        """Wait for something, or for stop()."""
        waits = [asyncio.ensure_future(wait), asyncio.ensure_future(self._stopping.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()


class Assignment:
    """One claimed task, from claim to end. results: what was made, by index; stored: what of it is written down."""

    def __init__(self, worker: Worker, claim: Claim) -> None:
        self.worker = worker
        self.claim = claim
        self.task = claim.task
        self.results = {result.index: result for result in claim.task.results}
        self.made = set(self.results)  # stored, or on the way there
        self.stored = set(self.results)
        self.ended = False
        self.storing: list[asyncio.Task[None]] = []
        self.reference_pixels: list[int] = []
        self.queue_ms = (datetime.now(UTC) - claim.task.created_at).total_seconds() * 1000

    async def run(self) -> None:
        """Raises nothing but CancelledError, which hands the task back to the queue."""
        lease = asyncio.create_task(self._keep_lease(), name=f"lease of {self.task.id}")
        try:
            await self._work()
        except LeaseLost:
            log.info("task %s was cancelled or taken over; its work is dropped", self.task.id)
        except StorageError as error:
            log.error("task %s is left until its lease runs out: %s", self.task.id, error.message)
        except asyncio.CancelledError:
            await self._abandon()
            await self.worker.hand_back(self.claim)
            raise
        finally:
            lease.cancel()
            await self._abandon()

    async def _work(self) -> None:
        cancelled, fault = False, None
        try:
            cancelled = await self._denoise(await self._job())
        except StorageError:
            raise
        except DarkroomError as error:
            fault = fault_of(error)
        except Exception:
            log.exception("task %s met a bug", self.task.id)
            fault = INTERNAL
        await asyncio.gather(*self.storing)
        if not cancelled and not self.ended:  # whoever cancelled it has moved the task and said so
            await self._finish(fault)

    async def _job(self) -> Job:
        """The task with everything it refers to, loaded. Raises InputImageError, NotFound."""
        request, owner = self.task.request, self.task.owner
        references = await asyncio.gather(*(self._reference(each) for each in request.references))
        self.reference_pixels = [image.width * image.height for image in references]
        return Job(
            id=self.task.id,
            request=request,
            results=self._missing(),
            references=tuple(references),
            adapters=await self._thread(self._adapter_files) if request.adapters else (),
            scope="" if self.worker.settings.share_references else owner,
        )

    async def _reference(self, media_id: str) -> Pixels:
        _, data = await self.worker.media.get(media_id)
        return await self._thread(lambda: decode(data, max_pixels=self.worker.settings.image_pixels))

    def _adapter_files(self) -> tuple[AdapterFile, ...]:
        known = self.worker.adapters
        names = dict.fromkeys(use.adapter for use in self.task.request.adapters)
        try:
            found = {name: known.find(name, self.task.owner) for name in names}
        except NotFound as error:
            raise NotFound(error.message, what="adapter", parameter="lora") from None
        return tuple(AdapterFile(adapter=name, path=str(known.path(found[name]))) for name in names)

    async def _denoise(self, job: Job) -> bool:
        """Until the engine is done with every result. True when the job was cancelled. Raises EngineLost."""
        try:
            return await self._stream(job)
        except EngineLost as error:
            lost = error
        for attempt in range(self.task.attempts, MAX_ATTEMPTS):
            log.warning("the engine died under task %s in attempt %d; it is made again", self.task.id, attempt)
            job = msgspec.structs.replace(job, results=self._missing())
            async with self.worker.suspects:
                try:
                    return await self._stream(job)
                except EngineLost as error:
                    lost = error
        raise lost

    async def _stream(self, job: Job) -> bool:
        """One run in an engine. Pictures are encoded and stored while it goes on."""
        async with contextlib.aclosing(self.worker.pool.run(job)) as events:
            async for event in events:
                if isinstance(event, Ended):
                    return event.cancelled
                await self._take(event)
        raise AssertionError("the pool's last event was not Ended")

    async def _take(self, event: Progress | Preview | Picture | Failure) -> None:
        if isinstance(event, Progress | Preview):
            await self.worker.store.publish(event)
        elif event.result not in self.made:
            self.made.add(event.result)
            work = self._store_picture(event) if isinstance(event, Picture) else self._store_failure(event)
            self.storing.append(asyncio.create_task(work))

    async def _store_picture(self, picture: Picture) -> None:
        began = time.perf_counter()
        try:
            data, content_type, _ = await self._thread(lambda: self._encode(picture))
            encoded = time.perf_counter()
            placed = await self.worker.media.place(
                self.task.owner,
                data,
                content_type,
                kind="result",
                width=picture.pixels.width,
                height=picture.pixels.height,
                ttl_seconds=self.task.ttl_seconds,
                media_id=media_id_of(self.task, picture.result),
            )
        except StorageError as error:
            log.error("result %d of task %s is not stored: %s", picture.result, self.task.id, error.message)
            await self._store(self._failed(picture.result, fault_of(error)))
            return
        times = {Stage.QUEUE: self.queue_ms, **picture.record.stage_ms, Stage.ENCODE: (encoded - began) * 1000}
        result = Result(
            index=picture.result,
            seed=picture.seed,
            media_id=placed.id,
            width=picture.pixels.width,
            height=picture.pixels.height,
            nsfw=picture.nsfw,
            record=msgspec.structs.replace(
                picture.record, stage_ms={str(name): ms for name, ms in times.items()}, file_bytes=placed.bytes
            ),
            finished_at=datetime.now(UTC),
        )
        try:
            await self._store(result, placed)
        except LeaseLost:
            await self._drop(placed, picture.result)
            raise

    def _encode(self, picture: Picture) -> tuple[bytes, str, str]:
        output = self.task.request.output
        if not (output.metadata and self.worker.settings.metadata):
            return encode(picture.pixels, output)
        asked = self.task.ttl_seconds if self.task.ttl_seconds != self.worker.settings.keep_seconds else None
        return encode(
            picture.pixels,
            output,
            file_metadata(self.task.request, picture.seed, picture.record, ttl_seconds=asked),
        )

    async def _store_failure(self, failure: Failure) -> None:
        fault = Fault(code=failure.code, message=failure.message, parameter=failure.parameter)
        await self._store(self._failed(failure.result, fault))

    def _failed(self, index: int, fault: Fault) -> Result:
        seed = result_seed(self.task.request, index)
        return Result(index=index, seed=seed, fault=fault, finished_at=datetime.now(UTC))

    async def _store(self, result: Result, file: Media | None = None) -> None:
        """Write one result down; the last one together with the task's end, which spares its client a transaction."""
        self.results[result.index] = result
        owed = self._announcer.on_result(self._now(), result) if self._announcer else ()
        if len(self.stored) == self.task.request.count - 1:  # another that is on its way would come after the end
            await self._finish(None, LastResult(result=result, owed=tuple(owed), file=file))
        else:
            await self.worker.store.store_result(self.claim, result, owed, file=file)
        self.stored.add(result.index)
        if self.worker.meter:
            self.worker.meter.result(result)

    async def _drop(self, placed: Media, index: int) -> None:
        """Delete the file if the task ended before this result was stored: nothing will ever refer to it."""
        task = await self.worker.store.get(self.task.id)
        if is_final(task.status) and all(result.index != index for result in task.results):
            await self.worker.media.discard(placed)

    async def _finish(self, fault: Fault | None, last: LastResult | None = None) -> None:
        fault = fault or next((result.fault for _, result in sorted(self.results.items()) if result.fault), None)
        status = Status.FAILED if fault else Status.SUCCEEDED
        now, price = datetime.now(UTC), self._cost()
        task = msgspec.structs.replace(self._now(), status=status, fault=fault, cost=price, finished_at=now)
        owed = self._announcer.on_end(task, status, fault) if self._announcer else ()
        task = await self.worker.store.finish(self.claim, status, fault=fault, cost=price, owed=owed, at=now, last=last)
        self.ended = True
        if self.worker.meter:
            self.worker.meter.task(task)

    def _cost(self) -> float:
        request = self.task.request
        good = sum(result.fault is None for result in self.results.values())
        if not good:
            return 0.0
        return cost(
            self.worker.catalog.resolve(request.card),
            request.width,
            request.height,
            request.steps,
            self.reference_pixels,
            good,
            self.task.dialect,
            passes=1 if request.cfg_scale <= 1 else None,
        )

    def _missing(self) -> tuple[int, ...]:
        return tuple(index for index in range(self.task.request.count) if index not in self.made)

    def _now(self) -> Task:
        results = tuple(result for _, result in sorted(self.results.items()))
        return msgspec.structs.replace(self.task, results=results)

    @property
    def _announcer(self) -> Announcer | None:
        """None for a dialect that this version does not have: its tasks end like others, and nothing is owed."""
        return self.worker.announce.get(self.task.dialect)

    async def _keep_lease(self) -> None:
        """Renew until this task is cancelled; once it is no longer ours, take it out of the engine."""
        pause = min(RENEW_SECONDS, self.worker.settings.lease_seconds / 3)
        while True:
            await asyncio.sleep(pause)
            try:
                ours = await self.worker.store.renew(self.claim, self.worker.settings.lease_seconds)
            except LeaseLost:
                ours = Status.CANCELLED
            except StorageError as error:
                log.error("the lease of task %s is not renewed: %s", self.task.id, error.message)
                continue
            if ours is not Status.PROCESSING:
                await self.worker.pool.cancel(self.task.id)

    async def _abandon(self) -> None:
        """Nothing goes on after run()."""
        for each in self.storing:
            each.cancel()
        await asyncio.gather(*self.storing, return_exceptions=True)

    async def _thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.worker.threads, function)


def fault_of(error: DarkroomError) -> Fault:
    parameter = error.parameter if isinstance(error.parameter, str | None) else ", ".join(error.parameter)
    return Fault(code=error.code, message=error.message, parameter=parameter)


def media_id_of(task: Task, index: int) -> str:
    """A UUIDv4 in form, the same whenever the result is made again; as hard to guess as the task's own id."""
    digest = hashlib.sha256(f"{task.owner}/{task.id}/{index}".encode()).digest()
    return str(UUID(bytes=digest[:16], version=4))
