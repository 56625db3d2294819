"""One suite for every store: a store is done when it passes."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from darkroom.errors import Conflict, LeaseLost, NotFound, Overloaded
from darkroom.tasks.lifecycle import MAX_ATTEMPTS, Status
from darkroom.tasks.store import Backlog, LastResult, ResultStored, TaskChanged
from darkroom.tasks.tables import deliveries, tasks
from darkroom.tasks.task import Attempt, Claim, Fault, Owed, OwedKind, Task
from darkroom.types import Preview, Progress, Record, Stage
from tests.tasks.stores import Clock, Stores, new_task, request, result, stored_file, upload, webhook

LEASE = 20.0
FAULT = Fault(code="inference", message="It broke.", parameter="prompt")


async def claimed(store: Any, worker: str = "w", seconds: float = LEASE) -> Claim:
    claim = await store.claim(worker, seconds)
    assert claim is not None
    return claim


# Accepting


async def test_a_submitted_task_is_read_back_whole(store: Any) -> None:
    new = new_task(
        request=request(prompt="naïve \0 “猫”", references=("a", "b")), options={"client_ref": "r"}, ttl_seconds=60
    )
    task = await store.submit(new)
    assert task == await store.get(task.id) == await store.find("alice", "runware", new.external_id)
    assert (task.request, task.wire, task.options, task.ttl_seconds) == (new.request, new.wire, new.options, 60)
    assert task.status is Status.QUEUED
    assert task.created_at.tzinfo is not None
    assert (task.attempts, task.started_at, task.finished_at, task.results) == (0, None, None, ())


async def test_ids_sort_by_age(store: Any) -> None:
    ids = [(await store.submit(new_task())).id for _ in range(20)]
    assert ids == sorted(ids)


async def test_what_is_not_there_is_not_found(store: Any) -> None:
    task = await store.submit(new_task(owner="alice", external_id="x"))
    for missing in (
        store.get("01900000-0000-7000-8000-000000000000"),
        store.find("bob", "runware", "x"),
        store.find("alice", "runflow", "x"),
        store.cancel("nothing"),
        store.owe("nothing", webhook()),
    ):
        with pytest.raises(NotFound) as error:
            await missing
        assert error.value.what == "task"
    assert await store.deliveries("nothing") == []
    assert await store.get(task.id) == task


async def test_any_text_may_be_asked_for(store: Any) -> None:
    odd = "\0'\"%_\\;--\U0001f408" + "x" * 300
    for looking in (store.get(odd), store.find(odd, odd, odd), store.documents.get(odd, odd, odd)):
        with pytest.raises(NotFound):
            await looking
    assert await store.search(odd, odd, client_ref=odd, cursor=odd) == []
    assert await store.files.get(odd) is None
    task = await store.submit(new_task(external_id="a\0b", idempotency_key="k\0"))
    assert (await store.find("alice", "runware", "a\0b")).id == task.id
    assert (await store.submit(new_task(idempotency_key="k\0"))).id == task.id


async def test_an_external_id_is_used_once_per_owner_and_dialect(store: Any) -> None:
    await store.submit(new_task(owner="alice", external_id="x"))
    await store.submit(new_task(owner="bob", external_id="x"))
    await store.submit(new_task(owner="alice", external_id="x", dialect="runflow"))
    with pytest.raises(Conflict, match="x exists already"):
        await store.submit(new_task(owner="alice", external_id="x"))


async def test_of_many_equal_submissions_at_once_one_is_accepted(store: Any) -> None:
    outcomes = await asyncio.gather(
        *(store.submit(new_task(external_id="x")) for _ in range(8)), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Conflict"] * 7 + ["Task"]


async def test_the_same_idempotency_key_returns_the_task_it_made(store: Any, clock: Clock) -> None:
    first = await store.submit(new_task(idempotency_key="k"))
    assert await store.submit(new_task(idempotency_key="k")) == first
    assert (await store.submit(new_task(owner="bob", idempotency_key="k"))).id != first.id
    clock.advance(24 * 3600 + 1)
    assert (await store.submit(new_task(idempotency_key="k"))).id != first.id


async def test_a_full_queue_refuses_and_says_when_to_come_back(stores: Stores, clock: Clock) -> None:
    store = await stores.open(queue_limit=5, queue_limit_per_key=3)
    for _ in range(3):
        await store.submit(new_task(owner="alice"))
    with pytest.raises(Overloaded, match="This key has 3 tasks waiting") as full:
        await store.submit(new_task(owner="alice"))
    assert full.value.retry_after_seconds == 10  # nothing was finished yet
    for _ in range(2):
        await store.submit(new_task(owner="bob"))
    with pytest.raises(Overloaded, match="The server has 5 tasks waiting"):
        await store.submit(new_task(owner="bob"))
    for _ in range(2):
        await store.finish(await claimed(store), Status.SUCCEEDED)
    for _ in range(2):
        await store.submit(new_task(owner="carol"))
    with pytest.raises(Overloaded) as paced:
        await store.submit(new_task(owner="carol"))
    assert paced.value.retry_after_seconds == 30  # two a minute
    clock.advance(61)
    with pytest.raises(Overloaded) as idle:
        await store.submit(new_task(owner="carol"))
    assert idle.value.retry_after_seconds == 10


async def test_a_used_id_is_a_conflict_even_when_the_queue_is_full(stores: Stores) -> None:
    store = await stores.open(queue_limit=1)
    await store.submit(new_task(external_id="x"))
    with pytest.raises(Conflict):
        await store.submit(new_task(external_id="x"))


async def test_several_are_accepted_together_or_not_at_all(stores: Stores) -> None:
    store = await stores.open(queue_limit=5, queue_limit_per_key=4)
    made = await store.submit_all([new_task(external_id=str(n)) for n in range(3)])
    assert [task.external_id for task in made] == ["0", "1", "2"]
    assert [task.id for task in made] == sorted(task.id for task in made)
    with pytest.raises(Overloaded, match="This key has 3 tasks waiting, may have 4, and 2 more do not fit"):
        await store.submit_all([new_task(), new_task()])
    with pytest.raises(Conflict, match="new exists already"):
        await store.submit_all([new_task(owner="bob", external_id="new"), new_task(owner="bob", external_id="new")])
    with pytest.raises(Overloaded, match="The server has 3 tasks waiting, may have 5, and 3 more do not fit"):
        await store.submit_all([new_task(owner="bob", external_id=str(n)) for n in range(3)])
    assert await store.recent("bob") == []
    assert len(await store.submit_all([new_task(owner="bob", external_id=str(n)) for n in range(2)])) == 2


async def test_the_same_keys_return_what_they_made_and_add_nothing(store: Any, clock: Clock) -> None:
    first = await store.submit_all([new_task(idempotency_key=f"k{n}") for n in range(2)])
    assert await store.submit_all([new_task(idempotency_key=f"k{n}") for n in range(3)]) == first
    assert len(await store.recent("alice")) == 2
    clock.advance(24 * 3600 + 1)
    assert len(await store.submit_all([new_task(idempotency_key=f"k{n}") for n in range(3)])) == 3
    assert len(await store.recent("alice")) == 5


# Claiming


async def test_a_claim_takes_the_oldest_task(store: Any) -> None:
    first, second = [await store.submit(new_task()) for _ in range(2)]
    claim = await claimed(store)
    assert claim.task.id == first.id
    assert (claim.task.status, claim.task.attempts, claim.worker) == (Status.PROCESSING, 1, "w")
    assert claim.task.started_at is not None
    assert claim.task == await store.get(first.id)
    assert (await claimed(store)).task.id == second.id
    assert await store.claim("w", LEASE) is None


async def test_two_workers_never_claim_the_same_task(stores: Stores) -> None:
    servers = [await stores.open() for _ in range(3)]
    submitted = {(await servers[0].submit(new_task(owner=f"o{i % 4}"))).id for i in range(24)}
    claims = await asyncio.gather(*(servers[i % 3].claim(f"w{i}", LEASE) for i in range(40)))
    taken = [claim.task.id for claim in claims if claim is not None]
    assert len(taken) == len(set(taken)) == 24
    assert set(taken) == submitted


async def test_claims_are_fair_between_owners(store: Any) -> None:
    for _ in range(4):
        await store.submit(new_task(owner="alice"))
    for owner in ("bob", "carol"):
        await store.submit(new_task(owner=owner))
    order = [(await claimed(store)).task.owner for _ in range(6)]
    assert order == ["alice", "bob", "carol", "alice", "alice", "alice"]


async def test_an_owner_whose_turn_is_longest_ago_goes_first(store: Any) -> None:
    for owner in ("alice", "alice", "alice", "bob", "bob"):
        await store.submit(new_task(owner=owner))
    order = []
    for _ in range(5):  # one worker: nothing else is running when it claims
        claim = await claimed(store)
        order.append(claim.task.owner)
        await store.finish(claim, Status.SUCCEEDED)
    assert order == ["alice", "bob", "alice", "bob", "alice"]


async def test_the_queue_position_is_the_number_of_claims_before(store: Any) -> None:
    tasks = [await store.submit(new_task(owner=owner)) for owner in ("a", "a", "a", "b", "c", "b", "a")]
    positions = await store.queue_positions([task.id for task in tasks])
    order = [(await claimed(store)).task.id for _ in tasks]
    assert [positions[task_id] for task_id in order] == list(range(7))
    assert await store.queue_positions([order[0], "nothing"]) == {}
    assert await store.queue_positions([]) == {}


@pytest.mark.parametrize("seed", range(8))
async def test_the_queue_position_counts_what_runs_and_whose_turn_it_was(store: Any, seed: int) -> None:
    chance = random.Random(seed)
    owners = "abcde"[: chance.randint(2, 5)]
    for _ in range(chance.randint(5, 25)):
        await store.submit(new_task(owner=chance.choice(owners)))
    for _ in range(chance.randint(0, 12)):  # some run, some have ended, some are back in the queue
        if (claim := await store.claim("w", LEASE)) and (end := chance.choice(("run", "finish", "release"))) != "run":
            await (store.release(claim) if end == "release" else store.finish(claim, Status.SUCCEEDED))
    waiting = [task for owner in owners for task in await store.recent(owner, statuses=[Status.QUEUED])]
    positions = await store.queue_positions([task.id for task in waiting])
    order = [(await claimed(store)).task.id for _ in waiting]
    assert [positions[task_id] for task_id in order] == list(range(len(waiting)))


async def test_work_wakes_a_waiting_worker(store: Any) -> None:
    waiting = asyncio.create_task(store.wait_for_work(5))
    await asyncio.sleep(0)
    await store.submit(new_task())
    assert await waiting is True
    assert await store.wait_for_work(0.01) is False


# Working


async def test_results_are_stored_once_and_in_order(store: Any) -> None:
    task = await store.submit(new_task(request=request(count=3)))
    claim = await claimed(store)
    record = Record(stage_ms={"denoise": 12.5}, warnings=("w",), prompt="p")
    second = result(1, record=record, nsfw=True, width=64, height=32, finished_at=task.created_at)
    await store.store_result(claim, second, [webhook()])
    await store.store_result(claim, result(0, media_id=None, fault=FAULT), [])
    await store.store_result(claim, result(1, media_id="another"), [webhook()])
    stored = await store.get(task.id)
    assert stored.results == (result(0, media_id=None, fault=FAULT), second)
    assert len(await store.deliveries(task.id)) == 1
    assert stored.version > claim.task.version


async def test_a_result_and_the_record_of_its_file_are_written_together(store: Any, clock: Clock) -> None:
    task = await store.submit(new_task(request=request(count=2)))
    claim = await claimed(store)
    first, second = stored_file(clock), stored_file(clock)
    await store.store_result(claim, result(0, media_id=first.id), [], file=first)
    assert await store.files.get(first.id) == first
    await store.cancel(task.id)
    with pytest.raises(LeaseLost):
        await store.store_result(claim, result(1, media_id=second.id), [], file=second)
    assert await store.files.get(second.id) is None


async def test_a_file_that_was_made_again_has_its_newest_record(store: Any, clock: Clock) -> None:
    await store.submit(new_task())
    claim = await claimed(store)
    first = stored_file(clock)
    again = replace(first, bytes=11, sha256="ef" * 32, created_at=clock())
    await store.store_result(claim, result(0, media_id=first.id), [], file=first)
    await store.store_result(claim, result(0, media_id=first.id), [], file=again)
    assert await store.files.get(first.id) == replace(again, created_at=first.created_at)


async def test_finish_ends_a_task(store: Any) -> None:
    task = await store.submit(new_task())
    ended = await store.finish(await claimed(store), Status.FAILED, fault=FAULT, cost=0.125, owed=[webhook()])
    assert (ended.status, ended.fault, ended.cost) == (Status.FAILED, FAULT, 0.125)
    assert ended.finished_at is not None
    assert ended == await store.get(task.id)
    assert [delivery.owed for delivery in await store.deliveries(task.id)] == [webhook()]


async def test_a_task_ends_at_the_time_that_its_callers_were_told(store: Any, clock: Clock) -> None:
    end = clock() - timedelta(milliseconds=3)
    task = await store.submit(new_task())
    assert (await store.finish(await claimed(store), Status.SUCCEEDED, at=end)).finished_at == end
    other, _ = await store.cancel((await store.submit(new_task())).id, at=end)
    assert [other.finished_at, (await store.get(task.id)).finished_at] == [end, end]


async def test_the_last_result_is_written_with_the_end(store: Any, clock: Clock) -> None:
    task = await store.submit(new_task(request=request(count=2)))
    claim = await claimed(store)
    file, first = stored_file(clock), result(0)
    await store.store_result(claim, first, [])
    last = LastResult(result=result(1, media_id=file.id), owed=(webhook(),), file=file)
    async with store.watch(task.id) as watch:
        ended = await store.finish(claim, Status.SUCCEEDED, owed=[upload()], last=last)
        told = [event async for event in watch]
    assert ended == await store.get(task.id)
    assert ended.results == (first, last.result)
    assert [type(event).__name__ for event in told] == ["ResultStored", "TaskChanged"]
    assert await store.files.get(file.id) == file
    assert [delivery.owed for delivery in await store.deliveries(task.id)] == [webhook(), upload()]


async def test_nothing_of_a_last_result_is_kept_without_the_end(store: Any, clock: Clock) -> None:
    task = await store.submit(new_task())
    claim, file = await claimed(store), stored_file(clock)
    await store.cancel(task.id)
    with pytest.raises(LeaseLost):
        last = LastResult(result=result(0, media_id=file.id), owed=(webhook(),), file=file)
        await store.finish(claim, Status.SUCCEEDED, last=last)
    assert (await store.get(task.id)).results == ()
    assert await store.files.get(file.id) is None
    assert await store.deliveries(task.id) == []


async def test_a_last_result_that_is_there_already_is_not_owed_again(store: Any) -> None:
    task = await store.submit(new_task())
    claim = await claimed(store)
    await store.store_result(claim, result(0), [webhook()])
    await store.finish(claim, Status.SUCCEEDED, last=LastResult(result=result(0), owed=(webhook(),)))
    assert len(await store.deliveries(task.id)) == 1


async def test_a_task_ends_once(store: Any) -> None:
    task = await store.submit(new_task())
    claim = await claimed(store)
    ended = await store.finish(claim, Status.SUCCEEDED)
    for late in (
        store.finish(claim, Status.FAILED),
        store.store_result(claim, result(), [webhook()]),
        store.release(claim),
    ):
        with pytest.raises(LeaseLost):
            await late
    assert await store.cancel(task.id, [webhook()]) == (ended, False)
    assert await store.deliveries(task.id) == []
    assert await store.get(task.id) == ended


async def test_renew_keeps_a_task(store: Any, clock: Clock) -> None:
    await store.submit(new_task())
    claim = await claimed(store, seconds=10)
    for _ in range(5):
        clock.advance(8)
        assert await store.renew(claim, 10) is Status.PROCESSING
        assert await store.claim("other", LEASE) is None
    await store.finish(claim, Status.SUCCEEDED)


async def test_a_silent_worker_loses_its_task_and_its_late_report_is_refused(store: Any, clock: Clock) -> None:
    await store.submit(new_task())
    lost = await claimed(store, "first", 10)
    await store.store_result(lost, result(0), [])
    clock.advance(11)
    taken = await claimed(store, "second", 10)
    assert taken.task.id == lost.task.id
    assert (taken.task.attempts, taken.task.results) == (2, (result(0),))
    assert taken.token > lost.token
    for late in (
        store.renew(lost, 10),
        store.release(lost),
        store.store_result(lost, result(1), [webhook()]),
        store.finish(lost, Status.SUCCEEDED, owed=[webhook()]),
    ):
        with pytest.raises(LeaseLost):
            await late
    assert await store.renew(taken, 10) is Status.PROCESSING
    ended = await store.finish(taken, Status.SUCCEEDED)
    assert ended.results == (result(0),)
    assert await store.deliveries(ended.id) == []


async def test_a_silent_workers_task_is_taken_up_while_others_keep_coming(store: Any, clock: Clock) -> None:
    lost = await store.submit(new_task())
    await claimed(store)
    taken = []
    for _ in range(8):
        clock.advance(LEASE / 4)
        await store.submit(new_task())
        taken.append((await claimed(store)).task.id)
    assert lost.id in taken


async def test_a_lapsed_lease_that_nobody_took_over_is_still_good(store: Any, clock: Clock) -> None:
    await store.submit(new_task())
    claim = await claimed(store, seconds=10)
    clock.advance(60)
    assert await store.renew(claim, 10) is Status.PROCESSING
    assert (await store.finish(claim, Status.SUCCEEDED)).status is Status.SUCCEEDED


async def test_a_task_that_kills_its_workers_is_failed(store: Any, clock: Clock) -> None:
    announced: list[tuple[Task, Fault]] = []

    def announce(task: Task, fault: Fault) -> list[Owed]:
        announced.append((task, fault))
        return [webhook()]

    store.announce_lost = announce
    task = await store.submit(new_task())
    for attempt in range(MAX_ATTEMPTS):
        assert (await claimed(store, seconds=10)).task.attempts == attempt + 1
        clock.advance(11)
    assert await store.claim("w", LEASE) is None
    ended = await store.get(task.id)
    assert ended.status is Status.FAILED
    assert ended.fault is not None
    assert ended.fault.code == "engine_lost"
    assert [(told.id, told.status, fault) for told, fault in announced] == [(task.id, Status.FAILED, ended.fault)]
    assert [delivery.owed for delivery in await store.deliveries(task.id)] == [webhook()]


async def test_release_hands_back_without_counting(store: Any) -> None:
    task = await store.submit(new_task())
    await store.submit(new_task())
    for _ in range(MAX_ATTEMPTS + 2):
        claim = await claimed(store)
        assert (claim.task.id, claim.task.attempts) == (task.id, 1)
        await store.release(claim)
        back = await store.get(task.id)
        assert (back.status, back.attempts, back.started_at) == (Status.QUEUED, 0, claim.task.started_at)
        with pytest.raises(LeaseLost):
            await store.renew(claim, LEASE)


async def test_cancel_ends_a_queued_task(store: Any) -> None:
    task = await store.submit(new_task())
    cancelled, changed = await store.cancel(task.id, [webhook()])
    assert changed
    assert cancelled.status is Status.CANCELLED
    assert cancelled.finished_at is not None
    assert await store.claim("w", LEASE) is None
    assert len(await store.deliveries(task.id)) == 1


async def test_cancel_ends_a_running_task_and_its_worker_hears_of_it(store: Any, clock: Clock) -> None:
    task = await store.submit(new_task())
    claim = await claimed(store)
    await store.store_result(claim, result(0), [])
    cancelled, changed = await store.cancel(task.id)
    assert changed
    assert cancelled.results == (result(0),)
    assert await store.renew(claim, LEASE) is Status.CANCELLED
    with pytest.raises(LeaseLost):
        await store.finish(claim, Status.SUCCEEDED)
    clock.advance(LEASE + 1)
    assert await store.claim("w", LEASE) is None
    assert (await store.get(task.id)).status is Status.CANCELLED


async def test_of_many_cancels_at_once_one_counts(store: Any) -> None:
    task = await store.submit(new_task())
    outcomes = await asyncio.gather(*(store.cancel(task.id, [webhook()]) for _ in range(8)))
    assert sum(changed for _, changed in outcomes) == 1
    assert len(await store.deliveries(task.id)) == 1


# Watching


async def events_of(store: Any, task_id: str, entered: asyncio.Event) -> list[Any]:
    async with store.watch(task_id) as events:
        entered.set()
        return [event async for event in events]


async def watching(store: Any, task_id: str) -> asyncio.Task[list[Any]]:
    entered = asyncio.Event()
    watcher = asyncio.create_task(events_of(store, task_id, entered))
    await entered.wait()
    return watcher


async def test_watchers_hear_everything_in_order_and_end(store: Any) -> None:
    task = await store.submit(new_task())
    watchers = [await watching(store, task.id) for _ in range(2)]
    claim = await claimed(store)
    progress = Progress(task=task.id, result=0, stage=Stage.DENOISE, step=1, steps=4)
    preview = Preview(task=task.id, result=0, step=1, steps=4, jpeg=b"j")
    await store.publish(progress)
    await store.publish(preview)
    await store.store_result(claim, result(0), [])
    ended = await store.finish(claim, Status.SUCCEEDED)
    expected = [
        TaskChanged(task=claim.task),
        progress,
        preview,
        ResultStored(task_id=task.id, result=result(0)),
        TaskChanged(task=ended),
    ]
    async with asyncio.timeout(5):
        assert [await watcher for watcher in watchers] == [expected, expected]


async def test_moves_of_another_server_are_noticed(sql_stores: Stores) -> None:
    here, there = await sql_stores.open(), await sql_stores.open()
    task = await here.submit(new_task())
    heard: list[Any] = []
    async with asyncio.timeout(30), here.watch(task.id) as events:
        claim = await claimed(there)
        await there.store_result(claim, result(0), [])
        await there.store_result(claim, result(1), [])
        while len(heard) < 3:
            heard.append(await anext(events))
        ended = await there.finish(claim, Status.SUCCEEDED)
        heard += [event async for event in events]
    assert [event.result.index for event in heard if isinstance(event, ResultStored)] == [0, 1]
    assert [event.task.status for event in heard if isinstance(event, TaskChanged)] == [
        Status.PROCESSING,
        Status.SUCCEEDED,
    ]
    assert heard[-1] == TaskChanged(task=ended)


async def test_a_watch_of_an_ended_task_ends_at_once(store: Any) -> None:
    task = await store.submit(new_task())
    cancelled, _ = await store.cancel(task.id)
    async with asyncio.timeout(5):
        assert await (await watching(store, task.id)) == [TaskChanged(task=cancelled)]


async def test_a_watch_begins_now(store: Any) -> None:
    task = await store.submit(new_task())
    claim = await claimed(store)
    await store.store_result(claim, result(0), [])
    watcher = await watching(store, task.id)
    async with store.watch(task.id) as events:
        assert events.task == await store.get(task.id)
    await store.store_result(claim, result(1), [])
    ended = await store.finish(claim, Status.SUCCEEDED)
    async with asyncio.timeout(5):
        assert await watcher == [ResultStored(task_id=task.id, result=result(1)), TaskChanged(task=ended)]


async def test_a_slow_watcher_loses_hints_and_nothing_else(store: Any) -> None:
    task = await store.submit(new_task())
    claim = await claimed(store)
    async with store.watch(task.id) as events:
        for step in range(1000):
            await store.publish(Progress(task=task.id, result=0, stage=Stage.DENOISE, step=step, steps=1000))
        await store.store_result(claim, result(0), [])
        ended = await store.finish(claim, Status.SUCCEEDED)
        heard = [event async for event in events]
    steps = [event.step for event in heard if isinstance(event, Progress)]
    assert steps[-1] == 999
    assert steps == sorted(steps)
    assert len(steps) <= 64
    assert heard[-2:] == [ResultStored(task_id=task.id, result=result(0)), TaskChanged(task=ended)]


async def test_nothing_unknown_can_be_watched(store: Any) -> None:
    with pytest.raises(NotFound):
        async with store.watch("nothing"):
            pytest.fail("entered")


async def test_closing_ends_every_watch(stores: Stores) -> None:
    store = await stores.open()
    watcher = await watching(store, (await store.submit(new_task())).id)
    await store.close()
    async with asyncio.timeout(5):
        assert await watcher == []


# Lists


async def test_recent_pages_backwards(store: Any) -> None:
    tasks = [await store.submit(new_task()) for _ in range(5)]
    await store.submit(new_task(owner="bob"))
    page = await store.recent("alice", limit=2)
    assert page == [tasks[4], tasks[3]]
    page = await store.recent("alice", before=(page[-1].created_at, page[-1].id), limit=9)
    assert page == [tasks[2], tasks[1], tasks[0]]
    assert await store.recent("alice", dialect="runflow") == []


async def test_search_filters(store: Any, clock: Clock) -> None:
    tasks = []
    for ref in ("a", "b", "a"):
        tasks.append(await store.submit(new_task(dialect="runflow", options={"client_ref": ref})))
        clock.advance(60)
    first, second, third = tasks
    await store.cancel(second.id)
    second = await store.get(second.id)

    async def found(**query: Any) -> list[Task]:
        return await store.search("alice", "runflow", **query)

    assert await found() == [third, second, first]
    assert await found(newest_first=False) == [first, second, third]
    assert await found(client_ref="a") == [third, first]
    assert await found(client_ref="nobody's") == []
    assert await found(statuses=[Status.CANCELLED]) == [second]
    assert await found(statuses=[Status.CANCELLED, Status.QUEUED], limit=2) == [third, second]
    assert await found(created_after=first.created_at) == [third, second]
    assert await found(created_after=first.created_at - timedelta(microseconds=1)) == [third, second, first]
    assert await found(created_before=third.created_at) == [second, first]
    assert await found(cursor=third.id) == [second, first]
    assert await found(cursor=second.id, newest_first=False) == [third]
    assert await store.search("bob", "runflow") == []


async def test_a_client_ref_that_cannot_be_searched_is_kept_all_the_same(store: Any) -> None:
    for ref in ("x" * 5000, "nul\0", 7, {"a": 1}):
        task = await store.submit(new_task(options={"client_ref": ref}))
        assert (await store.get(task.id)).options == {"client_ref": ref}


async def test_the_backlog_is_what_waits(store: Any, clock: Clock) -> None:
    assert await store.backlog() == Backlog(queued_since=None, owed={OwedKind.WEBHOOK: 0, OwedKind.UPLOAD: 0})
    first, second = await store.submit(new_task()), await store.submit(new_task())
    assert (await store.backlog()).queued_since == first.created_at
    claim = await claimed(store)
    await store.finish(claim, Status.SUCCEEDED, owed=[webhook(), webhook(), upload()])
    done = (await store.due(clock(), 10, LEASE))[0]
    attempt = Attempt(at=clock(), status=200, error=None, milliseconds=1)
    await store.record_attempt(done.id, attempt, state="delivered", next_at=None)
    assert await store.backlog() == Backlog(
        queued_since=second.created_at, owed={OwedKind.WEBHOOK: 1, OwedKind.UPLOAD: 1}
    )


async def test_counts_has_every_state(store: Any) -> None:
    for _ in range(3):
        await store.submit(new_task())
    await store.finish(await claimed(store), Status.FAILED)
    await claimed(store)
    assert await store.counts() == {
        Status.QUEUED: 1,
        Status.PROCESSING: 1,
        Status.SUCCEEDED: 0,
        Status.FAILED: 1,
        Status.CANCELLED: 0,
    }


# What is owed


def tried(clock: Clock, status: int | None = 500) -> Attempt:
    return Attempt(at=clock(), status=status, error=None, milliseconds=1.5, response="no")


async def owing(store: Any, *owed: Owed) -> str:
    task = await store.submit(new_task())
    await store.finish(await claimed(store), Status.SUCCEEDED, owed=owed)
    return str(task.id)


async def test_what_is_owed_is_due_once_per_lease(store: Any, clock: Clock) -> None:
    hook = webhook(headers={"X": "y"}, signing="standard", result=0, body=b"\0\xff")
    task_id = await owing(store, hook)
    (delivery,) = await store.due(clock(), 10, 30)
    assert (delivery.task_id, delivery.owed, delivery.state) == (task_id, hook, "pending")
    assert await store.due(clock(), 10, 30) == []
    clock.advance(31)
    assert [again.id for again in await store.due(clock(), 10, 30)] == [delivery.id]


async def test_two_servers_never_send_the_same_delivery(stores: Stores, clock: Clock) -> None:
    servers = [await stores.open() for _ in range(3)]
    await owing(servers[0], *(webhook(f"https://example.com/{i}") for i in range(12)))
    now = clock()
    batches = await asyncio.gather(*(server.due(now, 4, 30) for server in servers * 2))
    sent = [delivery.owed.url for batch in batches for delivery in batch]
    assert len(sent) == len(set(sent)) == 12


async def test_attempts_are_written_down(store: Any, clock: Clock) -> None:
    task_id = await owing(store, webhook())
    (delivery,) = await store.due(clock(), 10, 30)
    first, second = tried(clock), tried(clock, 200)
    later = clock() + timedelta(seconds=5)
    await store.record_attempt(delivery.id, first, state="pending", next_at=later)
    assert await store.due(clock(), 10, 30) == []
    clock.advance(6)
    (again,) = await store.due(clock(), 10, 30)
    assert again.attempts == (first,)
    await store.record_attempt(delivery.id, second, state="delivered", next_at=None)
    (done,) = await store.deliveries(task_id)
    assert (done.state, done.next_at, done.attempts) == ("delivered", None, (first, second))
    clock.advance(1000)
    assert await store.due(clock(), 10, 30) == []


async def test_giving_up_may_owe_something_in_turn(store: Any, clock: Clock) -> None:
    task_id = await owing(store, upload())
    (delivery,) = await store.due(clock(), 10, 30)
    await store.record_attempt(delivery.id, tried(clock), state="failed", next_at=None, owed=[webhook()])
    assert [(one.owed.kind, one.state) for one in await store.deliveries(task_id)] == [
        ("upload", "failed"),
        ("webhook", "pending"),
    ]


async def test_uploads_to_one_address_go_in_order(store: Any, clock: Clock) -> None:
    await owing(store, upload(result=0), upload(result=1), upload("https://example.com/other", result=2), webhook())
    first = {(one.owed.kind, one.owed.result): one for one in await store.due(clock(), 10, 30)}
    assert set(first) == {("upload", 0), ("upload", 2), ("webhook", None)}
    await store.record_attempt(first["upload", 0].id, tried(clock, 200), state="delivered", next_at=None)
    assert [one.owed.result for one in await store.due(clock(), 10, 30)] == [1]


async def test_a_redelivery_can_be_owed_later(store: Any, clock: Clock) -> None:
    task_id = await owing(store)
    delivery = await store.owe(task_id, webhook())
    assert delivery.automatic is False
    assert [one.id for one in await store.due(clock(), 10, 30)] == [delivery.id]


async def test_what_is_owed_wakes_the_outbox(store: Any) -> None:
    waiting = asyncio.create_task(store.wait_for_owed(5))
    await asyncio.sleep(0)
    await owing(store, webhook())
    assert await waiting is True


# What another version wrote


async def overwrite(store: Any, table: sa.Table, **values: str) -> None:
    await store.database.write(lambda connection: connection.execute(sa.update(table).values(**values)))


async def test_a_kind_of_delivery_that_only_another_version_knows_is_handed_out_by_its_name(
    sql_stores: Stores, clock: Clock
) -> None:
    store = await sql_stores.open()
    task_id = await owing(store, webhook())
    await overwrite(store, deliveries, kind="pigeon")
    await owing(store, webhook())
    assert (await store.backlog()).owed == {OwedKind.WEBHOOK: 1, OwedKind.UPLOAD: 0}
    assert [one.owed.kind for one in await store.due(clock(), 10, LEASE)] == ["pigeon", OwedKind.WEBHOOK]
    assert [one.owed.kind for one in await store.deliveries(task_id)] == ["pigeon"]


async def test_a_status_that_only_another_version_knows_is_told_and_left_alone(
    sql_stores: Stores, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store = await sql_stores.open()
    task = await store.submit(new_task())
    held = await claimed(store)
    foreign = f"paused {sql_stores.kind}"  # each is said once, so each store has its own
    await overwrite(store, tasks, status=foreign)
    other = await store.submit(new_task())
    seen = await store.get(task.id)
    assert seen.status is Status.FAILED
    assert seen.fault is not None and repr(foreign) in seen.fault.message
    assert await store.recent("alice") == [other, seen]
    assert sum((await store.counts()).values()) == 1
    assert (await store.cancel(task.id)) == (seen, False)
    with pytest.raises(LeaseLost):  # whoever worked on it lets go
        await store.renew(held, LEASE)
    clock.advance(LEASE + 1)
    assert (await claimed(store)).task.id == other.id
    clock.advance(1_000_000)
    assert await store.expire(clock(), 10) == 0
    status = sa.select(tasks.c.status).where(tasks.c.id == task.id)
    assert await store.database.read(lambda connection: connection.scalar(status)) == foreign
    assert caplog.text.count(foreign) == 1


# Keeping house


async def test_expire_forgets_ended_tasks_and_all_that_hangs_on_them(store: Any, clock: Clock) -> None:
    old = await store.submit(new_task())
    claim = await claimed(store)
    await store.store_result(claim, result(), [webhook()])
    await store.finish(claim, Status.SUCCEEDED)
    (delivery,) = await store.due(clock(), 10, 30)
    await store.record_attempt(delivery.id, tried(clock), state="failed", next_at=None)
    open_task = await store.submit(new_task())
    clock.advance(3600)
    young, _ = await store.cancel((await store.submit(new_task())).id)
    assert await store.expire(clock() - timedelta(seconds=60), 10) == 1
    assert await store.expire(clock() - timedelta(seconds=60), 10) == 0
    with pytest.raises(NotFound):
        await store.get(old.id)
    assert await store.deliveries(old.id) == []
    assert await store.due(clock(), 10, 30) == []
    assert {task.id for task in await store.recent("alice")} == {open_task.id, young.id}
    await store.record_attempt(delivery.id, tried(clock), state="failed", next_at=None)  # of a task that is gone


async def test_a_task_is_remembered_as_long_as_its_files(store: Any, clock: Clock) -> None:
    task = await store.submit(new_task(ttl_seconds=7200))
    await store.cancel(task.id)
    clock.advance(3600)
    assert await store.expire(clock() - timedelta(seconds=60), 10) == 0
    clock.advance(3601)
    assert await store.expire(clock() - timedelta(seconds=60), 10) == 1


async def test_a_task_is_remembered_while_something_is_owed_of_it(store: Any, clock: Clock) -> None:
    task = await store.submit(new_task())
    await store.cancel(task.id, [webhook()])
    (delivery,) = await store.due(clock(), 10, 30)
    clock.advance(7200)
    assert await store.expire(clock() - timedelta(seconds=60), 10) == 0
    await store.record_attempt(delivery.id, tried(clock), state="failed", next_at=None)
    assert await store.expire(clock() - timedelta(seconds=60), 10) == 1


async def test_a_last_result_of_a_task_that_is_forgotten_is_late(store: Any, clock: Clock) -> None:
    await store.submit(new_task())
    claim = await claimed(store)
    await store.cancel(claim.task.id)
    clock.advance(7200)
    assert await store.expire(clock(), 10) == 1
    with pytest.raises((LeaseLost, NotFound)):
        await store.finish(claim, Status.SUCCEEDED, last=LastResult(result=result()))


async def test_expire_takes_the_oldest_first_and_at_most_limit(store: Any, clock: Clock) -> None:
    tasks = [await store.submit(new_task()) for _ in range(3)]
    for task in tasks:
        await store.cancel(task.id)
    assert await store.expire(clock(), 2) == 2
    assert [task.id for task in await store.recent("alice")] == [tasks[2].id]
