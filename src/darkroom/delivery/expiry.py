"""Forgets what is no longer kept: files whose time is over, old tasks, used idempotency keys, stray files."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from darkroom.config import Settings
from darkroom.errors import StorageError
from darkroom.media.store import MediaStore
from darkroom.tasks.store import TaskStore

EVERY_SECONDS: Final = 10.0  # a ttl of 60 s is kept to within this
SWEEP_EVERY: Final = timedelta(hours=1)
AT_ONCE: Final = 200

log = structlog.get_logger(__name__)


class Expiry:
    """run() until cancelled, or once() for one round. A stray file is deleted an hour after it appeared."""

    def __init__(
        self,
        store: TaskStore,
        media: MediaStore,
        settings: Settings,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._media = media
        self._keep = timedelta(seconds=settings.keep_seconds)
        self._clock = clock
        self._swept: datetime | None = None

    async def run(self) -> None:
        """A round now and then. A database or bucket that does not answer is tried again at the next."""
        while True:
            try:
                await self.once()
            except StorageError as error:
                log.warning("expiry.waits", reason=error.message)
            await asyncio.sleep(EVERY_SECONDS)

    async def once(self) -> None:
        """Everything whose time is over now."""
        now = self._clock()
        files = await _all(lambda: self._media.expire(now, AT_ONCE))
        tasks = await _all(lambda: self._store.expire(now - self._keep, AT_ONCE))
        await self._store.idempotency.expire(now)
        await self._store.documents.expire(now)
        if files or tasks:
            log.info("expiry.forgot", files=files, tasks=tasks)
        if self._swept is None or now - self._swept >= SWEEP_EVERY:
            self._swept = now
            await self._sweep()

    async def _sweep(self) -> None:
        files, records = await self._media.sweep()
        if files or records:
            log.info("expiry.swept", stray_files=files, hollow_records=records)


async def _all(some: Callable[[], Awaitable[int]]) -> int:
    """Batch after batch, so that no transaction is long."""
    total = 0
    while (done := await some()) > 0:
        total += done
        if done < AT_ONCE:
            break
    return total
