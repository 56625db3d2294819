"""Each task ends exactly once and no result is lost, however workers, crashes, cancels and time interleave."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from darkroom.errors import LeaseLost
from darkroom.tasks.lifecycle import MAX_ATTEMPTS, MOVES, Status, is_final, may_move
from darkroom.tasks.memory import MemoryTaskStore
from darkroom.tasks.sql import SqlTaskStore
from darkroom.tasks.store import TaskChanged
from darkroom.tasks.task import Claim, Result
from tests.tasks.stores import Clock, new_task, request, result, webhook

COUNT = 2  # results a task asks for
LEASE = 10.0

# What may happen, in any order: (what, which worker or task)
HAPPENINGS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(["alice", "bob"])),
        st.tuples(st.sampled_from(["claim", "store", "finish", "renew", "release", "crash"]), st.integers(0, 1)),
        st.tuples(st.just("cancel"), st.integers(0, 4)),
        st.tuples(st.just("wait"), st.sampled_from([1.0, LEASE + 1])),
    ),
    min_size=5,
    max_size=60,
)


def test_final_states_have_no_moves() -> None:
    assert {status for status in Status if is_final(status)} == {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}
    for before in Status:
        for after in Status:
            assert may_move(before, after) is (after in MOVES[before])


@given(HAPPENINGS)
@settings(max_examples=150, deadline=None)
def test_any_interleaving_in_memory(happenings: list[tuple[str, Any]]) -> None:
    async def run() -> None:
        clock = Clock()
        store = MemoryTaskStore(clock=clock)
        await World(clock, [store, store]).run(happenings)
        await store.close()

    asyncio.run(run())


@given(happenings=HAPPENINGS)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_any_interleaving_of_two_servers_on_sqlite(
    tmp_path: Path, migrated: Path, happenings: list[tuple[str, Any]]
) -> None:
    async def run() -> None:
        clock = Clock()
        url = fresh_copy(migrated, tmp_path)
        stores = [await SqlTaskStore.open(url, clock=clock) for _ in range(2)]
        await World(clock, stores).run(happenings)
        for store in stores:
            await store.close()

    asyncio.run(run())


def fresh_copy(migrated: Path, folder: Path) -> str:
    for old in folder.glob("darkroom.db*"):
        old.unlink()
    return f"sqlite:///{shutil.copy(migrated, folder / 'darkroom.db')}"


class World:
    """Two workers, each on a server of its own, and a list of what must be true of every task."""

    def __init__(self, clock: Clock, stores: list[Any]) -> None:
        self.clock = clock
        self.stores = stores
        self.claims: list[Claim | None] = [None, None]
        self.stale: list[Claim] = []  # of workers that crashed or lost their lease: they may still speak up
        self.tasks: list[str] = []
        self.results: dict[str, dict[int, Result]] = {}  # that a store said it has
        self.ends: dict[str, Status] = {}  # that a store said happened
        for store in stores:
            store.announce_lost = self._announced

    async def run(self, happenings: list[tuple[str, Any]]) -> None:
        for what, which in happenings:
            await getattr(self, what)(which)
            await self._late_reports_are_refused()
        await self._check()
        await self._drain()
        await self._check()
        for task_id in self.tasks:
            assert is_final((await self.stores[0].get(task_id)).status)

    # What may happen

    async def submit(self, owner: str) -> None:
        task = await self.stores[0].submit(new_task(owner=owner, request=request(count=COUNT)))
        self.tasks.append(task.id)
        self.results[task.id] = {}

    async def claim(self, worker: int) -> None:
        if self.claims[worker] is None:
            self.claims[worker] = await self.stores[worker].claim(f"w{worker}", LEASE)
            claim = self.claims[worker]
            if claim is not None:
                assert claim.task.id not in self.ends
                assert claim.task.attempts <= MAX_ATTEMPTS
                held = dict(enumerate(claim.task.results))
                assert {one.index: one for one in held.values()} == self.results[claim.task.id]

    async def store(self, worker: int) -> None:
        claim = self.claims[worker]
        if claim is None:
            return
        known = self.results[claim.task.id]
        index = len(known)
        if index >= COUNT:
            return
        made = result(index, media_id=f"by w{worker} at {claim.token}")
        try:
            await self.stores[worker].store_result(claim, made, [webhook(result=index)])
        except LeaseLost:
            self._lose(worker)
        else:
            known[index] = made

    async def finish(self, worker: int) -> None:
        claim = self.claims[worker]
        if claim is None:
            return
        complete = len(self.results[claim.task.id]) == COUNT
        status = Status.SUCCEEDED if complete else Status.FAILED
        try:
            await self.stores[worker].finish(claim, status, owed=[webhook()])
        except LeaseLost:
            self._lose(worker)
        else:
            self._ended(claim.task.id, status)
            self._lose(worker)

    async def renew(self, worker: int) -> None:
        claim = self.claims[worker]
        if claim is None:
            return
        try:
            status = await self.stores[worker].renew(claim, LEASE)
        except LeaseLost:
            self._lose(worker)
        else:
            assert status in (Status.PROCESSING, Status.CANCELLED)
            assert (status is Status.CANCELLED) == (self.ends.get(claim.task.id) is Status.CANCELLED)
            if status is Status.CANCELLED:
                self._lose(worker)

    async def release(self, worker: int) -> None:
        claim = self.claims[worker]
        if claim is None:
            return
        with suppress(LeaseLost):
            await self.stores[worker].release(claim)
        self._lose(worker)

    async def crash(self, worker: int) -> None:
        """Silent from now on; its lease goes on."""
        self._lose(worker)

    async def cancel(self, which: int) -> None:
        if self.tasks:
            task_id = self.tasks[which % len(self.tasks)]
            task, changed = await self.stores[which % 2].cancel(task_id, [webhook()])
            if changed:
                self._ended(task_id, Status.CANCELLED)
            assert task.status is self.ends[task_id]

    async def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # What must be true

    def _ended(self, task_id: str, status: Status) -> None:
        assert task_id not in self.ends, "a task ended twice"
        self.ends[task_id] = status

    def _announced(self, task: Any, fault: Any) -> list[Any]:
        self._ended(task.id, Status.FAILED)
        assert task.attempts == MAX_ATTEMPTS
        return [webhook()]

    def _lose(self, worker: int) -> None:
        claim = self.claims[worker]
        if claim is not None:
            self.stale.append(claim)
        self.claims[worker] = None

    async def _late_reports_are_refused(self) -> None:
        """Of every claim that another one replaced, or whose task has ended."""
        current = {claim.task.id: claim.token for claim in self.claims if claim is not None}
        for claim in self.stale:
            if claim.task.id in self.ends or current.get(claim.task.id, claim.token) != claim.token:
                with pytest.raises(LeaseLost):
                    await self.stores[0].store_result(claim, result(COUNT + 1), [webhook(result=COUNT + 1)])

    async def _check(self) -> None:
        for task_id in self.tasks:
            task = await self.stores[1].get(task_id)
            assert {one.index: one for one in task.results} == self.results[task_id], "a result was lost or invented"
            if task_id in self.ends:
                assert task.status is self.ends[task_id]
            else:
                assert not is_final(task.status)
            owed = [one.owed.result for one in await self.stores[0].deliveries(task_id)]
            assert sorted(one for one in owed if one is not None) == sorted(self.results[task_id])
            assert owed.count(None) == (task_id in self.ends), "the end is told once"

    async def _drain(self) -> None:
        """Everybody dies; then one worker goes on until nothing is left."""
        for worker in range(2):
            self._lose(worker)
        while len(self.ends) < len(self.tasks):
            await self.claim(0)
            if self.claims[0] is None:
                await self.wait(LEASE + 1)
                continue
            for _ in range(COUNT):
                await self.store(0)
            await self.finish(0)


async def test_a_watcher_hears_the_end_once_however_it_comes(store: Any, clock: Clock) -> None:
    """The last claim is lost, the task is failed by the store itself, and a cancel comes too late."""
    task = await store.submit(new_task())
    async with store.watch(task.id) as events:
        for _ in range(MAX_ATTEMPTS):
            assert await store.claim("w", LEASE) is not None
            clock.advance(LEASE + 1)
        assert await store.claim("w", LEASE) is None
        assert (await store.cancel(task.id))[1] is False
        heard = [event.task.status async for event in events if isinstance(event, TaskChanged)]
    assert heard == [Status.PROCESSING, Status.QUEUED] * 2 + [Status.PROCESSING, Status.FAILED]
