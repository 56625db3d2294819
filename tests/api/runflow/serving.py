"""A whole server in this process over a folder: everything the wiring builds, with the fake engine and no port."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from darkroom.config import EngineKind, Settings
from darkroom.engine.fake import FakeEngine
from darkroom.pool import LocalPool
from darkroom.tasks.sql import SqlTaskStore
from darkroom.wiring import Server

MODEL = "black-forest-labs/flux-2-klein-4b"
EDIT = f"{MODEL}/edit"
BASE = "http://darkroom.test"
TERMINAL = ("succeeded", "failed", "canceled")


class Runs:
    """An HTTP client of one key, with the calls that most tests make."""

    def __init__(self, server: Server, key: str = "") -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        transport = httpx.ASGITransport(server.app, raise_app_exceptions=False)
        self.server = server
        self.http = httpx.AsyncClient(transport=transport, base_url=BASE, headers=headers, timeout=30)

    async def post(self, path: str, body: Any = None, status: int = 201, **headers: str) -> Any:
        return self.checked(await self.http.post(path, json=body, headers=headers), status)

    async def get(self, path: str, status: int = 200, **query: str) -> Any:
        return self.checked(await self.http.get(path, params=query or None), status)

    async def checked_delete(self, path: str, status: int = 200) -> Any:
        return self.checked(await self.http.delete(path), status)

    def checked(self, response: httpx.Response, status: int) -> Any:
        assert response.status_code == status, response.text
        if response.status_code >= 400:
            body = response.json()
            assert set(body) == {"code", "message", "errors"}
            assert isinstance(body["code"], str)
            assert isinstance(body["message"], str)
        return response.json() if response.content else None

    async def create(self, model: str = MODEL, *, status: int = 201, envelope: Any = None, **given: Any) -> Any:
        """A small, quick run unless the test says otherwise."""
        small = {"width": 128, "height": 128, "num_inference_steps": 2}
        body = {"input": {"prompt": "a red circle", **small, **given}, **(envelope or {})}
        return await self.post(f"/v1/models/{model}/runs", body, status)

    async def ended(self, run: Any, seconds: float = 60) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = await self.get(f"/v1/runs/{run['id']}")
            if found["status_code"] in TERMINAL:
                return found
            await asyncio.sleep(0.02)
        raise AssertionError(f"still {found['status_code']} after {seconds} s")

    async def made(self, model: str = MODEL, **given: Any) -> Any:
        return await self.ended(await self.create(model, **given))

    async def pending(self) -> list[Any]:
        return list((await self.get("/v1/runs", q="status_code:queued OR status_code:running"))["items"])


@contextlib.asynccontextmanager
async def serving(folder: Path, *, step_ms: float = 0, working: bool = True, **settings: Any) -> AsyncIterator[Server]:
    """working: False leaves runs in the queue."""
    options = Settings(
        data=folder,
        engine=EngineKind.FAKE,
        models=folder / "models",
        **{"allow_private_urls": True, **settings},
    )
    server = Server(options, pool=LocalPool(lambda: FakeEngine(step_ms=step_ms)))
    await server.start()
    if not working:
        await server.worker.stop(0)
    try:
        yield server
    finally:
        await server.stop(grace_seconds=0)


async def make_keys(folder: Path, *names: str) -> list[str]:
    """Keys in the database of a server that is started later; from then on it asks for one."""
    store = await SqlTaskStore.open(f"sqlite:///{folder / 'darkroom.db'}")
    try:
        return [(await store.keys.create(name))[1] for name in names]
    finally:
        await store.close()


def picture(width: int = 96, height: int = 64, form: str = "PNG", colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, form)
    return buffer.getvalue()
