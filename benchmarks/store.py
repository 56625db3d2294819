"""What a task costs in the store: each move alone, a whole life, many at once; and whether memory stays flat.

    python -m benchmarks.store [DATABASE_URL]

Without a URL SQLite in a temporary folder. Moves that a client was told about are flushed to disk, so the price of a
flush (fsync) on this machine is printed first: it is the floor of submit and finish.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks.common import header, result, table
from darkroom.media.store import MediaStore
from darkroom.tasks.lifecycle import Status
from darkroom.tasks.sql import SqlTaskStore
from darkroom.tasks.store import TaskChanged
from darkroom.tasks.task import Claim, NewTask, Owed, OwedKind, Result, Task
from darkroom.types import ImageRequest

TASKS = 300
LIVES = 2000  # for memory
AT_ONCE = 16
PICTURE = os.urandom(1_500_000)  # about a 1024×1024 PNG
REQUEST = ImageRequest(card="runware:400@4", prompt="a red circle", width=1024, height=1024, steps=4, seed=1)
HOOK = Owed(kind=OwedKind.WEBHOOK, url="https://example.com/hook", policy="runware", body=b"{}" * 200)


async def main(database: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = database or f"sqlite:///{folder}/darkroom.db"
        header("task store", database=url.partition(":")[0], tasks=TASKS, picture_bytes=len(PICTURE))
        store = await SqlTaskStore.open(url, queue_limit=10**6, queue_limit_per_key=10**6)
        media = await MediaStore.open(Path(folder) / "media", store.files)
        flush = await asyncio.to_thread(flushes, Path(folder) / "flush")
        rows = [("fsync of 4 kB", *summary(flush)), *await moves(store, media)]
        life = await lives(store, TASKS, 1)
        crowd = await lives(store, TASKS, AT_ONCE)
        rows += [
            ("submit + claim + store + finish", *summary(life)),
            ("the end, until a watcher hears it", *summary(await heard(store))),
        ]
        table(("move", "p50 ms", "p95 ms"), rows)
        per_second = {1: rate(life, 1), AT_ONCE: rate(crowd, AT_ONCE)}
        table(("tasks at once", "whole lives per second"), per_second.items())
        growth = await memory(store)
        print(f"resident memory after {LIVES} more lives: {growth / 1024:+.1f} MB")
        await store.close()
    ratios = {"life_over_fsync": statistics.median(life) / statistics.median(flush)}
    result("store", ratios, lives_per_second=round(per_second[AT_ONCE]), growth_mb=round(growth / 1024, 1))


async def moves(store: SqlTaskStore, media: MediaStore) -> list[tuple[object, ...]]:
    """Each move alone, one after the other."""
    tasks: list[Task] = []
    claims: list[Claim] = []

    async def submit(_: int) -> None:
        tasks.append(await store.submit(new_task()))

    async def claim(_: int) -> None:
        claims.append(await claimed(store))

    steps: list[tuple[str, Callable[[int], Awaitable[Any]]]] = [
        ("submit", submit),
        ("queue position", lambda i: store.queue_positions([tasks[-1 - i].id])),
        ("claim", claim),
        ("renew", lambda i: store.renew(claims[i], 20)),
        ("store result and webhook", lambda i: store.store_result(claims[i], made(), [HOOK])),
        ("finish and webhook", lambda i: store.finish(claims[i], Status.SUCCEEDED, owed=[HOOK])),
        ("get", lambda i: store.get(tasks[i].id)),
        ("find", lambda i: store.find("a", "runware", tasks[i].external_id)),
        ("list of 50", lambda i: store.recent("a", limit=50)),
        ("deliveries due, 32", lambda i: store.due(datetime.now(UTC), 32, 60)),
        ("put a picture", lambda i: put(media)),
        ("expire", lambda i: store.expire(datetime.now(UTC), 1)),
    ]
    return [(name, *summary([await timed(step(i)) for i in range(TASKS)])) for name, step in steps]


async def lives(store: SqlTaskStore, count: int, at_once: int) -> list[float]:
    """Seconds of each whole life, with so many going on."""
    left = list(range(count))
    times: list[float] = []

    async def worker() -> None:
        while left:
            left.pop()
            times.append(await timed(live(store)))

    await asyncio.gather(*(worker() for _ in range(at_once)))
    return times


async def live(store: SqlTaskStore) -> None:
    await store.submit(new_task())
    claim = await claimed(store)
    await store.store_result(claim, made(), [])
    await store.finish(claim, Status.SUCCEEDED)


async def heard(store: SqlTaskStore) -> list[float]:
    """From the call of finish to the watcher."""
    times = []
    for _ in range(TASKS):
        task = await store.submit(new_task())
        claim = await claimed(store)
        async with store.watch(task.id) as events:
            began = time.perf_counter()
            finishing = asyncio.create_task(store.finish(claim, Status.SUCCEEDED))
            async for event in events:
                if isinstance(event, TaskChanged):
                    times.append(time.perf_counter() - began)
            await finishing
    return times


async def memory(store: SqlTaskStore) -> float:
    """Growth of the peak, in kB, over many lives whose tasks are forgotten again."""
    await lives(store, 100, AT_ONCE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(LIVES // 200):
        await lives(store, 200, AT_ONCE)
        await store.expire(datetime.now(UTC), 1000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def flushes(path: Path) -> list[float]:
    times = []
    with path.open("wb") as file:
        for _ in range(50):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    path.unlink()
    return times


async def put(media: MediaStore) -> None:
    await media.put("a", PICTURE, "image/png", kind="result", width=1024, height=1024)


async def claimed(store: SqlTaskStore) -> Claim:
    claim = await store.claim("w", 60)
    assert claim is not None
    return claim


def new_task() -> NewTask:
    name = str(uuid4())
    return NewTask(owner="a", dialect="runware", external_id=name, request=REQUEST, wire={"taskUUID": name})


def made() -> Result:
    return Result(index=0, seed=1, media_id=str(uuid4()), width=1024, height=1024)


async def timed(work: Awaitable[Any]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


def summary(times: list[float]) -> tuple[float, float]:
    """p50 and p95 in milliseconds."""
    ordered = sorted(times)
    return ordered[len(ordered) // 2] * 1000, ordered[int(len(ordered) * 0.95)] * 1000


def rate(times: list[float], at_once: int) -> float:
    return at_once * len(times) / sum(times)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", metavar="DATABASE_URL", nargs="?")
    asyncio.run(main(parser.parse_args().database))
