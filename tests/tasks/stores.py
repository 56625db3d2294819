"""Opens every kind of store on a clock that tests move, and makes what they keep."""

from __future__ import annotations

import itertools
import os
import shutil
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from darkroom.tasks.database import Database, backend_of
from darkroom.tasks.memory import MemoryTaskStore
from darkroom.tasks.sql import SqlTaskStore
from darkroom.tasks.tables import metadata
from darkroom.tasks.task import NewTask, Owed, OwedKind, Result
from darkroom.types import ImageRequest, Media, MediaKind

POLL_SECONDS = 0.02
NUMBERS = itertools.count()


class Clock:
    """Moves when told to, and a microsecond at every look, as a real one does."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(microseconds=1)
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Stores:
    """Opens servers' stores on one database; kind: "memory", "sqlite" or "postgres"."""

    def __init__(self, kind: str, url: str, clock: Clock, closing: AsyncExitStack) -> None:
        self.kind = kind
        self.clock = clock
        self._url = url
        self._closing = closing
        self._memory: MemoryTaskStore | None = None

    async def open(self, **limits: int) -> Any:
        """Another server's store (the same object where there is no disk to share)."""
        if self.kind == "memory":
            if self._memory is None:
                self._memory = MemoryTaskStore(clock=self.clock, **limits)
                self._closing.push_async_callback(self._memory.close)
            return self._memory
        store = await SqlTaskStore.open(self._url, clock=self.clock, poll_seconds=POLL_SECONDS, **limits)
        self._closing.push_async_callback(store.close)
        return store


async def database_url(kind: str, tmp_path: Path, migrated: Path | None = None) -> str:
    """A database without tables, or with those of a migrated SQLite file."""
    if kind != "postgres":
        if migrated is not None:
            shutil.copy(migrated, tmp_path / "darkroom.db")
        return f"sqlite:///{tmp_path / 'darkroom.db'}"
    url = os.environ.get("DARKROOM_TEST_POSTGRES")
    if not url:
        pytest.skip("DARKROOM_TEST_POSTGRES is not set")
    database = Database(backend_of(url))
    await database.write(_drop_everything)
    await database.close()
    return url


def _drop_everything(connection: sa.Connection) -> None:
    metadata.drop_all(connection)
    connection.execute(sa.text("DROP TABLE IF EXISTS alembic_version"))


def request(**fields: Any) -> ImageRequest:
    return ImageRequest(**{"card": "c", "prompt": "a cat", "width": 64, "height": 64, "steps": 4, "seed": 1, **fields})


def new_task(owner: str = "alice", external_id: str | None = None, **fields: Any) -> NewTask:
    name = external_id or f"task-{next(NUMBERS)}"
    return NewTask(
        **{
            "owner": owner,
            "dialect": "runware",
            "external_id": name,
            "request": request(),
            "wire": {"taskUUID": name, "nested": [1, {"a": None}]},
            **fields,
        }
    )


def result(index: int = 0, **fields: Any) -> Result:
    return Result(**{"index": index, "seed": 2**63 - 1 - index, "media_id": f"media-{index}", **fields})


def stored_file(clock: Clock, **fields: Any) -> Media:
    facts = {"kind": MediaKind.RESULT, "content_type": "image/png", "extension": "png", "width": 4, "height": 3}
    return Media(
        **{"id": str(uuid4()), "owner": "alice", "bytes": 10, "sha256": "cd" * 32, "created_at": clock(), **facts}
        | fields
    )


def webhook(url: str = "https://example.com/hook", **fields: Any) -> Owed:
    return Owed(**{"kind": OwedKind.WEBHOOK, "url": url, "policy": "runware", "body": b"{}", **fields})


def upload(url: str = "https://example.com/put", **fields: Any) -> Owed:
    return Owed(**{"kind": OwedKind.UPLOAD, "url": url, "policy": "upload", "media_id": "media-0", **fields})
