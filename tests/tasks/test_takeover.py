"""A server that is alone takes up at once what its killed predecessor had leased."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from darkroom.errors import LeaseLost
from darkroom.tasks.lifecycle import MAX_ATTEMPTS, Status
from darkroom.tasks.sql import SqlTaskStore
from darkroom.tasks.takeover import end_leases
from darkroom.tasks.task import Owed, OwedKind
from tests.tasks.stores import new_task

HOUR = 3600.0


async def test_tasks_and_deliveries_are_free_at_once_and_attempts_count(tmp_path: Path) -> None:
    store = await SqlTaskStore.open(f"sqlite:///{tmp_path / 'darkroom.db'}")
    task = await store.submit(new_task())
    await store.owe(task.id, Owed(kind=OwedKind.WEBHOOK, url="http://127.0.0.1:9/", policy="runware"))
    lost = await store.claim("killed", HOUR)
    assert lost and await store.due(datetime.now(UTC), 10, HOUR)
    assert await store.claim("successor", HOUR) is None
    assert await store.due(datetime.now(UTC), 10, HOUR) == []

    assert await end_leases(store.database) == 1

    again = await store.claim("successor", HOUR)
    assert again and (again.task.id, again.task.attempts) == (task.id, 2)
    assert len(await store.due(datetime.now(UTC), 10, HOUR)) == 1
    with pytest.raises(LeaseLost):
        await store.finish(lost, Status.SUCCEEDED)
    await store.close()


async def test_a_task_that_killed_every_server_ends(tmp_path: Path) -> None:
    store = await SqlTaskStore.open(f"sqlite:///{tmp_path / 'darkroom.db'}")
    task = await store.submit(new_task())
    for _ in range(MAX_ATTEMPTS):
        assert await store.claim("killed", HOUR)
        await end_leases(store.database)
    assert await store.claim("successor", HOUR) is None
    ended = await store.get(task.id)
    assert ended.status is Status.FAILED
    assert ended.fault and ended.fault.code == "engine_lost"
    assert await end_leases(store.database) == 0
    await store.close()
