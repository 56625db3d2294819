"""How far the tasks are that somebody polls: progress is a hint that nobody stores, so it is listened to here."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from darkroom.api.services import Services
from darkroom.errors import NotFound
from darkroom.tasks.lifecycle import is_final
from darkroom.types import Progress, Stage

MAX_FOLLOWED = 500  # tasks whose progress is remembered at once


class ProgressBoard:
    """A task is followed from its first poll on, until it ends."""

    def __init__(self) -> None:
        self.known: dict[str, dict[int, int]] = {}
        self.followers: set[asyncio.Task[None]] = set()

    def percent(self, services: Services, task_id: str) -> dict[int, int]:
        """Percent done by result, as far as known; {} at the first poll."""
        if task_id not in self.known and len(self.known) < MAX_FOLLOWED:
            self.known[task_id] = {}
            follower = asyncio.create_task(self._follow(services, task_id))
            self.followers.add(follower)
            follower.add_done_callback(self.followers.discard)
        return self.known.get(task_id, {})

    async def _follow(self, services: Services, task_id: str) -> None:
        try:
            with suppress(NotFound):
                async with services.store.watch(task_id) as events:
                    if is_final((await services.store.get(task_id)).status):
                        return
                    async for event in events:
                        if isinstance(event, Progress):
                            self.known[task_id][event.result] = percent_of(event)
        finally:
            del self.known[task_id]


def percent_of(event: Progress) -> int:
    """0 to 99: 100 is a finished result, which is no longer "processing"."""
    before = (Stage.QUEUE, Stage.TEXT, Stage.REFERENCES)
    return 0 if event.stage in before else min(99, 100 * event.step // max(1, event.steps))
