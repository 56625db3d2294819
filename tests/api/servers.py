"""A whole server in this process, for tests of the API: real store, media and worker, the fake engine, no port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from darkroom.api.app import create_app
from darkroom.api.gate import Gate
from darkroom.api.services import Services
from darkroom.assembly import announcers
from darkroom.catalog.adapters import Adapters
from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.installed import Installed
from darkroom.config import EngineKind, Settings
from darkroom.engine.fake import FakeEngine
from darkroom.media.fetch import Fetcher
from darkroom.media.store import MediaStore
from darkroom.pool import LocalPool
from darkroom.tasks.sql import SqlTaskStore
from darkroom.worker import Worker

CATALOG = load_catalog()


class SomeKeys:
    """The keys of a server: key to owner."""

    def __init__(self, owners: dict[str, str]) -> None:
        self.owners = owners

    async def check(self, key: str) -> str | None:
        return self.owners.get(key)

    async def any(self) -> bool:
        return True


class TestServer:
    """services and app of a running server; client(): an HTTP client on it; start(): work on what is queued."""

    __test__ = False

    def __init__(self, services: Services, app: FastAPI, worker: Worker) -> None:
        self.services = services
        self.app = app
        self.worker = worker
        self.running: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.running = asyncio.create_task(self.worker.run())

    async def stop(self) -> None:
        if self.running:
            await self.worker.stop(0)
            self.running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.running

    def client(self, **headers: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://darkroom.test", headers=headers, timeout=20)

    async def post(self, *tasks: Mapping[str, Any], **headers: str) -> httpx.Response:
        async with self.client(**headers) as client:
            return await client.post("/v1", json=list(tasks))


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    *,
    keys: SomeKeys | None = None,
    working: bool = True,
    features: frozenset[str] = frozenset(),
    **settings: Any,
) -> AsyncIterator[TestServer]:
    """A server over a folder. working: the worker runs; without it tasks stay queued until start()."""
    options = Settings(data=folder, engine=EngineKind.FAKE, **{"allow_private_urls": True, **settings})
    async with contextlib.AsyncExitStack() as stack:
        store = await SqlTaskStore.open(
            f"sqlite:///{folder / 'darkroom.db'}",
            queue_limit=options.queue_limit,
            queue_limit_per_key=options.queue_limit_per_key,
        )
        stack.push_async_callback(store.close)
        media = await MediaStore.open(folder / "media", store.files)
        fetcher = Fetcher(allow_private=options.allow_private_urls, seconds=5, max_bytes=options.fetch_bytes)
        stack.push_async_callback(fetcher.close)
        pool = LocalPool(FakeEngine)
        await pool.start()
        stack.push_async_callback(pool.stop)
        services = Services(
            settings=options,
            catalog=CATALOG,
            installed=Installed(folder / "models", folder / "embedded"),
            adapters=Adapters(folder / "adapters"),
            store=store,
            media=media,
            fetcher=fetcher,
            pool=pool,
            announce=announcers(),
            gate=Gate(keys or store.keys),
            features=features,
        )
        worker = Worker(
            store=store,
            media=media,
            pool=pool,
            catalog=CATALOG,
            adapters=services.adapters,
            announce=services.announce,
            settings=options,
        )
        server = TestServer(services, create_app(services), worker)
        stack.push_async_callback(server.stop)
        if working:
            server.start()
        yield server
