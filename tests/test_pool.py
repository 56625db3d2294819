"""Engines behind the pool: in this process and in one of their own, which may be killed at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from darkroom.engine.fake import FakeEngine
from darkroom.engine.spec import EngineSpec, Make
from darkroom.errors import EngineLost
from darkroom.pool import ChildPool, LocalPool, SeatedPool
from darkroom.types import Ended, EngineEvent, Failure, ImageRequest, Job, Picture, Progress, StepCache, StepCacheKind
from tests import tiny
from tests.eventually import eventually

REQUEST = ImageRequest(card="runware:400@5", prompt="a red circle", width=64, height=48, steps=3, seed=7)
SLOW = "a red circle [slow 50]"


def job(name: str = "job", count: int = 1, **changes: object) -> Job:
    request = msgspec.structs.replace(REQUEST, count=count, **changes)
    return Job(id=name, request=request, results=tuple(range(count)))


def fake(step_ms: float = 0.0) -> EngineSpec:
    return EngineSpec(make=Make.FAKE, step_ms=step_ms)


@contextlib.asynccontextmanager
async def started(pool: SeatedPool) -> AsyncIterator[SeatedPool]:
    await pool.start()
    try:
        yield pool
    finally:
        await pool.stop()


@pytest.fixture(params=["local", "child"])
async def pool(request: pytest.FixtureRequest) -> AsyncIterator[SeatedPool]:
    made = LocalPool(FakeEngine) if request.param == "local" else ChildPool([fake()])
    async with started(made) as running:
        yield running


@pytest.fixture
async def child() -> AsyncIterator[ChildPool]:
    pool = ChildPool([fake()])
    async with started(pool):
        yield pool


def pid_of(pool: ChildPool) -> int:
    pid = pool.pids[0]
    assert pid is not None
    return pid


async def events_of(pool: SeatedPool, job: Job) -> list[EngineEvent]:
    return [event async for event in pool.run(job)]


def pictures(events: list[EngineEvent]) -> dict[int, bytes]:
    return {event.result: event.pixels.data for event in events if isinstance(event, Picture)}


async def first_step(pool: SeatedPool, job: Job, reached: asyncio.Event) -> list[EngineEvent]:
    events = []
    async for event in pool.run(job):
        events.append(event)
        reached.set()
    return events


async def test_a_job_streams_its_events_and_ends(pool: SeatedPool) -> None:
    events = await events_of(pool, job(count=2))
    assert [event.step for event in events if isinstance(event, Progress) and event.result == 1] == [1, 2, 3]
    assert sorted(pictures(events)) == [0, 1]
    assert events[-1] == Ended(task="job")
    assert sum(isinstance(event, Ended) for event in events) == 1


async def test_many_jobs_at_once_share_the_engine(pool: SeatedPool) -> None:
    alone = pictures(await events_of(pool, job("alone", seed=3)))
    together = await asyncio.gather(*(events_of(pool, job(f"job {n}", seed=n)) for n in range(20)))
    assert pictures(together[3]) == alone
    assert len({pictures(events)[0] for events in together}) == 20


async def test_cancel_ends_one_job_between_two_steps(pool: SeatedPool) -> None:
    reached = asyncio.Event()
    slow = asyncio.create_task(first_step(pool, job("slow", prompt=SLOW, steps=1000), reached))
    await reached.wait()
    beside = asyncio.create_task(events_of(pool, job("beside", width=80)))
    await pool.cancel("slow")
    await pool.cancel("unknown")
    assert (await slow)[-1] == Ended(task="slow", cancelled=True)
    assert pictures(await beside)


async def test_a_run_that_is_left_early_is_cancelled(pool: SeatedPool) -> None:
    async with contextlib.aclosing(pool.run(job("left", prompt=SLOW, steps=10_000))) as events:
        await anext(events)

    async def empty() -> bool:
        return not (await pool.status()).rows

    await eventually(empty)


async def test_nothing_is_kept_of_runs_that_were_left(pool: SeatedPool) -> None:
    for number in range(3):
        async with contextlib.aclosing(pool.run(job(f"job {number}", prompt=SLOW, steps=10_000))) as events:
            await anext(events)
    line = pool._seats[0].line
    await eventually(lambda: not line._left)
    assert line.load == 0


async def test_a_job_that_was_left_can_be_run_again_at_once(pool: SeatedPool) -> None:
    async with contextlib.aclosing(pool.run(job(prompt=SLOW))) as events:
        await anext(events)
    events_again = await events_of(pool, job(prompt=SLOW))
    assert [event.step for event in events_again if isinstance(event, Progress)] == [1, 2, 3]
    assert events_again[-1] == Ended(task="job")


async def test_a_job_that_cannot_be_told_to_the_engine_fails_alone(child: ChildPool) -> None:
    cache = StepCache(
        kind=StepCacheKind.DUAL_BLOCK, threshold=0.1, refresh_interval=10**20
    )  # no frame has such numbers
    events = await asyncio.wait_for(events_of(child, job("odd", count=2, step_cache=cache)), 10)
    assert [type(event) for event in events] == [Failure, Failure, Ended]
    assert len(pictures(await asyncio.wait_for(events_of(child, job("next")), 10))) == 1


async def test_status_tells_what_is_loaded(pool: SeatedPool) -> None:
    await pool.warm("runware:400@2")
    status = await pool.status()
    assert status.ready
    assert [card.card for card in status.loaded] == ["runware:400@2"]


async def test_an_engine_that_raises_is_replaced(pool: SeatedPool) -> None:
    with pytest.raises(EngineLost):
        await events_of(pool, job(prompt="[crash]"))
    assert pictures(await events_of(pool, job()))


async def test_killed_in_mid_step_it_is_restarted_and_the_picture_is_the_same(child: ChildPool) -> None:
    expected = pictures(await events_of(child, job(prompt=SLOW)))
    reached = asyncio.Event()
    lost = asyncio.create_task(first_step(child, job(prompt=SLOW), reached))
    beside = asyncio.create_task(first_step(child, job("beside", prompt=SLOW), asyncio.Event()))
    await reached.wait()
    killed = pid_of(child)
    os.kill(killed, signal.SIGKILL)
    for run in (lost, beside):
        with pytest.raises(EngineLost):
            await run
    assert pictures(await events_of(child, job(prompt=SLOW))) == expected
    assert pid_of(child) != killed


async def test_the_models_engine_killed_in_mid_step_makes_the_same_picture_again(tmp_path: Path) -> None:
    spec = EngineSpec(make=Make.MODEL, models=str(tmp_path), embedded=str(tiny.embedded()), device="cpu")
    wanted = job(steps=20, width=64, height=64, cfg_scale=4.0, negative_prompt="blue")
    async with started(ChildPool([spec])) as pool:
        assert isinstance(pool, ChildPool)
        reached = asyncio.Event()
        lost = asyncio.create_task(first_step(pool, wanted, reached))
        await reached.wait()
        os.kill(pid_of(pool), signal.SIGKILL)
        with pytest.raises(EngineLost):
            await lost
        again = pictures(await events_of(pool, wanted))
        assert again == pictures(await events_of(pool, wanted))
        assert len(again[0]) == 64 * 64 * 3


async def test_an_engine_that_cannot_be_started_again_now_is_later(
    child: ChildPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = asyncio.create_subprocess_exec, []

    async def once_refused(*arguments: Any, **options: Any) -> Any:
        if not refused:
            refused.append(True)
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return await real(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", once_refused)
    os.kill(pid_of(child), signal.SIGKILL)

    async def down() -> bool:
        return bool(refused)

    await eventually(down)
    assert len(pictures(await asyncio.wait_for(events_of(child, job()), 20))) == 1


async def test_a_job_given_while_the_engine_restarts_waits_for_it(child: ChildPool) -> None:
    os.kill(pid_of(child), signal.SIGKILL)

    async def down() -> bool:
        return not (await child.status()).ready

    await eventually(down)
    assert pictures(await events_of(child, job()))


async def test_a_waiting_job_can_be_cancelled() -> None:
    pool = ChildPool([fake()])
    run = asyncio.create_task(events_of(pool, job()))
    await asyncio.sleep(0)
    await pool.cancel("job")
    assert await run == [Ended(task="job", cancelled=True)]


async def test_stop_leaves_no_process_behind() -> None:
    pool = ChildPool([fake(), fake()])
    async with started(pool):
        run = asyncio.create_task(events_of(pool, job(prompt=SLOW, steps=1000)))
        await asyncio.sleep(0.1)
        pids = pool.pids
        assert len(set(pids)) == 2
    with pytest.raises(EngineLost):
        await run
    assert not any(alive(pid) for pid in pids if pid)


async def test_two_engines_share_the_jobs() -> None:
    async with started(ChildPool([fake(20), fake(20)])) as pool:
        await asyncio.gather(*(events_of(pool, job(f"job {n}", steps=25, width=64 + 16 * n)) for n in range(2)))
        each = [await seat.line.status() for seat in pool._seats]
        assert [status.counters["forwards"] for status in each] == [25, 25]
        status = await pool.status()
        assert status.counters["forwards"] == 50
        assert sum(status.distributions["step_seconds"].counts) == status.distributions["batch_rows"].total == 50


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_engine_dies_with_its_server(how: signal.Signals) -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    with server:
        assert server.stdout
        pid = int(server.stdout.readline())
        assert alive(pid)
        server.send_signal(how)
        server.wait()
        deadline = time.monotonic() + 30
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not alive(pid)


SERVER = textwrap.dedent(
    """
    import asyncio
    from darkroom.engine.spec import EngineSpec, Make
    from darkroom.pool import ChildPool

    async def main():
        pool = ChildPool([EngineSpec(make=Make.FAKE)])
        await pool.start()
        print(pool.pids[0], flush=True)
        await asyncio.sleep(60)

    asyncio.run(main())
    """
)


def alive(pid: int | None) -> bool:
    """Running, and not merely a zombie that nobody has collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
