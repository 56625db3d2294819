"""Notices that the last run of a batch has ended; owes the batch's callback and closes the batch."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import msgspec
import structlog

from darkroom.api.runflow import batches
from darkroom.api.services import Services
from darkroom.errors import NotFound, StorageError
from darkroom.tasks.documents import Document
from darkroom.tasks.lifecycle import is_final
from darkroom.tasks.task import Task

log = structlog.get_logger(__name__)
LOOK_SECONDS = 1.0


class BatchCloser:
    """Looks at the open batches again and again."""

    def __init__(self, services: Services, look_seconds: float = LOOK_SECONDS) -> None:
        self._services = services
        self._look_seconds = look_seconds
        self._ended: dict[str, int] = {}  # how many runs from the first on are known to have ended

    async def run(self) -> None:
        """Until cancelled. A database that does not answer is asked again."""
        while True:
            try:
                await self.close_ended()
            except StorageError as error:
                log.warning("batches_not_looked_at", reason=error.message)
            await asyncio.sleep(self._look_seconds)

    async def close_ended(self) -> int:
        """Close every open batch whose runs have all ended; returns how many."""
        documents = self._services.store.documents
        opened = await documents.list(batches.NOBODY, batches.OPEN)
        closed = 0
        for document in opened:
            if await self._all_ended(document):
                await self._close(document)
                closed += 1
        self._ended = {doc.id: self._ended[doc.id] for doc in opened if doc.id in self._ended}
        return closed

    async def _all_ended(self, document: Document) -> bool:
        """Looks at one run that is still at work, not at all of them."""
        try:
            found = await self._services.store.documents.get(document.value["owner"], batches.KIND, document.id)
        except NotFound:
            return True
        names = msgspec.convert(found.value, batches.Batch).runs
        ended = self._ended.get(document.id, 0)
        while ended < len(names):
            task = await _task(self._services, names[ended])
            if task is not None and not is_final(task.status):
                break
            ended += 1
        self._ended[document.id] = ended
        return ended == len(names)

    async def _close(self, document: Document) -> None:
        """Owe the callback, note the end, forget that it was open: in this order, each step harmless to repeat."""
        services, owner = self._services, document.value["owner"]
        with suppress(NotFound):
            standing = await batches.find(services, owner, document.id)
            if standing.batch.callback_url and standing.tasks and not await batches.deliveries(services, standing):
                await services.store.owe(standing.tasks[0].id, batches.owed_for(standing), automatic=True)
            batch = msgspec.structs.replace(standing.batch, completed_at=standing.completed_at)
            until = datetime.now(UTC) + timedelta(seconds=services.settings.keep_seconds)
            await services.store.documents.put(
                owner, batches.KIND, document.id, msgspec.to_builtins(batch), expires_at=until
            )
        await services.store.documents.delete(batches.NOBODY, batches.OPEN, document.id)


async def _task(services: Services, run_id: str) -> Task | None:
    with suppress(NotFound):
        return await services.store.get(run_id)
    return None
