"""A task meets the engine: real store, real files, the fake engine; and everything that can go wrong on the way."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from darkroom.catalog.adapters import Adapters
from darkroom.catalog.catalog import load_catalog
from darkroom.config import Settings
from darkroom.engine.fake import FakeEngine
from darkroom.errors import EngineLost, LeaseLost, NotFound, StorageError
from darkroom.media.images import decode, encode, read_metadata
from darkroom.media.store import MediaStore
from darkroom.pool import LocalPool
from darkroom.tasks.lifecycle import MAX_ATTEMPTS, Status
from darkroom.tasks.sql import SqlTaskStore
from darkroom.tasks.store import ResultStored, TaskChanged, TaskEvent
from darkroom.tasks.task import Claim, Fault, NewTask, Owed, OwedKind, Result, Task
from darkroom.types import (
    AdapterUse,
    EngineEvent,
    ImageFormat,
    ImageRequest,
    Job,
    Output,
    Picture,
    Pixels,
    Preview,
    Progress,
    Stage,
)
from darkroom.worker import Worker, media_id_of
from tests.eventually import eventually
from tests.tasks.stores import Clock

OWNER = "local"
REQUEST = ImageRequest(card="runware:400@4", prompt="a red circle", width=64, height=64, steps=3, seed=7)
numbers = itertools.count()


class Recorder:
    """An Announcer that owes one call for everything."""

    def on_result(self, task: Task, result: Result) -> Sequence[Owed]:
        assert result in task.results
        return (owed(f"result {result.index} {'failed' if result.fault else 'made'}"),)

    def on_end(self, task: Task, status: Status, fault: Fault | None) -> Sequence[Owed]:
        assert task.status is status
        return (owed(f"end {status} {fault.code if fault else ''} {len(task.results)}".strip()),)


class Fixture:
    """A worker and what it works with."""

    def __init__(self, store: SqlTaskStore, media: MediaStore, settings: Settings) -> None:
        self.store = store
        self.media = media
        self.settings = settings
        self.pool = LocalPool(FakeEngine)
        self.worker = self.another(self.pool)
        self.running: list[tuple[Worker, asyncio.Task[None]]] = []

    def another(self, pool: Any, **changes: Any) -> Worker:
        return Worker(
            store=changes.pop("store", self.store),
            media=changes.pop("media", self.media),
            pool=pool,
            catalog=load_catalog(),
            adapters=Adapters(self.settings.data / "adapters"),
            announce={"test": Recorder()},
            settings=self.settings.model_copy(update=changes),
            name=f"worker {next(numbers)}",
        )

    async def submit(self, *, dialect: str = "test", **changes: Any) -> str:
        request = msgspec.structs.replace(REQUEST, **changes)
        new = NewTask(owner=OWNER, dialect=dialect, external_id=f"task {next(numbers)}", request=request, wire={})
        return (await self.store.submit(new)).id

    def start(self, worker: Worker | None = None) -> None:
        self.running.append((worker or self.worker, asyncio.create_task((worker or self.worker).run())))

    async def ended(self, task_id: str, seconds: float = 30) -> Task:
        async with asyncio.timeout(seconds), self.store.watch(task_id) as events:
            async for event in events:
                if isinstance(event, TaskChanged) and event.task.finished_at:
                    break
        return await self.store.get(task_id)

    async def run(self, **changes: Any) -> Task:
        return await self.ended(await self.submit(**changes))

    async def told(self, task_id: str) -> list[str]:
        return [delivery.owed.body.decode() for delivery in await self.store.deliveries(task_id)]

    async def pixels(self, result: Result) -> bytes:
        assert result.media_id
        _, data = await self.media.get(result.media_id)
        return decode(data, max_pixels=1 << 20).data


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Fixture]:
    settings = Settings(data=tmp_path, concurrent_tasks=4)
    store = await SqlTaskStore.open(f"sqlite:///{tmp_path / 'tasks.db'}")
    fixture = Fixture(store, await MediaStore.open(tmp_path / "media", store.files, keep_seconds=3600), settings)
    await fixture.pool.start()
    yield fixture
    for worker, running in fixture.running:
        await worker.stop(0)
        await running
    await fixture.pool.stop()
    await store.close()


@pytest.fixture
async def works(made: Fixture) -> Fixture:
    made.start()
    return made


def owed(text: str) -> Owed:
    return Owed(kind=OwedKind.WEBHOOK, url="http://127.0.0.1:9/", policy="runware", body=text.encode())


async def test_every_result_is_stored_told_of_and_readable(works: Fixture) -> None:
    task = await works.run(count=3, output=Output(format=ImageFormat.PNG))
    assert task.status is Status.SUCCEEDED
    assert [result.seed for result in task.results] == [7, 8, 9]
    assert len({await works.pixels(result) for result in task.results}) == 3
    media = await works.media.find(OWNER, task.results[0].media_id or "")
    assert (media.content_type, media.width, media.height) == ("image/png", 64, 64)
    assert media.expires_at is not None
    assert set(task.results[0].record.stage_ms) == {"queue", "text", "references", "denoise", "decode", "encode"}
    assert task.cost is not None and task.cost > 0
    told = await works.told(task.id)
    assert sorted(told[:3]) == ["result 0 made", "result 1 made", "result 2 made"]
    assert told[3:] == ["end succeeded  3"] or told[3:] == ["end succeeded 3"]


async def test_the_file_says_how_it_was_made(works: Fixture) -> None:
    task = await works.run(output=Output(format=ImageFormat.PNG))
    _, data = await works.media.get(task.results[0].media_id or "")
    told = read_metadata(data)
    assert (told["prompt"], told["seed"], told["model"], told["steps"]) == ("a red circle", 7, "runware:400@4", 3)
    assert told["software"].startswith("Darkroom ")
    task = await works.run(output=Output(format=ImageFormat.PNG, metadata=False))
    _, data = await works.media.get(task.results[0].media_id or "")
    assert not read_metadata(data)


async def test_watchers_see_progress_previews_results_and_the_end(made: Fixture) -> None:
    task_id = await made.submit(steps=4, preview_every=2)
    seen: list[TaskEvent] = []
    async with asyncio.timeout(30), made.store.watch(task_id) as events:
        made.start()
        async for event in events:
            seen.append(event)
    assert max(event.step for event in seen if isinstance(event, Progress)) == 4
    assert any(isinstance(event, Preview) for event in seen)
    assert any(isinstance(event, ResultStored) for event in seen)
    assert isinstance(seen[-1], TaskChanged) and seen[-1].task.status is Status.SUCCEEDED


async def test_one_failing_result_does_not_stop_the_others(works: Fixture) -> None:
    task = await works.run(count=3, prompt="a red circle [fail 1]")
    assert task.status is Status.FAILED
    assert [result.fault.code if result.fault else None for result in task.results] == [None, "inference", None]
    assert task.fault == task.results[1].fault
    assert "end failed inference 3" in await works.told(task.id)


async def test_references_reach_the_engine_decoded(works: Fixture) -> None:
    red = Pixels(width=512, height=512, data=b"\xff\0\0" * 512 * 512)
    data, content_type, _ = encode(red, Output(format=ImageFormat.PNG))
    stored = await works.media.put(OWNER, data, content_type, kind="reference", width=512, height=512)
    output = Output(format=ImageFormat.PNG)
    plain = await works.run(output=output)
    edited = await works.run(output=output, references=(stored.id,))
    assert await works.pixels(plain.results[0]) != await works.pixels(edited.results[0])
    assert edited.cost and plain.cost and edited.cost > plain.cost


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"references": ("6f9619ff-8b86-4d01-b42d-00cf4fc964ff",)}, "not_found"),
        ({"adapters": (AdapterUse(adapter="nobody:1@1"),)}, "not_found"),
    ],
    ids=["reference", "adapter"],
)
async def test_inputs_that_are_not_there_fail_the_task(works: Fixture, changes: dict[str, Any], code: str) -> None:
    task = await works.run(**changes)
    assert (task.status, task.results) == (Status.FAILED, ())
    assert task.fault and task.fault.code == code
    assert await works.told(task.id) == [f"end failed {code} 0"]


async def test_a_damaged_reference_names_the_reason(works: Fixture) -> None:
    stored = await works.media.put(OWNER, b"\x89PNG\r\n\x1a\nno", "image/png", kind="reference", width=1, height=1)
    task = await works.run(references=(stored.id,))
    assert task.fault and task.fault.code == "input_image"


@pytest.mark.parametrize(("share", "scope"), [(False, OWNER), (True, "")])
async def test_keys_share_what_was_computed_only_when_the_operator_says_so(
    made: Fixture, share: bool, scope: str
) -> None:
    pool = WatchedPool(made.pool)
    made.start(made.another(pool, share_references=share))
    assert (await made.run()).status is Status.SUCCEEDED
    assert [job.scope for job in pool.jobs] == [scope]


async def test_more_tasks_than_places_all_end(works: Fixture) -> None:
    ids = [await works.submit(seed=number) for number in range(20)]
    tasks = await asyncio.gather(*(works.ended(task_id) for task_id in ids))
    assert {task.status for task in tasks} == {Status.SUCCEEDED}


async def test_a_cancelled_task_leaves_the_engine_and_no_file(works: Fixture) -> None:
    task_id = await works.submit(prompt="slowly [slow 20]", steps=1000)
    await eventually(lambda: _in_engine(works))
    await works.store.cancel(task_id)
    await eventually(lambda: _engine_empty(works))
    task = await works.store.get(task_id)
    assert (task.status, task.results) == (Status.CANCELLED, ())
    assert (await works.run()).status is Status.SUCCEEDED


async def test_a_picture_that_comes_after_the_cancel_is_not_kept(made: Fixture) -> None:
    media = SlowMedia(made.media)
    worker = made.another(made.pool, media=media)
    made.start(worker)
    task_id = await made.submit()
    async with asyncio.timeout(30):
        await media.reached.wait()
    assert pictures(made)
    await made.store.cancel(task_id)
    media.go_on.set()
    await eventually(lambda: not worker._at_work)
    assert not pictures(made)
    with pytest.raises(NotFound):
        await made.media.get(media_id_of(await made.store.get(task_id), 0))


async def test_the_engine_goes_on_while_a_picture_is_encoded(works: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    held, go_on = threading.Event(), threading.Event()

    def slow(pixels: Pixels, output: Output, metadata: dict[str, Any]) -> Any:
        if metadata["prompt"] == "held":
            held.set()
            assert go_on.wait(60)
        return encode(pixels, output, metadata)

    monkeypatch.setattr("darkroom.worker.encode", slow)
    first = await works.submit(prompt="held")
    assert await asyncio.to_thread(held.wait, 30)
    try:
        steps = []
        second = await works.submit(prompt="other", steps=20)
        async with asyncio.timeout(30), works.store.watch(second) as events:
            async for event in events:
                if isinstance(event, Progress) and event.stage is Stage.DENOISE:
                    steps.append(event.step)
                if steps[-1:] == [20]:
                    break
        assert steps == list(range(1, 21))
        assert (await works.store.get(first)).results == ()
    finally:
        go_on.set()
    assert (await works.ended(first)).status is (await works.ended(second)).status is Status.SUCCEEDED


async def test_the_engine_goes_on_while_a_picture_is_stored(made: Fixture) -> None:
    media = SlowMedia(made.media)
    made.start(made.another(made.pool, media=media))
    first = await made.submit()
    async with asyncio.timeout(30):
        await media.reached.wait()
    second = await made.ended(await made.submit())
    assert (second.status, (await made.store.get(first)).status) == (Status.SUCCEEDED, Status.PROCESSING)
    media.go_on.set()
    assert (await made.ended(first)).status is Status.SUCCEEDED


async def test_an_engine_that_dies_is_given_only_what_is_missing(made: Fixture) -> None:
    pool = DyingPool(made.pool, deaths=1)
    worker = made.another(pool)
    made.start(worker)
    task = await made.run(count=3)
    assert task.status is Status.SUCCEEDED
    assert [job.results for job in pool.jobs] == [(0, 1, 2), (1, 2)]
    assert len(await made.told(task.id)) == 4


async def test_an_engine_that_dies_every_time_fails_the_task_with_what_is_there(made: Fixture) -> None:
    worker = made.another(DyingPool(made.pool, deaths=99))
    made.start(worker)
    task = await made.run(count=5)
    assert task.status is Status.FAILED
    assert task.fault and task.fault.code == "engine_lost"
    assert [result.index for result in task.results] == list(range(MAX_ATTEMPTS))
    assert "end failed engine_lost 3" in await made.told(task.id)


async def test_a_task_of_a_dialect_that_nobody_announces_ends_and_owes_nothing(works: Fixture) -> None:
    task = await works.run(dialect="of another version", count=2)
    assert (task.status, len(task.results)) == (Status.SUCCEEDED, 2)
    assert await works.told(task.id) == []
    assert (await works.run()).status is Status.SUCCEEDED


async def test_a_prompt_that_crashes_the_engine_fails_alone(works: Fixture) -> None:
    beside = [await works.submit(prompt="fine [slow 10]", steps=20, seed=number) for number in range(3)]
    guilty = await works.run(prompt="[crash]")
    assert guilty.fault and guilty.fault.code == "engine_lost"
    for task_id in beside:
        assert (await works.ended(task_id)).status is Status.SUCCEEDED


async def test_a_lease_that_ran_out_is_taken_over_and_the_late_result_refused(made: Fixture) -> None:
    task_id = await made.submit(count=2)
    lost = await made.store.claim("dead worker", 0.01)
    assert lost
    made.start()
    task = await made.ended(task_id)
    assert (task.status, task.attempts) == (Status.SUCCEEDED, 2)
    with pytest.raises(LeaseLost):
        await made.store.store_result(lost, task.results[0], ())


async def test_a_lease_is_kept_for_as_long_as_the_work_takes(made: Fixture) -> None:
    clock = made.store._clock = Clock()
    store = PassingTime(made.store, clock)
    made.start(made.another(made.pool, store=store, lease_seconds=0.6))
    task_id = await made.submit(prompt="slowly [slow 50]", steps=1000)
    await eventually(lambda: store.renewed >= 4)
    assert await made.store.claim("another server", 60) is None
    task = await made.store.get(task_id)
    assert (task.status, task.attempts) == (Status.PROCESSING, 1)


async def test_stop_finishes_what_runs_and_leaves_the_rest(made: Fixture) -> None:
    media = SlowMedia(made.media)
    worker = made.another(made.pool, media=media, concurrent_tasks=1)
    made.start(worker)
    running = await made.submit()
    async with asyncio.timeout(30):
        await media.reached.wait()
    stopping = asyncio.create_task(worker.stop(30))
    await asyncio.sleep(0)
    later = await made.submit()
    media.go_on.set()
    await stopping
    assert (await made.store.get(running)).status is Status.SUCCEEDED
    assert (await made.store.get(later)).status is Status.QUEUED


async def test_stop_hands_back_what_does_not_finish_in_time(works: Fixture) -> None:
    task_id = await works.submit(prompt="slowly [slow 20]", steps=1000)
    await eventually(lambda: _in_engine(works))
    await works.worker.stop(0.05)
    task = await works.store.get(task_id)
    assert (task.status, task.attempts) == (Status.QUEUED, 0)
    await eventually(lambda: _engine_empty(works))


async def test_a_task_that_is_claimed_while_the_worker_stops_goes_back_to_the_queue(made: Fixture) -> None:
    store = SlowStore(made.store)
    worker = made.another(made.pool, store=store)
    made.start(worker)
    task_id = await made.submit(prompt="slowly [slow 20]", steps=1000)
    await store.claimed.wait()
    await worker.stop(0.05)
    task = await made.store.get(task_id)
    assert (task.status, task.attempts) == (Status.QUEUED, 0)


async def test_a_result_that_cannot_be_stored_fails_alone(made: Fixture) -> None:
    worker = made.another(made.pool, media=FullDisk(made.media, fails=1))
    made.start(worker)
    task = await made.run(count=2)
    assert sorted(result.fault.code if result.fault else "" for result in task.results) == ["", "storage"]


async def test_a_database_that_does_not_answer_is_asked_again(made: Fixture) -> None:
    worker = made.another(made.pool, store=ShyStore(made.store))
    made.start(worker)
    assert (await made.run()).status is Status.SUCCEEDED


def pictures(fixture: Fixture) -> list[Path]:
    return [path for path in (fixture.settings.data / "media").rglob("*") if path.is_file()]


async def _in_engine(fixture: Fixture) -> bool:
    return (await fixture.pool.status()).rows > 0


async def _engine_empty(fixture: Fixture) -> bool:
    return (await fixture.pool.status()).rows == 0


class Through:
    """Passes on to another object what a subclass does not do itself."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class DyingPool(Through):
    """Loses the engine after one picture of each run, so many times."""

    def __init__(self, inner: Any, deaths: int) -> None:
        super().__init__(inner)
        self.deaths = deaths
        self.jobs: list[Job] = []

    async def run(self, job: Job) -> AsyncGenerator[EngineEvent, None]:
        self.jobs.append(job)
        async with contextlib.aclosing(self._inner.run(job)) as events:
            async for event in events:
                yield event
                if isinstance(event, Picture) and self.deaths:
                    self.deaths -= 1
                    raise EngineLost("The engine ended.")


class WatchedPool(Through):
    """Remembers the jobs it was given."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.jobs: list[Job] = []

    async def run(self, job: Job) -> AsyncGenerator[EngineEvent, None]:
        self.jobs.append(job)
        async with contextlib.aclosing(self._inner.run(job)) as events:
            async for event in events:
                yield event


class SlowMedia(Through):
    """Holds the first file back until it may go on."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    async def place(self, *arguments: Any, **named: Any) -> Any:
        stored = await self._inner.place(*arguments, **named)
        if not self.reached.is_set():
            self.reached.set()
            await self.go_on.wait()
        return stored


class FullDisk(Through):
    def __init__(self, inner: Any, fails: int) -> None:
        super().__init__(inner)
        self.fails = fails

    async def place(self, *arguments: Any, **named: Any) -> Any:
        if self.fails:
            self.fails -= 1
            raise StorageError("The picture could not be stored.")
        return await self._inner.place(*arguments, **named)


class SlowStore(Through):
    """Takes its time to answer a claim."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.claimed = asyncio.Event()

    async def claim(self, worker: str, lease_seconds: float) -> Claim | None:
        found: Claim | None = await self._inner.claim(worker, lease_seconds)
        if found:
            self.claimed.set()
            await asyncio.sleep(0.1)
        return found


class PassingTime(Through):
    """Most of a lease passes with every renewal, and no time else."""

    def __init__(self, inner: Any, clock: Clock) -> None:
        super().__init__(inner)
        self.clock, self.renewed = clock, 0

    async def renew(self, claim: Claim, lease_seconds: float) -> Status:
        status: Status = await self._inner.renew(claim, lease_seconds)
        self.clock.advance(0.9 * lease_seconds)
        self.renewed += 1
        return status


class ShyStore(Through):
    """Does not answer the first claim."""

    asked = False

    async def claim(self, worker: str, lease_seconds: float) -> Claim | None:
        if not self.asked:
            self.asked = True
            raise StorageError("The database does not answer.")
        found: Claim | None = await self._inner.claim(worker, lease_seconds)
        return found
