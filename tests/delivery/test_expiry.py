"""Nothing is kept longer than it should be, and nothing shorter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from darkroom.config import Settings
from darkroom.delivery.expiry import Expiry
from darkroom.errors import NotFound, StorageError
from darkroom.media.store import MediaStore
from darkroom.tasks.sql import SqlTaskStore
from tests.eventually import eventually
from tests.tasks.stores import Clock, new_task

KEEP = 3600


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[SqlTaskStore]:
    store = await SqlTaskStore.open(f"sqlite:///{tmp_path / 'darkroom.db'}", clock=clock)
    yield store
    await store.close()


@pytest.fixture
async def media(store: SqlTaskStore, tmp_path: Path, clock: Clock) -> MediaStore:
    return await MediaStore.open(tmp_path / "media", store.files, keep_seconds=KEEP, clock=clock)


@pytest.fixture
def expiry(store: SqlTaskStore, media: MediaStore, clock: Clock) -> Expiry:
    return Expiry(store, media, Settings(keep_seconds=KEEP), clock=clock)


async def put(media: MediaStore, ttl_seconds: int | None = None) -> Any:
    return await media.put("alice", b"x", "image/png", kind="result", width=1, height=1, ttl_seconds=ttl_seconds)


def names(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "media").rglob("*") if path.is_file()}


async def test_files_and_tasks_are_forgotten_in_their_time(
    store: SqlTaskStore, media: MediaStore, expiry: Expiry, clock: Clock, tmp_path: Path
) -> None:
    ended, open_task = await store.submit(new_task()), await store.submit(new_task())
    await store.cancel(ended.id)
    short, usual, long = await put(media, 60), await put(media), await put(media, 2 * KEEP)
    await expiry.once()
    assert names(tmp_path) == {short.name, usual.name, long.name}
    clock.advance(61)
    await expiry.once()
    assert names(tmp_path) == {usual.name, long.name}
    assert (await store.get(ended.id)).id == ended.id
    clock.advance(KEEP)
    await expiry.once()
    assert names(tmp_path) == {long.name}
    with pytest.raises(NotFound):
        await store.get(ended.id)
    assert await store.get(open_task.id) == open_task


async def test_more_than_one_batch_is_forgotten_in_one_round(
    store: SqlTaskStore, expiry: Expiry, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkroom.delivery.expiry.AT_ONCE", 3)
    for _ in range(10):
        await store.cancel((await store.submit(new_task())).id)
    clock.advance(KEEP + 1)
    await expiry.once()
    assert await store.recent("alice") == []


async def test_idempotency_keys_and_documents_are_forgotten(store: SqlTaskStore, expiry: Expiry, clock: Clock) -> None:
    await store.idempotency.begin("alice", "k", "h")
    await store.documents.put("alice", "upload", "u", {}, expires_at=clock() + timedelta(seconds=60))
    clock.advance(25 * 3600)
    await expiry.once()
    assert await store.idempotency.expire(clock()) == 0
    assert await store.documents.expire(clock()) == 0


async def test_strays_are_swept_once_an_hour(media: MediaStore, expiry: Expiry, clock: Clock) -> None:
    swept = 0
    sweep = media.sweep

    async def counting() -> tuple[int, int]:
        nonlocal swept
        swept += 1
        return await sweep()

    media.sweep = counting  # type: ignore[method-assign]
    for _ in range(3):
        await expiry.once()
    clock.advance(3601)
    await expiry.once()
    assert swept == 2


async def test_a_database_that_does_not_answer_is_tried_again(expiry: Expiry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkroom.delivery.expiry.EVERY_SECONDS", 0.01)
    rounds = 0

    async def failing() -> None:
        nonlocal rounds
        rounds += 1
        raise StorageError("The database does not answer; try again in a moment.")

    expiry.once = failing  # type: ignore[method-assign]
    running = asyncio.create_task(expiry.run())
    await eventually(lambda: rounds >= 3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
