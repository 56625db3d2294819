"""Every kind of store, and a clock that tests move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from darkroom.tasks.database import Database
from darkroom.tasks.store import TaskStore
from tests.tasks.stores import Clock, Stores, database_url


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database with its tables; a copy of it saves every test a migration."""
    path = tmp_path_factory.mktemp("migrated") / "darkroom.db"

    async def make() -> None:
        await (await Database.open(f"sqlite:///{path}")).close()

    asyncio.run(make())
    return path


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def stores(request: pytest.FixtureRequest, tmp_path: Path, migrated: Path, clock: Clock) -> AsyncIterator[Stores]:
    async with AsyncExitStack() as closing:
        yield Stores(request.param, await database_url(request.param, tmp_path, migrated), clock, closing)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def sql_stores(
    request: pytest.FixtureRequest, tmp_path: Path, migrated: Path, clock: Clock
) -> AsyncIterator[Stores]:
    """Those that share a database between servers."""
    async with AsyncExitStack() as closing:
        yield Stores(request.param, await database_url(request.param, tmp_path, migrated), clock, closing)


@pytest.fixture
async def store(stores: Stores) -> TaskStore:
    return await stores.open()
