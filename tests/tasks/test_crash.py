"""What was accepted, stored or finished before a kill -9 is there afterwards, whole."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from darkroom.tasks.lifecycle import Status, is_final
from darkroom.tasks.sql import SqlTaskStore

PROGRAM = """
import asyncio, sys
from darkroom.tasks.lifecycle import Status
from darkroom.tasks.sql import SqlTaskStore
from tests.tasks.stores import new_task, result, webhook

async def main():
    store = await SqlTaskStore.open(sys.argv[1])
    while True:
        for _ in range(3):
            task = await store.submit(new_task(external_id=None, owner=sys.argv[2]))
            print("accepted", task.id, flush=True)
        claim = await store.claim("w", 0.01)
        for index in range(2):
            await store.store_result(claim, result(index), [webhook(result=index)])
            print("stored", claim.task.id, index, flush=True)
        await store.finish(claim, Status.SUCCEEDED, owed=[webhook()])
        print("finished", claim.task.id, flush=True)

asyncio.run(main())
"""


async def test_nothing_that_was_said_is_lost(tmp_path: Path, migrated: Path) -> None:
    url = f"sqlite:///{tmp_path / 'darkroom.db'}"
    said: list[list[str]] = []
    chance = random.Random(1)
    for life in range(2):
        lines = await asyncio.to_thread(_live_and_die, url, f"life {life}", chance.uniform(0.05, 0.4))
        said += [line.split() for line in lines]
    store = await SqlTaskStore.open(url)
    assert {words[0] for words in said} == {"accepted", "stored", "finished"}
    for what, task_id, *rest in said:
        task = await store.get(task_id)
        if what == "stored":
            assert any(result.index == int(rest[0]) for result in task.results)
        if what == "finished":
            assert task.status is Status.SUCCEEDED
    for task_id in {words[1] for words in said}:
        task = await store.get(task_id)
        owed = [delivery.owed.result for delivery in await store.deliveries(task_id)]
        assert sorted(one for one in owed if one is not None) == [result.index for result in task.results]
        assert owed.count(None) == is_final(task.status)
    while (claim := await store.claim("heir", 60)) is not None:  # what was left half done can be done
        await store.finish(claim, Status.SUCCEEDED)
    assert {status for status, count in (await store.counts()).items() if count} == {Status.SUCCEEDED}
    await store.close()


def _live_and_die(url: str, owner: str, seconds: float) -> list[str]:
    """What the program said, until seconds after it had finished its first task."""
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, owner],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["src", "."])},
    )
    assert child.stdout is not None
    with child.stdout:
        said = []
        for line in child.stdout:
            said.append(line)
            if line.startswith("finished"):
                break
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        said.append(child.stdout.read())
    child.wait()
    complete = "".join(said).rpartition("\n")[0]
    return complete.splitlines()
