"""kill -9 of the server and of the engine at random moments, while tasks with webhooks run.

Afterwards every task has ended, once; every result was announced, at least once; every picture can be fetched; and no
file is there that belongs to nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from darkroom.tasks.lifecycle import MAX_ATTEMPTS, Status, is_final
from darkroom.tasks.sql import SqlTaskStore
from darkroom.tasks.task import Delivery, Task
from tests.live import LiveServer

OWNER = "local"


class Receiver(ThreadingHTTPServer):
    """Counts the calls that arrive, by path; refuses every fifth at first, so that retries are part of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hook)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def heard(self) -> dict[str, list[dict[str, Any]]]:
        with self.lock:
            found: dict[str, list[dict[str, Any]]] = {}
            for path, body in self.calls:
                found.setdefault(path.removeprefix("/"), []).append(body)
            return found


class Hook(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.calls.append((self.path, body))
            refused = len(self.server.calls) % 5 == 0
        self.send_response(503 if refused else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("tasks", "kills", "seed"),
    [
        pytest.param(16, ("engine", "server", "engine"), 1, id="short"),
        pytest.param(50, ("engine", "server") * 6, 2, id="long", marks=pytest.mark.slow),
        pytest.param(50, ("server",) * 8, 3, id="servers", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_lost_and_nothing_is_done_twice(
    tmp_path: Path, tasks: int, kills: tuple[str, ...], seed: int
) -> None:
    dice = random.Random(seed)
    with receiver() as hooks, LiveServer(tmp_path) as server:
        submitting = threading.Thread(target=submit_all, args=(server, hooks, tasks, dice.random()))
        submitting.start()
        for victim in kills:
            time.sleep(dice.uniform(0.1, 1.5))
            kill(server, victim)
        submitting.join()
        wait_until_idle(server)
        server.stop()
        ended, owed = asyncio.run(recorded(tmp_path))
        assert len(ended) == tasks
        for task in ended:
            check_end(task, owed[task.id], hooks.heard()[task.external_id])
        server.start()
        for task in ended:
            for result in task.results:
                assert httpx.get(f"{server.url}/ii/{result.media_id}.jpg", timeout=30).content.startswith(
                    b"\xff\xd8\xff"
                )
    kept = {path.name for path in (tmp_path / "media").rglob("*") if path.is_file()}
    assert kept == {f"{result.media_id}.jpg" for task in ended for result in task.results}


def submit_all(server: LiveServer, hooks: Receiver, count: int, seed: float) -> None:
    """Every task until the server says it has it; a task that was accepted before the server died is not made twice."""
    dice = random.Random(seed)
    with httpx.Client(timeout=10) as http:
        for _ in range(count):
            task_uuid = str(uuid.UUID(int=dice.getrandbits(128), version=4))
            task = {
                "taskType": "imageInference",
                "taskUUID": task_uuid,
                "deliveryMethod": "async",
                "webhookURL": f"{hooks.url}/{task_uuid}",
                "model": "runware:400@4",
                "positivePrompt": f"slowly [slow {dice.randint(1, 30)}]",
                "width": 256,
                "height": 256,
                "steps": dice.randint(2, 8),
                "numberResults": dice.randint(1, 3),
            }
            until_accepted(http, server, task)
            time.sleep(dice.uniform(0, 0.1))


def until_accepted(http: httpx.Client, server: LiveServer, task: dict[str, Any]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            answer = http.post(f"{server.url}/v1", json=[task]).json()
            codes = [error["code"] for error in answer.get("errors", ())]
            assert codes in ([], ["conflictTaskUUID"]), answer
            return
        time.sleep(0.05)
    raise TimeoutError("the server did not come back")


def kill(server: LiveServer, victim: str) -> None:
    assert server.process
    if victim == "server":
        server.kill()
        server.start()
        return
    for pid in Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split():
        os.kill(int(pid), signal.SIGKILL)


def wait_until_idle(server: LiveServer, seconds: float = 120) -> None:
    """No task is queued or runs, and no call is owed any more."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, owed = asyncio.run(recorded(server.data))
        told = all(delivery.state != "pending" for deliveries in owed.values() for delivery in deliveries)
        if told and all(is_final(task.status) for task in ended):
            return
        time.sleep(0.3)
    raise TimeoutError(f"tasks or calls are left over:\n{server.tail()}")


async def recorded(data: Path) -> tuple[list[Task], dict[str, list[Delivery]]]:
    store = await SqlTaskStore.open(f"sqlite:///{data / 'darkroom.db'}")
    try:
        tasks = await store.recent(OWNER, limit=200)
        return tasks, {task.id: await store.deliveries(task.id) for task in tasks}
    finally:
        await store.close()


def check_end(task: Task, owed: list[Delivery], heard: list[dict[str, Any]]) -> None:
    announced = Counter(delivery.owed.result for delivery in owed)
    assert all(delivery.state == "delivered" for delivery in owed)
    assert set(announced.values()) == {1}, "a result is announced by one call, tried as often as it takes"
    if task.status is Status.SUCCEEDED:
        assert [result.index for result in task.results] == list(range(task.request.count))
        assert {body["imageUUID"] for body in heard} == {result.media_id for result in task.results}
    else:  # killed under every attempt: its client is told
        assert (task.fault and task.fault.code, task.attempts) == ("engine_lost", MAX_ATTEMPTS)
        assert any(body.get("errors") for body in heard)
